//! Moves the bytes of pieces between two peers over the piece port.
//!
//! [`Server`] is the parent's side: it reads requests, asks a [`PieceSource`] for the [`Content`] and sends it from the file
//! without copying it through this process. [`Client`] is the child's side: it asks one parent for one piece or segment
//! and hands the bytes to a [`Sink`] as they come. Which parent to ask, what to do after a failure and what the bytes mean
//! is the business of the callers; the packets are those of [`protocol::vortex`].
//!
//! Both sides treat the other as hostile: lengths are checked before memory is taken, every wait has a limit, the number
//! of connections and the memory per connection are bounded.
//!
//! ```
//! # use std::sync::{Arc, Mutex};
//! # use protocol::vortex::{ErrorReply, PieceHead, Request};
//! # use protocol::{PieceNumber, PieceSpan, TaskKind};
//! # use tokio_util::sync::CancellationToken;
//! use transfer::{Arrival, CancelHandle, Client, ClientOptions, Content, ContentHead, FetchRequest, Limits};
//! use transfer::{PieceSource, Server, ServerOptions, Sink, SinkError, Wanted};
//!
//! struct Hello(std::fs::File);
//!
//! impl PieceSource for Hello {
//!     async fn open(&self, request: Request, _child: std::net::SocketAddr) -> Result<Content, ErrorReply> {
//!         let head = PieceHead { piece: request.piece(), length: 5, digest: "crc32:907060870".into(), ..PieceHead::default() };
//!         let file = Arc::new(self.0.try_clone().expect("descriptors are free"));
//!         Ok(Content { head: ContentHead::Piece(head), file, file_offset: 0, arrival: Arrival::Whole, upload: Box::new(()) })
//!     }
//! }
//!
//! #[derive(Default)]
//! struct Collect(Vec<u8>);
//!
//! impl Sink for Collect {
//!     fn write(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
//!         self.0.extend(bytes);
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut file = tempfile::tempfile()?;
//! # std::io::Write::write_all(&mut file, b"hello")?;
//! let server = Server::bind("127.0.0.1:0".parse()?, ServerOptions::default())?;
//! let parent = server.local_addr()?;
//! let stop = CancellationToken::new();
//! let serving = tokio::spawn(server.serve(Hello(file), stop.clone()));
//!
//! let client = Client::new(ClientOptions::default());
//! let span = PieceSpan { number: PieceNumber(0), offset: 0, length: 5 };
//! let wanted = Wanted::Piece { kind: TaskKind::Standard, task_id: "a".repeat(64).parse()?, span };
//! let request = FetchRequest { parent, wanted, limits: Limits::default() };
//! let outcome = client.fetch(request, Collect::default(), CancelHandle::new()).await;
//! outcome.result?;
//! assert_eq!(outcome.sink.0, b"hello");
//!
//! stop.cancel();
//! serving.await?;
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod client;
mod content;
mod rate;
mod server;
mod sys;

pub use client::{
    CancelHandle, Client, ClientOptions, Fault, FetchError, FetchOutcome, FetchRequest, Limits,
    Sink, SinkError, Wanted,
};
pub use content::{Arrival, ArrivalFailed, Arriving, Content, ContentHead, Upload};
pub use rate::RateLimit;
pub use server::{PieceSource, Server, ServerOptions, is_resident};

//! Back-to-source: bytes and facts from an origin, one module per scheme.
//!
//! An *origin* is the server or store a task's content comes from. This crate answers three questions about it and does
//! nothing else: what is there ([`Source::stat`]), give me these bytes ([`Source::get`]), and what lies in this directory
//! ([`Source::list`]). It knows no tasks, peers or stores, and it never writes to a disk.
//!
//! Start at [`Sources`], which picks the backend by the scheme of the URL, and at [`Content`], a bounded stream of bytes
//! that ends either with exactly the bytes it promised or with a [`SourceError`]. Every error says whose fault it is
//! ([`SourceError::fault`]) and whether another try makes sense ([`SourceError::retry`]).
//!
//! # How a download engine uses it
//!
//! 1. `let content = sources.get(&request, Get::prefix(piece_length)).await?` learns the facts *and* brings the first
//!    bytes with one round trip. (`sources.stat` learns the facts alone.)
//! 2. `let version = content.facts.version.clone()` names what was seen: length, ETag, Last-Modified, and where redirects led.
//!    Every later `Get::range(range).of_version(version)` is refused with [`SourceError::Changed`] when the origin
//!    has something else by now, so that no file is ever mixed from two versions.
//! 3. A [`RangePlan`] says which range to ask for next and how many at a time are worth it
//!    ([`RangePlan::depth`] starts at two and grows only while more connections bring more bytes). An error in mid-body gives the rest back with
//!    [`RangePlan::give_back`]. A reader who wants one ordered stream and nothing else uses [`OrderedReader`], which does just this.
//! 4. If `facts.ranges` is [`RangeSupport::No`], there is only `Get::whole()`: one stream from the start (the prefix content is then already this stream).
//!
//! ```no_run
//! # async fn example() -> Result<(), source::SourceError> {
//! use source::{Get, Request, Sources, SourcesOptions};
//!
//! let sources = Sources::standard(SourcesOptions::default())?;
//! let request = Request::new("https://example.com/model.bin")?;
//! let mut content = sources.get(&request, Get::prefix(4 << 20)).await?;
//! while let Some(bytes) = content.body.next().await {
//!     println!("{} bytes", bytes?.len());
//! }
//! # Ok(())
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod content;
mod dialect;
mod egress;
mod error;
mod facts;
mod hdfs;
pub mod http;
mod hub;
mod objects;
mod options;
mod ordered;
pub mod plugin;
mod range_plan;
mod redact;
mod request;
mod retry;
mod sources;

pub use content::{Body, Content};
pub use egress::{Cidr, EgressPolicy, ParseCidrError};
pub use error::{Changed, Detail, Fault, Retry, SourceError, StallPhase};
pub use facts::{Facts, RangeSupport, Version};
pub use options::{Hdfs, Hub, ObjectStorage, OriginOptions};
pub use ordered::OrderedReader;
pub use plugin::{PluginError, PluginLimits, PluginSource};
pub use range_plan::RangePlan;
pub use redact::{Redacted, Secret, is_secret_header, is_secret_parameter};
pub use request::{Get, ListLimits, Request, Want};
pub use retry::RetryPolicy;
pub use sources::{Entry, Source, Sources, SourcesOptions};

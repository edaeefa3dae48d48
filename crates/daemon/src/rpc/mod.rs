//! The gRPC face of the daemon: `dfdaemon.v2.DfdaemonDownload` for the tools on this host over a unix socket, and
//! `dfdaemon.v2.DfdaemonUpload` for schedulers and other hosts over TCP.
//!
//! Both speak to the same [`Tasks`]; what differs is who is trusted: output paths and the caller's identity exist on the
//! socket only ([`download`]), the network-facing service ([`upload`]) writes nowhere but to the store. Wire messages stop
//! in [`convert`]; what a failure looks like outside is decided in [`errors`] alone.

pub mod convert;
pub mod download;
pub mod errors;
pub mod local;
mod reply;
pub mod socket;
mod tasks;
pub mod upload;

pub use reply::{Reply, ReplyStream};
pub use tasks::{Tasks, TasksParts};

/// Largest request that is read, as v2 servers do: requests carry URLs, headers and certificates.
const REQUEST_LEN_MAX: usize = 4 << 20;

/// Largest answer that is written: a piece with its content.
const ANSWER_LEN_MAX: usize = 1 << 30;

/// Implements RPCs of kinds of tasks that do not exist here yet: `method(Request) -> Response;`
macro_rules! unimplemented_rpcs {
    ($($method:ident($request:ty) -> $response:ty;)*) => {$(
        fn $method<'life, 'future>(
            &'life self,
            _: tonic::Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<tonic::Response<$response>, tonic::Status>> + Send + 'future>>
        where
            'life: 'future,
            Self: 'future,
        {
            Box::pin(std::future::ready(Err($crate::rpc::errors::not_implemented(stringify!($method)))))
        }
    )*};
}
pub(crate) use unimplemented_rpcs;

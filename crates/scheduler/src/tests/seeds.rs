//! Seed peers: probed, asked over a real DfdaemonUpload call, and replaced.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use dragonfly_api::common::v2::Download;
use dragonfly_api::dfdaemon::v2::{DownloadTaskRequest, DownloadTaskResponse};
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Reply;
use runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tonic::codegen::{BoxFuture, Service};
use tonic::{Code, Request, Response, Status};

use super::fake::{FakePeer, Running, Speaks, download, eventually, seed_host};

type Progress = futures::stream::Pending<Result<DownloadTaskResponse, Status>>;

/// The upload port of a seed: health, and DownloadTask, which hands the order to the test and then goes on for ever, or
/// fails as it is told.
#[derive(Clone)]
struct Upload {
    orders: mpsc::Sender<Download>,
    failure: Option<Arc<Status>>,
}

impl tonic::server::ServerStreamingService<DownloadTaskRequest> for Upload {
    type Response = DownloadTaskResponse;
    type ResponseStream = Progress;
    type Future = BoxFuture<Response<Progress>, Status>;

    fn call(&mut self, request: Request<DownloadTaskRequest>) -> Self::Future {
        let upload = self.clone();
        Box::pin(async move {
            let order = request
                .into_inner()
                .download
                .expect("an order has a download");
            upload
                .orders
                .send(order)
                .await
                .expect("the test waits for the order");
            match upload.failure {
                Some(failure) => Err(failure.as_ref().clone()),
                None => Ok(Response::new(futures::stream::pending())),
            }
        })
    }
}

impl Service<http::Request<axum::body::Body>> for Upload {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        let upload = self.clone();
        Box::pin(async move {
            let codec =
                tonic_prost::ProstCodec::<DownloadTaskResponse, DownloadTaskRequest>::default();
            Ok(tonic::server::Grpc::new(codec)
                .server_streaming(upload, request)
                .await)
        })
    }
}

/// Serves the upload port of a seed; gives its address and what it is asked for.
pub(super) fn upload_port(
    shutdown: &Shutdown,
    failure: Option<Status>,
) -> (SocketAddr, mpsc::Receiver<Download>) {
    let (orders, received) = mpsc::channel(16);
    let upload = Upload {
        orders,
        failure: failure.map(Arc::new),
    };
    let listener =
        runtime::listen::tcp("127.0.0.1:0".parse().unwrap(), "upload.server.port").unwrap();
    let addr = listener.local_addr().unwrap();
    let router =
        axum::Router::new().route_service("/dfdaemon.v2.DfdaemonUpload/DownloadTask", upload);
    let routes = tonic::service::Routes::from(router).add_service(runtime::grpc::health().1);
    let server = runtime::grpc::server(&Default::default()).unwrap();
    runtime::grpc::spawn_tcp("seed", server, routes, listener, shutdown);
    (addr, received)
}

/// Announces a seed at `addr` and waits until the scheduler would ask it.
async fn announce_seed(running: &Running, name: &str, addr: SocketAddr) {
    running.announce(seed_host(name, addr)).await;
    eventually("the seed is available", async || {
        running.scheduler.available_seeds() > 0
    })
    .await;
}

async fn receive(orders: &mut mpsc::Receiver<Download>) -> Download {
    tokio::time::timeout(super::fake::SOON, orders.recv())
        .await
        .expect("the seed is asked")
        .unwrap()
}

#[tokio::test]
async fn a_seed_is_asked_and_becomes_the_parent() {
    let running = Running::start().await;
    let (addr, mut orders) = upload_port(&running.shutdown, None);
    announce_seed(&running, "s", addr).await;
    let wish = Download {
        output_path: Some("/tmp/x".to_owned()),
        disable_back_to_source: true,
        ..download()
    };
    let mut a = running.register("a", wish).await;
    let order = receive(&mut orders).await;
    assert!(
        order.need_back_to_source && !order.disable_back_to_source && order.output_path.is_none()
    );
    assert_eq!(order.url, "https://example.com/file");
    a.heard_nothing(&running).await;
    let mut s = FakePeer::open(&running.client, "s", Speaks::V2, Some(order))
        .await
        .unwrap();
    assert_eq!(s.origin().await, "peer's NeedBackToSource is true");
    s.back_to_source_started().await;
    assert_eq!(a.parent_names().await, ["s"]);
}

#[tokio::test]
async fn a_seed_that_answers_and_never_registers_is_replaced_by_the_peer() {
    let running = Running::start().await;
    let (addr, mut orders) = upload_port(&running.shutdown, None);
    announce_seed(&running, "s", addr).await;
    let mut a = running.register("a", download()).await;
    receive(&mut orders).await;
    let asked = std::time::Instant::now();
    assert_eq!(
        a.origin().await,
        "scheduling exceeded RetryBackToSourceLimit"
    );
    assert!(
        asked.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test]
async fn a_seed_that_fails_is_replaced_by_the_peer_at_once() {
    let running = Running::start().await;
    let (addr, mut orders) = upload_port(&running.shutdown, Some(Status::internal("disk full")));
    announce_seed(&running, "s", addr).await;
    let mut a = running.register("a", download()).await;
    receive(&mut orders).await;
    assert_eq!(a.origin().await, "next reader of the origin");
}

#[tokio::test]
async fn what_the_origin_said_to_the_seed_reaches_the_peers() {
    let running = Running::start().await;
    let details = br#"{"message":"no such file","header":{},"status_code":404}"#;
    let failure = Status::with_details(Code::Internal, "backend", details.to_vec().into());
    let (addr, mut orders) = upload_port(&running.shutdown, Some(failure));
    announce_seed(&running, "s", addr).await;
    let mut a = running.register("a", download()).await;
    receive(&mut orders).await;
    let status = a.refused().await;
    assert_eq!(status.message(), "the origin failed: no such file");
}

#[tokio::test]
async fn a_seed_that_does_not_serve_is_not_asked() {
    let running = Running::start().await;
    // Nobody listens on port 1024 (reserved): the lowest that a host may announce.
    let addr = "127.0.0.1:1024".parse().unwrap();
    running.announce(seed_host("s", addr)).await;
    let mut a = running.register("a", download()).await;
    assert!(matches!(
        a.reply().await,
        Ok(Some(Reply::NeedBackToSourceResponse(_)))
    ));
    assert_eq!(running.scheduler.available_seeds(), 0);
}

//! Real gRPC servers for tests, on free ports: a scheduler and a manager that note what they are told.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use dragonfly_api::manager::v2::{ListSchedulersRequest, ListSchedulersResponse};
use dragonfly_api::scheduler::v2::{
    AnnounceHostRequest, DeleteHostRequest, DeleteTaskRequest, StatTaskRequest,
};
use parking_lot::Mutex;
use prost::Message;
use runtime::grpc::{ServerOptions, server, spawn_tcp};
use runtime::shutdown::Shutdown;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What a [`TestScheduler`] was told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    AnnounceHost(Box<AnnounceHostRequest>),
    DeleteHost(DeleteHostRequest),
    StatTask(StatTaskRequest),
    DeleteTask(DeleteTaskRequest),
}

/// A scheduler that answers host and task RPCs, and health checks.
pub(crate) struct TestScheduler {
    addr: SocketAddr,
    shutdown: Shutdown,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl TestScheduler {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn start_at(addr: SocketAddr) -> Self {
        let (tell, heard) = mpsc::unbounded_channel();
        let (addr, shutdown) = serve(addr, SchedulerService(tell));
        Self {
            addr,
            shutdown,
            heard,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next thing that it is told.
    pub(crate) async fn hears(&mut self) -> Heard {
        let heard = tokio::time::timeout(DEADLINE, self.heard.recv()).await;
        heard
            .expect("the scheduler is told something in time")
            .unwrap()
    }

    pub(crate) fn try_hears(&mut self) -> Option<Heard> {
        self.heard.try_recv().ok()
    }

    /// Closes the listener and every connection.
    pub(crate) async fn stop(self) {
        self.shutdown.drain(DEADLINE).await;
    }
}

/// A manager that answers ListSchedulers as told.
pub(crate) struct TestManager {
    addr: SocketAddr,
    shutdown: Shutdown,
    state: Arc<Mutex<ManagerState>>,
}

#[derive(Default)]
struct ManagerState {
    answer: Option<ListSchedulersResponse>,
    asked: Vec<ListSchedulersRequest>,
}

impl TestManager {
    pub(crate) async fn start(answer: Option<ListSchedulersResponse>) -> Self {
        let state = Arc::new(Mutex::new(ManagerState {
            answer,
            asked: vec![],
        }));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (addr, shutdown) = serve(any, ManagerService(state.clone()));
        Self {
            addr,
            shutdown,
            state,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn asked(&self) -> Vec<ListSchedulersRequest> {
        self.state.lock().asked.clone()
    }

    pub(crate) fn answer_with(&self, answer: ListSchedulersResponse) {
        self.state.lock().answer = Some(answer);
    }

    pub(crate) async fn stop(self) {
        self.shutdown.drain(DEADLINE).await;
    }
}

fn serve<S>(addr: SocketAddr, service: S) -> (SocketAddr, Shutdown)
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    let listener = socket.listen(64).unwrap();
    let addr = listener.local_addr().unwrap();
    let (_, health) = runtime::grpc::health();
    let routes = Routes::new(service).add_service(health);
    let shutdown = Shutdown::new();
    spawn_tcp(
        "test server",
        server(&ServerOptions::default()).unwrap(),
        routes,
        listener,
        &shutdown,
    );
    (addr, shutdown)
}

#[derive(Clone)]
struct SchedulerService(mpsc::UnboundedSender<Heard>);

impl NamedService for SchedulerService {
    const NAME: &'static str = "scheduler.v2.Scheduler";
}

#[derive(Clone)]
struct ManagerService(Arc<Mutex<ManagerState>>);

impl NamedService for ManagerService {
    const NAME: &'static str = "manager.v2.Manager";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for SchedulerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let tell = self.0.clone();
        let note = move |heard| {
            let _ = tell.send(heard);
            Ok(())
        };
        match request.uri().path().rsplit('/').next().unwrap_or_default() {
            "AnnounceHost" => unary(request, move |it| note(Heard::AnnounceHost(Box::new(it)))),
            "DeleteHost" => unary(request, move |it| note(Heard::DeleteHost(it))),
            "DeleteTask" => unary(request, move |it| note(Heard::DeleteTask(it))),
            "StatTask" => unary(request, move |it: StatTaskRequest| {
                let id = it.task_id.clone();
                note(Heard::StatTask(it))?;
                Ok(dragonfly_api::common::v2::Task {
                    id,
                    ..Default::default()
                })
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("not in this test").into_http()) }),
        }
    }
}

impl Service<http::Request<Body>> for ManagerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let state = self.0.clone();
        unary(request, move |it: ListSchedulersRequest| {
            let mut state = state.lock();
            state.asked.push(it);
            state
                .answer
                .clone()
                .ok_or_else(|| Status::not_found("no scheduler is registered"))
        })
    }
}

fn unary<Q, A>(
    request: http::Request<Body>,
    answer: impl FnOnce(Q) -> Result<A, Status> + Send + 'static,
) -> Answer
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + Sync + 'static,
{
    struct Once<F, Q, A>(Option<F>, std::marker::PhantomData<fn(Q) -> A>);
    impl<F, Q, A> UnaryService<Q> for Once<F, Q, A>
    where
        F: FnOnce(Q) -> Result<A, Status>,
    {
        type Response = A;
        type Future = std::future::Ready<Result<Response<A>, Status>>;

        fn call(&mut self, request: Request<Q>) -> Self::Future {
            let answer = self.0.take().expect("a unary call has one request");
            std::future::ready(answer(request.into_inner()).map(Response::new))
        }
    }
    Box::pin(async move {
        let mut grpc = Grpc::new(ProstCodec::<A, Q>::default());
        Ok(grpc
            .unary(Once(Some(answer), std::marker::PhantomData), request)
            .await)
    })
}

//! The server side of the link call.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use protocol::TaskId;
use tonic::{Request, Response, Status, Streaming};

use super::proto::swarm_server::Swarm;
use super::proto::{Frame, Hello, frame};
use super::{Hub, actor};

/// How long the dialler may take to say Hello.
const HELLO_MAX: Duration = Duration::from_secs(3);

/// `dragonfly.swarm.v1.Swarm`, served on the upload port.
#[derive(Clone)]
pub struct LinkService {
    hub: Arc<Hub>,
}

impl LinkService {
    /// Serves links into this hub.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

#[tonic::async_trait]
impl Swarm for LinkService {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let remote = request
            .remote_addr()
            .ok_or_else(|| Status::failed_precondition("a link needs a network address"))?;
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_MAX, first_hello(&mut inbound))
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello arrived"))??;
        let task_id: TaskId = hello
            .task_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("task id: {error}")))?;
        let links = self.hub.accept(&task_id)?;
        let (opening, outbound) = actor::Opening::new(&links);
        let link = opening.answered(&links, &hello, remote.ip(), actor::Dialler::Other)?;
        self.hub.spawn(actor::run(links, link, inbound));
        Ok(Response::new(Box::pin(futures::StreamExt::map(
            outbound, Ok,
        ))))
    }
}

/// The first frame of a link, which must be a Hello.
pub(super) async fn first_hello(inbound: &mut Streaming<Frame>) -> Result<Hello, Status> {
    match inbound.message().await? {
        Some(Frame {
            kind: Some(frame::Kind::Hello(hello)),
        }) => Ok(hello),
        Some(_) => Err(Status::invalid_argument("the first frame must be Hello")),
        None => Err(Status::cancelled("the link ended before Hello")),
    }
}

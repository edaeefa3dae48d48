//! What both services do with tasks: the part behind the messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2;
use dragonfly_api::dfdaemon::v2::{
    Entry, ListTaskEntriesRequest, ListTaskEntriesResponse, StatLocalTaskResponse,
};
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{DeleteTaskRequest, StatTaskRequest};
use protocol::TaskId;
use source::{ListLimits, SourceError};
use tokio::sync::Semaphore;
use tonic::{Request, Status};
use tracing::{info, warn};

use super::{convert, errors};
use crate::announce::Announcer;
use crate::dial;
use crate::dynconfig::Dynconfig;
use crate::engine::Engine;
use crate::host::HostMonitor;
use crate::identity::Identity;
use crate::metrics::{Metrics, Rpc};
use crate::schedulers::{SchedulerHandle, Schedulers};

/// How long a scheduler may take for a call about one task.
const SCHEDULER_MAX: Duration = Duration::from_secs(10);

/// How long an origin may take to list a directory unless the request says otherwise.
const LIST_MAX: Duration = Duration::from_secs(60);

/// Downloads that may be answered at once, over both services: each holds a stream and a little memory. More are refused.
const REPLIES_MAX: usize = 4096;

/// Piece contents that may be in memory for answers at once; others wait for their turn.
const CONTENTS_MAX: usize = 8;

/// What both services are made of.
pub struct TasksParts {
    /// Who this daemon is.
    pub identity: Arc<Identity>,
    /// Downloads.
    pub engine: Engine,
    /// Directory listings.
    pub sources: Arc<source::Sources>,
    /// Calls about tasks and hosts.
    pub schedulers: Arc<Schedulers>,
    /// The block list.
    pub dynconfig: Arc<Dynconfig>,
    /// Leaving on request.
    pub announcer: Arc<Announcer>,
    /// Network figures for SyncHost.
    pub monitor: Arc<HostMonitor>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// `download.outputRoots`.
    pub output_roots: Vec<std::path::PathBuf>,
    /// Runs prefetches, and ends them with the process.
    pub shutdown: runtime::shutdown::Shutdown,
}

/// Tasks as the services see them; cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    pub(super) parts: Arc<TasksParts>,
    pub(super) replies: Arc<Semaphore>,
    pub(super) contents: Arc<Semaphore>,
}

impl Tasks {
    /// Over these parts.
    pub fn new(parts: TasksParts) -> Self {
        Self {
            parts: Arc::new(parts),
            replies: Arc::new(Semaphore::new(REPLIES_MAX)),
            contents: Arc::new(Semaphore::new(CONTENTS_MAX)),
        }
    }

    /// Waits until no download is being answered any more. New ones are refused from here on.
    pub async fn close(&self) {
        // Every answer holds one permit until it ends.
        let all = u32::try_from(REPLIES_MAX).unwrap_or(u32::MAX);
        let _ = self.replies.acquire_many(all).await;
        self.replies.close();
    }

    /// The task as its scheduler knows it.
    ///
    /// # Errors
    /// INTERNAL for everything that the scheduler says, as in v2.
    pub async fn stat(&self, task_id: &str) -> Result<v2::Task, Status> {
        self.counted(Rpc::StatTask, async {
            let id = parse(task_id)?;
            let host_id = self.parts.identity.host_id.to_string();
            self.at_scheduler(&id, |scheduler| {
                let message = StatTaskRequest {
                    host_id: host_id.clone(),
                    task_id: id.to_string(),
                };
                async move {
                    let answer = SchedulerClient::new(scheduler.channel)
                        .stat_task(bounded(message))
                        .await;
                    answer.map(tonic::Response::into_inner)
                }
            })
            .await
        })
        .await
    }

    /// What this host has of a task.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub async fn stat_local(&self, task_id: &str) -> Result<StatLocalTaskResponse, Status> {
        let id: TaskId = parse(task_id)?;
        let store = self.parts.engine.store().clone();
        blocking(move || {
            let Some(summary) = store.summary(&id) else {
                return Err(Status::not_found(format!("task {id} is not on this host")));
            };
            Ok(convert::summary_to_wire(
                &summary,
                response_header(&store, &id),
            ))
        })
        .await?
    }

    /// What this host has, task by task.
    ///
    /// # Errors
    /// None that this host could cause.
    pub async fn list_local(&self) -> Result<Vec<StatLocalTaskResponse>, Status> {
        self.counted(Rpc::ListLocalTasks, async {
            let store = self.parts.engine.store().clone();
            let tasks = blocking(move || {
                let list = store
                    .tasks()
                    .into_iter()
                    .filter(|task| task.kind == protocol::TaskKind::Standard);
                // The headers are on disk, one file per task: a list of many tasks goes without them.
                list.map(|summary| convert::summary_to_wire(&summary, HashMap::new()))
                    .collect()
            });
            tasks.await
        })
        .await
    }

    /// Removes a task here, and tells its scheduler that this host no longer has it.
    ///
    /// # Errors
    /// INTERNAL, also when it is not here, as in v2; then also when it is gone from here and the scheduler could not be told.
    pub async fn delete(&self, task_id: &str) -> Result<(), Status> {
        self.counted(Rpc::DeleteTask, async {
            let id = parse(task_id)?;
            self.delete_here(&id).await?;
            self.tell_deleted(&id).await.map_err(|status| {
                errors::internal(format!(
                    "the task is gone from this host, but its scheduler could not be told ({}): until it learns so, it sends others here in vain",
                    status.message()
                ))
            })
        })
        .await
    }

    /// Removes a task here and tells nobody.
    ///
    /// # Errors
    /// INTERNAL, also when it is not here, as in v2.
    pub async fn delete_local(&self, task_id: &str) -> Result<(), Status> {
        self.counted(Rpc::DeleteLocalTask, async {
            self.delete_here(&parse(task_id)?).await
        })
        .await
    }

    /// Tells every scheduler that this host leaves.
    ///
    /// # Errors
    /// INTERNAL when one of them does not take it.
    pub async fn delete_host(&self) -> Result<(), Status> {
        self.counted(Rpc::DeleteHost, async {
            self.parts.announcer.leave().await.map_err(errors::internal)
        })
        .await
    }

    /// What lies in a directory of an origin, or the facts about a file there.
    ///
    /// # Errors
    /// INTERNAL with the origin's details.
    pub async fn list_entries(
        &self,
        request: ListTaskEntriesRequest,
    ) -> Result<ListTaskEntriesResponse, Status> {
        self.counted(Rpc::ListTaskEntries, async {
            list_entries(&self.parts.sources, request)
                .await
                .map_err(|error| errors::origin(&error))
        })
        .await
    }

    /// Tells the task's scheduler that this host no longer has it.
    pub async fn tell_deleted(&self, id: &TaskId) -> Result<(), Status> {
        let host_id = self.parts.identity.host_id.to_string();
        self.at_scheduler(id, |scheduler| {
            let message = DeleteTaskRequest {
                host_id: host_id.clone(),
                task_id: id.to_string(),
            };
            async move {
                let answer = SchedulerClient::new(scheduler.channel)
                    .delete_task(bounded(message))
                    .await;
                answer.map(tonic::Response::into_inner)
            }
        })
        .await
    }

    async fn delete_here(&self, id: &TaskId) -> Result<(), Status> {
        let store = self.parts.engine.store().clone();
        let wanted = id.clone();
        let deleted = blocking(move || store.delete(&wanted))
            .await?
            .map_err(errors::internal)?;
        let Some(deleted) = deleted else {
            return Err(errors::internal(format!("task {id} is not on this host")));
        };
        info!(task_id = %id, bytes = deleted.freed_bytes, "task deleted on request");
        Ok(())
    }

    /// Calls the scheduler of a task, and the next one when it does not answer.
    async fn at_scheduler<T, F>(
        &self,
        id: &TaskId,
        call: impl Fn(SchedulerHandle) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        const ATTEMPTS: usize = 2;
        let mut last =
            "no scheduler answers: check the scheduler and the dynamic configuration".to_owned();
        for _ in 0..ATTEMPTS {
            let Some(scheduler) = self.parts.schedulers.for_task(id) else {
                break;
            };
            let addr = scheduler.addr.clone();
            let answer = tokio::time::timeout(SCHEDULER_MAX, call(scheduler)).await;
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            last = format!("scheduler {addr}: {}", dial::reason(&status));
            if !dial::is_silence(&status) {
                break;
            }
            self.parts.schedulers.report_failure(&addr);
        }
        Err(errors::internal(last))
    }

    async fn counted<T>(
        &self,
        rpc: Rpc,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.parts.metrics.rpc_begins(rpc);
        let done = work.await;
        if let Err(status) = &done {
            self.parts.metrics.rpc_failed(rpc);
            warn!(?rpc, code = ?status.code(), error = status.message(), "request failed");
        }
        done
    }
}

async fn list_entries(
    sources: &source::Sources,
    request: ListTaskEntriesRequest,
) -> Result<ListTaskEntriesResponse, SourceError> {
    let deadline = request
        .timeout
        .and_then(|timeout| Duration::try_from(timeout).ok());
    let deadline = deadline
        .filter(|deadline| !deadline.is_zero())
        .unwrap_or(LIST_MAX)
        .min(LIST_MAX);
    let options = convert::origin_options(convert::OriginMessages {
        object_storage: request.object_storage,
        hdfs: request.hdfs,
        hugging_face: request.hugging_face,
        model_scope: request.model_scope,
        open_csg: request.open_csg,
    });
    let origin = source::Request::new(&request.url)?
        .with_headers(request.request_header)
        .with_trust_roots(request.certificate_chain)
        .with_options(options)
        .with_deadline(deadline);
    if !sources.is_folder(&origin.url)? {
        let facts = sources.stat(&origin).await?;
        return Ok(ListTaskEntriesResponse {
            content_length: facts.content_length.unwrap_or(0),
            response_header: facts.header,
            status_code: Some(facts.status_code.into()),
            entries: Vec::new(),
        });
    }
    let entries = sources.list(&origin, ListLimits::default()).await?;
    let entry = |entry: source::Entry| Entry {
        url: entry.url.into(),
        content_length: entry.content_length.unwrap_or(0),
        is_dir: entry.is_dir,
    };
    Ok(ListTaskEntriesResponse {
        status_code: Some(200),
        entries: entries.into_iter().map(entry).collect(),
        ..Default::default()
    })
}

/// The headers that the origin sent; none when the task cannot be opened.
fn response_header(store: &storage::Store, id: &TaskId) -> HashMap<String, String> {
    match store.task(id) {
        Ok(Some(task)) => task
            .description()
            .response_header
            .clone()
            .into_iter()
            .collect(),
        _ => HashMap::new(),
    }
}

fn parse(task_id: &str) -> Result<TaskId, Status> {
    task_id
        .parse()
        .map_err(|error| Status::invalid_argument(format!("task id: {error}")))
}

fn bounded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(SCHEDULER_MAX);
    request
}

/// Runs what waits for the disk off the reactor.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(errors::internal)
}

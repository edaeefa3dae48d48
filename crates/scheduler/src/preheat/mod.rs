//! Preheat: contents are fetched by hosts before anybody there asks for them, and who holds them is asked of the hosts
//! themselves.
//!
//! An [`Order`] says which contents and to which hosts; `rpc/preheat` makes it of a request, and a job of the manager comes
//! by the same RPCs. [`Preheats::run`] carries it out: each content on each host is one `DfdaemonUpload/DownloadTask` call, as
//! for a seed, except that nobody is told to read the origin: that is decided as for any other peer, so that the origin is read
//! once. What happens is told as events; whoever stops listening ends the preheat.
//!
//! The identity of each content is that of a later pull: `protocol` computes it from the same URL and fields.

mod run;
mod stat;
mod targets;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Download;
use protocol::{StandardTask, TaskId, TaskIdError};
use registry::Registry;
use tokio::sync::Semaphore;

use crate::daemons::Daemons;

pub(crate) use run::{Event, Job, Outcome};
pub(crate) use stat::Holder;
pub(crate) use targets::{NoTargets, Scope, Selection, Targets, known};

/// DownloadTask calls of all preheats at once: each is a connection and a stream. Further ones wait.
const CALLS_MAX: usize = 4096;
/// Preheats at once. One more is refused: whoever sends that many does not wait for them.
const RUNNING_MAX: usize = 256;

/// What carries preheats out.
pub(crate) struct Preheats {
    pub(crate) daemons: Arc<Daemons>,
    pub(crate) registries: Arc<registry::Client>,
    /// This scheduler's address, which daemons are told as who asks.
    pub(crate) remote_ip: String,
    calls: Arc<Semaphore>,
    pub(crate) running: Arc<Semaphore>,
}

/// A preheat to be carried out.
pub(crate) struct Order {
    pub(crate) contents: Vec<Content>,
    pub(crate) targets: Targets,
    /// Everything of the call but the URL and the authorization.
    pub(crate) download: Download,
    /// Where the authorization comes from, for an image.
    pub(crate) registry: Option<Registry>,
    pub(crate) limits: Limits,
    /// What was left out, for people.
    pub(crate) notes: Vec<String>,
}

/// One content to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) url: String,
    pub(crate) task_id: TaskId,
    pub(crate) kind: &'static str,
    /// Bytes, if somebody said.
    pub(crate) len: Option<u64>,
}

/// How much at once, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Contents at once.
    pub(crate) contents: usize,
    /// Hosts at once for one content.
    pub(crate) hosts: usize,
    /// For all of it.
    pub(crate) timeout: Duration,
}

impl Preheats {
    pub(crate) fn new(
        daemons: Arc<Daemons>,
        registries: Arc<registry::Client>,
        remote_ip: String,
    ) -> Self {
        Self {
            daemons,
            registries,
            remote_ip,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            running: Arc::new(Semaphore::new(RUNNING_MAX)),
        }
    }
}

impl std::fmt::Debug for Preheats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preheats").finish_non_exhaustive()
    }
}

/// The id that a daemon gives to `url` fetched as `download` says.
pub(crate) fn task_id(download: &Download, url: &str) -> Result<TaskId, TaskIdError> {
    let task = StandardTask {
        url,
        filtered_query_params: &download.filtered_query_params,
        tag: download.tag.as_deref(),
        application: download.application.as_deref(),
        piece_length: download.piece_length,
        blob_digest: download.enable_task_id_based_blob_digest,
        ..StandardTask::default()
    };
    task.task_id()
}

impl Order {
    /// The call for a content, with an authorization that holds now.
    async fn call(&self, content: &Content) -> Result<Download, registry::RegistryError> {
        let mut request_header: HashMap<String, String> = self.download.request_header.clone();
        if let Some(registry) = &self.registry {
            request_header.extend(registry.headers().await?);
            if matches!(content.kind, "tag" | "manifest") {
                request_header.retain(|name, _| !name.eq_ignore_ascii_case("accept"));
                request_header.insert("Accept".to_owned(), registry::ACCEPT.to_owned());
            }
        }
        Ok(Download {
            url: content.url.clone(),
            request_header,
            ..self.download.clone()
        })
    }
}

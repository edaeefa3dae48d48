//! Carrying a preheat out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dragonfly_api::common::v2::Host;
use dragonfly_api::dfdaemon::v2::download_task_response::Response as Kind;
use dragonfly_api::dfdaemon::v2::{DownloadTaskRequest, StatLocalTaskRequest};
use futures::StreamExt;
use runtime::secret::{redact_url, redact_urls};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::{Content, Order, Preheats};
use crate::daemons::{Daemons, origin_failure};

/// A host that says nothing for so long about a content is given up; the origin may be slow, but not that slow.
const SILENCE_MAX: Duration = Duration::from_secs(10 * 60);
/// How long a host may take to say what it holds.
const STAT_MAX: Duration = Duration::from_secs(10);
/// Between two words about one job.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Longest text of a failure that is passed on, bytes.
const FAILURE_LEN_MAX: usize = 512;

/// What happens in a preheat. A job is a content on a host, named by their places in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// So many bytes are there.
    Progress { job: Job, received: u64, len: u64 },
    /// The job is over.
    Ended { job: Job, outcome: Outcome },
}

/// A content on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) content: usize,
    pub(crate) host: usize,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The host holds the content; `before` tells that nothing had to be fetched.
    Held { len: u64, before: bool },
    /// It does not, and why.
    Failed(String),
}

/// A failed call.
enum Failure {
    /// The origin refused the credentials: new ones may help.
    Unauthorized(String),
    Other(String),
}

impl Preheats {
    /// Carries an order out. Every job gets its end told, also when the time is over. Dropping the future ends all calls.
    pub(crate) async fn run(&self, order: &Order, events: mpsc::Sender<Event>) {
        let jobs: usize = order.targets.of_task.iter().map(Vec::len).sum();
        info!(
            contents = order.contents.len(),
            hosts = order.targets.hosts.len(),
            jobs,
            "preheat begins"
        );
        let began = Instant::now();
        // Connections of this preheat; they end with it.
        let daemons = self.daemons.apart();
        let deadline = began + order.limits.timeout;
        let failed = std::sync::atomic::AtomicUsize::new(0);
        // The largest first: what takes longest must not begin last.
        let mut places: Vec<usize> = (0..order.contents.len()).collect();
        places.sort_by_key(|place| std::cmp::Reverse(order.contents[*place].len));
        let (this, daemons, events, failed_count) = (self, &daemons, &events, &failed);
        futures::stream::iter(places)
            .for_each_concurrent(order.limits.contents, |content| async move {
                futures::stream::iter(&order.targets.of_task[content])
                    .for_each_concurrent(order.limits.hosts, |&host| async move {
                        let job = Job { content, host };
                        let over = || format!("not done within {:?}, the time of the preheat", order.limits.timeout);
                        let outcome = match timeout_at(deadline, this.job(order, daemons, job, events)).await {
                            Ok(Ok((len, before))) => Outcome::Held { len, before },
                            Ok(Err(reason)) => Outcome::Failed(reason),
                            Err(_) => Outcome::Failed(over()),
                        };
                        if let Outcome::Failed(reason) = &outcome {
                            failed_count.fetch_add(1, Ordering::Relaxed);
                            let (url, host) = (&order.contents[content].url, &order.targets.hosts[host]);
                            warn!(url = %redact_url(url), hostname = host.hostname, ip = host.ip, reason, "preheat failed on a host");
                        }
                        // Nobody listens any more: the future is about to be dropped, or it runs unwatched.
                        let _ = events.send(Event::Ended { job, outcome }).await;
                    })
                    .await;
            })
            .await;
        info!(
            jobs,
            failed = failed.load(Ordering::Relaxed),
            elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "preheat ends"
        );
    }

    /// One content on one host: its length, and whether it was there before.
    async fn job(
        &self,
        order: &Order,
        daemons: &Daemons,
        job: Job,
        events: &mpsc::Sender<Event>,
    ) -> Result<(u64, bool), String> {
        let (content, host) = (&order.contents[job.content], &order.targets.hosts[job.host]);
        if host.id.is_empty() {
            return Err("no host of this scope has this address".to_owned());
        }
        let _permit = self
            .calls
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| error.to_string())?;
        let renewed = AtomicBool::new(false);
        loop {
            match self.fetch(order, daemons, job, events).await {
                Ok((len, before)) => {
                    confirm(daemons, host, content, &self.remote_ip).await?;
                    return Ok((len, before));
                }
                Err(Failure::Unauthorized(reason)) => match &order.registry {
                    // A token may have ended between two calls; one that is new must do.
                    Some(registry) if !renewed.swap(true, Ordering::Relaxed) => registry.refused(),
                    _ => return Err(reason),
                },
                Err(Failure::Other(reason)) => return Err(reason),
            }
        }
    }

    async fn fetch(
        &self,
        order: &Order,
        daemons: &Daemons,
        job: Job,
        events: &mpsc::Sender<Event>,
    ) -> Result<(u64, bool), Failure> {
        let (content, host) = (&order.contents[job.content], &order.targets.hosts[job.host]);
        let mut client = upload(daemons, host).map_err(Failure::Other)?;
        let download = order
            .call(content)
            .await
            .map_err(|error| Failure::Other(bounded(&error.to_string())))?;
        let request = DownloadTaskRequest {
            download: Some(download),
        };
        debug!(task_id = %content.task_id, host_id = host.id, "preheat asks a host");
        let asked = timeout(SILENCE_MAX, client.download_task(request)).await;
        let answered = asked.map_err(|_| Failure::Other("the host fell silent".to_owned()))?;
        let mut progress = answered.map_err(|status| failure(&status))?.into_inner();
        let (mut received, mut len, mut before) = (0, content.len.unwrap_or(0), false);
        let mut told = Instant::now();
        loop {
            let message = timeout(SILENCE_MAX, progress.message())
                .await
                .map_err(|_| Failure::Other("the host fell silent".to_owned()))?
                .map_err(|status| failure(&status))?;
            let Some(message) = message else {
                return Ok((len, before));
            };
            match message.response {
                Some(Kind::DownloadTaskStartedResponse(started)) => {
                    (len, before) = (started.content_length, started.is_finished);
                }
                Some(Kind::DownloadPieceFinishedResponse(piece)) => {
                    received += piece.piece.map_or(0, |piece| piece.length);
                }
                None => {}
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                // A full queue means that a later word says the same.
                let _ = events.try_send(Event::Progress { job, received, len });
            }
        }
    }
}

fn upload(
    daemons: &Daemons,
    host: &Host,
) -> Result<
    dragonfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient<
        tonic::transport::Channel,
    >,
    String,
> {
    daemons
        .upload(host)
        .ok_or_else(|| format!("its address {}:{} cannot be called", host.ip, host.port))
}

/// The host itself says that it holds the content now. A daemon that does not know the call is believed.
async fn confirm(
    daemons: &Daemons,
    host: &Arc<Host>,
    content: &Content,
    remote_ip: &str,
) -> Result<(), String> {
    let mut client = upload(daemons, host)?;
    let request = StatLocalTaskRequest {
        task_id: content.task_id.to_string(),
        remote_ip: Some(remote_ip.to_owned()),
    };
    let answer = timeout(STAT_MAX, client.stat_local_task(request)).await;
    match answer
        .map_err(|_| "it was fetched, but the host does not say whether it is there".to_owned())?
    {
        Ok(task) if task.get_ref().finished_at.is_some() => Ok(()),
        Ok(_) => Err(
            "it was fetched, but the host does not hold all of it any more: is its disk full?"
                .to_owned(),
        ),
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) if status.code() == Code::NotFound => Err(
            "it was fetched, but the host does not hold it under this identity: is its disk full?"
                .to_owned(),
        ),
        Err(status) => Err(bounded(status.message())),
    }
}

fn failure(status: &Status) -> Failure {
    match origin_failure(status) {
        Some(origin) if matches!(origin.status, Some(401 | 403)) => {
            Failure::Unauthorized(bounded(&origin.message))
        }
        Some(origin) => Failure::Other(bounded(&origin.message)),
        None if status.code() == Code::Unavailable => Failure::Other(bounded(&format!(
            "the host cannot be reached: {}",
            runtime::error::told(status)
        ))),
        None => Failure::Other(bounded(status.message())),
    }
}

/// What the caller and the log are told: no secrets of URLs, whatever the daemon says, and no endless texts.
fn bounded(text: &str) -> String {
    // Before it is cut: half of a password is not known for one.
    let text = redact_urls(text);
    let end = (0..=FAILURE_LEN_MAX.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_origin_is_told_apart() {
        let of = |code: u16| {
            let json = format!(r#"{{"message":"no","header":{{}},"status_code":{code}}}"#);
            Status::with_details(Code::Internal, "x", json.into_bytes().into())
        };
        assert!(matches!(failure(&of(401)), Failure::Unauthorized(text) if text == "no"));
        assert!(matches!(failure(&of(500)), Failure::Other(text) if text == "no"));
        assert!(
            matches!(failure(&Status::internal("disk")), Failure::Other(text) if text == "disk")
        );
        assert_eq!(bounded(&"ä".repeat(1000)).len(), FAILURE_LEN_MAX);
        let far = format!("{} http://user:S3CRET@h/", "x".repeat(FAILURE_LEN_MAX - 15));
        for text in [&far, "at http://user:S3CRET@h/f?token=S3CRET: 404"] {
            assert!(!bounded(text).contains("S3"), "{}", bounded(text));
        }
    }
}

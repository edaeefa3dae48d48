//! Asking hosts what they hold.

use std::time::Duration;

use dragonfly_api::dfdaemon::v2::StatLocalTaskRequest;
use futures::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Code;
use tracing::debug;

use super::{Content, Limits, Preheats};
use crate::brain::HostRecord;
use crate::daemons::Daemons;

/// How long a host may take to say whether it holds one content, the connection included.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What a host holds.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) host: HostRecord,
    /// Places in the contents that were asked about, and whether all of it is there.
    pub(crate) held: Vec<(usize, bool)>,
}

impl Preheats {
    /// Which of these hosts hold which contents; those that hold none are left out, and so are those that do not answer. What
    /// was not told when the time is over is left out too.
    pub(crate) async fn holders(
        &self,
        hosts: Vec<HostRecord>,
        contents: &[Content],
        limits: Limits,
    ) -> Vec<Holder> {
        let deadline = Instant::now() + limits.timeout;
        let daemons = &self.daemons.apart();
        let answers = futures::stream::iter(hosts).map(|host| async move {
            let held = timeout_at(deadline, self.held_by(daemons, &host, contents, limits)).await;
            Holder {
                held: held.unwrap_or_default(),
                host,
            }
        });
        // The hosts come back in their order.
        answers
            .buffered(limits.hosts)
            .filter(|holder| std::future::ready(!holder.held.is_empty()))
            .collect()
            .await
    }

    async fn held_by(
        &self,
        daemons: &Daemons,
        host: &HostRecord,
        contents: &[Content],
        limits: Limits,
    ) -> Vec<(usize, bool)> {
        let mut held = Vec::new();
        let answers = futures::stream::iter(0..contents.len())
            .map(|place| async move {
                let whole = self.holds(daemons, host, &contents[place]).await?;
                Ok(whole.map(|whole| (place, whole)))
            })
            .buffered(limits.contents);
        futures::pin_mut!(answers);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(found) => held.extend(found),
                // A host that cannot be reached is not asked again for each content.
                Err(Unreachable) => break,
            }
        }
        held
    }

    /// Whether the host holds all of the content; `None` if it does not know it.
    async fn holds(
        &self,
        daemons: &Daemons,
        host: &HostRecord,
        content: &Content,
    ) -> Result<Option<bool>, Unreachable> {
        let mut client = daemons.upload(host).ok_or(Unreachable)?;
        let request = StatLocalTaskRequest {
            task_id: content.task_id.to_string(),
            remote_ip: Some(self.remote_ip.clone()),
        };
        match timeout(ANSWER_MAX, client.stat_local_task(request)).await {
            Ok(Ok(task)) => Ok(Some(task.get_ref().finished_at.is_some())),
            Ok(Err(status)) if status.code() == Code::Unavailable => Err(Unreachable),
            Ok(Err(status)) => {
                if status.code() != Code::NotFound {
                    debug!(
                        host_id = host.id,
                        error = status.message(),
                        "host does not say what it holds"
                    );
                }
                Ok(None)
            }
            Err(_) => Err(Unreachable),
        }
    }
}

/// The host does not answer.
struct Unreachable;

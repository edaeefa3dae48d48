//! Membership with the manager: registering, and staying alive in its eyes (scheduler sheet, sections 8.1 and 8.2).
//!
//! A manager that is away holds nothing up: the scheduler serves, and registers when the manager is back.

use std::time::Duration;

use dragonfly_api::manager::v2::manager_client::ManagerClient;
use dragonfly_api::manager::v2::{KeepAliveRequest, SourceType, UpdateSchedulerRequest};
use futures::StreamExt;
use runtime::shutdown::Shutdown;
use tokio_stream::wrappers::IntervalStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::{info, warn};

/// How long the manager may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// First and longest pause between two attempts to reach the manager.
const RETRY_PAUSE: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// This scheduler as the manager is to know it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) channel: Channel,
    pub(crate) hostname: String,
    pub(crate) ip: String,
    pub(crate) port: u16,
    pub(crate) cluster_id: u64,
    pub(crate) idc: Option<String>,
    pub(crate) location: Option<String>,
    pub(crate) keep_alive_interval: Duration,
}

impl Member {
    /// Registers and keeps alive until the shutdown begins.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let _ = shutdown.token().run_until_cancelled(self.stay()).await;
    }

    async fn stay(&self) {
        let mut pause = RETRY_PAUSE[0];
        loop {
            match self.register().await {
                Ok(()) => {
                    info!(
                        hostname = self.hostname,
                        cluster_id = self.cluster_id,
                        "registered with the manager"
                    );
                    pause = RETRY_PAUSE[0];
                    let ended = self.keep_alive().await;
                    warn!(reason = %ended, "the manager ended the keepalive, opening it again");
                }
                Err(status) => {
                    warn!(
                        error = status.message(),
                        retry_ms = pause.as_millis(),
                        "not registered with the manager"
                    );
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE[1]);
        }
    }

    async fn register(&self) -> Result<(), Status> {
        // In nanoseconds, as a Go duration in JSON.
        let config = format!(
            r#"{{"manager_keep_alive_interval":{}}}"#,
            self.keep_alive_interval.as_nanos()
        );
        let mut request = Request::new(UpdateSchedulerRequest {
            source_type: SourceType::SchedulerSource.into(),
            hostname: self.hostname.clone(),
            scheduler_cluster_id: self.cluster_id,
            idc: self.idc.clone(),
            location: self.location.clone(),
            ip: self.ip.clone(),
            port: self.port.into(),
            features: vec!["schedule".to_owned()],
            config: config.into_bytes(),
        });
        request.set_timeout(ANSWER_MAX);
        ManagerClient::new(self.channel.clone())
            .update_scheduler(request)
            .await
            .map(drop)
    }

    /// Says that this scheduler lives, at once and then at the interval, until the manager ends the call.
    async fn keep_alive(&self) -> Status {
        let message = KeepAliveRequest {
            source_type: SourceType::SchedulerSource.into(),
            hostname: self.hostname.clone(),
            cluster_id: self.cluster_id,
            ip: self.ip.clone(),
        };
        let ticks = IntervalStream::new(tokio::time::interval(self.keep_alive_interval));
        let messages = ticks.map(move |_| message.clone());
        match ManagerClient::new(self.channel.clone())
            .keep_alive(messages)
            .await
        {
            Ok(_) => Status::ok("ended without an error"),
            Err(status) => status,
        }
    }
}

//! The manager as a source: `GetScheduler` and `ListApplications` (scheduler sheet, section 8.3).

use std::time::Duration;

use dragonfly_api::manager::v2::manager_client::ManagerClient;
use dragonfly_api::manager::v2::{
    Application, GetSchedulerRequest, ListApplicationsRequest, SourceType,
};
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{Written, WrittenApplication};

/// How long the manager may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The manager, and who asks.
#[derive(Debug)]
pub(crate) struct ManagerSource {
    pub(crate) addr: String,
    pub(crate) channel: Channel,
    pub(crate) hostname: String,
    pub(crate) ip: String,
    pub(crate) cluster_id: u64,
}

/// `SchedulerCluster.config`, as far as it concerns a scheduler.
#[derive(Deserialize)]
struct ClusterConfig {
    #[serde(default)]
    candidate_parent_limit: Option<usize>,
    #[serde(default)]
    filter_parent_limit: Option<usize>,
}

impl ManagerSource {
    /// What a stored copy is marked with: another manager or cluster has another configuration.
    pub(super) fn name(&self) -> String {
        format!("{} cluster {}", self.addr, self.cluster_id)
    }

    pub(super) async fn read(&self) -> Result<Written, String> {
        let told = |status: Status| format!("{}: {}", self.addr, status.message());
        let limits = self.limits().await.map_err(told)?;
        let applications = self.applications().await.map_err(told)?;
        let defaults = Written::default();
        let or =
            |limit: Option<usize>, default| limit.filter(|limit| *limit > 0).unwrap_or(default);
        Ok(Written {
            candidate_parent_limit: or(
                limits.candidate_parent_limit,
                defaults.candidate_parent_limit,
            ),
            filter_parent_limit: or(limits.filter_parent_limit, defaults.filter_parent_limit),
            applications: applications.into_iter().map(written).collect(),
        })
    }

    async fn limits(&self) -> Result<ClusterConfig, Status> {
        let request = self.request(GetSchedulerRequest {
            source_type: SourceType::SchedulerSource.into(),
            hostname: self.hostname.clone(),
            scheduler_cluster_id: self.cluster_id,
            ip: self.ip.clone(),
        });
        let scheduler = self.client().get_scheduler(request).await?.into_inner();
        let config = scheduler
            .scheduler_cluster
            .map(|cluster| cluster.config)
            .unwrap_or_default();
        // A cluster without a configuration has the defaults.
        Ok(serde_json::from_slice(&config).unwrap_or(ClusterConfig {
            candidate_parent_limit: None,
            filter_parent_limit: None,
        }))
    }

    async fn applications(&self) -> Result<Vec<Application>, Status> {
        let request = self.request(ListApplicationsRequest {
            source_type: SourceType::SchedulerSource.into(),
            hostname: self.hostname.clone(),
            ip: self.ip.clone(),
        });
        match self.client().list_applications(request).await {
            Ok(response) => Ok(response.into_inner().applications),
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => {
                Ok(Vec::new())
            }
            Err(status) => Err(status),
        }
    }

    fn client(&self) -> ManagerClient<Channel> {
        ManagerClient::new(self.channel.clone())
            .max_decoding_message_size(runtime::grpc::MESSAGE_LEN_MAX)
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(ANSWER_MAX);
        request
    }
}

fn written(application: Application) -> WrittenApplication {
    let priority = application.priority.unwrap_or_default();
    WrittenApplication {
        name: application.name,
        priority: priority.value,
        urls: priority
            .urls
            .into_iter()
            .map(|rule| (rule.regex, rule.value))
            .collect(),
    }
}

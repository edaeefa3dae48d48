//! `dfctl task rm`.

use clap::Args;
use dragonfly_api::dfdaemon::v2::DeleteTaskRequest;
use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use serde::Serialize;

use crate::connection::{DaemonArguments, bounded, call_failed};
use crate::failure::Failure;
use crate::logging::LogArguments;
use crate::program::{Report, Told};

/// Removes a task from this host, and tells its scheduler so.
#[derive(Debug, Clone, Args)]
pub struct Remove {
    /// Id of the task, as `dfctl task ls` lists it.
    id: String,
    #[command(flatten)]
    daemon: DaemonArguments,
    #[command(flatten)]
    logs: LogArguments,
}

#[derive(Debug, Serialize)]
struct Removed {
    id: String,
}

impl Remove {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let channel = self.daemon.connect().await?;
        let request = DeleteTaskRequest {
            task_id: self.id.clone(),
            ..DeleteTaskRequest::default()
        };
        DfdaemonDownloadClient::new(channel)
            .delete_task(bounded(request))
            .await
            .map_err(call_failed)?;
        Ok(Told::new(&Removed { id: self.id }))
    }
}

impl Report for Removed {
    fn text(&self) -> String {
        "Task Removed!".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::assert_golden;

    #[test]
    fn the_json_names_the_task() {
        let told = Told::new(&Removed {
            id: "06408fbf".into(),
        });
        assert_golden("task-rm", told.json());
    }
}

//! `dfctl task stat`: which hosts hold a file or the layers of an image, by their own word.

use clap::{Args, ValueEnum};
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{StatFileRequest, StatImageRequest};
use runtime::secret::redact_url;
use serde::Serialize;
use tonic::transport::Channel;

use super::subject::{Subject, Target};
use crate::failure::Failure;
use crate::logging::{LogArguments, LogLevel};
use crate::program::{Report, Told};
use crate::table;

/// Most bytes of the answer: each host may name each layer.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Tells which hosts hold a file or the layers of an image, by their own word.
#[derive(Debug, Clone, Args)]
pub struct Stat {
    #[command(flatten)]
    subject: Subject,

    /// Which hosts are asked about an image; about a file all are.
    #[arg(long, env = "DFGET_SCOPE", value_enum, default_value_t = Scope::AllPeers)]
    scope: Scope,

    /// Layers at once.
    #[arg(long, env = "DFGET_CONCURRENT_LAYER_COUNT", value_parser = clap::value_parser!(i64).range(1..=100))]
    concurrent_layer_count: Option<i64>,

    #[command(flatten)]
    logs: LogArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Scope {
    /// Every host.
    AllPeers,
    /// Seed peers.
    AllSeedPeers,
}

/// Who holds what.
#[derive(Debug, Serialize)]
struct Holders {
    /// The layers of an image; empty for files.
    layers: Vec<String>,
    peers: Vec<Holder>,
}

#[derive(Debug, Serialize)]
struct Holder {
    hostname: String,
    ip: String,
    contents: Vec<Held>,
}

#[derive(Debug, Serialize)]
struct Held {
    url: String,
    finished: bool,
}

impl Stat {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let target = self.subject.target()?;
        let channel = self.subject.connect().await?;
        let asked = tokio::time::timeout(self.subject.timeout, self.ask(&target, channel)).await;
        let holders = asked.map_err(|_| Failure::Timeout {
            limit: self.subject.timeout,
        })??;
        self.logs.say(LogLevel::Info, || {
            format!("{} hosts hold some of it", holders.peers.len())
        });
        Ok(Told::new(&holders))
    }

    async fn ask(&self, target: &Target, channel: Channel) -> Result<Holders, Failure> {
        let mut client = SchedulerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let it = &self.subject;
        let refused = |status| it.refused(&status);
        match target {
            Target::Image(url) => {
                let request = StatImageRequest {
                    url: url.clone(),
                    piece_length: it.piece_length.map(|length| length.as_u64()),
                    tag: Some(it.tag.clone()),
                    application: Some(it.application.clone()),
                    filtered_query_params: it.filtered_query_params.clone(),
                    header: it.headers.iter().cloned().collect(),
                    username: it.username.clone(),
                    password: it.password.clone(),
                    platform: it.platform.clone(),
                    concurrent_layer_count: self.concurrent_layer_count,
                    concurrent_peer_count: it.concurrent_peer_count,
                    timeout: it.timeout_message(),
                    certificate_chain: it.certificate_chain()?,
                    insecure_skip_verify: it.insecure_skip_verify,
                    scope: match self.scope {
                        Scope::AllPeers => "all_peers".to_owned(),
                        Scope::AllSeedPeers => "all_seed_peers".to_owned(),
                    },
                    enable_task_id_based_blob_digest: it.enable_task_id_based_blob_digest,
                };
                let answer = client
                    .stat_image(request)
                    .await
                    .map_err(refused)?
                    .into_inner();
                let held = |it: dragonfly_api::scheduler::v2::Layer| Held {
                    url: redact_url(&it.url).into_owned(),
                    finished: it.is_finished.unwrap_or(false),
                };
                let layers = answer.image.unwrap_or_default().layers;
                Ok(Holders {
                    layers: layers
                        .iter()
                        .map(|layer| redact_url(&layer.url).into_owned())
                        .collect(),
                    peers: answer
                        .peers
                        .into_iter()
                        .map(|peer| Holder {
                            hostname: peer.hostname,
                            ip: peer.ip,
                            contents: peer.cached_layers.into_iter().map(held).collect(),
                        })
                        .collect(),
                })
            }
            Target::File(url) => {
                let request = StatFileRequest {
                    url: url.clone(),
                    piece_length: it.piece_length.map(|length| length.as_u64()),
                    tag: Some(it.tag.clone()),
                    application: Some(it.application.clone()),
                    filtered_query_params: it.filtered_query_params.clone(),
                    header: it.headers.iter().cloned().collect(),
                    concurrent_peer_count: it.concurrent_peer_count,
                    timeout: it.timeout_message(),
                    certificate_chain: it.certificate_chain()?,
                    insecure_skip_verify: it.insecure_skip_verify,
                    object_storage: it.object_storage(),
                    hdfs: it.hdfs(),
                };
                let answer = client
                    .stat_file(request)
                    .await
                    .map_err(refused)?
                    .into_inner();
                let held = |it: dragonfly_api::scheduler::v2::File| Held {
                    url: redact_url(&it.url).into_owned(),
                    finished: it.is_finished.unwrap_or(false),
                };
                Ok(Holders {
                    layers: Vec::new(),
                    peers: answer
                        .peers
                        .into_iter()
                        .map(|peer| Holder {
                            hostname: peer.hostname,
                            ip: peer.ip,
                            contents: peer.cached_files.into_iter().map(held).collect(),
                        })
                        .collect(),
                })
            }
        }
    }
}

impl Report for Holders {
    fn text(&self) -> String {
        if self.peers.is_empty() {
            return "No host holds any of it".to_owned();
        }
        let rows: Vec<[String; 4]> = self
            .peers
            .iter()
            .map(|peer| {
                let finished = peer.contents.iter().filter(|held| held.finished).count();
                let of = match self.layers.len() {
                    0 => finished.to_string(),
                    all => format!("{finished} of {all}"),
                };
                let partial = peer.contents.len() - finished;
                [
                    table::harmless(&peer.hostname),
                    table::harmless(&peer.ip),
                    of,
                    partial.to_string(),
                ]
            })
            .collect();
        table::table(["HOSTNAME", "IP", "FINISHED", "PARTIAL"], &rows)
    }
}

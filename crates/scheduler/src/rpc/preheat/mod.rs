//! `PreheatImage`, `PreheatFile`, `StatImage`, `StatFile` (scheduler sheet, section 7.4), and the watched preheat of
//! `dragonfly.preheat.v1`: requests become orders, and orders are carried out.
//!
//! Dragonfly v2's calls answer as soon as the contents and hosts are known; the preheat then goes on by itself up to its time
//! limit. The watched ones answer with a stream and end with it.
//!
//! How the fields of a request are understood stands in `ask.rs`, how the plan and what happens are told in `messages.rs`.

mod ask;
mod messages;

use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use api::preheat as watched;
use dragonfly_api::common::v2::Download;
use dragonfly_api::dfdaemon::v2::ListTaskEntriesRequest;
use dragonfly_api::scheduler::v2 as wire;
use futures::{Stream, StreamExt};
use protocol::HostRole;
use registry::{Access, ContentKind, Credentials, Image, ManifestUrl, Platforms, RegistryError};
use runtime::secret::{redact_url, redact_urls};
use runtime::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info;

use super::validate::invalid;
use crate::metrics::Call;
use crate::parts::Parts;
use crate::preheat::{
    self, Content, Holder, NoTargets, Order, Preheats, Scope, Selection, Targets,
};
use ask::{Ask, platforms};
use messages::{event_message, plan_message};

/// Most files of a directory, as the daemons list them.
const FILES_MAX: usize = 10_000;
/// Hosts that are asked in turn to list a directory.
const LISTERS_MAX: usize = 3;
/// Events that may wait for a slow reader; a preheat waits with them.
const EVENTS_MAX: usize = 256;

/// The calls.
#[derive(Clone)]
pub(super) struct PreheatService {
    parts: Arc<Parts>,
    shutdown: Shutdown,
}

type Events = Pin<Box<dyn Stream<Item = Result<watched::Event, Status>> + Send>>;

impl PreheatService {
    pub(super) fn new(parts: Arc<Parts>, shutdown: Shutdown) -> Self {
        Self { parts, shutdown }
    }

    pub(super) async fn preheat_image(
        &self,
        request: wire::PreheatImageRequest,
    ) -> Result<(), Status> {
        let order = self.image_order(request).await?;
        self.go_on_with(order)
    }

    pub(super) async fn preheat_file(
        &self,
        request: wire::PreheatFileRequest,
    ) -> Result<(), Status> {
        let order = self.file_order(request).await?;
        self.go_on_with(order)
    }

    pub(super) async fn stat_image(
        &self,
        request: wire::StatImageRequest,
    ) -> Result<wire::StatImageResponse, Status> {
        let everybody = match request.scope.as_str() {
            "" | "all_peers" => true,
            "all_seed_peers" => false,
            _ => return Err(invalid("scope", "all_peers or all_seed_peers")),
        };
        let (digest, platforms) = (
            request.enable_task_id_based_blob_digest,
            platforms(request.platform.as_deref())?,
        );
        let (username, password) = (request.username.clone(), request.password.clone());
        let ask = Ask::of_stat_image(request);
        let (download, limits) = (ask.download(&self.preheats().remote_ip)?, ask.limits()?);
        let registry = self.registry(&ask, username, password)?;
        let image = resolve(&registry, &platforms).await?;
        let download = Download {
            enable_task_id_based_blob_digest: digest,
            ..download
        };
        let contents = contents_of(&download, image.blobs)?;
        let hosts = preheat::known(&self.parts.brain, |role| {
            everybody || role == HostRole::Seed
        });
        let holders = self.preheats().holders(hosts, &contents, limits).await;
        let layer = |content: &Content, is_finished| wire::Layer {
            url: content.url.clone(),
            is_finished,
        };
        Ok(wire::StatImageResponse {
            image: Some(wire::Image {
                layers: contents
                    .iter()
                    .map(|content| layer(content, None))
                    .collect(),
            }),
            peers: holders
                .into_iter()
                .map(|Holder { host, held }| wire::PeerImage {
                    ip: host.ip.clone(),
                    hostname: host.hostname.clone(),
                    cached_layers: held
                        .into_iter()
                        .map(|(place, whole)| layer(&contents[place], Some(whole)))
                        .collect(),
                })
                .collect(),
        })
    }

    pub(super) async fn stat_file(
        &self,
        request: wire::StatFileRequest,
    ) -> Result<wire::StatFileResponse, Status> {
        let ask = Ask::of_stat_file(request);
        let (download, limits) = (ask.download(&self.preheats().remote_ip)?, ask.limits()?);
        let contents = self.files(&ask, &download).await?;
        let hosts = preheat::known(&self.parts.brain, |_| true);
        let holders = self.preheats().holders(hosts, &contents, limits).await;
        Ok(wire::StatFileResponse {
            peers: holders
                .into_iter()
                .map(|Holder { host, held }| wire::PeerFile {
                    ip: host.ip.clone(),
                    hostname: host.hostname.clone(),
                    cached_files: held
                        .into_iter()
                        .map(|(place, whole)| wire::File {
                            url: contents[place].url.clone(),
                            is_finished: Some(whole),
                        })
                        .collect(),
                })
                .collect(),
        })
    }

    fn preheats(&self) -> &Preheats {
        &self.parts.preheats
    }

    async fn image_order(&self, request: wire::PreheatImageRequest) -> Result<Order, Status> {
        let (digest, platforms) = (
            request.enable_task_id_based_blob_digest,
            platforms(request.platform.as_deref())?,
        );
        let (username, password) = (request.username.clone(), request.password.clone());
        let ask = Ask::of_preheat_image(request);
        let (download, limits, (scope, selection)) = (
            ask.download(&self.preheats().remote_ip)?,
            ask.limits()?,
            ask.selection()?,
        );
        let registry = self.registry(&ask, username, password)?;
        let Image {
            manifests,
            blobs,
            notes,
        } = resolve(&registry, &platforms).await?;
        let download = Download {
            enable_task_id_based_blob_digest: digest,
            ..download
        };
        let contents = contents_of(&download, manifests.into_iter().chain(blobs))?;
        Ok(Order {
            targets: self.targets(scope, &selection, &contents)?,
            contents,
            download,
            registry: Some(registry),
            limits,
            notes,
        })
    }

    async fn file_order(&self, request: wire::PreheatFileRequest) -> Result<Order, Status> {
        if request
            .output_path
            .as_ref()
            .is_some_and(|path| !path.is_empty())
        {
            return Err(Status::invalid_argument(
                "output_path is not served: daemons do not write to paths that a request from the network names; preheat without it, and let dfget on the host place the file",
            ));
        }
        let ask = Ask::of_preheat_file(request);
        let (download, limits, (scope, selection)) = (
            ask.download(&self.preheats().remote_ip)?,
            ask.limits()?,
            ask.selection()?,
        );
        let contents = self.files(&ask, &download).await?;
        Ok(Order {
            targets: self.targets(scope, &selection, &contents)?,
            contents,
            download,
            registry: None,
            limits,
            notes: Vec::new(),
        })
    }

    fn targets(
        &self,
        scope: Scope,
        selection: &Selection,
        contents: &[Content],
    ) -> Result<Targets, Status> {
        let tasks: Vec<_> = contents
            .iter()
            .map(|content| content.task_id.clone())
            .collect();
        Targets::choose(&self.parts.brain, scope, selection, &tasks)
            .map_err(|error: NoTargets| Status::failed_precondition(error.to_string()))
    }

    fn registry(
        &self,
        ask: &Ask,
        username: Option<String>,
        password: Option<String>,
    ) -> Result<registry::Registry, Status> {
        let url = ManifestUrl::from_str(&ask.url)
            .map_err(|error| Status::invalid_argument(format!("url: {error}")))?;
        let credentials = match (username.unwrap_or_default(), password.unwrap_or_default()) {
            (username, password) if username.is_empty() && password.is_empty() => None,
            (username, _) if username.is_empty() => {
                return Err(invalid("username", "a name beside the password"));
            }
            (username, password) => Some(Credentials { username, password }),
        };
        let access = Access {
            headers: ask.header.clone(),
            credentials,
            trust_roots: ask.certificate_chain.clone(),
            insecure_skip_verify: ask.insecure_skip_verify,
        };
        Ok(self.preheats().registries.open(url, access))
    }

    /// The file, or the files of a directory, whose URL ends with a slash.
    async fn files(&self, ask: &Ask, download: &Download) -> Result<Vec<Content>, Status> {
        let named = file(download, ask.url.clone(), None)?;
        if !ask.url.ends_with('/') {
            return Ok(vec![named]);
        }
        let directory = named;
        let entries = self.list(ask, &directory).await?;
        let files: Vec<Content> = entries
            .into_iter()
            .filter(|entry| !entry.is_dir)
            .map(|entry| {
                file(
                    download,
                    entry.url,
                    (entry.content_length > 0).then_some(entry.content_length),
                )
            })
            .collect::<Result<_, _>>()?;
        match files.len() {
            0 => Err(Status::invalid_argument(
                "url: the directory holds no files",
            )),
            1..=FILES_MAX => Ok(files),
            count => Err(Status::invalid_argument(format!(
                "url: the directory holds {count} files, the limit is {FILES_MAX}"
            ))),
        }
    }

    /// One level of a directory, as a daemon sees it: the origins are known to the daemons alone.
    async fn list(
        &self,
        ask: &Ask,
        directory: &Content,
    ) -> Result<Vec<dragonfly_api::dfdaemon::v2::Entry>, Status> {
        let preheats = self.preheats();
        let owner = self.parts.brain.read(|core| {
            core.seed_for(&directory.task_id)
                .map(|host| host.data.clone())
        });
        let others = preheat::known(&self.parts.brain, |role| role != HostRole::Seed);
        let daemons = preheats.daemons.apart();
        let mut last = None;
        for host in others.into_iter().take(LISTERS_MAX - 1).chain(owner) {
            let Some(mut client) = daemons.upload(&host) else {
                continue;
            };
            let mut request = Request::new(ListTaskEntriesRequest {
                task_id: directory.task_id.to_string(),
                url: ask.url.clone(),
                request_header: ask.header.clone(),
                timeout: ask.timeout,
                certificate_chain: ask.certificate_chain.clone(),
                object_storage: ask.object_storage.clone(),
                hdfs: ask.hdfs.clone(),
                remote_ip: Some(preheats.remote_ip.clone()),
                ..ListTaskEntriesRequest::default()
            });
            request.set_timeout(Duration::from_secs(60));
            match client.list_task_entries(request).await {
                Ok(answer) => return Ok(answer.into_inner().entries),
                Err(status) => last = Some(status),
            }
        }
        Err(match last {
            Some(status) => Status::invalid_argument(format!(
                "url: the directory cannot be listed: {}",
                redact_urls(status.message())
            )),
            None => Status::failed_precondition("no host is known that could list the directory"),
        })
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.preheats()
            .running
            .clone()
            .try_acquire_owned()
            .map_err(|_| {
                Status::resource_exhausted(
                    "too many preheats are under way: wait for some of them to end",
                )
            })
    }

    /// Starts a preheat that nobody watches.
    fn go_on_with(&self, order: Order) -> Result<(), Status> {
        let permit = self.permit()?;
        let parts = self.parts.clone();
        self.shutdown.spawn_until_begun("preheat", async move {
            // What fails is in the log; nobody is there to be told.
            let (events, mut unread) = mpsc::channel(EVENTS_MAX);
            let unread = async { while unread.recv().await.is_some() {} };
            tokio::join!(parts.preheats.run(&order, events), unread);
            drop(permit);
        });
        Ok(())
    }

    /// Starts one that ends when its stream is dropped.
    fn watch(&self, order: Order) -> Result<Events, Status> {
        let permit = self.permit()?;
        let plan = plan_message(&order);
        let (messages, stream) = mpsc::channel(EVENTS_MAX);
        let parts = self.parts.clone();
        self.shutdown
            .spawn_until_begun("watched preheat", async move {
                let work = async {
                    let (events, mut happening) = mpsc::channel(EVENTS_MAX);
                    let told = async {
                        let _ = messages.send(Ok(plan)).await;
                        while let Some(event) = happening.recv().await {
                            let _ = messages.send(Ok(event_message(event))).await;
                        }
                    };
                    tokio::join!(parts.preheats.run(&order, events), told);
                };
                tokio::select! {
                    biased;
                    () = messages.closed() => info!("preheat given up: its caller went away"),
                    () = work => {}
                }
                drop(permit);
            });
        Ok(Box::pin(ReceiverStream::new(stream).map(|message| message)))
    }
}

#[tonic::async_trait]
impl watched::preheat_server::Preheat for PreheatService {
    type ImageStream = Events;

    async fn image(
        &self,
        request: Request<wire::PreheatImageRequest>,
    ) -> Result<Response<Events>, Status> {
        let begun = self
            .image_order(request.into_inner())
            .await
            .and_then(|order| self.watch(order));
        self.parts.metrics.called(Call::PreheatImage, &begun);
        begun.map(Response::new)
    }

    type FileStream = Events;

    async fn file(
        &self,
        request: Request<wire::PreheatFileRequest>,
    ) -> Result<Response<Events>, Status> {
        let begun = self
            .file_order(request.into_inner())
            .await
            .and_then(|order| self.watch(order));
        self.parts.metrics.called(Call::PreheatFile, &begun);
        begun.map(Response::new)
    }
}

async fn resolve(registry: &registry::Registry, platforms: &Platforms) -> Result<Image, Status> {
    registry
        .resolve(platforms)
        .await
        .map_err(|error: RegistryError| {
            let text = format!("failed to resolve manifests: {error}");
            if error.is_passing() {
                Status::unavailable(text)
            } else {
                Status::invalid_argument(text)
            }
        })
}

/// The file at `url`; its length, if it is known.
fn file(download: &Download, url: String, len: Option<u64>) -> Result<Content, Status> {
    let task_id = preheat::task_id(download, &url)
        .map_err(|error| Status::invalid_argument(format!("url: {error}")))?;
    Ok(Content {
        url,
        task_id,
        kind: "file",
        len,
    })
}

fn contents_of(
    download: &Download,
    contents: impl IntoIterator<Item = registry::Content>,
) -> Result<Vec<Content>, Status> {
    let content = |it: registry::Content| {
        let task_id = preheat::task_id(download, &it.url).map_err(|error| {
            Status::invalid_argument(format!("{}: {error}", redact_url(&it.url)))
        })?;
        Ok(Content {
            task_id,
            kind: it.kind.name(),
            // What a tag points to may have another length by then.
            len: (it.kind != ContentKind::Tag).then_some(it.len),
            url: it.url,
        })
    };
    contents.into_iter().map(content).collect()
}

//! `PreheatImage`, `PreheatFile`, `StatImage`, `StatFile` (scheduler sheet, section 7.4), and the watched preheat of
//! `dragonfly.preheat.v1`: requests become orders, and what happens becomes messages.
//!
//! Dragonfly v2's calls answer as soon as the contents and hosts are known; the preheat then goes on by itself up to its time
//! limit. The watched ones answer with a stream and end with it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use api::preheat as watched;
use dragonfly_api::common::v2::{
    Download, Hdfs, ObjectStorage, Priority, SchedulingPolicy, TaskType,
};
use dragonfly_api::dfdaemon::v2::ListTaskEntriesRequest;
use dragonfly_api::scheduler::v2 as wire;
use futures::{Stream, StreamExt};
use prost_wkt_types::Duration as WireDuration;
use protocol::{DEFAULT_FILTERED_QUERY_PARAMS, HostRole};
use registry::{
    Access, ContentKind, Credentials, Image, ManifestUrl, Platform, Platforms, RegistryError,
};
use runtime::secret::is_secret_header;
use runtime::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info;

use super::validate::{self, invalid};
use crate::metrics::Call;
use crate::parts::Parts;
use crate::preheat::{
    self, Content, Event, Holder, Limits, NoTargets, Order, Preheats, Scope, Selection, Targets,
};

/// What is meant where a request leaves it out (scheduler sheet, section 7.4).
const CONTENTS_AT_ONCE: usize = 8;
const HOSTS_AT_ONCE: usize = 500;
const TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Longest time that is believed to be meant.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Most headers and filters of a request, and the bytes of all headers.
const HEADERS_MAX: usize = 128;
const HEADER_BYTES_MAX: usize = 64 << 10;
const FILTERS_MAX: usize = 1024;
/// Most addresses that a request may name.
const IPS_MAX: usize = 1000;
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
                status.message()
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

/// The fields that the four requests share. Absent ones are empty.
#[derive(Default)]
struct Ask {
    url: String,
    piece_length: Option<u64>,
    tag: Option<String>,
    application: Option<String>,
    filtered_query_params: Vec<String>,
    header: HashMap<String, String>,
    scope: String,
    ips: Vec<String>,
    percentage: Option<u32>,
    count: Option<u32>,
    contents_at_once: Option<i64>,
    hosts_at_once: Option<i64>,
    timeout: Option<WireDuration>,
    priority: i32,
    certificate_chain: Vec<Vec<u8>>,
    insecure_skip_verify: bool,
    object_storage: Option<ObjectStorage>,
    hdfs: Option<Hdfs>,
}

/// Takes the fields of these names over, and the others as they are written.
macro_rules! ask {
    ($request:ident, [$($same:ident),*], {$($field:ident: $value:expr),*}) => {{
        let mut ask = Self::default();
        $(ask.$same = $request.$same;)*
        $(ask.$field = $value;)*
        ask
    }};
}

impl Ask {
    fn of_preheat_image(it: wire::PreheatImageRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, scope, ips, percentage, count, timeout, priority, insecure_skip_verify], {
            contents_at_once: it.concurrent_task_count,
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    fn of_preheat_file(it: wire::PreheatFileRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, scope, ips, percentage, count, timeout, priority, insecure_skip_verify, object_storage, hdfs], {
            contents_at_once: it.concurrent_task_count,
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    fn of_stat_image(it: wire::StatImageRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, timeout, insecure_skip_verify], {
            contents_at_once: it.concurrent_layer_count,
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    fn of_stat_file(it: wire::StatFileRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, timeout, insecure_skip_verify, object_storage, hdfs], {
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    /// The call to a daemon, but for the URL and the authorization of a content.
    fn download(&self, remote_ip: &str) -> Result<Download, Status> {
        validate::absolute_url("url", &self.url)?;
        let piece_length = self.piece_length.filter(|length| *length != 0);
        if piece_length.is_some_and(|length| !validate::PIECE_LEN.contains(&length)) {
            return Err(invalid("piece_length", "a length from 4 MiB to 64 MiB"));
        }
        if Priority::try_from(self.priority).is_err() {
            return Err(invalid("priority", "LEVEL0 to LEVEL6"));
        }
        let header_bytes: usize = self
            .header
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if self.header.len() > HEADERS_MAX || header_bytes > HEADER_BYTES_MAX {
            return Err(invalid("header", "at most 128 headers of 64 KiB together"));
        }
        if self.filtered_query_params.len() > FILTERS_MAX {
            return Err(invalid("filtered_query_params", "at most 1024 names"));
        }
        let storage = self.object_storage.as_ref();
        let empty = |field: Option<&String>| field.is_some_and(String::is_empty);
        if storage.is_some_and(|it| {
            empty(it.access_key_id.as_ref()) || empty(it.access_key_secret.as_ref())
        }) {
            return Err(invalid(
                "object_storage",
                "a key id and secret that are not empty, or none at all,",
            ));
        }
        let filtered_query_params = if self.filtered_query_params.is_empty() {
            DEFAULT_FILTERED_QUERY_PARAMS
                .iter()
                .map(ToString::to_string)
                .collect()
        } else {
            self.filtered_query_params.clone()
        };
        Ok(Download {
            r#type: TaskType::Standard.into(),
            tag: Some(self.tag.clone().unwrap_or_default()),
            application: Some(self.application.clone().unwrap_or_default()),
            priority: self.priority,
            filtered_query_params,
            request_header: self.header.clone(),
            piece_length,
            certificate_chain: self.certificate_chain.clone(),
            object_storage: self.object_storage.clone(),
            hdfs: self.hdfs.clone(),
            remote_ip: Some(remote_ip.to_owned()),
            // Also of small contents the origin gives one copy.
            scheduling_policy: SchedulingPolicy::Always.into(),
            timeout: self.timeout,
            ..Download::default()
        })
    }

    fn selection(&self) -> Result<(Scope, Selection), Status> {
        let scope = Scope::of_name(&self.scope)
            .ok_or_else(|| invalid("scope", "single_seed_peer, all_seed_peers or all_peers"))?;
        if self.ips.len() > IPS_MAX {
            return Err(invalid("ips", "at most 1000 addresses"));
        }
        let ips: Vec<IpAddr> = self
            .ips
            .iter()
            .map(|ip| ip.parse().map_err(|_| invalid("ips", "IP addresses")))
            .collect::<Result<_, _>>()?;
        if self.percentage.is_some_and(|it| !(1..=100).contains(&it)) {
            return Err(invalid("percentage", "a number from 1 to 100"));
        }
        if self.count.is_some_and(|it| !(1..=200).contains(&it)) {
            return Err(invalid("count", "a number from 1 to 200"));
        }
        let selection = Selection {
            ips,
            count: self.count.map(|count| count as usize),
            percentage: self.percentage.map(|percentage| percentage as usize),
        };
        Ok((scope, selection))
    }

    fn limits(&self) -> Result<Limits, Status> {
        let bounded = |field, value: Option<i64>, default: usize, max: i64| match value {
            None | Some(0) => Ok(default),
            Some(value) if (1..=max).contains(&value) => {
                Ok(usize::try_from(value).unwrap_or(default))
            }
            Some(_) => Err(invalid(field, &format!("a number from 1 to {max}"))),
        };
        let timeout = match self.timeout {
            None => TIMEOUT,
            Some(timeout) if timeout.seconds == 0 && timeout.nanos == 0 => TIMEOUT,
            Some(timeout) => Duration::try_from(timeout)
                .ok()
                .filter(|timeout| *timeout <= TIMEOUT_MAX)
                .ok_or_else(|| invalid("timeout", "a duration of at most 7 days"))?,
        };
        Ok(Limits {
            contents: bounded(
                "concurrent_task_count",
                self.contents_at_once,
                CONTENTS_AT_ONCE,
                100,
            )?,
            hosts: bounded(
                "concurrent_peer_count",
                self.hosts_at_once,
                HOSTS_AT_ONCE,
                1000,
            )?,
            timeout,
        })
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let harmless = self
            .header
            .keys()
            .filter(|name| !is_secret_header(name))
            .count();
        f.debug_struct("Ask")
            .field("harmless_headers", &harmless)
            .finish_non_exhaustive()
    }
}

/// The platforms of a request; without one the scheduler's own, as in Dragonfly v2.
fn platforms(text: Option<&str>) -> Result<Platforms, Status> {
    match text {
        None | Some("") => Ok(Platforms::These(vec![Platform::current()])),
        Some(text) => text
            .parse()
            .map_err(|error| Status::invalid_argument(format!("platform: {error}"))),
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
        let task_id = preheat::task_id(download, &it.url)
            .map_err(|error| Status::invalid_argument(format!("{}: {error}", it.url)))?;
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

fn place(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn plan_message(order: &Order) -> watched::Event {
    let jobs = order
        .targets
        .of_task
        .iter()
        .enumerate()
        .flat_map(|(content, hosts)| {
            hosts.iter().map(move |host| watched::Job {
                content: place(content),
                host: place(*host),
            })
        });
    let plan = watched::Plan {
        contents: order
            .contents
            .iter()
            .map(|content| watched::Content {
                url: content.url.clone(),
                task_id: content.task_id.to_string(),
                kind: content.kind.to_owned(),
                length: content.len,
            })
            .collect(),
        hosts: order
            .targets
            .hosts
            .iter()
            .map(|host| watched::Host {
                id: host.id.clone(),
                hostname: host.hostname.clone(),
                ip: host.ip.clone(),
                seed: (1..=3).contains(&host.r#type),
            })
            .collect(),
        jobs: jobs.collect(),
        notes: order.notes.clone(),
    };
    watched::Event {
        kind: Some(watched::event::Kind::Plan(plan)),
    }
}

fn event_message(event: Event) -> watched::Event {
    use crate::preheat::{Job, Outcome};
    let job = |job: Job| {
        Some(watched::Job {
            content: place(job.content),
            host: place(job.host),
        })
    };
    let kind = match event {
        Event::Progress {
            job: of,
            received,
            len,
        } => watched::event::Kind::Progress(watched::Progress {
            job: job(of),
            received,
            length: len,
        }),
        Event::Ended { job: of, outcome } => watched::event::Kind::Outcome(match outcome {
            Outcome::Held { len, before } => watched::Outcome {
                job: job(of),
                error: String::new(),
                held: before,
                length: len,
            },
            Outcome::Failed(error) => watched::Outcome {
                job: job(of),
                error,
                ..watched::Outcome::default()
            },
        }),
    };
    watched::Event { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> wire::PreheatFileRequest {
        wire::PreheatFileRequest {
            url: "https://example.com/file".to_owned(),
            scope: "all_peers".to_owned(),
            ..Default::default()
        }
    }

    fn check(
        change: impl FnOnce(&mut wire::PreheatFileRequest),
    ) -> Result<(Download, Limits, Selection), Status> {
        let mut changed = request();
        change(&mut changed);
        let ask = Ask::of_preheat_file(changed);
        Ok((ask.download("10.0.0.1")?, ask.limits()?, ask.selection()?.1))
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let (download, limits, selection) = check(|it| {
            it.concurrent_task_count = Some(0);
            it.piece_length = Some(0);
            it.timeout = Some(WireDuration::default());
        })
        .unwrap();
        assert_eq!(
            limits,
            Limits {
                contents: 8,
                hosts: 500,
                timeout: TIMEOUT
            }
        );
        assert_eq!(selection, Selection::default());
        assert_eq!(
            download.filtered_query_params.len(),
            DEFAULT_FILTERED_QUERY_PARAMS.len()
        );
        assert!(download.piece_length.is_none() && !download.need_back_to_source);
        assert_eq!(
            (download.tag.as_deref(), download.application.as_deref()),
            (Some(""), Some(""))
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        type Change = fn(&mut wire::PreheatFileRequest);
        let wrong: [(&str, Change); 13] = [
            ("url", |it| it.url = "file".to_owned()),
            ("scope", |it| it.scope = String::new()),
            ("scope", |it| it.scope = "everybody".to_owned()),
            ("ips", |it| it.ips = vec!["here".to_owned()]),
            ("percentage", |it| it.percentage = Some(101)),
            ("percentage", |it| it.percentage = Some(0)),
            ("count", |it| it.count = Some(201)),
            ("concurrent_task_count", |it| {
                it.concurrent_task_count = Some(101)
            }),
            ("concurrent_peer_count", |it| {
                it.concurrent_peer_count = Some(-1)
            }),
            ("piece_length", |it| it.piece_length = Some(1)),
            ("priority", |it| it.priority = 7),
            ("timeout", |it| {
                it.timeout = Some(WireDuration {
                    seconds: -1,
                    nanos: 0,
                })
            }),
            ("header", |it| {
                it.header = HashMap::from([("a".to_owned(), "x".repeat(HEADER_BYTES_MAX))]);
            }),
        ];
        for (field, change) in wrong {
            let status = check(change).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(
                status.message().starts_with(field),
                "{field}: {}",
                status.message()
            );
        }
        assert!(platforms(Some("linux")).is_err());
        assert_eq!(platforms(None).unwrap(), platforms(Some("")).unwrap());
    }
}

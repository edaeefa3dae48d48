//! Origins that are served by programs of the user's own: one executable file per URL scheme, spoken to over its standard streams.
//!
//! A plugin is a process and not a library: it may be written in any language and linked against anything, what it breaks is its own memory, it can be given
//! up when it hangs and started anew when it falls, and there is no ABI that a new compiler or release could change. The price, copying the
//! bytes through a pipe, is about 0.3 s of CPU per GiB, once per content and cluster. docs/plugins.md describes the [`protocol`](self) for authors.
//!
//! One process carries out one operation at a time, so that an author needs no concurrency; operations side by side get
//! processes side by side. Everything a plugin says is foreign: lines and frames are bounded, waits are limited, and bytes
//! beyond what was promised end the operation, as does a process that ends.
//!
//! Start at [`load`], which finds the plugins of a folder and lets each of them say hello.

mod message;
mod process;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::content::BodyLimits;
use crate::request::LEVELS;
use crate::{
    Body, Content, Entry, Facts, Get, ListLimits, RangeSupport, Redacted, Request, Source,
    SourceError, StallPhase, Version, Want,
};
use message::{Answer, Operation, Reply};
use process::{Process, ProcessError};

/// Operations of one plugin at once; more wait for their turn. Each is a process.
const PROCESSES_MAX: usize = 8;
/// Idle processes kept per plugin.
const IDLE_MAX: usize = 2;
/// Pause after a start that failed, doubled with each further one up to [`PAUSE_MAX`]; who asks meanwhile is refused at once.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Limits in time for what plugins do.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PluginLimits {
    /// Until a process that was started has said hello.
    pub hello: Duration,
    /// Until the first line of an answer, and between two lines of a listing.
    pub answer: Duration,
    /// Longest pause within a content.
    pub idle: Duration,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            answer: Duration::from_secs(20),
            idle: Duration::from_secs(15),
        }
    }
}

/// A plugin cannot be used, which whoever put it there must change.
#[derive(Debug, thiserror::Error)]
#[error("plugin {}: {reason}", file.display())]
pub struct PluginError {
    file: PathBuf,
    reason: String,
}

/// The plugins in `folder`, sorted by scheme, after each has said hello. A folder that is not there holds none. The scheme is the name of the file
/// up to its first dot; names that begin with a dot are passed over.
///
/// # Errors
/// [`PluginError`], naming the file: it cannot be run, is no plugin, has a name that is no scheme, or one that another file has too.
pub async fn load(folder: &Path, limits: PluginLimits) -> Result<Vec<PluginSource>, PluginError> {
    let refused = |file: &Path, reason: String| PluginError {
        file: file.to_owned(),
        reason,
    };
    let mut files = match tokio::fs::read_dir(folder).await {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refused(folder, format!("cannot read the folder: {error}"))),
    };
    let mut plugins: Vec<PluginSource> = Vec::new();
    loop {
        let file = files
            .next_entry()
            .await
            .map_err(|error| refused(folder, format!("cannot read the folder: {error}")))?;
        let Some(file) = file else { break };
        let path = file.path();
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let scheme = scheme_of(&name).map_err(|reason| refused(&path, reason))?;
        if let Some(other) = plugins.iter().find(|other| other.scheme == scheme) {
            let other = other.pool.file.display();
            let reason = format!("serves {scheme}:// as {other} does: remove one of them");
            return Err(refused(&path, reason));
        }
        let facts = tokio::fs::metadata(&path).await;
        let facts = facts.map_err(|error| refused(&path, format!("cannot be read: {error}")))?;
        if !facts.is_file() || facts.permissions().mode() & 0o111 == 0 {
            let reason = "is not an executable file: make it one with chmod +x, or remove it";
            return Err(refused(&path, reason.to_owned()));
        }
        let plugin = PluginSource::new(path.clone(), scheme, limits);
        let hello = plugin.pool.start().await;
        let process = hello.map_err(|error| refused(&path, error.to_string()))?;
        plugin.pool.keep(process);
        plugins.push(plugin);
    }
    plugins.sort_by(|a, b| a.scheme.cmp(&b.scheme));
    Ok(plugins)
}

/// The scheme that a file serves.
fn scheme_of(name: &str) -> Result<String, String> {
    if name.ends_with(".so") || name.ends_with(".dylib") {
        return Err("is a shared library; plugins of this program are executables, see docs/plugins.md: remove it or replace it".to_owned());
    }
    let scheme = name.split('.').next().unwrap_or_default();
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-".contains(&byte);
    let begins = scheme
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase());
    if begins && scheme.bytes().all(allowed) {
        Ok(scheme.to_owned())
    } else {
        Err(format!(
            "{scheme:?} is no URL scheme: name the file by lower-case letters, digits, + and -, as in file-tree.py for file-tree://"
        ))
    }
}

/// The backend of one plugin.
#[derive(Debug)]
pub struct PluginSource {
    scheme: String,
    pool: Arc<Pool>,
}

/// The processes of one plugin.
#[derive(Debug)]
struct Pool {
    file: PathBuf,
    limits: PluginLimits,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Process>>,
    /// Starts that failed in a row, and until when no other one is tried.
    failed: Mutex<(u32, Option<Instant>)>,
}

/// A process that carries out an operation. Unless it is given back, it is killed when dropped.
struct Lease {
    process: Process,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl PluginSource {
    fn new(file: PathBuf, scheme: String, limits: PluginLimits) -> Self {
        let pool = Arc::new(Pool {
            file,
            limits,
            permits: Arc::new(Semaphore::new(PROCESSES_MAX)),
            idle: Mutex::new(Vec::new()),
            failed: Mutex::new((0, None)),
        });
        Self { scheme, pool }
    }

    /// The URL scheme that it serves.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.pool.file
    }

    /// Begins an operation and returns the first line of its answer. A process from the shelf that turns out to have ended costs another start, not an error.
    async fn begin(
        &self,
        request: &Request,
        operation: Operation<'_>,
    ) -> Result<(Lease, Reply), SourceError> {
        let failed = |error: ProcessError| self.failed(request, error);
        let line = message::request(request, &operation)
            .map_err(|reason| failed(ProcessError::Senseless(reason)))?;
        loop {
            let (mut lease, was_idle) = self.pool.lease().await.map_err(failed)?;
            let answer = lease.process.ask(&line, self.pool.limits.answer).await;
            match answer {
                Ok(answer) => return Ok((lease, answer)),
                Err(ProcessError::Ended(_)) if was_idle => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn failed(&self, request: &Request, error: ProcessError) -> SourceError {
        let url = Redacted::url(&request.url);
        match error {
            ProcessError::Hangs { limit } => SourceError::Stalled {
                url,
                phase: StallPhase::Header,
                limit,
                received: 0,
            },
            error => SourceError::Plugin {
                url,
                plugin: self.pool.file.display().to_string(),
                reason: error.to_string(),
            },
        }
    }

    /// An answer that is not the one to this operation.
    fn unexpected(&self, request: &Request) -> SourceError {
        self.failed(
            request,
            ProcessError::Senseless("answered something else than was asked".to_owned()),
        )
    }

    async fn learn(&self, request: &Request) -> Result<Facts, SourceError> {
        let (lease, reply) = self.begin(request, Operation::Stat).await?;
        let outcome = match reply {
            Reply::Facts(answer) => Ok(facts(&answer, answer.content_length)),
            Reply::Error(error) => Err(error.into_source_error(&request.url)),
            _ => return Err(self.unexpected(request)),
        };
        lease.give_back();
        outcome
    }

    async fn read(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        let operation = Operation::Get {
            want: get.want,
            etag: get
                .version
                .as_ref()
                .and_then(|version| version.etag.as_deref()),
        };
        let (lease, reply) = self.begin(request, operation).await?;
        let answer = match reply {
            Reply::Facts(answer) => answer,
            Reply::Error(error) => {
                lease.give_back();
                return Err(error.into_source_error(&request.url));
            }
            _ => return Err(self.unexpected(request)),
        };
        let facts = facts(&answer, answer.content_length);
        let shown = Redacted::url(&request.url);
        if let Some(changed) = get
            .version
            .as_ref()
            .and_then(|seen| seen.difference(&facts.version))
        {
            // The rest of its answer is not wanted, so the process ends with the lease.
            return Err(SourceError::Changed {
                url: shown,
                changed,
            });
        }
        let (start, length) = match (get.want, answer.start) {
            (Want::Whole, None | Some(0)) => (0, answer.content_length),
            (Want::Prefix(length), None | Some(0)) if facts.ranges == RangeSupport::Yes => (
                0,
                Some(answer.content_length.map_or(length, |all| length.min(all))),
            ),
            (Want::Prefix(_), None | Some(0)) => (0, answer.content_length),
            (Want::Range(range) | Want::RangeOrSkip(range), Some(start))
                if start == range.start =>
            {
                (start, Some(range.length))
            }
            (Want::Range(_), None) => {
                return Err(SourceError::RangesUnsupported { url: shown });
            }
            (Want::RangeOrSkip(_), None) => (0, answer.content_length),
            (want, got) => {
                return Err(SourceError::WrongRange {
                    url: shown,
                    asked: format!("{want:?}"),
                    got: format!("a start at {got:?}"),
                });
            }
        };
        let deadline = request
            .deadline
            .map(|limit| (Instant::now() + limit, limit));
        let limits = BodyLimits {
            idle: self.pool.limits.idle,
            deadline,
        };
        let body = Body::new(content_of(lease, length), shown, length, limits);
        Ok(match get.want {
            Want::RangeOrSkip(range) if answer.start.is_none() => {
                Content::new(facts, range.start, body.slice(range.start, range.length))
            }
            _ => Content::new(facts, start, body),
        })
    }

    async fn entries(
        &self,
        request: &Request,
        limits: ListLimits,
    ) -> Result<Vec<Entry>, SourceError> {
        let (mut lease, mut reply) = self
            .begin(
                request,
                Operation::List {
                    // What is too deep must be seen to be refused.
                    depth: limits.depth + 1,
                },
            )
            .await?;
        let mut entries = Vec::new();
        loop {
            match reply {
                Reply::Entries(listed) => {
                    for entry in listed {
                        if entries.len() >= limits.entries {
                            return Err(SourceError::ListTooLarge {
                                url: Redacted::url(&request.url),
                                limit: limits.entries,
                                what: "entries",
                            });
                        }
                        let entry = entry.into_entry().map_err(|reason| {
                            self.failed(request, ProcessError::Senseless(reason))
                        })?;
                        if level(&entry.url).saturating_sub(level(&request.url)) > limits.depth {
                            return Err(SourceError::ListTooLarge {
                                url: Redacted::url(&request.url),
                                limit: limits.depth,
                                what: LEVELS,
                            });
                        }
                        entries.push(entry);
                    }
                }
                Reply::End => {
                    lease.give_back();
                    return Ok(entries);
                }
                Reply::Error(error) => {
                    lease.give_back();
                    return Err(error.into_source_error(&request.url));
                }
                _ => return Err(self.unexpected(request)),
            }
            let next = lease.process.reply(self.pool.limits.answer).await;
            reply = next.map_err(|error| self.failed(request, error))?;
        }
    }

    /// Runs an operation up to the deadline of the request.
    async fn within<T>(
        &self,
        request: &Request,
        operation: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let Some(limit) = request.deadline else {
            return operation.await;
        };
        let done = tokio::time::timeout(limit, operation).await;
        done.unwrap_or_else(|_| {
            Err(SourceError::Deadline {
                url: Redacted::url(&request.url),
                limit,
                received: 0,
            })
        })
    }
}

impl Pool {
    /// A process, and whether it had been lying idle.
    async fn lease(self: &Arc<Self>) -> Result<(Lease, bool), ProcessError> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let kept = self.idle.lock().pop();
        let was_idle = kept.is_some();
        let process = match kept {
            Some(process) => process,
            None => self.start().await?,
        };
        let lease = Lease {
            process,
            pool: self.clone(),
            _permit: permit,
        };
        Ok((lease, was_idle))
    }

    /// A new process that has said hello.
    async fn start(&self) -> Result<Process, ProcessError> {
        if let (_, Some(until)) = *self.failed.lock()
            && let Some(rest) = until.checked_duration_since(Instant::now())
        {
            return Err(ProcessError::Paused { rest });
        }
        let started = Process::start(&self.file, self.limits.hello).await;
        let mut failed = self.failed.lock();
        match &started {
            Ok(_) => *failed = (0, None),
            Err(_) => {
                let pause = PAUSE.saturating_mul(1_u32.checked_shl(failed.0).unwrap_or(u32::MAX));
                *failed = (
                    failed.0.saturating_add(1).min(16),
                    Some(Instant::now() + pause.min(PAUSE_MAX)),
                );
            }
        }
        started
    }

    fn keep(&self, process: Process) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(process);
        }
    }
}

impl Lease {
    /// The operation is over and nothing of its answer is left: the process may serve another one.
    fn give_back(self) {
        self.pool.keep(self.process);
    }
}

/// The bytes of a content of `length` bytes, if that is known. The last of them are handed out when the end has been read too: whoever has all
/// bytes asks no further, and the process is then ready for the next operation.
fn content_of(
    lease: Lease,
    length: Option<u64>,
) -> futures::stream::BoxStream<'static, Result<bytes::Bytes, String>> {
    let told = |error: ProcessError| format!("the plugin {error}");
    futures::stream::unfold(Some((lease, length)), move |state| async move {
        let (mut lease, rest) = state?;
        let bytes = match lease.process.data().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                lease.give_back();
                return None;
            }
            Err(error) => return Some((Err(told(error)), None)),
        };
        let rest = rest.map(|rest| rest.saturating_sub(bytes.len() as u64));
        if rest != Some(0) {
            return Some((Ok(bytes), Some((lease, rest))));
        }
        match lease.process.data().await {
            Ok(None) => {
                lease.give_back();
                Some((Ok(bytes), None))
            }
            Ok(Some(_)) => Some((
                Err("the plugin sent more than it promised".to_owned()),
                None,
            )),
            Err(error) => Some((Err(told(error)), None)),
        }
    })
    .boxed()
}

fn facts(answer: &Answer, content_length: Option<u64>) -> Facts {
    let mut header = answer.header.clone();
    if let Some(length) = content_length {
        header.insert("content-length".to_owned(), length.to_string());
    }
    Facts {
        content_length,
        ranges: if answer.ranges {
            RangeSupport::Yes
        } else {
            RangeSupport::No
        },
        version: Version {
            content_length,
            etag: answer.etag.clone(),
            last_modified: answer.last_modified.clone(),
            location: None,
        },
        status_code: 200,
        header,
        digest: answer
            .digest
            .as_deref()
            .and_then(|digest| digest.parse().ok()),
    }
}

#[async_trait]
impl Source for PluginSource {
    fn schemes(&self) -> Vec<&str> {
        vec![&self.scheme]
    }

    async fn stat(&self, request: &Request) -> Result<Facts, SourceError> {
        self.within(request, self.learn(request)).await
    }

    async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        if let Want::Range(range) | Want::RangeOrSkip(range) = get.want
            && (range.length == 0 || range.start.checked_add(range.length).is_none())
        {
            return Err(SourceError::InvalidRange {
                url: Redacted::url(&request.url),
                range,
            });
        }
        self.within(request, self.read(request, get)).await
    }

    async fn exists(&self, request: &Request) -> Result<bool, SourceError> {
        match self.stat(request).await {
            Ok(_) => Ok(true),
            Err(SourceError::Status {
                status_code: 404, ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, request: &Request, limits: ListLimits) -> Result<Vec<Entry>, SourceError> {
        self.within(request, self.entries(request, limits)).await
    }
}

/// How many names the path of a URL has.
fn level(url: &url::Url) -> usize {
    let path = url.path().trim_matches('/');
    path.split('/').filter(|_| !path.is_empty()).count()
}

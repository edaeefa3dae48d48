//! HDFS, by WebHDFS: the REST API of the name node, which redirects reads to data nodes.
//!
//! `hdfs://[USER@]NAMENODE[:PORT]/PATH` is `http://NAMENODE:PORT/webhdfs/v1/PATH`, with port 9870 unless given, as Dragonfly v2 reads it. A read asks
//! for the file's status first: the data nodes tell neither version nor length, and a file may be replaced between two reads. Each
//! redirect to a data node passes the egress policy.
//!
//! The native protocol (RPC on port 8020) is not spoken: URLs and tokens of Dragonfly v2 name the web port, and a native client
//! would need Kerberos libraries of the system for the very clusters that do not offer WebHDFS.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use protocol::ByteRange;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::content::BodyLimits;
use crate::dialect::Dialect;
use crate::http::HttpSource;
use crate::request::LEVELS;
use crate::{
    Body, Content, Entry, Facts, Get, ListLimits, RangeSupport, Redacted, Request, Source,
    SourceError, Version, Want,
};

const DEFAULT_PORT: u16 = 9870;
/// Longest answer with the status of a file, or with those of all files of a folder.
const STATUS_BYTES_MAX: usize = 64 << 10;
const LISTING_BYTES_MAX: usize = 64 << 20;
const IN_NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The backend for `hdfs`.
#[derive(Debug)]
pub(crate) struct HdfsSource {
    http: Arc<HttpSource>,
}

/// `FileStatus` of WebHDFS.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileStatus {
    #[serde(default)]
    path_suffix: String,
    length: u64,
    /// `FILE`, `DIRECTORY` or `SYMLINK`.
    #[serde(rename = "type")]
    kind: String,
    /// Milliseconds since 1970.
    modification_time: u64,
    /// 0 on servers that do not tell.
    #[serde(default)]
    file_id: u64,
}

#[derive(Deserialize)]
struct StatusAnswer {
    #[serde(rename = "FileStatus")]
    status: FileStatus,
}

#[derive(Deserialize)]
struct ListAnswer {
    #[serde(rename = "FileStatuses")]
    statuses: Statuses,
}

#[derive(Deserialize)]
struct Statuses {
    #[serde(rename = "FileStatus")]
    all: Vec<FileStatus>,
}

impl HdfsSource {
    pub(crate) fn new(http: Arc<HttpSource>) -> Self {
        Self { http }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        request: &Request,
        operation: &str,
        limit: usize,
    ) -> Result<T, SourceError> {
        let underneath = request.underneath(web_url(request, operation)?, Dialect::default());
        let content = self.http.get(&underneath, Get::whole()).await?;
        let answer = content
            .body
            .collect(limit)
            .await
            .map_err(|error| match error {
                SourceError::TooLong { url, .. } => SourceError::ListTooLarge {
                    url,
                    limit,
                    what: "bytes in one listing",
                },
                other => other,
            })?;
        serde_json::from_slice(&answer).map_err(|error| SourceError::NotListable {
            url: Redacted::url(&request.url),
            reason: format!(
                "the answer is not one of WebHDFS ({error}): is this the web port of a name node?"
            ),
        })
    }

    /// The status of a file, and never of a folder.
    async fn file(&self, request: &Request) -> Result<FileStatus, SourceError> {
        let answer: StatusAnswer = self
            .ask(request, "op=GETFILESTATUS", STATUS_BYTES_MAX)
            .await?;
        match answer.status.kind.as_str() {
            "FILE" => Ok(answer.status),
            kind => Err(SourceError::InvalidUrl {
                url: Redacted::url(&request.url),
                reason: format!(
                    "it is a {}: a folder's URL ends with /",
                    kind.to_lowercase()
                ),
            }),
        }
    }
}

#[async_trait]
impl Source for HdfsSource {
    fn schemes(&self) -> Vec<&str> {
        vec!["hdfs"]
    }

    async fn stat(&self, request: &Request) -> Result<Facts, SourceError> {
        self.file(request).await.map(|status| facts(&status))
    }

    async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        let status = self.file(request).await?;
        let facts = facts(&status);
        if let Some(changed) = get
            .version
            .as_ref()
            .and_then(|seen| seen.difference(&facts.version))
        {
            return Err(SourceError::Changed {
                url: Redacted::url(&request.url),
                changed,
            });
        }
        let range = wanted(request, get.want, status.length)?;
        if range.length == 0 {
            let body = Body::new(
                stream::empty().boxed(),
                Redacted::url(&request.url),
                Some(0),
                BodyLimits::none(),
            );
            return Ok(Content::new(facts, range.start, body));
        }
        let open = format!("op=OPEN&offset={}&length={}", range.start, range.length);
        let underneath = request.underneath(web_url(request, &open)?, Dialect::default());
        let content = self.http.get(&underneath, Get::whole()).await?;
        if content.length.is_some_and(|length| length != range.length) {
            return Err(SourceError::WrongRange {
                url: Redacted::url(&request.url),
                asked: format!("{}-{}", range.start, range.end() - 1),
                got: format!("{} bytes", content.length.unwrap_or_default()),
            });
        }
        Ok(Content::new(
            facts,
            range.start,
            content.body.expect(range.length),
        ))
    }

    async fn exists(&self, request: &Request) -> Result<bool, SourceError> {
        match self
            .ask::<StatusAnswer>(request, "op=GETFILESTATUS", STATUS_BYTES_MAX)
            .await
        {
            Ok(_) => Ok(true),
            Err(SourceError::Status {
                status_code: 404, ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, request: &Request, limits: ListLimits) -> Result<Vec<Entry>, SourceError> {
        let mut base = request.url.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // The folder itself says that it is there, if it is empty.
        let mut entries = vec![Entry::directory(base.clone())];
        let mut waiting = VecDeque::from([(base, 1)]);
        while let Some((folder, level)) = waiting.pop_front() {
            let mut request = request.clone();
            request.url = folder.clone();
            let answer: ListAnswer = self
                .ask(&request, "op=LISTSTATUS", LISTING_BYTES_MAX)
                .await?;
            for status in answer.statuses.all {
                let is_dir = match status.kind.as_str() {
                    "DIRECTORY" => true,
                    "FILE" if !status.path_suffix.is_empty() => false,
                    "FILE" => {
                        return Err(SourceError::NotListable {
                            url: Redacted::url(&folder),
                            reason: "it is a file".to_owned(),
                        });
                    }
                    // Following a link could lead out of the folder, and in circles.
                    _ => continue,
                };
                if entries.len() > limits.entries {
                    return Err(SourceError::ListTooLarge {
                        url: Redacted::url(&request.url),
                        limit: limits.entries,
                        what: "entries",
                    });
                }
                let url = child(&folder, &status.path_suffix, is_dir)?;
                if is_dir {
                    if level >= limits.depth {
                        return Err(SourceError::ListTooLarge {
                            url: Redacted::url(&request.url),
                            limit: limits.depth,
                            what: LEVELS,
                        });
                    }
                    waiting.push_back((url.clone(), level + 1));
                }
                entries.push(Entry {
                    url,
                    content_length: (!is_dir).then_some(status.length),
                    is_dir,
                });
            }
        }
        Ok(entries)
    }
}

/// The URL of an operation on what the request names.
fn web_url(request: &Request, operation: &str) -> Result<Url, SourceError> {
    let refused = |reason: String| SourceError::InvalidUrl {
        url: Redacted::url(&request.url),
        reason,
    };
    let host = request
        .url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| refused("write it as hdfs://NAMENODE:PORT/PATH".to_owned()))?;
    let port = request.url.port().unwrap_or(DEFAULT_PORT);
    let path: Vec<String> = request
        .url
        .path()
        .split('/')
        .map(|name| {
            let name: Vec<u8> = percent_decode_str(name).collect();
            percent_encode(&name, IN_NAME).to_string()
        })
        .collect();
    let path = format!("/webhdfs/v1/{}", path.join("/").trim_matches('/'));
    let mut text = format!("http://{host}:{port}{path}?{operation}");
    let token = request
        .options
        .hdfs
        .as_ref()
        .and_then(|hdfs| hdfs.delegation_token.as_ref());
    match token.filter(|token| !token.expose().is_empty()) {
        Some(token) => {
            let token = percent_encode(token.expose().as_bytes(), IN_NAME);
            text.push_str(&format!("&delegation={token}"));
        }
        // A token names its user; without security, the name node believes whoever says a name.
        None if !request.url.username().is_empty() => {
            text.push_str(&format!("&user.name={}", request.url.username()));
        }
        None => {}
    }
    let url = Url::parse(&text).map_err(|error| refused(error.to_string()))?;
    if url.path() != path {
        return Err(refused(
            "it names a path that cannot be asked for".to_owned(),
        ));
    }
    Ok(url)
}

/// The bytes to read.
fn wanted(request: &Request, want: Want, content_length: u64) -> Result<ByteRange, SourceError> {
    match want {
        Want::Whole => Ok(ByteRange {
            start: 0,
            length: content_length,
        }),
        Want::Prefix(length) => Ok(ByteRange {
            start: 0,
            length: length.min(content_length),
        }),
        Want::Range(range) | Want::RangeOrSkip(range) => {
            let end = range.start.checked_add(range.length);
            let Some(end) = end.filter(|_| range.length > 0) else {
                return Err(SourceError::InvalidRange {
                    url: Redacted::url(&request.url),
                    range,
                });
            };
            if end > content_length {
                return Err(SourceError::BeyondEnd {
                    url: Redacted::url(&request.url),
                    start: range.start,
                    content_length: Some(content_length),
                });
            }
            Ok(range)
        }
    }
}

fn facts(status: &FileStatus) -> Facts {
    let modified = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(status.modification_time))
        .filter(|_| status.modification_time < 1 << 46)
        .map(httpdate::fmt_http_date);
    let header = HashMap::from([("content-length".to_owned(), status.length.to_string())]);
    Facts {
        content_length: Some(status.length),
        ranges: RangeSupport::Yes,
        version: Version {
            content_length: Some(status.length),
            // Names nodes know no entity tags; a file that is written anew has another id or time.
            etag: Some(format!(
                "\"{:x}-{:x}-{:x}\"",
                status.file_id, status.modification_time, status.length
            )),
            last_modified: modified,
            location: None,
        },
        status_code: 200,
        header,
        digest: None,
    }
}

/// The URL of something in a folder.
fn child(folder: &Url, name: &str, is_dir: bool) -> Result<Url, SourceError> {
    let encoded = percent_encode(name.as_bytes(), IN_NAME).to_string();
    let mut url = folder.clone();
    let path = format!(
        "{}{encoded}{}",
        folder.path(),
        if is_dir { "/" } else { "" }
    );
    url.set_path(&path);
    if name.is_empty() || name.contains('/') || url.path() != path {
        return Err(SourceError::NotListable {
            url: Redacted::url(folder),
            reason: format!("it holds {name:?}, which is no name"),
        });
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hdfs, OriginOptions, Secret};

    fn request(url: &str, token: Option<&str>) -> Request {
        let delegation_token = token.map(|token| Secret::from(token.to_owned()));
        Request::new(url).unwrap().with_options(OriginOptions {
            hdfs: Some(Hdfs { delegation_token }),
            ..OriginOptions::default()
        })
    }

    #[test]
    fn an_hdfs_url_is_one_of_the_web_port() {
        let url = |text: &str, token| {
            web_url(&request(text, token), "op=OPEN")
                .unwrap()
                .to_string()
        };
        assert_eq!(
            url("hdfs://nn/a/b%20c%25", None),
            "http://nn:9870/webhdfs/v1/a/b%20c%25?op=OPEN"
        );
        assert_eq!(
            url("hdfs://alice@nn:50070/", None),
            "http://nn:50070/webhdfs/v1/?op=OPEN&user.name=alice"
        );
        assert_eq!(
            url("hdfs://alice@nn/f", Some("a&b=")),
            "http://nn:9870/webhdfs/v1/f?op=OPEN&delegation=a%26b%3D"
        );
        assert!(web_url(&request("hdfs:///f", None), "op=OPEN").is_err());
        let shown = format!("{:?}", request("hdfs://nn/f", Some("secret-token")));
        assert!(!shown.contains("secret-token"), "{shown}");
    }

    #[test]
    fn a_listed_name_is_a_name() {
        let folder = Url::parse("hdfs://nn/d/").unwrap();
        let url = |name, is_dir| child(&folder, name, is_dir).map(|url| url.to_string()).ok();
        assert_eq!(
            url("a b%ä", false).as_deref(),
            Some("hdfs://nn/d/a%20b%25%C3%A4")
        );
        assert_eq!(url("x", true).as_deref(), Some("hdfs://nn/d/x/"));
        for name in ["", ".", "..", "a/b"] {
            assert_eq!(url(name, false), None, "{name}");
        }
    }
}

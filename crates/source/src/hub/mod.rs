//! Model hubs: Hugging Face, ModelScope and OpenCSG, one engine with three descriptions ([`kind`]).
//!
//! A file is named by repository, revision and path; where its bytes lie is told by a redirect, mostly to a signed address of another host
//! that is good for minutes. That address names nothing: the version of a file is what the *hub* says of it (`X-Linked-ETag` of large files,
//! the entity tag of others, `X-Repo-Commit`), so that a branch that moves during a download is noticed, and the digest of a large file
//! comes along in [`Facts::digest`]. The access token stays with the hub and never follows the redirect to another host.

mod kind;

use std::sync::Arc;

use async_trait::async_trait;
use protocol::Digest;
use serde::Deserialize;
use url::Url;

use crate::dialect::Dialect;
use crate::http::HttpSource;
use crate::request::LEVELS;
use crate::{
    Changed, Content, Entry, Facts, Get, ListLimits, Redacted, Request, Source, SourceError,
    Version,
};
use kind::{HubFile, HubKind};

/// Longest listing of a repository: some hundred thousand files.
const LISTING_BYTES_MAX: usize = 64 << 20;
/// What the hubs tell of a file while they redirect to it.
const REDIRECT_HEADERS: [&str; 3] = [LINKED_ETAG, LINKED_SIZE, COMMIT];
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";
const COMMIT: &str = "x-repo-commit";

/// The backend for `hf`, `modelscope` and `opencsg`.
#[derive(Debug)]
pub(crate) struct HubSource {
    http: Arc<HttpSource>,
}

/// What the hubs answer about a repository, as far as any of them does.
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(rename = "Code")]
    code: Option<i64>,
    #[serde(rename = "Message")]
    message: Option<String>,
    #[serde(rename = "Data")]
    data: Option<ListingData>,
}

#[derive(Deserialize)]
struct ListingData {
    #[serde(rename = "Files", default)]
    files: Vec<ListedFile>,
}

/// Hugging Face and OpenCSG.
#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lfs {
    size: Option<u64>,
}

/// ModelScope.
#[derive(Deserialize)]
struct ListedFile {
    #[serde(rename = "Path")]
    path: String,
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(rename = "Size")]
    size: Option<u64>,
}

impl HubSource {
    pub(crate) fn new(http: Arc<HttpSource>) -> Self {
        Self { http }
    }

    /// The hub's own request for `url`, with the token.
    fn underneath(request: &Request, file: &HubFile, url: Url) -> Request {
        let dialect = Dialect {
            redirect_headers: &REDIRECT_HEADERS,
            ..Dialect::default()
        };
        let mut underneath = request.underneath(url, dialect);
        if let Some(token) = &file.token {
            let value = format!("Bearer {}", token.expose());
            underneath.headers.insert("authorization".to_owned(), value);
        }
        underneath
    }

    fn file_request(request: &Request) -> Result<(Request, HubFile), SourceError> {
        let file = HubFile::of(request)?;
        let url = file.content_url().ok_or_else(|| SourceError::InvalidUrl {
            url: Redacted::url(&request.url),
            reason: "it names a repository: list it with a / at the end, or add the path of a file"
                .to_owned(),
        })?;
        Ok((Self::underneath(request, &file, url), file))
    }

    /// Facts as the hub means them: its own version of the file, not that of the host it redirected to.
    fn hub_facts(mut facts: Facts, hub: &Url) -> (Facts, Spoke) {
        let elsewhere = facts
            .version
            .location
            .as_ref()
            .is_some_and(|location| location.origin() != hub.origin());
        let linked = facts.header.get(LINKED_ETAG).cloned();
        if elsewhere && linked.is_none() && !facts.header.contains_key(COMMIT) {
            // The remembered address was asked, which knows nothing of the hub's versions.
            facts.version.etag = None;
            facts.version.last_modified = None;
            return (facts, Spoke::Store);
        }
        if elsewhere || linked.is_some() {
            facts.version.etag = linked.or_else(|| {
                let commit = facts.header.get(COMMIT)?;
                Some(format!("\"{commit}\""))
            });
            facts.version.last_modified = None;
        }
        if let Some(etag) = &facts.version.etag {
            facts.digest = sha256_of(etag);
            facts.header.insert("etag".to_owned(), etag.clone());
        }
        (facts, Spoke::Hub)
    }
}

/// Who answered.
#[derive(PartialEq, Eq)]
enum Spoke {
    Hub,
    Store,
}

/// The entity tag of a large file is its SHA-256.
fn sha256_of(etag: &str) -> Option<Digest> {
    let bare = etag.trim_start_matches("W/").trim_matches('"');
    if bare.len() != 64 {
        return None;
    }
    format!("sha256:{bare}").parse().ok()
}

#[async_trait]
impl Source for HubSource {
    fn schemes(&self) -> Vec<&str> {
        HubKind::ALL.iter().map(|kind| kind.scheme()).collect()
    }

    fn is_folder(&self, url: &Url) -> bool {
        url.path().ends_with('/')
            || Request::new(url.as_str())
                .is_ok_and(|request| HubFile::of(&request).is_ok_and(|file| file.path.is_empty()))
    }

    async fn stat(&self, request: &Request) -> Result<Facts, SourceError> {
        let (underneath, _) = Self::file_request(request)?;
        let facts = self.http.stat(&underneath).await?;
        let (facts, _) = Self::hub_facts(facts, &underneath.url);
        length_as_linked(request, &facts)?;
        Ok(facts)
    }

    async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        let (underneath, _) = Self::file_request(request)?;
        let seen = get.version.clone();
        let inner = Get {
            want: get.want,
            // The store behind the hub has entity tags of its own.
            version: get.version.map(|version| Version {
                etag: None,
                last_modified: None,
                ..version
            }),
        };
        let mut content = self.http.get(&underneath, inner).await?;
        let (facts, spoke) = Self::hub_facts(content.facts, &underneath.url);
        length_as_linked(request, &facts)?;
        content.facts = facts;
        if let Some(seen) = seen {
            if let Some(changed) = seen.difference(&content.facts.version) {
                return Err(SourceError::Changed {
                    url: Redacted::url(&request.url),
                    changed,
                });
            }
            if spoke == Spoke::Store {
                content.facts.digest = seen.etag.as_deref().and_then(sha256_of);
                content.facts.version.etag = seen.etag;
            }
        }
        Ok(content)
    }

    async fn exists(&self, request: &Request) -> Result<bool, SourceError> {
        let file = HubFile::of(request)?;
        let url = file.content_url().unwrap_or_else(|| file.listing_url());
        self.http
            .exists(&Self::underneath(request, &file, url))
            .await
    }

    async fn list(&self, request: &Request, limits: ListLimits) -> Result<Vec<Entry>, SourceError> {
        let file = HubFile::of(request)?;
        let refused = |reason: String| SourceError::NotListable {
            url: Redacted::url(&request.url),
            reason,
        };
        let underneath = Self::underneath(request, &file, file.listing_url());
        let content = self.http.get(&underneath, Get::whole()).await?;
        let answer =
            content
                .body
                .collect(LISTING_BYTES_MAX)
                .await
                .map_err(|error| match error {
                    SourceError::TooLong { url, .. } => SourceError::ListTooLarge {
                        url,
                        limit: LISTING_BYTES_MAX,
                        what: "bytes in one listing",
                    },
                    other => other,
                })?;
        let mut entries = Vec::new();
        for (path, length) in files_of(&answer).map_err(refused)? {
            let Some(below) = file.below(&path) else {
                continue;
            };
            if entries.len() >= limits.entries {
                return Err(SourceError::ListTooLarge {
                    url: Redacted::url(&request.url),
                    limit: limits.entries,
                    what: "entries",
                });
            }
            if below.split('/').count() > limits.depth {
                return Err(SourceError::ListTooLarge {
                    url: Redacted::url(&request.url),
                    limit: limits.depth,
                    what: LEVELS,
                });
            }
            let url = file
                .entry_url(&path)
                .ok_or_else(|| refused(format!("it holds {path:?}, which no URL can name")))?;
            entries.push(Entry {
                url,
                content_length: length,
                is_dir: false,
            });
        }
        Ok(entries)
    }
}

/// A store that has another length than the hub has promised is not believed.
fn length_as_linked(request: &Request, facts: &Facts) -> Result<(), SourceError> {
    let linked = facts
        .header
        .get(LINKED_SIZE)
        .and_then(|size| size.parse().ok());
    match (linked, facts.content_length) {
        (Some(before), Some(now)) if before != now => Err(SourceError::Changed {
            url: Redacted::url(&request.url),
            changed: Changed::Length { before, now },
        }),
        _ => Ok(()),
    }
}

/// Paths and lengths out of a listing. Hugging Face tells lengths only where it was asked for them, ModelScope writes 0 for folders.
fn files_of(answer: &[u8]) -> Result<Vec<(String, Option<u64>)>, String> {
    let listing: Listing = serde_json::from_slice(answer)
        .map_err(|error| format!("the answer is no listing of a hub: {error}"))?;
    if let Some(code) = listing.code.filter(|code| *code != 200) {
        let message = listing.message.unwrap_or_default();
        return Err(format!(
            "the hub answered code {code}: {}",
            message.chars().take(200).collect::<String>()
        ));
    }
    let is_file = |kind: &Option<String>| kind.as_deref() != Some("tree");
    let siblings = listing
        .siblings
        .into_iter()
        .filter(|file| is_file(&file.kind));
    let siblings = siblings.map(|file| {
        let length = file.lfs.and_then(|lfs| lfs.size).or(file.size);
        (file.rfilename, length)
    });
    let files = listing.data.map(|data| data.files).unwrap_or_default();
    let files = files.into_iter().filter(|file| is_file(&file.kind));
    Ok(siblings
        .chain(files.map(|file| (file.path, file.size)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_of_every_hub_are_read() {
        let hugging_face = br#"{"id":"o/r","sha":"c","siblings":[{"rfilename":"config.json"},{"rfilename":"w.bin","size":9,"lfs":{"size":70,"sha256":"x"}}]}"#;
        let expected = [
            ("config.json".to_owned(), None),
            ("w.bin".to_owned(), Some(70)),
        ];
        assert_eq!(files_of(hugging_face).unwrap(), expected);
        let model_scope = br#"{"Code":200,"Data":{"Files":[{"Path":"sub","Type":"tree","Size":0},{"Path":"sub/f","Type":"blob","Size":5}]}}"#;
        assert_eq!(
            files_of(model_scope).unwrap(),
            [("sub/f".to_owned(), Some(5))]
        );
        let csg = br#"{"siblings":[{"rfilename":"d","type":"tree"},{"rfilename":"f","type":"file","size":1}]}"#;
        assert_eq!(files_of(csg).unwrap(), [("f".to_owned(), Some(1))]);
        assert!(
            files_of(br#"{"Code":404,"Message":"no such model"}"#)
                .unwrap_err()
                .contains("no such model")
        );
        assert!(files_of(b"<html>").is_err());
    }

    #[test]
    fn only_a_sha256_is_a_digest() {
        let hex = "ab".repeat(32);
        assert_eq!(
            sha256_of(&format!("\"{hex}\"")).unwrap().to_string(),
            format!("sha256:{hex}")
        );
        assert_eq!(sha256_of("\"abcdef\""), None);
        assert_eq!(sha256_of(&format!("\"{}\"", "zz".repeat(32))), None);
    }
}

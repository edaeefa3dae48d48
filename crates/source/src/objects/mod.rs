//! Object storages: Amazon S3 and what is like it, Google, Azure, Aliyun OSS, Huawei OBS and Tencent COS.
//!
//! All of them are HTTP with a signature, so a read is a read of [`HttpSource`] whose requests are signed on the way: ranges, versions,
//! limits, retries and the egress policy hold as they do for web servers. What differs between the services is in [`service`] (where an
//! object is), [`sign`] (how a request proves who sends it) and [`page`] (what a listing looks like).
//!
//! The signatures come from `reqsign`, the part of Apache OpenDAL that makes them. OpenDAL's operators were tried and are not used: they trim and merge
//! what is between the slashes of a key, so that `a//b` or a key with a space at its end silently names another object; they hide status
//! and headers of a refusal, and what they read is not compared with the range asked for.
//!
//! Not here: writing objects.

mod page;
mod service;
mod sign;

use std::sync::Arc;

use ::http::header;
use async_trait::async_trait;
use url::Url;

use crate::dialect::{Dialect, Verification};
use crate::http::{EncodedContent, HttpSource};
use crate::request::LEVELS;
use crate::{
    Content, Entry, Facts, Get, ListLimits, ObjectStorage, Redacted, Request, Source, SourceError,
};
use page::Page;
use service::{Bucket, Service};
use sign::Signers;

/// Longest page of a listing. A thousand keys of a thousand bytes, all of them escaped, are 6 MiB.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// The backend for `s3`, `gs`, `abs`, `oss`, `obs` and `cos`.
pub(crate) struct ObjectSource {
    http: Arc<HttpSource>,
    signers: Signers,
}

impl ObjectSource {
    pub(crate) fn new(http: Arc<HttpSource>, credentials: Arc<HttpSource>) -> Self {
        Self {
            signers: Signers::new(http.clone(), credentials),
            http,
        }
    }

    /// The bucket of the request and the key in it, and how to speak to it.
    fn open(&self, request: &Request) -> Result<Opened, SourceError> {
        let service = Service::of(request.url.scheme()).ok_or_else(|| SourceError::InvalidUrl {
            url: Redacted::url(&request.url),
            reason: "it is no object storage".to_owned(),
        })?;
        let default = ObjectStorage::default();
        let options = request.options.object_storage.as_ref().unwrap_or(&default);
        let bucket = Bucket::new(service, &request.url, options)?;
        let dialect = Dialect {
            signer: Some(self.signers.of(&bucket, options, &request.url)),
            verification: if options.insecure_skip_verify {
                Verification::Off
            } else {
                Verification::On
            },
            // An object is what was stored; its encoding is a label that whoever stored it put on.
            encoded: Some(EncodedContent::AsStored),
            ..Dialect::default()
        };
        Ok(Opened { bucket, dialect })
    }

    async fn page(
        &self,
        request: &Request,
        opened: &Opened,
        url: Url,
    ) -> Result<Page, SourceError> {
        let request = opened.underneath(request, url);
        let content = self.http.get(&request, Get::whole()).await?;
        let page = content
            .body
            .collect(PAGE_BYTES_MAX)
            .await
            .map_err(|error| match error {
                SourceError::TooLong { url, .. } => SourceError::ListTooLarge {
                    url,
                    limit: PAGE_BYTES_MAX,
                    what: "bytes in one page",
                },
                other => other,
            })?;
        let page = match opened.bucket.service {
            Service::Gs => page::of_json(&page),
            _ => page::of_xml(&page),
        };
        page.map_err(|reason| SourceError::NotListable {
            url: Redacted::url(&request.url),
            reason,
        })
    }
}

struct Opened {
    bucket: Bucket,
    dialect: Dialect,
}

impl Opened {
    fn underneath(&self, request: &Request, url: Url) -> Request {
        let mut request = request.underneath(url, self.dialect.clone());
        if self.bucket.service == Service::Abs {
            // The version of the API: without one, requests without credentials are refused ranges and listings.
            request
                .headers
                .insert("x-ms-version".to_owned(), "2023-11-03".to_owned());
        }
        request
    }

    fn object(&self, request: &Request) -> Result<Request, SourceError> {
        let shown = || Redacted::url(&request.url);
        if self.bucket.key.is_empty() || self.bucket.key.ends_with(b"/") {
            return Err(SourceError::InvalidUrl {
                url: shown(),
                reason: "it names a folder: list it, or add the name of an object".to_owned(),
            });
        }
        Ok(self.underneath(request, self.bucket.object(&self.bucket.key, &request.url)?))
    }
}

#[async_trait]
impl Source for ObjectSource {
    fn schemes(&self) -> Vec<&str> {
        Service::ALL
            .iter()
            .map(|service| service.scheme())
            .collect()
    }

    async fn stat(&self, request: &Request) -> Result<Facts, SourceError> {
        let request = self.open(request)?.object(request)?;
        self.http.stat(&request).await
    }

    async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        let request = self.open(request)?.object(request)?;
        self.http.get(&request, get).await
    }

    async fn exists(&self, request: &Request) -> Result<bool, SourceError> {
        let request = self.open(request)?.object(request)?;
        self.http.exists(&request).await
    }

    async fn list(&self, request: &Request, limits: ListLimits) -> Result<Vec<Entry>, SourceError> {
        let opened = self.open(request)?;
        let too_large = |limit, what| SourceError::ListTooLarge {
            url: Redacted::url(&request.url),
            limit,
            what,
        };
        let mut prefix = opened.bucket.key.clone();
        if !prefix.is_empty() && !prefix.ends_with(b"/") {
            prefix.push(b'/');
        }
        let mut entries = Vec::new();
        let mut next = None;
        loop {
            let url = opened.bucket.listing(&prefix, next.as_deref());
            let page = self.page(request, &opened, url).await?;
            for object in page.objects {
                let Some(name) = object.key.as_bytes().strip_prefix(prefix.as_slice()) else {
                    // What the service was not asked for is not believed.
                    continue;
                };
                let is_dir = name.is_empty() || name.ends_with(b"/");
                if entries.len() >= limits.entries {
                    return Err(too_large(limits.entries, "entries"));
                }
                let levels = name.split(|byte| *byte == b'/').count() - usize::from(is_dir);
                if levels > limits.depth {
                    return Err(too_large(limits.depth, LEVELS));
                }
                entries.push(Entry {
                    url: opened.bucket.entry(&object.key, &request.url)?,
                    content_length: object.length.filter(|_| !is_dir),
                    is_dir,
                });
            }
            match page.next {
                None => return Ok(entries),
                Some(token) if next.as_ref() == Some(&token) => {
                    return Err(SourceError::NotListable {
                        url: Redacted::url(&request.url),
                        reason: "the service gives the same page again and again".to_owned(),
                    });
                }
                Some(token) => next = Some(token),
            }
        }
    }
}

impl std::fmt::Debug for ObjectSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectSource").finish_non_exhaustive()
    }
}

/// Google unpacks gzip objects on the way, with another length and without ranges, for everybody who does not take gzip.
fn keep_packed(service: Service, headers: &mut ::http::HeaderMap) {
    if service == Service::Gs {
        headers.insert(
            header::ACCEPT_ENCODING,
            ::http::HeaderValue::from_static("gzip"),
        );
    }
}

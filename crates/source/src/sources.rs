//! The trait that every kind of origin implements, and the register of them by URL scheme.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use url::Url;

use crate::hdfs::HdfsSource;
use crate::http::{HttpOptions, HttpSource};
use crate::hub::HubSource;
use crate::objects::ObjectSource;
use crate::{Content, EgressPolicy, Facts, Get, ListLimits, Redacted, Request, SourceError};

/// One kind of origin.
///
/// Implementations make their own tries for passing failures before they return an error, verify that what they return is what
/// was asked for, and hold no more than a fixed number of bytes per read. All methods may be dropped at any time.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The URL schemes it serves, in lower case.
    fn schemes(&self) -> Vec<&str>;

    /// Whether `url` names a folder, which can be listed, rather than a content.
    fn is_folder(&self, url: &Url) -> bool {
        url.path().ends_with('/')
    }

    /// What is there, without its bytes.
    ///
    /// # Errors
    ///
    /// [`SourceError`]; an error status of the origin is [`SourceError::Status`].
    async fn stat(&self, request: &Request) -> Result<Facts, SourceError>;

    /// Content bytes as a stream, with what came along with them.
    ///
    /// # Errors
    ///
    /// [`SourceError`], in particular [`SourceError::Changed`] if `get` names a version and the origin has another one.
    /// Errors after the answer began come from the body.
    async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError>;

    /// Whether there is something that could be read.
    ///
    /// # Errors
    ///
    /// [`SourceError`] if this cannot be told; an absent content is `false`, not an error.
    async fn exists(&self, request: &Request) -> Result<bool, SourceError>;

    /// What lies in and below a directory, whose URL ends with `/`; and the directory itself where the origin knows of it, so that an empty
    /// one is not taken for none.
    ///
    /// # Errors
    ///
    /// [`SourceError::NotListable`], [`SourceError::ListTooLarge`], and as for reads.
    async fn list(&self, request: &Request, limits: ListLimits) -> Result<Vec<Entry>, SourceError>;
}

/// One file or directory of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its full URL; a directory's ends with `/`.
    pub url: Url,
    /// Length in bytes, if the listing tells it exactly.
    pub content_length: Option<u64>,
    /// Whether it is a directory.
    pub is_dir: bool,
}

impl Entry {
    /// A directory, whose URL ends with `/`.
    pub(crate) fn directory(url: Url) -> Self {
        Self {
            url,
            content_length: None,
            is_dir: true,
        }
    }
}

/// The options of all standard backends.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SourcesOptions {
    /// For `http` and `https`.
    pub http: HttpOptions,
}

impl SourcesOptions {
    /// These options for `http` and `https`, the defaults for the rest.
    #[must_use]
    pub fn with_http(mut self, http: HttpOptions) -> Self {
        self.http = http;
        self
    }
}

/// The backends by URL scheme. Cheap to clone: clones share the backends.
#[derive(Clone, Default)]
pub struct Sources {
    by_scheme: BTreeMap<String, Arc<dyn Source>>,
    http: Option<Arc<HttpSource>>,
}

impl Sources {
    /// No backend yet.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// All backends of this crate.
    ///
    /// # Errors
    ///
    /// [`SourceError::Setup`] if the options cannot be met.
    pub fn standard(options: SourcesOptions) -> Result<Self, SourceError> {
        let mut sources = Self::empty();
        let http = Arc::new(HttpSource::new(options.http.clone())?);
        // For what the surroundings of the daemon name, in which the callers have no part.
        let mut unbound = options.http;
        unbound.egress = EgressPolicy::allow_all();
        let credentials = Arc::new(HttpSource::new(unbound)?);
        sources.register(Arc::new(ObjectSource::new(http.clone(), credentials)));
        sources.register(Arc::new(HdfsSource::new(http.clone())));
        sources.register(Arc::new(HubSource::new(http.clone())));
        sources.register(http.clone());
        sources.http = Some(http);
        Ok(sources)
    }

    /// The standard backend for HTTP, which also passes on the requests of others; `None` in an empty register.
    #[must_use]
    pub fn http(&self) -> Option<&Arc<HttpSource>> {
        self.http.as_ref()
    }

    /// Adds `source` for all its schemes; a later one replaces an earlier one.
    pub fn register(&mut self, source: Arc<dyn Source>) {
        for scheme in source.schemes() {
            self.by_scheme
                .insert(scheme.to_owned(), Arc::clone(&source));
        }
    }

    /// The backend for `url`.
    ///
    /// # Errors
    ///
    /// [`SourceError::UnknownScheme`], naming the schemes there are.
    pub fn of(&self, url: &Url) -> Result<&Arc<dyn Source>, SourceError> {
        self.by_scheme
            .get(url.scheme())
            .ok_or_else(|| SourceError::UnknownScheme {
                url: Redacted::url(url),
                scheme: url.scheme().to_owned(),
                known: self
                    .by_scheme
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// [`Source::is_folder`] by the backend of the URL's scheme.
    ///
    /// # Errors
    ///
    /// [`SourceError::UnknownScheme`].
    pub fn is_folder(&self, url: &Url) -> Result<bool, SourceError> {
        Ok(self.of(url)?.is_folder(url))
    }

    /// [`Source::stat`] by the backend of the URL's scheme.
    ///
    /// # Errors
    ///
    /// As there, and [`SourceError::UnknownScheme`].
    pub async fn stat(&self, request: &Request) -> Result<Facts, SourceError> {
        self.of(&request.url)?.stat(request).await
    }

    /// [`Source::get`] by the backend of the URL's scheme.
    ///
    /// # Errors
    ///
    /// As there, and [`SourceError::UnknownScheme`].
    pub async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        self.of(&request.url)?.get(request, get).await
    }

    /// [`Source::exists`] by the backend of the URL's scheme.
    ///
    /// # Errors
    ///
    /// As there, and [`SourceError::UnknownScheme`].
    pub async fn exists(&self, request: &Request) -> Result<bool, SourceError> {
        self.of(&request.url)?.exists(request).await
    }

    /// [`Source::list`] by the backend of the URL's scheme.
    ///
    /// # Errors
    ///
    /// As there, and [`SourceError::UnknownScheme`].
    pub async fn list(
        &self,
        request: &Request,
        limits: ListLimits,
    ) -> Result<Vec<Entry>, SourceError> {
        self.of(&request.url)?.list(request, limits).await
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_scheme.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scheme_is_answered_with_the_known_ones() {
        let sources = Sources::standard(SourcesOptions::default()).unwrap();
        let error = sources.of(&Url::parse("ftp://h/f").unwrap()).err().unwrap();
        assert_eq!(
            error.to_string(),
            "ftp://h/f: no backend for scheme \"ftp\": use one of abs, cos, gs, hdfs, hf, http, https, modelscope, obs, opencsg, oss, s3"
        );
        assert!(sources.of(&Url::parse("HTTPS://h/f").unwrap()).is_ok());
    }
}

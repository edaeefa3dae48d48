//! Who sends a request: keys of the caller, or those that the daemon's own surroundings offer.
//!
//! A caller with keys signs with these. Without, the usual chain of the service applies to the daemon (environment, profile, workload identity,
//! instance role); if it has nothing either, the request goes out unsigned, which public buckets allow. What a chain asks for
//! (a metadata service, a token endpoint) is not the caller's choice, so the egress policy does not hold for it, unless the caller
//! named the credential file.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, Method, Uri, header};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use reqsign_core::{Context, ErrorKind, OsEnv, ProvideCredential, SignRequest, SigningCredential};
use reqsign_file_read_tokio::TokioFileRead;
use tokio::time::Instant;
use url::Url;

use super::keep_packed;
use super::service::{Bucket, Service};
use crate::dialect::Sign;
use crate::http::HttpSource;
use crate::{ObjectStorage, Redacted, Secret, SourceError};

/// Signers kept, each with the credentials it has fetched; the one used least recently goes first.
const SIGNERS_MAX: usize = 64;
/// How long the finding holds that there are no credentials: looking for an instance role costs seconds where there is none.
const NOTHING_HOLDS: Duration = Duration::from_secs(300);
/// Longest time to find credentials, in which others with the same ones wait.
const FIND_MAX: Duration = Duration::from_secs(20);
/// Longest time for one question of a chain.
const ASK_MAX: Duration = Duration::from_secs(5);
/// Longest answer to it.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Characters of a reason that are shown.
const REASON_LEN_MAX: usize = 300;
/// Headers that are left out of signatures.
const UNSIGNED: [HeaderName; 3] = [header::ACCEPT, header::ACCEPT_ENCODING, header::USER_AGENT];
const GOOGLE_SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// The signers in use, the most recent last.
pub(super) struct Signers {
    made: Mutex<Vec<(Key, Arc<dyn Sign>)>>,
    /// Bound by the egress policy.
    bound: Arc<HttpSource>,
    /// For what the daemon's surroundings name.
    free: Arc<HttpSource>,
}

/// What a signature depends on.
#[derive(PartialEq, Eq)]
struct Key {
    service: Service,
    bucket: String,
    region: String,
    options: ObjectStorage,
}

impl Signers {
    pub(super) fn new(bound: Arc<HttpSource>, free: Arc<HttpSource>) -> Self {
        Self {
            made: Mutex::new(Vec::new()),
            bound,
            free,
        }
    }

    /// The signer for requests to this bucket with these options.
    pub(super) fn of(
        &self,
        bucket: &Bucket,
        options: &ObjectStorage,
        shown: &Url,
    ) -> Arc<dyn Sign> {
        let key = Key {
            service: bucket.service,
            bucket: bucket.signed_name.clone(),
            region: bucket.region.clone(),
            options: options.clone(),
        };
        let mut made = self.made.lock();
        let signer = match made.iter().rposition(|(known, _)| *known == key) {
            Some(index) => made.remove(index).1,
            None => self.make(bucket, options, shown),
        };
        if made.len() >= SIGNERS_MAX {
            made.remove(0);
        }
        made.push((key, signer.clone()));
        signer
    }

    fn make(&self, bucket: &Bucket, options: &ObjectStorage, shown: &Url) -> Arc<dyn Sign> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let secret = |text: &Option<Secret>| {
            text.as_ref()
                .map(|text| text.expose().to_owned())
                .filter(|text| !text.is_empty())
        };
        let keys = given(&options.access_key_id).zip(secret(&options.access_key_secret));
        let token = secret(&options.security_token).or_else(|| secret(&options.session_token));
        let path = given(&options.credential_path);
        let http = if path.is_some() {
            &self.bound
        } else {
            &self.free
        };
        let base = SignerBase {
            service: bucket.service,
            context: Context::new()
                .with_file_read(TokioFileRead)
                .with_env(OsEnv)
                .with_http_send(Asker { http: http.clone() }),
            shown: Redacted::url(shown),
        };
        let is_found = keys.is_none();
        match bucket.service {
            Service::S3 => {
                use reqsign_aws_v4::{
                    DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
                };
                let signer = RequestSigner::new("s3", &bucket.region);
                match keys {
                    Some((id, key)) => {
                        let mut provider = StaticCredentialProvider::new(&id, &key);
                        let session = secret(&options.session_token).or(token);
                        if let Some(token) = &session {
                            provider = provider.with_session_token(token);
                        }
                        base.signer(provider, signer, is_found)
                    }
                    None => base.signer(DefaultCredentialProvider::new(), signer, is_found),
                }
            }
            Service::Gs => {
                use reqsign_google::{
                    DefaultCredentialProvider, FileCredentialProvider, RequestSigner,
                };
                let signer = RequestSigner::new("storage").with_scope(GOOGLE_SCOPE);
                match path {
                    Some(path) => {
                        let provider = FileCredentialProvider::new(path).with_scope(GOOGLE_SCOPE);
                        base.signer(provider, signer, false)
                    }
                    None => {
                        let provider = DefaultCredentialProvider::builder();
                        base.signer(provider.build(), signer, true)
                    }
                }
            }
            Service::Abs => {
                use reqsign_azure_storage::{
                    DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
                };
                let signer = RequestSigner::new();
                match keys {
                    Some((account, key)) => {
                        let provider = StaticCredentialProvider::new_shared_key(&account, &key);
                        base.signer(provider, signer, is_found)
                    }
                    None => base.signer(DefaultCredentialProvider::new(), signer, is_found),
                }
            }
            Service::Oss => {
                use reqsign_aliyun_oss::{
                    DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
                };
                let signer = RequestSigner::new(&bucket.signed_name);
                match keys {
                    Some((id, key)) => {
                        let mut provider = StaticCredentialProvider::new(&id, &key);
                        if let Some(token) = &token {
                            provider = provider.with_security_token(token);
                        }
                        base.signer(provider, signer, is_found)
                    }
                    None => base.signer(DefaultCredentialProvider::new(), signer, is_found),
                }
            }
            Service::Obs => {
                use reqsign_huaweicloud_obs::{
                    DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
                };
                let signer = RequestSigner::new(&bucket.signed_name);
                match (keys, token) {
                    (Some((id, key)), Some(token)) => {
                        let provider =
                            StaticCredentialProvider::with_security_token(&id, &key, &token);
                        base.signer(provider, signer, is_found)
                    }
                    (Some((id, key)), None) => {
                        base.signer(StaticCredentialProvider::new(&id, &key), signer, is_found)
                    }
                    (None, _) => base.signer(DefaultCredentialProvider::new(), signer, is_found),
                }
            }
            Service::Cos => {
                use reqsign_tencent_cos::{
                    DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
                };
                let signer = RequestSigner::new();
                match (keys, token) {
                    (Some((id, key)), Some(token)) => {
                        let provider =
                            StaticCredentialProvider::with_security_token(&id, &key, &token);
                        base.signer(provider, signer, is_found)
                    }
                    (Some((id, key)), None) => {
                        base.signer(StaticCredentialProvider::new(&id, &key), signer, is_found)
                    }
                    (None, _) => base.signer(DefaultCredentialProvider::new(), signer, is_found),
                }
            }
        }
    }
}

struct SignerBase {
    service: Service,
    context: Context,
    shown: Redacted,
}

impl SignerBase {
    /// `is_found`: the credentials are looked for, so there may be none.
    fn signer<P, S>(self, provider: P, signer: S, is_found: bool) -> Arc<dyn Sign>
    where
        P: ProvideCredential,
        P::Credential: SigningCredential,
        S: SignRequest<Credential = P::Credential>,
    {
        Arc::new(CloudSigner {
            base: self,
            provider,
            signer,
            is_found,
            held: tokio::sync::Mutex::new(Held::Unknown),
        })
    }
}

struct CloudSigner<P: ProvideCredential, S> {
    base: SignerBase,
    provider: P,
    signer: S,
    is_found: bool,
    held: tokio::sync::Mutex<Held<P::Credential>>,
}

enum Held<C> {
    Unknown,
    Credential(C),
    /// There are none; not looked for again before this time.
    Nothing {
        until: Instant,
    },
}

impl<P, S> CloudSigner<P, S>
where
    P: ProvideCredential,
    P::Credential: SigningCredential,
    S: SignRequest<Credential = P::Credential>,
{
    /// What to sign with; `None` for an unsigned request.
    async fn credential(&self) -> Result<Option<P::Credential>, SourceError> {
        let mut held = self.held.lock().await;
        match &*held {
            Held::Credential(credential)
                if credential.is_valid()
                    && credential
                        .is_valid_at(self.signer.required_valid_until(credential, None)) =>
            {
                return Ok(Some(credential.clone()));
            }
            Held::Nothing { until } if Instant::now() < *until => return Ok(None),
            _ => {}
        }
        let found = tokio::time::timeout(
            FIND_MAX,
            self.provider.provide_credential(&self.base.context),
        )
        .await;
        match found {
            Ok(Ok(Some(credential))) => {
                *held = Held::Credential(credential.clone());
                Ok(Some(credential))
            }
            Ok(Ok(None)) if self.is_found => {
                let until = Instant::now() + NOTHING_HOLDS;
                *held = Held::Nothing { until };
                tracing::debug!(
                    service = self.base.service.scheme(),
                    "no credentials found, requests go unsigned"
                );
                Ok(None)
            }
            Ok(Ok(None)) => Err(self.refused("the credential file holds none".to_owned(), false)),
            Ok(Err(error)) => {
                let passing = error.is_retryable();
                Err(self.refused(reason(&error), passing))
            }
            Err(_) => Err(self.refused(
                format!(
                    "none came within {}: check the credential service of this host",
                    humantime::format_duration(FIND_MAX)
                ),
                true,
            )),
        }
    }

    fn refused(&self, reason: String, passing: bool) -> SourceError {
        SourceError::Credentials {
            url: self.base.shown.clone(),
            reason,
            passing,
        }
    }
}

#[async_trait]
impl<P, S> Sign for CloudSigner<P, S>
where
    P: ProvideCredential,
    P::Credential: SigningCredential,
    S: SignRequest<Credential = P::Credential>,
{
    async fn sign(
        &self,
        method: &Method,
        url: &mut Url,
        headers: &mut HeaderMap,
    ) -> Result<(), SourceError> {
        keep_packed(self.base.service, headers);
        let Some(credential) = self.credential().await? else {
            return Ok(());
        };
        let uri: Uri = url.as_str().parse().map_err(|_| {
            self.refused(
                "the address of the object cannot be signed".to_owned(),
                false,
            )
        })?;
        let mut parts = ::http::Request::new(()).into_parts().0;
        parts.method = method.clone();
        parts.uri = uri.clone();
        parts.headers = headers.clone();
        // No signature needs these, and what stands in between may change them.
        let unsigned: Vec<_> = UNSIGNED
            .iter()
            .filter_map(|name| Some((name.clone(), parts.headers.remove(name)?)))
            .collect();
        self.signer
            .sign_request(&self.base.context, &mut parts, Some(&credential), None)
            .await
            .map_err(|error| self.refused(reason(&error), error.is_retryable()))?;
        if parts.uri != uri {
            *url = parts
                .uri
                .to_string()
                .parse()
                .map_err(|_| self.refused("the signed address is no URL".to_owned(), false))?;
        }
        parts.headers.extend(unsigned);
        *headers = parts.headers;
        Ok(())
    }
}

/// What went wrong, in words and without what was sent. Only the outer message: what is below it may repeat an answer.
fn reason(error: &reqsign_core::Error) -> String {
    let advice = match error.kind() {
        ErrorKind::CredentialInvalid => "check the keys, tokens or the credential file",
        ErrorKind::PermissionDenied => "check the role that this host has",
        ErrorKind::ConfigInvalid => "check the environment and the profile of the daemon",
        ErrorKind::RateLimited => "try again later",
        _ => "check the credentials that were given, or those of this host",
    };
    let what: String = error.to_string().chars().take(REASON_LEN_MAX).collect();
    format!("{what}: {advice}")
}

/// Asks metadata services and token endpoints for what a chain of credentials needs.
struct Asker {
    http: Arc<HttpSource>,
}

impl reqsign_core::HttpSend for Asker {
    async fn http_send(
        &self,
        request: ::http::Request<Bytes>,
    ) -> reqsign_core::Result<::http::Response<Bytes>> {
        let failed = |reason: String| reqsign_core::Error::unexpected(reason).set_retryable(true);
        self.http
            .ask(request, ASK_MAX, ANSWER_BYTES_MAX)
            .await
            .map_err(|error| failed(format!("the credential service does not answer ({error})")))
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

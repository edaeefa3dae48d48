//! What a registry is shown: nothing, a password, or a token that its token service gave for one.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use source::{Redacted, is_secret_header};
use url::Url;

use crate::challenge::Challenge;
use crate::error::RegistryError;

/// Longest answer of a token service, bytes. Tokens that list many repositories have some 10 KiB.
pub(crate) const TOKEN_ANSWER_LEN_MAX: usize = 64 << 10;
/// How long a token holds if its service does not say (Docker's token specification).
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// Longest life that is believed: a token that was revoked is used no longer than this.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(3600);
/// Tokens kept. One more pushes all out that are not fresh, then everything.
const TOKENS_MAX: usize = 1024;

/// A user of a registry. `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The password, or an access token that stands for one.
    pub password: String,
}

impl Credentials {
    /// The header that holds them.
    pub(crate) fn basic(&self) -> String {
        let plain = format!("{}:{}", self.username, self.password);
        format!("Basic {}", STANDARD.encode(plain))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How a registry wants to be spoken to. Learnt from its first refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// The password with each request.
    Basic,
    /// A token from this service.
    Bearer(TokenService),
}

/// Where tokens come from, with everything to ask for but who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenService {
    url: Url,
}

impl Scheme {
    /// What this `WWW-Authenticate` header of `registry` wants for pulls from `repository`; a token is preferred.
    pub(crate) fn of_header(
        header: &str,
        registry: &Url,
        repository: &str,
    ) -> Result<Self, RegistryError> {
        let shown = || Redacted::url(registry);
        let unusable = |reason: String| RegistryError::Challenge {
            url: shown(),
            reason,
        };
        let challenges = Challenge::parse(header).map_err(|error| (shown(), error))?;
        let of = |scheme: &str| challenges.iter().find(|it| it.scheme == scheme);
        if let Some(bearer) = of("bearer") {
            return TokenService::of_challenge(bearer, registry, repository)
                .map(Self::Bearer)
                .map_err(unusable);
        }
        if of("basic").is_some() {
            return Ok(Self::Basic);
        }
        let offered: Vec<&str> = challenges.iter().map(|it| it.scheme.as_str()).collect();
        Err(unusable(format!(
            "it offers {:?}, and only bearer and basic are spoken here",
            offered.join(", ")
        )))
    }
}

impl TokenService {
    fn of_challenge(
        challenge: &Challenge,
        registry: &Url,
        repository: &str,
    ) -> Result<Self, String> {
        let realm = challenge
            .param("realm")
            .ok_or("it names no token service")?;
        let mut url = Url::parse(realm).map_err(|error| format!("realm: {error}"))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err("its token service is not spoken to by HTTP".to_owned());
        }
        if registry.scheme() == "https" && url.scheme() == "http" {
            return Err(
                "its token service is to be asked without TLS, where everybody could read the password"
                    .to_owned(),
            );
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("its token service has a user name or password in its URL".to_owned());
        }
        url.set_fragment(None);
        // The name under which the registry itself knows the repository, if it says: it may lie behind a proxy that renames.
        let scope = challenge
            .param("scope")
            .filter(|scope| scope.starts_with("repository:") && scope.ends_with(":pull"))
            .map_or_else(|| format!("repository:{repository}:pull"), str::to_owned);
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = challenge.param("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &scope);
        }
        Ok(Self { url })
    }

    /// The URL that gives a token.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Reads its answer: the token, and how long it holds.
    pub(crate) fn read(&self, answer: &[u8]) -> Result<(String, Duration), RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
        }
        let unusable = |reason: String| RegistryError::Token {
            url: Redacted::url(&self.url),
            reason,
        };
        let answer: Answer =
            serde_json::from_slice(answer).map_err(|error| unusable(error.to_string()))?;
        let token = answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token)
            .unwrap_or_default();
        // What RFC 6750 allows, and a bit more; nothing that could end a header.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable(
                "the token is empty or holds odd characters".to_owned(),
            ));
        }
        let life = answer
            .expires_in
            .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
            .map_or(TOKEN_LIFE_DEFAULT, |seconds| {
                Duration::from_secs_f64(seconds.min(TOKEN_LIFE_MAX.as_secs_f64()))
            });
        Ok((token, life))
    }
}

/// Tokens, by who got them from where.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<TokenKey, Token>>);

/// The service, and the credentials as a digest, so that no password is kept.
type TokenKey = (TokenService, [u8; 32]);

struct Token {
    text: String,
    /// Until half of its life is over: whoever gets it has the other half to use it.
    fresh_until: Instant,
}

impl Tokens {
    pub(crate) fn fresh(
        &self,
        service: &TokenService,
        credentials: Option<&Credentials>,
    ) -> Option<String> {
        let tokens = self.0.lock();
        let token = tokens.get(&key(service, credentials))?;
        (Instant::now() < token.fresh_until).then(|| token.text.clone())
    }

    pub(crate) fn keep(
        &self,
        service: &TokenService,
        credentials: Option<&Credentials>,
        text: &str,
        life: Duration,
    ) {
        let now = Instant::now();
        let mut tokens = self.0.lock();
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, token| now < token.fresh_until);
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert(
            key(service, credentials),
            Token {
                text: text.to_owned(),
                fresh_until: now + life / 2,
            },
        );
    }

    pub(crate) fn forget(&self, service: &TokenService, credentials: Option<&Credentials>) {
        self.0.lock().remove(&key(service, credentials));
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("count", &self.0.lock().len())
            .finish()
    }
}

fn key(service: &TokenService, credentials: Option<&Credentials>) -> TokenKey {
    let basic = credentials.map(Credentials::basic).unwrap_or_default();
    (service.clone(), Sha256::digest(basic).into())
}

/// The `Authorization` header among these, whatever its spelling.
pub(crate) fn given(headers: &HashMap<String, String>) -> Option<&str> {
    headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("authorization"))
        .map(|(_, value)| value.as_str())
}

/// Headers without what is secret in them, for the token service, which is somebody else.
pub(crate) fn harmless(headers: &HashMap<String, String>) -> HashMap<String, String> {
    headers
        .iter()
        .filter(|(name, _)| !is_secret_header(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(header: &str) -> Result<Scheme, RegistryError> {
        let registry = Url::parse("https://h.example/v2/a/manifests/x").unwrap();
        Scheme::of_header(header, &registry, "a")
    }

    #[test]
    fn a_token_is_preferred_to_the_password() {
        let both =
            r#"Basic realm="x", Bearer realm="https://auth.example/token?a=b",service="s s""#;
        let Ok(Scheme::Bearer(service)) = scheme(both) else {
            panic!("{:?}", scheme(both));
        };
        assert_eq!(
            service.url().as_str(),
            "https://auth.example/token?a=b&service=s+s&scope=repository%3Aa%3Apull"
        );
        assert_eq!(scheme("basic").unwrap(), Scheme::Basic);
        let renamed = r#"Bearer realm="https://t/",scope="repository:x/a:pull""#;
        let Ok(Scheme::Bearer(service)) = scheme(renamed) else {
            panic!("{renamed}");
        };
        assert_eq!(
            service.url().query(),
            Some("scope=repository%3Ax%2Fa%3Apull")
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for header in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer realm=nowhere",
            r#"Bearer realm="ftp://h/""#,
            r#"Bearer realm="http://auth.example/token""#,
            r#"Bearer realm="https://u:p@auth.example/token""#,
            r#"Bearer realm="https://auth.example"#,
        ] {
            assert!(
                matches!(scheme(header), Err(RegistryError::Challenge { .. })),
                "{header}"
            );
        }
    }

    #[test]
    fn tokens_are_read_whatever_they_are_called() {
        let Ok(Scheme::Bearer(service)) = scheme(r#"Bearer realm="https://t/""#) else {
            panic!();
        };
        let read = |answer: &str| service.read(answer.as_bytes());
        assert_eq!(
            read(r#"{"token":"a","access_token":"b","expires_in":300,"issued_at":"x"}"#).unwrap(),
            ("a".to_owned(), Duration::from_secs(300))
        );
        assert_eq!(
            read(r#"{"access_token":"b","expires_in":-3}"#).unwrap(),
            ("b".to_owned(), TOKEN_LIFE_DEFAULT)
        );
        assert_eq!(
            read(r#"{"token":"a","expires_in":1e300}"#).unwrap().1,
            TOKEN_LIFE_MAX
        );
        for answer in [
            "",
            "{}",
            "[]",
            r#"{"token":""}"#,
            r#"{"token":"a\nX: y"}"#,
            r#"{"token":7}"#,
        ] {
            assert!(read(answer).is_err(), "{answer}");
        }
    }

    #[test]
    fn tokens_are_kept_for_whoever_got_them() {
        let Ok(Scheme::Bearer(service)) = scheme(r#"Bearer realm="https://t/""#) else {
            panic!();
        };
        let tokens = Tokens::default();
        let user = Credentials {
            username: "u".to_owned(),
            password: "hunter2".to_owned(),
        };
        assert!(!format!("{user:?}").contains("hunter2"));
        tokens.keep(&service, Some(&user), "t", Duration::from_secs(60));
        assert_eq!(tokens.fresh(&service, Some(&user)).as_deref(), Some("t"));
        assert_eq!(tokens.fresh(&service, None), None);
        tokens.forget(&service, Some(&user));
        assert_eq!(tokens.fresh(&service, Some(&user)), None);
        tokens.keep(&service, None, "t", Duration::ZERO);
        assert_eq!(tokens.fresh(&service, None), None);
        assert_eq!(user.basic(), "Basic dTpodW50ZXIy");
    }
}

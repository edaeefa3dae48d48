//! Keeping credentials out of messages and logs.

use std::fmt;

use url::Url;

/// A URL as it may be shown: without password, and without the values of query parameters that look like secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted(Box<str>);

impl Redacted {
    /// `url` without its secrets.
    #[must_use]
    pub fn url(url: &Url) -> Self {
        let mut shown = url.clone();
        if !shown.username().is_empty() || shown.password().is_some() {
            // Neither can fail for a URL that has credentials: it has a host then.
            let _ = shown.set_username("***");
            let _ = shown.set_password(None);
        }
        shown.set_fragment(None);
        if let Some(query) = url.query() {
            let query: Vec<String> = query.split('&').map(redact_parameter).collect();
            shown.set_query(Some(&query.join("&")));
        }
        Self(shown.as_str().into())
    }

    /// Text that should have been a URL but could not be parsed: shown up to its query, without user information, and not longer than 256 bytes.
    #[must_use]
    pub fn text(text: &str) -> Self {
        let text = text.split(['?', '#']).next().unwrap_or_default();
        let text = match (text.find("://"), text.rfind('@')) {
            (Some(scheme), Some(at)) if at > scheme => {
                format!("{}***{}", &text[..scheme + 3], &text[at..])
            }
            _ => text.to_owned(),
        };
        let end = (0..=text.len().min(256))
            .rev()
            .find(|&index| text.is_char_boundary(index))
            .unwrap_or(0);
        Self(text[..end].into())
    }
}

/// A text that is never shown: a key, a token.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for those who send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a header of this name carries a credential: such headers never cross to another origin and are never shown.
///
/// Known names, and every name with a tell-tale word in it: a header kept back needlessly costs one failed redirect, a token
/// sent to a stranger costs an account.
#[must_use]
pub fn is_secret_header(name: &str) -> bool {
    const EXACT: [&str; 2] = ["www-authenticate", "cookie2"];
    let name = name.to_ascii_lowercase();
    EXACT.contains(&name.as_str()) || looks_secret(&name)
}

/// Whether a lower-case header or parameter name tells of a secret.
fn looks_secret(name: &str) -> bool {
    const WORDS: [&str; 16] = [
        "auth",
        "cookie",
        "token",
        "secret",
        "password",
        "passwd",
        "credential",
        "signature",
        "api-key",
        "apikey",
        "api_key",
        "access-key",
        "accesskey",
        "session",
        // As in X-JFrog-Art-Api, Ocp-Apim-Subscription-Key.
        "art-api",
        "subscription-key",
    ];
    WORDS.iter().any(|word| name.contains(word))
}

/// Whether a query parameter of this name carries a credential, or part of one.
#[must_use]
pub fn is_secret_parameter(name: &str) -> bool {
    const EXACT: [&str; 9] = [
        "sig",
        "key",
        "sign",
        "q-ak",
        "policy",
        "jwt",
        "code",
        "pwd",
        "delegation",
    ];
    let name = name.to_ascii_lowercase();
    EXACT.contains(&name.as_str()) || looks_secret(&name)
}

fn redact_parameter(parameter: &str) -> String {
    let Some((name, value)) = parameter.split_once('=') else {
        return parameter.to_owned();
    };
    if !value.is_empty() && is_secret_parameter(name) {
        format!("{name}=***")
    } else {
        parameter.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, shown: &str) {
        assert_eq!(Redacted::url(&Url::parse(url).unwrap()).to_string(), shown);
    }

    #[test]
    fn urls_are_shown_without_credentials() {
        check("https://h/a?b=c", "https://h/a?b=c");
        check("https://user:pw@h/a", "https://***@h/a");
        check(
            "https://h/a?X-Amz-Signature=abc&X-Amz-Credential=x%2Fy&x=1#frag",
            "https://h/a?X-Amz-Signature=***&X-Amz-Credential=***&x=1",
        );
        check(
            "https://h/a?OSSAccessKeyId=k&sig=s&q-ak=v",
            "https://h/a?OSSAccessKeyId=***&sig=***&q-ak=***",
        );
    }

    #[test]
    fn unparsable_text_is_cut_before_its_secrets() {
        assert_eq!(Redacted::text("http//u:p?token=x").to_string(), "http//u:p");
        assert_eq!(
            Redacted::text("http://u:p@ho st/x").to_string(),
            "http://***@ho st/x"
        );
        assert_eq!(Redacted::text(&"ä".repeat(400)).to_string().len(), 256);
    }

    #[test]
    fn headers_that_carry_credentials_are_known() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "Cookie2",
            "WWW-Authenticate",
            "X-Api-Key",
            "X-Amz-Security-Token",
            "PRIVATE-TOKEN",
            "X-Auth",
            "X-Goog-Api-Key",
            "Session-Id",
        ] {
            assert!(is_secret_header(name), "{name}");
        }
        for name in ["Accept", "User-Agent", "X-Dragonfly-Tag", "Referer"] {
            assert!(!is_secret_header(name), "{name}");
        }
    }
}

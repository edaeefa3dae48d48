//! Keeping secrets out of logs: a type that never shows its text, and URLs without their credentials.

use std::borrow::Cow;
use std::fmt;

/// What stands where a secret was.
pub const REDACTED: &str = "<redacted>";

/// A password, token or key. `Debug` and `Display` show [`REDACTED`], whatever prints it; [`Secret::expose`] is the only way
/// to the text, and easy to look for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// `url` as a log may hold it: user and password replaced, and the values of query parameters replaced, as signed URLs carry
/// their signature there. Text that is not a URL is returned as it is. Works on text alone, so that it never fails.
pub fn redact_url(url: &str) -> Cow<'_, str> {
    let Some(scheme_end) = url.find("://") else {
        return Cow::Borrowed(url);
    };
    let rest_at = scheme_end + 3;
    let authority_end = url[rest_at..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| rest_at + at);
    let credentials_end = url[rest_at..authority_end]
        .rfind('@')
        .map(|at| rest_at + at);
    let query_at = url[authority_end..].find('?').map(|at| authority_end + at);
    if credentials_end.is_none() && query_at.is_none() {
        return Cow::Borrowed(url);
    }
    let mut shown = String::with_capacity(url.len());
    shown.push_str(&url[..rest_at]);
    let mut from = rest_at;
    if let Some(end) = credentials_end {
        shown.push_str(REDACTED);
        from = end;
    }
    match query_at {
        Some(at) => {
            shown.push_str(&url[from..=at]);
            redact_query(&url[at + 1..], &mut shown);
        }
        None => shown.push_str(&url[from..]),
    }
    Cow::Owned(shown)
}

/// `text`, such as a message of another program, with every URL in it as [`redact_url`] shows it. What follows a URL without a blank
/// counts as a part of it: rather too much is hidden than too little.
pub fn redact_urls(text: &str) -> String {
    let ends = |letter: char| letter.is_whitespace() || matches!(letter, '"' | '<' | '>');
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(ends) {
        let end = word.strip_suffix(ends).map_or(word.len(), str::len);
        shown.push_str(&redact_word(&word[..end]));
        shown.push_str(&word[end..]);
    }
    shown
}

/// A URL may lie in another one, or follow it after a comma.
fn redact_word(word: &str) -> String {
    let mut shown = word.to_owned();
    let mut from = 0;
    while let Some(at) = shown[from..].find("://") {
        let redacted = redact_url(&shown[from..]).into_owned();
        shown.replace_range(from.., &redacted);
        from += at + 3;
    }
    shown
}

/// Keeps the names of the parameters, as they help to find the request, and drops every value.
fn redact_query(query: &str, shown: &mut String) {
    let query = query.split('#').next().unwrap_or_default();
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            shown.push('&');
        }
        match pair.split_once('=') {
            Some((name, value)) if !value.is_empty() => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(REDACTED);
            }
            _ => shown.push_str(pair),
        }
    }
}

/// Whether the value of this HTTP header or gRPC metadata key is a secret.
pub fn is_secret_header(name: &str) -> bool {
    const NAMES: [&str; 6] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "x-amz-security-token",
    ];
    NAMES.iter().any(|secret| name.eq_ignore_ascii_case(secret))
        || name.to_ascii_lowercase().ends_with("-token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        #[derive(Debug)]
        #[expect(dead_code, reason = "only its Debug form is looked at")]
        struct Account {
            password: Option<Secret>,
        }
        let secret = Secret::new("hunter2");
        assert_eq!(secret.expose(), "hunter2");
        for shown in [
            format!("{secret}"),
            format!("{secret:?}"),
            format!(
                "{:#?}",
                Account {
                    password: Some(secret.clone())
                }
            ),
        ] {
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains(REDACTED), "{shown}");
        }
    }

    #[test]
    fn urls_lose_credentials_and_query_values() {
        for (url, shown) in [
            ("https://host/path", "https://host/path"),
            ("https://user:pass@host:1/p", "https://<redacted>@host:1/p"),
            ("https://us@er:p@host/p@q", "https://<redacted>@host/p@q"),
            (
                "s3://bucket/key?X-Amz-Signature=abc&a=&b",
                "s3://bucket/key?X-Amz-Signature=<redacted>&a=&b",
            ),
            (
                "https://host?token=a/b@c#part",
                "https://host?token=<redacted>",
            ),
            ("postgres://u:p@db/x", "postgres://<redacted>@db/x"),
            ("not a url ?a=b", "not a url ?a=b"),
            ("", ""),
        ] {
            assert_eq!(redact_url(url), shown);
        }
    }

    #[test]
    fn urls_in_texts_lose_theirs() {
        for (text, shown) in [
            (
                "cannot read https://u:p@h/f?token=x (404): \"s3://b/k?sig=y\"",
                "cannot read https://<redacted>@h/f?token=<redacted> (404): \"s3://b/k?sig=<redacted>\"",
            ),
            (
                "http://h/a,http://u:p@h/b",
                "http://h/a,http://<redacted>@h/b",
            ),
            ("http://h/http://u:p@h/b", "http://h/http://<redacted>@h/b"),
            ("no URL: a?b=c", "no URL: a?b=c"),
            ("", ""),
        ] {
            assert_eq!(redact_urls(text), shown);
            assert_eq!(redact_urls(shown), shown, "twice is once");
        }
    }

    #[test]
    fn secret_headers_are_known_in_any_case() {
        assert!(
            is_secret_header("Authorization")
                && is_secret_header("X-Auth-Token")
                && is_secret_header("COOKIE")
        );
        assert!(!is_secret_header("Content-Type") && !is_secret_header("Range"));
    }
}

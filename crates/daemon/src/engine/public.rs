//! Whether an origin that gives a content gives it to anybody.
//!
//! A content that was given without credentials is public, and this is remembered with the task ([`storage::Mark::Public`]) and told
//! to neighbours of this project: so a host that holds or gets it may hand it out even when the origin cannot be asked.

use serde::Deserialize;
use source::is_secret_header;
use url::Url;

use super::DownloadSpec;

/// Longest bearer token that is looked into.
const TOKEN_LEN_MAX: usize = 16 << 10;

/// Whether the request for this content carries nothing by which the origin could know who asks.
pub fn is_anonymous(spec: &DownloadSpec) -> bool {
    let secret = spec
        .request_header
        .iter()
        .any(|(name, value)| is_secret_header(name) && !is_anonymous_token(name, value));
    let origin = &spec.origin;
    let keys = origin.object_storage.is_some()
        || origin.hdfs.is_some()
        || origin.hugging_face.is_some()
        || origin.model_scope.is_some()
        || origin.open_csg.is_some();
    // Origins of other kinds may know this host by what its environment says.
    let bare = Url::parse(&spec.url).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && !is_signed(&url)
            && !is_filtered(&url, &spec.wire.filtered_query_params)
    });
    !secret && !keys && bare
}

/// Whether the URL itself is a credential: signed for somebody, or with a user in it.
pub fn is_signed(url: &Url) -> bool {
    // q-sign-algorithm and its like, of Tencent.
    let signs = |name: &str| {
        source::is_secret_parameter(name) || name.to_ascii_lowercase().starts_with("q-sign")
    };
    !url.username().is_empty()
        || url.password().is_some()
        || url.query_pairs().any(|(name, _)| signs(&name))
}

/// Whether the URL has a parameter that an operator, or the client, has said not to name the content: mostly one by which the origin
/// knows who asks. (Of those that never name it [`is_signed`] knows which are credentials; `ns` is none.)
pub fn is_filtered(url: &Url, filtered: &[String]) -> bool {
    let usual = |name: &str| protocol::DEFAULT_FILTERED_QUERY_PARAMS.contains(&name);
    url.query_pairs()
        .any(|(name, _)| !usual(&name) && filtered.iter().any(|it| *it == name))
}

/// Whether a header is a bearer token that its registry has given to nobody in particular: a JSON Web Token whose subject is
/// empty, as the token specification of the registry protocol has it for clients that did not authenticate. Who must not
/// forge one: it counts only where the registry has accepted it.
pub fn is_anonymous_token(name: &str, value: &str) -> bool {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let token = match value.split_once(' ') {
        Some((scheme, token))
            if name.eq_ignore_ascii_case("authorization")
                && scheme.eq_ignore_ascii_case("bearer") =>
        {
            token.trim()
        }
        _ => return false,
    };
    if token.len() > TOKEN_LEN_MAX {
        return false;
    }
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    base64url(claims)
        .and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok())
        .is_some_and(|claims| claims.sub.is_empty())
}

/// RFC 4648, section 5, without padding.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_nobody_is_no_credential() {
        // {"sub":""} and {"sub":"me"}, with a header and a signature of no meaning.
        let anonymous = |value: &str| is_anonymous_token("Authorization", value);
        assert!(anonymous("Bearer e30.eyJzdWIiOiIifQ.c2ln"));
        assert!(anonymous("bearer e30.eyJzdWIiOiIifQ==.c2ln"));
        assert!(!anonymous("Bearer e30.eyJzdWIiOiJtZSJ9.c2ln"));
        for other in [
            "Basic eA==",
            "Bearer opaque",
            "Bearer a.b",
            "Bearer e30.e30.c2ln",
            "Bearer e30.***.x",
            "Bearer a.b.c.d",
        ] {
            assert!(!anonymous(other), "{other}");
        }
        assert!(!is_anonymous_token(
            "x-token",
            "Bearer e30.eyJzdWIiOiIifQ.c2ln"
        ));
    }

    #[test]
    fn a_signed_url_is_a_credential() {
        let signed = |text: &str| is_signed(&Url::parse(text).unwrap());
        for url in [
            "https://b.s3/k?X-Amz-Signature=1",
            "https://h/k?Signature=x",
            "https://h/k?sig=x",
            "https://h/k?X-Amz-Security-Token=x",
            "https://h/k?auth_key=x",
            "https://h/k?Key=x",
            "https://h/k?jwt=x",
            "https://h/k?password=x",
            "https://u:p@h/k",
        ] {
            assert!(signed(url), "{url}");
        }
        assert!(!signed("https://h/v2/a/blobs/x?ns=docker.io&page=1"));
    }

    #[test]
    fn a_parameter_that_is_left_out_of_the_name_may_be_a_credential() {
        let filtered = ["ns".to_owned(), "who".to_owned()];
        let knows = |text: &str| is_filtered(&Url::parse(text).unwrap(), &filtered);
        assert!(knows("https://h/k?who=me"));
        assert!(!knows("https://h/k?ns=docker.io&other=1"));
    }
}

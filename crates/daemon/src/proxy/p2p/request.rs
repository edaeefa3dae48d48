//! From a request to a task: exactly the `Download` that the proxy of Dragonfly v2 makes of it, so that both name one task alike.

use std::collections::HashMap;

use dragonfly_api::common::v2::{self, SchedulingPolicy};
use http::{HeaderMap, header};
use runtime::config::ByteSize;

use super::P2pRequest;
use crate::engine::{DownloadSpec, Probe};
use crate::rpc::convert::{Door, RequestError, download_spec};

/// Shortest piece that a client may ask for, as in v2.
const PIECE_LENGTH_MIN: u64 = 4 << 20;
/// What v2 takes for an unreadable priority: `Priority::LEVEL6`.
const PRIORITY_DEFAULT: i32 = 6;

/// What the configuration says for requests that do not say it themselves.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// `proxy.disableBackToSource`.
    pub disable_back_to_source: bool,
    /// `proxy.prefetch`.
    pub prefetch: bool,
    /// `proxy.registryMirror.enableTaskIDBasedBlobDigest`.
    pub blob_digest: bool,
}

/// Why a request means nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// `X-Dragonfly-Piece-Length` is too small.
    #[error("X-Dragonfly-Piece-Length {0} is less than 4 MiB: leave it out to have it chosen")]
    PieceLength(u64),
    /// As for the tools.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// A request as the engine understands it.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What to fetch; its range is not set yet.
    pub spec: DownloadSpec,
    /// The rest too, if a part is asked for.
    pub prefetch: bool,
}

/// Understands the headers of `request`.
///
/// # Errors
/// [`Refusal`]; all of them are the client's to correct.
pub fn wish(request: &P2pRequest, defaults: &Defaults) -> Result<Wish, Refusal> {
    let headers = Headers(&request.headers);
    let piece_length = headers.text("x-dragonfly-piece-length").and_then(size);
    if let Some(length) = piece_length
        && length < PIECE_LENGTH_MIN
    {
        return Err(Refusal::PieceLength(length));
    }
    let filtered = headers
        .text("x-dragonfly-filtered-query-params")
        .map_or_else(
            || request.rule.filtered_query_params.clone(),
            |list| list.split(',').map(|name| name.trim().to_owned()).collect(),
        );
    let always = match headers.text("x-dragonfly-scheduling-policy") {
        Some(policy) if policy.eq_ignore_ascii_case("always") => true,
        Some(policy) if policy.eq_ignore_ascii_case("auto") => false,
        _ => request.rule.always_schedule,
    };
    let policy = if always {
        SchedulingPolicy::Always
    } else {
        SchedulingPolicy::Auto
    };
    let prefetch = request.headers.contains_key(header::RANGE)
        && headers
            .flag("x-dragonfly-prefetch")
            .unwrap_or(defaults.prefetch);
    let owned = |name| headers.text(name).map(str::to_owned);
    let download = v2::Download {
        url: request.url.to_string(),
        r#type: v2::TaskType::Standard as i32,
        tag: owned("x-dragonfly-tag"),
        application: owned("x-dragonfly-application"),
        priority: headers
            .text("x-dragonfly-priority")
            .and_then(|text| text.parse().ok())
            .unwrap_or(PRIORITY_DEFAULT),
        filtered_query_params: filtered,
        request_header: headers.for_the_origin(),
        piece_length,
        disable_back_to_source: defaults.disable_back_to_source,
        prefetch,
        content_for_calculating_task_id: owned("x-dragonfly-content-for-calculating-task-id"),
        enable_task_id_based_blob_digest: headers
            .flag("x-dragonfly-enable-task-id-based-blob-digest")
            .unwrap_or(defaults.blob_digest),
        scheduling_policy: policy as i32,
        remote_ip: Some(request.remote.to_string()),
        ..Default::default()
    };
    let mut spec = download_spec(download, Door::Socket)?;
    // The range is resolved by the rules of HTTP, once the length is known.
    spec.range_header = None;
    spec.probe = Probe::Ask;
    spec.in_order = true;
    // Small content too goes through the swarm: three hosts that start at once would read it from the origin three times, and a
    // scheduler answers faster than most origins. (v2 reads up to 4 MiB from the origin unless the policy is `always`.)
    spec.scheduling_always = true;
    Ok(Wish { spec, prefetch })
}

/// The client's headers as v2 reads them: what is not visible ASCII counts as absent.
struct Headers<'a>(&'a HeaderMap);

impl<'a> Headers<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name)?.to_str().ok()
    }

    /// `true` in any case is true, everything else that is there is false.
    fn flag(&self, name: &str) -> Option<bool> {
        Some(self.text(name)?.eq_ignore_ascii_case("true"))
    }

    /// Everything but `Host` and what is meant for the daemon. Several lines of one name are one list (RFC 9110, section 5.3):
    /// podman and skopeo send an `Accept` for each kind of manifest. (v2 keeps the last line only.)
    fn for_the_origin(&self) -> HashMap<String, String> {
        let mut sent: HashMap<String, String> = HashMap::new();
        for (name, value) in self.0 {
            let is_ours = name.as_str().starts_with("x-dragonfly-");
            let Some(value) = value
                .to_str()
                .ok()
                .filter(|_| *name != header::HOST && !is_ours)
            else {
                continue;
            };
            // Cookies are joined by another mark (RFC 6265, section 5.4).
            let mark = if *name == header::COOKIE { "; " } else { ", " };
            { sent.entry(name.as_str().to_owned()) }
                .and_modify(|list| {
                    list.push_str(mark);
                    list.push_str(value);
                })
                .or_insert_with(|| value.to_owned());
        }
        sent
    }
}

/// `4mib`, `1 GiB`, `4194304`.
fn size(text: &str) -> Option<u64> {
    text.trim()
        .parse::<ByteSize>()
        .ok()
        .map(|size| size.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::rules::Rule;
    use http::Method;
    use std::sync::Arc;

    fn request(url: &str, headers: &[(&str, &str)]) -> P2pRequest {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        P2pRequest {
            method: Method::GET,
            url: url.parse().unwrap(),
            headers: map,
            rule: Arc::new(Rule::default()),
            remote: [127, 0, 0, 1].into(),
            windows: None,
        }
    }

    const DEFAULTS: Defaults = Defaults {
        disable_back_to_source: false,
        prefetch: false,
        blob_digest: true,
    };

    fn understood(url: &str, headers: &[(&str, &str)]) -> Wish {
        wish(&request(url, headers), &DEFAULTS).unwrap()
    }

    #[test]
    fn the_task_is_that_of_v2() {
        let url = "http://example.com/xyz?Expires=e1&Signature=s1&ns=docker.io&b=2&a=1";
        let plain = understood(url, &[("authorization", "Basic x")]);
        assert!(plain.spec.task_id.as_str().starts_with("2510d50eeecc44c4"));
        let full = [
            ("X-Dragonfly-Tag", "team-a"),
            ("x-dragonfly-application", "ml"),
            ("X-Dragonfly-Piece-Length", "8mib"),
            ("X-Dragonfly-Priority", "3"),
            ("X-Dragonfly-Scheduling-Policy", "ALWAYS"),
            ("Host", "example.com"),
        ];
        let spec = understood(url, &full).spec;
        assert!(spec.task_id.as_str().starts_with("84953ab74bd3d29a"));
        assert_eq!((spec.priority, spec.piece_length), (3, Some(8 << 20)));
        assert_eq!(spec.wire.scheduling_policy, SchedulingPolicy::Always as i32);
        assert!(!spec.wire.request_header.contains_key("host"));
        let filter = [
            ("X-Dragonfly-Filtered-Query-Params", "z, y"),
            ("x-dragonfly-tag", "foo"),
            ("x-dragonfly-application", "bar"),
        ];
        let filtered = understood("https://example.com/file.txt?z=9&b=2&a=1", &filter);
        assert!(
            filtered
                .spec
                .task_id
                .as_str()
                .starts_with("8b3f6e9b9b8fe209")
        );
        let content = [(
            "X-Dragonfly-Content-For-Calculating-Task-ID",
            "This is a test file",
        )];
        let content = understood(url, &content).spec;
        assert!(content.task_id.as_str().starts_with("e2d0fe1585a63ec6"));
    }

    #[test]
    fn blobs_are_named_by_their_digest_unless_told_otherwise() {
        let digest = "b2c366cce7e68013d5441c6326d5a3e1b12aeb5ed58564d0fd3fa089bc29cb6e";
        let url = format!("http://r/v2/a/blobs/sha256:{digest}?ns=docker.io");
        let named = understood(&url, &[]).spec;
        assert_eq!(named.task_id.as_str(), digest);
        assert_eq!(named.named_by.unwrap().encoded(), digest);
        let off = [("X-Dragonfly-Enable-Task-ID-Based-Blob-Digest", "no")];
        let unnamed = understood(&url, &off).spec;
        assert!(unnamed.named_by.is_none() && unnamed.task_id.as_str() != digest);
        let bad = request("http://r/v2/a/blobs/sha256:short", &[]);
        assert!(matches!(wish(&bad, &DEFAULTS), Err(Refusal::Request(_))));
    }

    #[test]
    fn a_piece_length_is_checked_or_ignored() {
        let of = |text: &str| {
            wish(
                &request("http://h/f", &[("x-dragonfly-piece-length", text)]),
                &DEFAULTS,
            )
        };
        assert!(matches!(
            of("4194303"),
            Err(Refusal::PieceLength(4_194_303))
        ));
        assert!(matches!(of("2GiB"), Err(Refusal::Request(_))));
        assert_eq!(of("4194304").unwrap().spec.piece_length, Some(4 << 20));
        assert_eq!(of("many").unwrap().spec.piece_length, None);
    }

    #[test]
    fn several_lines_of_a_header_are_one_list() {
        let mut request = request("http://h/f", &[]);
        for (name, value) in [
            ("accept", "a/b"),
            ("accept", "c/d"),
            ("cookie", "x=1"),
            ("cookie", "y=2"),
        ] {
            request.headers.append(name, value.parse().unwrap());
        }
        let spec = wish(&request, &DEFAULTS).unwrap().spec;
        let sent = &spec.wire.request_header;
        assert_eq!(sent["accept"], "a/b, c/d");
        assert_eq!(sent["cookie"], "x=1; y=2");
    }

    #[test]
    fn prefetch_needs_a_range() {
        let range = ("range", "bytes=0-1");
        assert!(!understood("http://h/f", &[("x-dragonfly-prefetch", "true")]).prefetch);
        assert!(understood("http://h/f", &[("x-dragonfly-prefetch", "True"), range]).prefetch);
        let on = Defaults {
            prefetch: true,
            ..DEFAULTS
        };
        assert!(
            wish(&request("http://h/f", &[range]), &on)
                .unwrap()
                .prefetch
        );
        let off = request("http://h/f", &[range, ("x-dragonfly-prefetch", "false")]);
        assert!(!wish(&off, &on).unwrap().prefetch);
        let wish = understood("http://h/f", &[range]);
        assert!(wish.spec.range.is_none() && wish.spec.range_header.is_none());
    }
}

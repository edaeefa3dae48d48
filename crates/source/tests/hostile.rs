//! The HTTP backend against an origin that misbehaves.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use protocol::ByteRange;
use source::http::EncodedContent;
use source::{
    Changed, Content, EgressPolicy, Get, OrderedReader, RangePlan, Request, Retry, SourceError,
    Sources, StallPhase,
};
use support::hostile::{Origin, Step, head, honest, reply};
use support::{options, pattern, sources};

fn request(url: &str) -> Request {
    Request::new(url).unwrap()
}

async fn get(origin: &Origin, get: Get) -> Result<Content, SourceError> {
    sources(options())
        .get(&request(&origin.url("/f")), get)
        .await
}

/// The error of an origin that always answers with these steps to a read of bytes 10 to 19.
async fn error_of(steps: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> SourceError {
    let origin = Origin::start(move |_| steps()).await;
    get(
        &origin,
        Get::range(ByteRange {
            start: 10,
            length: 10,
        }),
    )
    .await
    .unwrap_err()
}

#[tokio::test]
async fn an_origin_that_never_answers_is_given_up_within_the_limit() {
    let origin = Origin::start(|_| vec![Step::Stall]).await;
    let mut options = options();
    options.header_limit = Duration::from_millis(200);
    let begin = Instant::now();
    let error = sources(options)
        .stat(&request(&origin.url("/f")))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Stalled {
                phase: StallPhase::Header,
                received: 0,
                ..
            }
        ),
        "{error}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(origin.seen().len(), 1, "a stall is not repeated here");
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up_within_the_limit() {
    let origin = Origin::start(|_| {
        vec![
            head("200 OK", &[("content-length", "10")]),
            Step::Send(b"abc".to_vec()),
            Step::Stall,
        ]
    })
    .await;
    let mut options = options();
    options.idle_limit = Duration::from_millis(200);
    let mut content = sources(options)
        .get(&request(&origin.url("/f")), Get::whole())
        .await
        .unwrap();
    assert_eq!(content.body.next().await.unwrap().unwrap(), "abc");
    let error = content.body.next().await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Stalled {
                phase: StallPhase::Body,
                received: 3,
                ..
            }
        ),
        "{error}"
    );
    assert!(content.body.next().await.is_none());
}

#[tokio::test]
async fn the_deadline_covers_tries_and_body() {
    let origin =
        Origin::start(|_| vec![head("200 OK", &[("content-length", "10")]), Step::Stall]).await;
    let hurried = request(&origin.url("/f")).with_deadline(Duration::from_millis(150));
    let sources = sources(options());
    let mut content = sources.get(&hurried, Get::whole()).await.unwrap();
    let error = content.body.next().await.unwrap().unwrap_err();
    assert!(
        matches!(error, SourceError::Deadline { received: 0, .. }),
        "{error}"
    );

    let silent = Origin::start(|_| vec![Step::Stall]).await;
    let hurried = request(&silent.url("/f")).with_deadline(Duration::from_millis(150));
    let error = sources.stat(&hurried).await.unwrap_err();
    assert!(matches!(error, SourceError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn only_the_part_that_was_asked_for_is_content() {
    for range in [
        "bytes 0-9/100",
        "bytes 10-18/100",
        "bytes 10-20/100",
        "bytes 10-19/15",
        "items 10-19/100",
        "bytes 10-19",
        "bytes */100",
    ] {
        let error = error_of(move || {
            reply(
                "206 Partial Content",
                &[("content-range", range)],
                &[b'x'; 10],
            )
        })
        .await;
        assert!(
            matches!(error, SourceError::WrongRange { .. }),
            "{range}: {error}"
        );
    }
    let error = error_of(|| reply("206 Partial Content", &[], &[b'x'; 10])).await;
    assert!(
        matches!(error, SourceError::WrongRange { .. }),
        "no Content-Range: {error}"
    );
    let error = error_of(|| {
        reply(
            "206 Partial Content",
            &[("content-range", "bytes 10-19/100")],
            &[b'x'; 11],
        )
    })
    .await;
    assert!(
        matches!(error, SourceError::WrongRange { .. }),
        "another Content-Length: {error}"
    );
    let error = error_of(|| reply("200 OK", &[], &[b'x'; 100])).await;
    assert!(
        matches!(error, SourceError::RangesUnsupported { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn bodies_of_errors_are_never_content() {
    for status in [
        "204 No Content",
        "202 Accepted",
        "304 Not Modified",
        "403 Forbidden",
        "404 Not Found",
        "501 Not Implemented",
    ] {
        let body: &[u8] = if status.starts_with("204") || status.starts_with("304") {
            b""
        } else {
            b"<html>"
        };
        let error = error_of(move || reply(status, &[("x-why", "because")], body)).await;
        let SourceError::Status {
            status_code,
            header,
            ..
        } = &error
        else {
            panic!("{status}: {error}")
        };
        assert_eq!(status_code.to_string(), status[..3]);
        assert_eq!(header["x-why"], "because");
    }
}

#[tokio::test]
async fn an_answer_without_length_lasts_until_the_connection_ends() {
    let origin =
        Origin::start(|_| vec![head("200 OK", &[]), Step::Send(b"all of it".to_vec())]).await;
    let content = get(&origin, Get::prefix(4)).await.unwrap();
    assert_eq!((content.length, content.facts.content_length), (None, None));
    assert_eq!(content.body.collect(100).await.unwrap(), b"all of it");
}

#[tokio::test]
async fn the_length_of_a_chunked_answer_is_asked_for_by_head() {
    let origin = Origin::start(|seen| match seen.method.as_str() {
        "HEAD" => vec![head("200 OK", &[("content-length", "9")])],
        _ => vec![
            head("200 OK", &[("transfer-encoding", "chunked")]),
            Step::Send(b"9\r\nall of it\r\n0\r\n\r\n".to_vec()),
        ],
    })
    .await;
    let sources = sources(options());
    let facts = sources.stat(&request(&origin.url("/f"))).await.unwrap();
    assert_eq!(facts.content_length, Some(9));
    let content = sources
        .get(
            &request(&origin.url("/f")),
            Get::whole().of_version(facts.version),
        )
        .await
        .unwrap();
    assert_eq!(content.length, Some(9), "known from before");
    assert_eq!(content.body.collect(9).await.unwrap(), b"all of it");
}

#[tokio::test]
async fn a_connection_reset_in_mid_body_says_how_far_it_came() {
    let origin = Origin::start(|_| {
        vec![
            head("200 OK", &[("content-length", "10")]),
            Step::Send(b"abcd".to_vec()),
            Step::Reset,
        ]
    })
    .await;
    let mut content = get(&origin, Get::whole()).await.unwrap();
    let mut received = 0;
    let error = loop {
        match content.body.next().await.unwrap() {
            Ok(bytes) => received += bytes.len() as u64,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, SourceError::Interrupted { received: got, expected: Some(10), .. } if got == received),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::Backoff);
}

#[tokio::test]
async fn an_ordered_reader_continues_where_a_connection_broke() {
    let content = pattern(100_000);
    let served = content.clone();
    let origin = Origin::start(move |seen| {
        let mut steps = honest(seen, &served, &[("etag", "\"v1\"")]);
        if seen.index > 0 && seen.index % 2 == 1 {
            let Some(Step::Send(body)) = steps.last_mut() else {
                panic!("a body comes last")
            };
            body.truncate(body.len() / 2);
        }
        steps
    })
    .await;
    let sources = sources(options());
    let request = request(&origin.url("/f"));
    let version = sources.stat(&request).await.unwrap().version;
    let plan = RangePlan::new(ByteRange::whole(100_000), 30_000);
    let mut reader = OrderedReader::new(sources, request, version, plan);
    let mut read = Vec::new();
    while let Some(bytes) = reader.next().await {
        read.extend_from_slice(&bytes.unwrap());
    }
    assert!(read == content);
    assert!(
        origin
            .seen()
            .iter()
            .skip(1)
            .all(|seen| seen.header("if-match") == Some("\"v1\""))
    );
}

#[tokio::test]
async fn a_changed_content_is_refused_whatever_the_origin_makes_of_conditions() {
    let content = pattern(100);
    let changes = |first: &'static str, later: &'static str, ignores_conditions: bool| {
        let content = content.clone();
        async move {
            let origin = Origin::start(move |seen| {
                let etag = if seen.index == 0 { first } else { later };
                match seen.header("if-match") {
                    Some(wanted) if wanted != etag && !ignores_conditions => {
                        reply("412 Precondition Failed", &[], b"")
                    }
                    _ => honest(seen, &content, &[("etag", etag)]),
                }
            })
            .await;
            let sources = sources(options());
            let request = request(&origin.url("/f"));
            let version = sources.stat(&request).await.unwrap().version;
            let outcome = sources
                .get(
                    &request,
                    Get::range(ByteRange {
                        start: 0,
                        length: 5,
                    })
                    .of_version(version),
                )
                .await;
            outcome.map(|content| content.start)
        }
    };
    let error = changes("\"a\"", "\"b\"", true).await.unwrap_err();
    assert!(
        matches!(
            &error,
            SourceError::Changed {
                changed: Changed::Etag { .. },
                ..
            }
        ),
        "{error}"
    );
    let error = changes("\"a\"", "\"b\"", false).await.unwrap_err();
    assert!(
        matches!(
            &error,
            SourceError::Changed {
                changed: Changed::Condition { .. },
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::Never);
    let error = changes("W/\"a\"", "W/\"b\"", false).await.unwrap_err();
    assert!(
        matches!(
            &error,
            SourceError::Changed {
                changed: Changed::Etag { .. },
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(changes("W/\"a\"", "\"a\"", false).await.unwrap(), 0);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_origin() {
    let target = Origin::start_at("127.0.0.2", |seen| honest(seen, b"hello", &[])).await;
    let away = target.url("/f");
    let origin = Origin::start(move |seen| match seen.target.as_str() {
        "/f" => reply("302 Found", &[("location", "/near")], b""),
        _ => reply("307 Temporary Redirect", &[("location", &away)], b"moved"),
    })
    .await;
    let headers = [
        ("Authorization", "Bearer t"),
        ("cookie", "c"),
        ("X-Api-Key", "k"),
        ("X-Plain", "p"),
    ];
    let headers: HashMap<String, String> = headers
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let request = request(&origin.url("/f")).with_headers(headers);
    let content = sources(options())
        .get(&request, Get::whole())
        .await
        .unwrap();
    assert_eq!(content.body.collect(5).await.unwrap(), b"hello");

    let near = origin.seen();
    assert_eq!(near.len(), 2);
    assert!(
        near.iter()
            .all(|seen| seen.header("authorization") == Some("Bearer t")
                && seen.header("x-api-key") == Some("k"))
    );
    let far = &target.seen()[0];
    for name in ["authorization", "cookie", "x-api-key", "referer"] {
        assert_eq!(far.header(name), None, "{name}");
    }
    assert_eq!(far.header("x-plain"), Some("p"));
    assert_eq!(
        far.header("host"),
        Some(format!("127.0.0.2:{}", target.port()).as_str())
    );
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_errors() {
    for location in [
        None,
        Some("/f"),
        Some("file:///etc/passwd"),
        Some("http://["),
    ] {
        let origin = Origin::start(move |_| match location {
            Some(location) => reply("301 Moved Permanently", &[("location", location)], b""),
            None => reply("301 Moved Permanently", &[], b""),
        })
        .await;
        let error = get(&origin, Get::whole()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Redirect { .. }),
            "{location:?}: {error}"
        );
        assert!(origin.seen().len() <= 11);
    }
}

#[tokio::test]
async fn a_mirror_that_is_gone_is_replaced_by_the_original_url() {
    let mirror = Origin::start_at("127.0.0.2", |seen| match seen.index {
        0 => honest(seen, b"hello", &[("etag", "\"a\"")]),
        _ => reply("403 Forbidden", &[], b"expired"),
    })
    .await;
    let signed = mirror.url("/f?Signature=1");
    let origin = Origin::start(move |seen| match seen.index {
        0 => reply("302 Found", &[("location", &signed)], b""),
        _ => honest(seen, b"hello", &[("etag", "\"a\"")]),
    })
    .await;
    let sources = sources(options());
    let request = request(&origin.url("/f"));
    let version = sources.stat(&request).await.unwrap().version;
    let range = ByteRange {
        start: 1,
        length: 3,
    };
    let content = sources
        .get(&request, Get::range(range).of_version(version))
        .await
        .unwrap();
    assert_eq!(content.body.collect(3).await.unwrap(), b"ell");
    assert_eq!((origin.seen().len(), mirror.seen().len()), (2, 2));
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_others_are_not() {
    let origin = Origin::start(|seen| match seen.index {
        0 => reply("500 Internal Server Error", &[], b"oops"),
        1 => vec![Step::Reset],
        _ => honest(seen, b"hello", &[]),
    })
    .await;
    let content = get(&origin, Get::whole()).await.unwrap();
    assert_eq!(content.body.collect(5).await.unwrap(), b"hello");

    let broken = Origin::start(|_| reply("502 Bad Gateway", &[], b"")).await;
    assert_eq!(
        get(&broken, Get::whole()).await.unwrap_err().status_code(),
        Some(502)
    );
    assert_eq!(broken.seen().len(), 3);
    let missing = Origin::start(|_| reply("404 Not Found", &[], b"")).await;
    get(&missing, Get::whole()).await.unwrap_err();
    assert_eq!(missing.seen().len(), 1);
}

#[tokio::test]
async fn the_origin_is_left_alone_as_long_as_it_asks() {
    let origin = Origin::start(|seen| match seen.index {
        0 => reply("503 Service Unavailable", &[("retry-after", "1")], b""),
        _ => honest(seen, b"hello", &[]),
    })
    .await;
    let begin = Instant::now();
    get(&origin, Get::whole()).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));

    let closed =
        Origin::start(|_| reply("429 Too Many Requests", &[("retry-after", "3600")], b"")).await;
    let error = get(&closed, Get::whole()).await.unwrap_err();
    assert_eq!(error.retry(), Retry::After(Duration::from_secs(3600)));
    assert_eq!(closed.seen().len(), 1, "too long to be waited for here");
}

#[tokio::test]
async fn compressed_answers_are_refused_unless_wanted() {
    let encoded =
        |_: &support::hostile::Seen| reply("200 OK", &[("content-encoding", "gzip")], b"\x1f\x8b");
    let origin = Origin::start(encoded).await;
    let error = get(&origin, Get::whole()).await.unwrap_err();
    assert!(matches!(error, SourceError::Encoded { .. }), "{error}");
    assert_eq!(origin.seen()[0].header("accept-encoding"), Some("identity"));
    let mut options = options();
    options.encoded = EncodedContent::AsStored;
    let content = sources(options)
        .get(&request(&origin.url("/f")), Get::whole())
        .await
        .unwrap();
    assert_eq!(content.body.collect(2).await.unwrap(), b"\x1f\x8b");
}

#[tokio::test]
async fn forbidden_addresses_are_not_contacted_by_number_name_or_redirect() {
    let inner = Origin::start_at("127.0.0.2", |seen| honest(seen, b"secret", &[])).await;
    let target = inner.url("/f");
    let origin = Origin::start(move |_| reply("302 Found", &[("location", &target)], b"")).await;
    let with = |egress: EgressPolicy| -> Sources {
        let mut options = options();
        options.egress = egress;
        sources(options)
    };
    let guarded = with(EgressPolicy::allow_all().deny("127.0.0.2".parse().unwrap()));
    let error = guarded.stat(&request(&origin.url("/f"))).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Denied { host, .. } if host == "127.0.0.2"),
        "{error}"
    );
    assert!(inner.seen().is_empty());

    let public = with(EgressPolicy::public_only());
    for url in [
        origin.url("/f"),
        format!("http://localhost:{}/f", origin.port()),
    ] {
        let error = public.stat(&request(&url)).await.unwrap_err();
        assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    }
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn unreachable_origins_have_errors_of_their_own() {
    let sources = sources(options());
    // The name is too long for any resolver, so that no DNS server is asked.
    let nameless = format!("http://{}.invalid/", "x".repeat(70));
    let error = sources.stat(&request(&nameless)).await.unwrap_err();
    assert!(matches!(error, SourceError::Resolve { .. }), "{error}");

    // Nobody listens on port 1 (tcpmux).
    let error = sources
        .stat(&request("http://127.0.0.1:1/"))
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn nonsense_instead_of_http_is_an_error_and_not_a_panic() {
    let endless: Vec<u8> = b"HTTP/1.1 200 OK\r\nx: "
        .iter()
        .copied()
        .chain(std::iter::repeat_n(b'y', 4 << 20))
        .collect();
    for nonsense in [
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_vec(),
        endless,
        Vec::new(),
    ] {
        let origin = Origin::start(move |_| vec![Step::Send(nonsense.clone())]).await;
        let error = get(&origin, Get::whole()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Interrupted { received: 0, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn surplus_bytes_are_not_handed_out() {
    let origin = Origin::start(|_| {
        vec![
            head(
                "206 Partial Content",
                &[
                    ("content-range", "bytes 0-3/10"),
                    ("transfer-encoding", "chunked"),
                ],
            ),
            Step::Send(b"6\r\nabcdef\r\n0\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let content = get(
        &origin,
        Get::range(ByteRange {
            start: 0,
            length: 4,
        }),
    )
    .await
    .unwrap();
    let error = content.body.collect(100).await.unwrap_err();
    assert!(
        matches!(error, SourceError::TooLong { expected: 4, .. }),
        "{error}"
    );
}

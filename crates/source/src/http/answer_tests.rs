use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            (
                header::HeaderName::from_static(name),
                value.parse().unwrap(),
            )
        })
        .collect()
}

fn verdict(get: &Get, status: u16, lines: &[(&'static str, &str)]) -> Result<Verdict, SourceError> {
    let url = Url::parse("http://h/f").unwrap();
    let status = StatusCode::from_u16(status).unwrap();
    judge(get, &url, status, &headers(lines), EncodedContent::Refuse)
}

fn body(get: &Get, status: u16, lines: &[(&'static str, &str)]) -> Judged {
    match verdict(get, status, lines) {
        Ok(Verdict::Body(judged)) => *judged,
        other => panic!("{other:?}"),
    }
}

#[test]
fn content_ranges_are_read_strictly() {
    let part = |start, length, total| {
        Some(ContentRange::Part {
            range: ByteRange { start, length },
            total,
        })
    };
    assert_eq!(ContentRange::parse("bytes 0-9/100"), part(0, 10, Some(100)));
    assert_eq!(ContentRange::parse("Bytes 5-5/*"), part(5, 1, None));
    assert_eq!(
        ContentRange::parse("bytes */0"),
        Some(ContentRange::Unsatisfied { total: 0 })
    );
    for wrong in [
        "",
        "bytes",
        "bytes 0-9",
        "bytes 9-0/10",
        "bytes 0-9/9",
        "bytes +0-9/10",
        "bytes -9/10",
        "bytes 0-/10",
        "bytes */*",
        "bytes 0-18446744073709551615/*",
        "bytes 0-9/1e3",
        "octets 0-1/2",
    ] {
        assert_eq!(ContentRange::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn a_prefix_may_be_shorter_than_asked_only_at_the_end_of_the_content() {
    let get = Get::prefix(100);
    assert_eq!(
        body(&get, 206, &[("content-range", "bytes 0-99/200")]).length,
        Some(100)
    );
    assert_eq!(
        body(&get, 206, &[("content-range", "bytes 0-49/50")]).length,
        Some(50)
    );
    assert_eq!(
        body(&get, 206, &[("content-range", "bytes 0-99/*")])
            .facts
            .content_length,
        None
    );
    for cut in ["bytes 0-49/200", "bytes 0-49/*", "bytes 1-99/200"] {
        assert!(
            matches!(
                verdict(&get, 206, &[("content-range", cut)]),
                Err(SourceError::WrongRange { .. })
            ),
            "{cut}"
        );
    }
    assert_eq!(
        verdict(&get, 416, &[("content-range", "bytes */0")]),
        Ok(Verdict::AskWithoutRange)
    );
}

#[test]
fn headers_are_kept_as_if_the_whole_content_had_been_asked_for() {
    let lines = [
        ("content-range", "bytes 0-0/50"),
        ("content-length", "1"),
        ("content-type", "text/plain"),
        ("set-cookie", "session=1"),
        ("connection", "keep-alive"),
        ("via", "a"),
    ];
    let judged = body(&Get::prefix(1), 206, &lines);
    let mut kept: Vec<(&str, &str)> = judged
        .facts
        .header
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    kept.sort_unstable();
    assert_eq!(
        kept,
        [
            ("content-length", "50"),
            ("content-type", "text/plain"),
            ("via", "a")
        ]
    );
}

#[test]
fn a_shrunken_content_is_a_change_and_not_a_broken_range() {
    let version = Version {
        content_length: Some(100),
        ..Version::default()
    };
    let get = Get::range(ByteRange {
        start: 0,
        length: 100,
    })
    .of_version(version);
    let error = verdict(&get, 206, &[("content-range", "bytes 0-49/50")]).unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    let error = verdict(&get, 416, &[("content-range", "bytes */0")]).unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
}

#[test]
fn retry_after_has_two_forms() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let after = |value: &str| retry_after(&headers(&[("retry-after", value)]), now);
    assert_eq!(after("120"), Some(Duration::from_secs(120)));
    assert_eq!(
        after("Sun, 06 Nov 1994 08:49:47 GMT"),
        Some(Duration::from_secs(10))
    );
    assert_eq!(after("Sun, 06 Nov 1994 08:49:07 GMT"), Some(Duration::ZERO));
    assert_eq!(after("soon"), None);
    assert_eq!(after("-1"), None);
}

proptest! {
    #[test]
    fn content_ranges_survive_a_round_trip(start in 0u64..1 << 40, length in 1u64..1 << 40, rest in 0u64..1 << 40) {
        let range = ByteRange { start, length };
        let total = range.end() + rest;
        prop_assert_eq!(ContentRange::parse(&range.content_range_header(total)), Some(ContentRange::Part { range, total: Some(total) }));
    }

    #[test]
    fn no_content_range_makes_the_parser_panic(text in "(bytes|items| |-|/|\\*|[0-9]{1,25}|ä){0,8}") {
        let _ = ContentRange::parse(&text);
    }
}

#[test]
fn a_transfer_coding_besides_chunks_is_no_content() {
    for (coding, fine) in [
        ("chunked", true),
        ("identity", true),
        ("gzip, chunked", false),
        ("gzip", false),
    ] {
        let judged = verdict(&Get::whole(), 200, &[("transfer-encoding", coding)]);
        let is_refused = matches!(judged, Err(SourceError::Encoded { .. }));
        assert_eq!(is_refused, !fine, "{coding}: {judged:?}");
    }
}

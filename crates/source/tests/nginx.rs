//! The HTTP backend against a real web server.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;

use protocol::ByteRange;
use source::{
    Changed, Fault, Get, ListLimits, OrderedReader, RangePlan, RangeSupport, Request, SourceError,
};
use support::{nginx::Nginx, options, pattern, sources};

fn request(url: &str) -> Request {
    Request::new(url).unwrap()
}

#[tokio::test]
async fn facts_and_bytes_come_with_one_request() {
    let nginx = Nginx::start();
    let content = pattern(300_000);
    nginx.put("f", &content);
    let sources = sources(options());
    let request = request(&nginx.url("files", "f"));

    let prefix = sources.get(&request, Get::prefix(100_000)).await.unwrap();
    assert_eq!(prefix.facts.content_length, Some(300_000));
    assert_eq!(prefix.facts.ranges, RangeSupport::Yes);
    assert_eq!(prefix.facts.header["content-length"], "300000");
    assert!(!prefix.facts.header.contains_key("content-range"));
    assert_eq!((prefix.start, prefix.length), (0, Some(100_000)));
    let version = prefix.facts.version.clone();
    assert!(version.strong_etag().is_some() && version.last_modified.is_some());
    assert_eq!(
        prefix.body.collect(1 << 20).await.unwrap(),
        content[..100_000]
    );
    assert_eq!(nginx.requests("GET /files/f"), 1);

    let range = ByteRange {
        start: 299_990,
        length: 10,
    };
    let tail = sources
        .get(&request, Get::range(range).of_version(version))
        .await
        .unwrap();
    assert_eq!(tail.range(), Some(range));
    assert_eq!(tail.body.collect(10).await.unwrap(), content[299_990..]);

    let short = sources.get(&request, Get::prefix(1 << 30)).await.unwrap();
    assert_eq!(
        short.length,
        Some(300_000),
        "a prefix longer than the content is the content"
    );
    let stat = sources.stat(&request).await.unwrap();
    assert_eq!(
        (stat.content_length, stat.ranges),
        (Some(300_000), RangeSupport::Yes)
    );
}

#[tokio::test]
async fn empty_and_missing_files_are_told_apart() {
    let nginx = Nginx::start();
    nginx.put("empty", b"");
    let sources = sources(options());
    let empty = request(&nginx.url("files", "empty"));
    assert_eq!(sources.stat(&empty).await.unwrap().content_length, Some(0));
    let content = sources.get(&empty, Get::prefix(4096)).await.unwrap();
    assert_eq!(content.length, Some(0));
    assert!(content.body.collect(0).await.unwrap().is_empty());

    let missing = request(&nginx.url("files", "missing"));
    let error = sources.get(&missing, Get::prefix(4096)).await.unwrap_err();
    assert_eq!(
        (error.status_code(), error.fault()),
        (Some(404), Fault::Caller)
    );
    assert!(sources.exists(&empty).await.unwrap());
    assert!(!sources.exists(&missing).await.unwrap());

    nginx.put("f", b"abc");
    let beyond = Get::range(ByteRange {
        start: 3,
        length: 1,
    });
    let error = sources
        .get(&request(&nginx.url("files", "f")), beyond)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::BeyondEnd {
                start: 3,
                content_length: Some(3),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_origin_without_ranges_is_read_whole_or_skipped_through() {
    let nginx = Nginx::start();
    let content = pattern(500_000);
    nginx.put("f", &content);
    let sources = sources(options());
    let request = request(&nginx.url("whole", "f"));

    let whole = sources.get(&request, Get::prefix(1000)).await.unwrap();
    assert_eq!(
        (whole.facts.ranges, whole.length),
        (RangeSupport::No, Some(500_000))
    );
    let version = whole.facts.version.clone();
    assert_eq!(whole.body.collect(1 << 20).await.unwrap(), content);

    let range = ByteRange {
        start: 400_000,
        length: 7,
    };
    let refused = sources.get(&request, Get::range(range)).await.unwrap_err();
    assert!(
        matches!(refused, SourceError::RangesUnsupported { .. }),
        "{refused}"
    );
    let skipped = sources
        .get(&request, Get::range_or_skip(range).of_version(version))
        .await
        .unwrap();
    assert_eq!(skipped.range(), Some(range));
    assert_eq!(
        skipped.body.collect(7).await.unwrap(),
        content[400_000..400_007]
    );
}

#[tokio::test]
async fn a_chunked_answer_ends_with_its_last_chunk() {
    let nginx = Nginx::start();
    let content = pattern(200_000);
    nginx.put("f", &content);
    let sources = sources(options());
    let request = request(&nginx.url("chunked", "f"));
    assert_eq!(sources.stat(&request).await.unwrap().content_length, None);
    let answer = sources.get(&request, Get::prefix(1000)).await.unwrap();
    assert_eq!((answer.length, answer.facts.content_length), (None, None));
    assert_eq!(answer.body.collect(1 << 20).await.unwrap(), content);
}

#[tokio::test]
async fn a_file_replaced_during_the_download_is_noticed() {
    let nginx = Nginx::start();
    nginx.put("f", &pattern(1000));
    let sources = sources(options());
    let request = request(&nginx.url("files", "f"));
    let version = sources.stat(&request).await.unwrap().version;
    nginx.put("f", &pattern(1001));
    let range = ByteRange {
        start: 10,
        length: 10,
    };
    let error = sources
        .get(&request, Get::range(range).of_version(version))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            SourceError::Changed {
                changed: Changed::Condition { .. } | Changed::Etag { .. },
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn redirects_are_followed_and_remembered() {
    let nginx = Nginx::start();
    let content = pattern(5000);
    nginx.put("f", &content);
    let sources = sources(options());
    let request = request(&nginx.url("moved", "f"));
    let answer = sources.get(&request, Get::prefix(100)).await.unwrap();
    let version = answer.facts.version.clone();
    assert_eq!(
        version.location.as_ref().unwrap().as_str(),
        nginx.url("files", "f")
    );
    answer.body.collect(100).await.unwrap();
    let range = ByteRange {
        start: 100,
        length: 100,
    };
    let rest = sources
        .get(&request, Get::range(range).of_version(version))
        .await
        .unwrap();
    assert_eq!(rest.body.collect(100).await.unwrap(), content[100..200]);
    assert_eq!(
        nginx.requests("GET /moved/f"),
        1,
        "the second read went straight to the target"
    );
}

#[tokio::test]
async fn certificates_are_verified_unless_told_otherwise() {
    let nginx = Nginx::start();
    nginx.put("f", b"secret");
    let url = nginx.tls_url("files", "f");
    let strict = sources(options());

    let error = strict.stat(&request(&url)).await.unwrap_err();
    assert!(
        matches!(error, SourceError::Tls { .. } | SourceError::Setup { .. }),
        "{error}"
    );
    let trusted = request(&url).with_trust_roots(vec![nginx.ca()]);
    let content = strict.get(&trusted, Get::whole()).await.unwrap();
    assert_eq!(content.body.collect(100).await.unwrap(), b"secret");

    let mut configured = options();
    configured.trust_roots = vec![nginx.ca()];
    assert!(sources(configured).exists(&request(&url)).await.unwrap());
    let mut lax = options();
    lax.unverified_hosts = vec!["localhost".to_owned()];
    let lax = sources(lax);
    assert!(lax.exists(&request(&url)).await.unwrap());
    assert!(
        lax.stat(&request(&url.replace("localhost", "127.0.0.1")))
            .await
            .is_err(),
        "only the host named"
    );
}

#[tokio::test]
async fn credentials_come_from_the_url_or_from_a_header() {
    let nginx = Nginx::start();
    nginx.put("f", b"x");
    let sources = sources(options());
    let url = nginx.url("private", "f");
    let error = sources.stat(&request(&url)).await.unwrap_err();
    assert_eq!(error.status_code(), Some(401));
    assert!(
        sources
            .exists(&request(&url.replace("http://", "http://user:pass@")))
            .await
            .unwrap()
    );
    let header = HashMap::from([("authorization".to_owned(), "Basic dXNlcjpwYXNz".to_owned())]);
    assert!(
        sources
            .exists(&request(&url).with_headers(header))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn directories_are_listed_with_what_is_below_them() {
    let nginx = Nginx::start();
    nginx.put("d/a b%.bin", &[0; 7]);
    nginx.put("d/sub/deep/x", &[0; 3]);
    let sources = sources(options());
    for mood in ["files", "json"] {
        let listed = sources
            .list(&request(&nginx.url(mood, "d/")), ListLimits::default())
            .await
            .unwrap();
        let mut names: Vec<(String, Option<u64>, bool)> = listed
            .into_iter()
            .map(|entry| {
                (
                    entry.url.path().replace(&format!("/{mood}/d/"), ""),
                    entry.content_length,
                    entry.is_dir,
                )
            })
            .collect();
        names.sort();
        let expected = [
            ("", None, true),
            ("a%20b%25.bin", Some(7), false),
            ("sub/", None, true),
            ("sub/deep/", None, true),
            ("sub/deep/x", Some(3), false),
        ];
        assert_eq!(
            names,
            expected.map(|(name, length, is_dir)| (name.to_owned(), length, is_dir)),
            "{mood}"
        );
    }
    let one = ListLimits {
        entries: 1,
        depth: 1,
    };
    let error = sources
        .list(&request(&nginx.url("files", "d/")), one)
        .await
        .unwrap_err();
    assert!(
        matches!(error, SourceError::ListTooLarge { limit: 1, .. }),
        "{error}"
    );
    // The third level would have been left out without a word.
    let two = ListLimits {
        depth: 2,
        ..ListLimits::default()
    };
    let error = sources
        .list(&request(&nginx.url("files", "d/")), two)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("more than 2 levels"), "{error}");
    for wrong in ["d", "d/sub/deep/x/"] {
        assert!(
            sources
                .list(&request(&nginx.url("files", wrong)), ListLimits::default())
                .await
                .is_err()
        );
    }
    let unlistable = sources
        .list(&request(&nginx.url("whole", "d/")), ListLimits::default())
        .await
        .unwrap_err();
    assert_eq!(unlistable.status_code(), Some(403));
}

#[tokio::test]
async fn an_ordered_reader_gives_the_bytes_in_order() {
    let nginx = Nginx::start();
    let content = pattern(5_000_000);
    nginx.put("f", &content);
    let sources = sources(options());
    let request = request(&nginx.url("files", "f"));
    let version = sources.stat(&request).await.unwrap().version;
    let range = ByteRange {
        start: 1,
        length: 4_999_999,
    };
    let mut reader = OrderedReader::new(sources, request, version, RangePlan::new(range, 300_000));
    let mut read = Vec::new();
    while let Some(bytes) = reader.next().await {
        read.extend_from_slice(&bytes.unwrap());
    }
    assert!(read == content[1..]);
    assert_eq!(nginx.requests("GET /files/f"), 1 + 17);
}

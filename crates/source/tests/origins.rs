//! Object storages, HDFS and model hubs against real servers, or servers that check what a client sends.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use protocol::{ByteRange, EntryFilter, EntryPlan};
use source::{
    Entry, Get, Hub, ListLimits, ObjectStorage, OriginOptions, RangeSupport, Request, Secret,
    SourceError, Sources,
};
use support::{options, server::Server, sources};

/// The content that the servers give to a name.
fn content(name: &str, length: usize) -> Vec<u8> {
    name.as_bytes()
        .iter()
        .copied()
        .cycle()
        .take(length)
        .collect()
}

fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

async fn read(sources: &Sources, request: &Request, get: Get) -> Result<Vec<u8>, SourceError> {
    sources.get(request, get).await?.body.collect(1 << 22).await
}

fn range(start: u64, length: u64) -> Get {
    Get::range(ByteRange { start, length })
}

/// What every storage must do with the objects that it holds under `base`.
async fn check_objects(base: &str, options: &OriginOptions, objects: &BTreeMap<String, usize>) {
    let sources = sources(support::options());
    let request = |name: &str| {
        Request::new(&format!("{base}{name}"))
            .unwrap()
            .with_options(options.clone())
    };
    for (name, length) in objects.iter().filter(|(name, _)| !name.ends_with('/')) {
        let object = request(&escaped(name));
        let facts = sources.stat(&object).await.unwrap();
        assert_eq!(facts.content_length, Some(*length as u64), "{name}");
        let whole = content(name, *length);
        assert_eq!(
            read(&sources, &object, Get::whole()).await.unwrap(),
            whole,
            "{name}"
        );
        assert_eq!(
            read(&sources, &object, Get::prefix(1 << 20)).await.unwrap(),
            whole,
            "{name}"
        );
        assert!(sources.exists(&object).await.unwrap(), "{name}");
    }

    let plain = request("dir/plain.bin");
    let whole = content("dir/plain.bin", 300_000);
    let first = sources.get(&plain, Get::prefix(1000)).await.unwrap();
    assert_eq!(first.facts.ranges, RangeSupport::Yes);
    let version = first.facts.version.clone();
    let part = range(299_000, 1000).of_version(version.clone());
    assert_eq!(
        read(&sources, &plain, part).await.unwrap(),
        whole[299_000..]
    );
    let mut other = version;
    other.content_length = Some(299_999);
    let error = read(&sources, &plain, range(0, 10).of_version(other))
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    let error = read(&sources, &plain, range(300_000, 1)).await.unwrap_err();
    // The emulators answer with a part of no bytes where the services say 416.
    let is_refused = matches!(
        error,
        SourceError::BeyondEnd { .. } | SourceError::WrongRange { .. }
    );
    assert!(is_refused, "{error}");

    let missing = request("dir/missing");
    assert_eq!(
        sources.stat(&missing).await.unwrap_err().status_code(),
        Some(404)
    );
    assert!(!sources.exists(&missing).await.unwrap());

    let entries = sources
        .list(&request("dir/"), ListLimits::default())
        .await
        .unwrap();
    check_listing(&format!("{base}dir/"), &entries, objects);
    let few = ListLimits {
        entries: 2,
        ..ListLimits::default()
    };
    let error = sources.list(&request("dir/"), few).await.unwrap_err();
    assert!(matches!(error, SourceError::ListTooLarge { .. }), "{error}");
}

/// Compares a listing with the objects below `dir/`.
fn check_listing(base: &str, entries: &[Entry], objects: &BTreeMap<String, usize>) {
    let below = entries.iter().filter(|entry| entry.url.as_str() != base);
    let mut found: Vec<String> = below.map(|entry| entry.url.to_string()).collect();
    found.sort();
    let prefix = base.strip_suffix("dir/").unwrap();
    let mut expected: Vec<String> = objects
        .keys()
        .filter(|name| name.starts_with("dir/"))
        .map(|name| format!("{prefix}{}", escaped(name)))
        .collect();
    expected.sort();
    assert_eq!(found, expected);
    for entry in entries.iter().filter(|entry| !entry.is_dir) {
        let name = objects
            .iter()
            .find(|(name, _)| entry.url.as_str().ends_with(&escaped(name)));
        assert_eq!(
            entry.content_length,
            Some(*name.unwrap().1 as u64),
            "{}",
            entry.url
        );
    }
}

fn objects(server: &Server) -> BTreeMap<String, usize> {
    serde_json::from_value(server.facts["objects"].clone()).unwrap()
}

fn storage(server: &Server, endpoint: &str) -> ObjectStorage {
    let given = |name: &str| Some(server.fact(name)).filter(|text| !text.is_empty());
    ObjectStorage {
        endpoint: Some(server.fact(endpoint)),
        access_key_id: given("key_id"),
        access_key_secret: given("key_secret").map(Secret::from),
        ..ObjectStorage::default()
    }
}

fn with_storage(storage: ObjectStorage) -> OriginOptions {
    OriginOptions {
        object_storage: Some(storage),
        ..OriginOptions::default()
    }
}

#[tokio::test]
async fn s3_is_read_with_signatures() {
    let server = Server::objects("s3");
    let options = with_storage(storage(&server, "endpoint"));
    check_objects("s3://models/", &options, &objects(&server)).await;

    let wrong = with_storage(ObjectStorage {
        access_key_secret: Some(Secret::from("wrong".to_owned())),
        ..storage(&server, "endpoint")
    });
    let request = Request::new("s3://models/dir/plain.bin")
        .unwrap()
        .with_options(wrong);
    let error = sources(support::options())
        .stat(&request)
        .await
        .unwrap_err();
    assert_eq!(error.status_code(), Some(403), "{error}");
    assert!(!format!("{request:?} {error:?}").contains("wrong"));
}

#[tokio::test]
async fn google_is_read() {
    let server = Server::objects("gcs");
    let options = with_storage(storage(&server, "endpoint"));
    check_objects("gs://models/", &options, &objects(&server)).await;
}

#[tokio::test]
async fn azure_is_read_with_signatures() {
    let server = Server::objects("azure");
    let options = with_storage(storage(&server, "endpoint"));
    check_objects("abs://models/", &options, &objects(&server)).await;
}

#[tokio::test]
async fn oss_obs_and_cos_are_read_with_the_signatures_of_their_documents() {
    let server = Server::script("clouds.py");
    for scheme in ["oss", "obs", "cos"] {
        let mut storage = storage(&server, scheme);
        if scheme == "oss" {
            storage.security_token = Some(Secret::from(server.fact("token")));
        }
        let base = format!("{scheme}://{}/", server.fact("bucket"));
        check_objects(&base, &with_storage(storage), &objects(&server)).await;
    }
}

#[tokio::test]
async fn the_egress_policy_holds_for_storages_too() {
    let mut http = options();
    http.egress = source::EgressPolicy::public_only();
    let sources = sources(http);
    let storage = |endpoint: &str| {
        with_storage(ObjectStorage {
            endpoint: Some(endpoint.to_owned()),
            access_key_id: Some("a".to_owned()),
            access_key_secret: Some(Secret::from("Yg==".to_owned())),
            ..ObjectStorage::default()
        })
    };
    for (url, options) in [
        ("s3://b/k", storage("http://169.254.169.254")),
        ("abs://b/k", storage("http://127.0.0.1:1/a")),
        ("oss://b/k", storage("http://oss.localhost:1")),
        ("hdfs://127.0.0.1/k", OriginOptions::default()),
        ("hf://o/r/f", hub("http://127.0.0.1:1", "", None)),
    ] {
        let request = Request::new(url).unwrap().with_options(options);
        let error = sources.stat(&request).await.unwrap_err();
        assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    }
}

#[tokio::test]
async fn hdfs_is_read_through_its_data_nodes() {
    let mut server = Server::hdfs();
    let base = format!("hdfs://127.0.0.1:{}/", server.facts["port"]);
    let objects: BTreeMap<String, usize> = [
        ("dir/plain.bin", 300_000),
        ("dir/empty", 0),
        ("dir/a b%+&#=.txt", 40),
        ("dir/ünïcode/文.txt", 60),
        ("dir/ünïcode/", 0),
        ("dir/deep/", 0),
        ("dir/deep/er/", 0),
        ("dir/deep/er/still", 10),
        ("dir/folder/", 0),
        ("other/x", 5),
    ]
    .into_iter()
    .map(|(name, length)| (name.to_owned(), length))
    .collect();
    check_objects(&base, &OriginOptions::default(), &objects).await;

    let sources = sources(options());
    let folder = Request::new(&format!("{base}dir/deep")).unwrap();
    let error = sources.stat(&folder).await.unwrap_err();
    assert!(error.to_string().contains("it is a directory"), "{error}");

    let plain = Request::new(&format!("{base}dir/plain.bin")).unwrap();
    let version = sources.stat(&plain).await.unwrap().version;
    assert_eq!(server.tell("rewrite"), "done\n");
    let error = read(&sources, &plain, range(0, 10).of_version(version))
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
}

fn hub(base_url: &str, revision: &str, token: Option<&str>) -> OriginOptions {
    let hub = Some(Hub {
        revision: revision.to_owned(),
        token: token.map(|token| Secret::from(token.to_owned())),
        base_url: Some(base_url.to_owned()),
    });
    OriginOptions {
        hugging_face: hub.clone(),
        model_scope: hub.clone(),
        open_csg: hub,
        ..OriginOptions::default()
    }
}

fn hub_content(commit: u8, path: &str, length: usize) -> Vec<u8> {
    content(&format!("{commit} {path}\n"), length)
}

#[tokio::test]
async fn files_of_a_hub_are_named_by_the_hub_and_not_by_its_store() {
    let server = Server::script("hub.py");
    let sources = sources(options());
    let request = |url: &str, revision: &str| {
        Request::new(url)
            .unwrap()
            .with_options(hub(&server.fact("hub"), revision, Some("good")))
    };
    for scheme in ["hf", "modelscope", "opencsg"] {
        let repo = format!("{scheme}://owner/gated");
        let small = request(&format!("{repo}/config.json"), "");
        assert_eq!(
            read(&sources, &small, Get::whole()).await.unwrap(),
            hub_content(0, "config.json", 500)
        );
        let large = request(&format!("{repo}/weights/model%201.safetensors"), "");
        let facts = sources.stat(&large).await.unwrap();
        assert_eq!(facts.content_length, Some(300_000));
        let whole = hub_content(0, "weights/model 1.safetensors", 300_000);
        let mut hasher = protocol::DigestHasher::new(protocol::DigestAlgorithm::Sha256);
        hasher.update(&whole);
        assert_eq!(facts.digest, Some(hasher.finish()));
        let part = range(200_000, 1000).of_version(facts.version);
        let content = sources.get(&large, part).await.unwrap();
        assert_eq!(
            content.facts.digest, facts.digest,
            "told by the store's answer too"
        );
        assert_eq!(
            content.body.collect(1000).await.unwrap(),
            whole[200_000..201_000]
        );

        let mut urls: Vec<String> = Vec::new();
        for repo in [format!("{repo}/"), repo.clone()] {
            let repo = request(&repo, "");
            assert!(sources.is_folder(&repo.url).unwrap());
            let entries = sources.list(&repo, ListLimits::default()).await.unwrap();
            urls = entries.iter().map(|entry| entry.url.to_string()).collect();
            let listed: Vec<_> = entries
                .iter()
                .map(|entry| (entry.url.as_str(), entry.is_dir))
                .collect();
            let plan =
                EntryPlan::new(repo.url.as_str(), listed, &EntryFilter::everything()).unwrap();
            let files: Vec<_> = plan.files.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(
                files,
                ["config.json", "empty.txt", "weights/model 1.safetensors"]
            );
        }
        let prefix = if scheme == "opencsg" { "models/" } else { "" };
        assert!(
            urls.contains(&format!("{scheme}://{prefix}owner/gated/config.json")),
            "{urls:?}"
        );
        let folder = request(&format!("{repo}/weights/"), "");
        assert_eq!(
            sources
                .list(&folder, ListLimits::default())
                .await
                .unwrap()
                .len(),
            1
        );
    }
}

#[tokio::test]
async fn a_branch_that_moves_is_noticed() {
    let server = Server::script("hub.py");
    let sources = sources(options());
    let request = |path: &str, revision: &str| {
        Request::new(&format!("hf://owner/repo/{path}"))
            .unwrap()
            .with_options(hub(&server.fact("hub"), revision, None))
    };
    let (small, large) = (
        request("config.json", "main"),
        request("weights/model%201.safetensors", "refs/pr/1"),
    );
    let small_version = sources.stat(&small).await.unwrap().version;
    let mut large_version = sources.stat(&large).await.unwrap().version;
    let moved = Request::new(&format!("{}/move", server.fact("hub"))).unwrap();
    post(moved.url.as_str()).await;

    let error = read(&sources, &small, range(0, 10).of_version(small_version))
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    // The address in the store still names the old content, and only without it the hub is asked again.
    let old = hub_content(0, "weights/model 1.safetensors", 300_000);
    let part = range(0, 10).of_version(large_version.clone());
    assert_eq!(read(&sources, &large, part).await.unwrap(), old[..10]);
    large_version.location = None;
    let error = read(&sources, &large, range(0, 10).of_version(large_version))
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");

    let pinned = request("config.json", &"1".repeat(40));
    assert_eq!(
        read(&sources, &pinned, Get::whole()).await.unwrap(),
        hub_content(0, "config.json", 500)
    );
}

#[tokio::test]
async fn a_hub_that_refuses_or_lies_is_understood() {
    let server = Server::script("hub.py");
    let sources = sources(options());
    let request = |url: &str, token: Option<&str>| {
        Request::new(url)
            .unwrap()
            .with_options(hub(&server.fact("hub"), "", token))
    };
    let gated = request("hf://owner/gated/config.json", Some("bad"));
    let error = sources.stat(&gated).await.unwrap_err();
    assert_eq!(error.status_code(), Some(401));
    assert!(
        error
            .to_string()
            .contains("Access to this repo is restricted"),
        "{error}"
    );
    assert!(
        !sources
            .exists(&request("hf://owner/repo/none", None))
            .await
            .unwrap()
    );
    assert!(
        sources
            .exists(&request("hf://owner/repo", None))
            .await
            .unwrap()
    );
    let liar = request("hf://owner/liar/weights/model%201.safetensors", None);
    for outcome in [
        sources.stat(&liar).await.map(drop),
        read(&sources, &liar, range(0, 9)).await.map(drop),
    ] {
        assert!(
            matches!(outcome, Err(SourceError::Changed { .. })),
            "{outcome:?}"
        );
    }
    let climber = request("hf://owner/climber/", None);
    let error = sources
        .list(&climber, ListLimits::default())
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::NotListable { .. }), "{error}");
    let repo = request("hf://owner/repo", None);
    assert!(matches!(
        sources.stat(&repo).await,
        Err(SourceError::InvalidUrl { .. })
    ));
}

/// A POST without a body.
async fn post(url: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let url = url::Url::parse(url).unwrap();
    let address = (url.host_str().unwrap(), url.port().unwrap());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let text = format!("POST {} HTTP/1.0\r\nContent-Length: 0\r\n\r\n", url.path());
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(" 204 "), "{answer}");
}

//! Resolving against a registry of these tests, which can be as unpleasant as a real one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use protocol::DigestAlgorithm;
use serde_json::{Value, json};
use source::http::ProxyUse;

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry that serves what it is given.
#[derive(Default)]
struct Contents {
    /// By the last part of the URL: media type and bytes.
    documents: HashMap<String, (String, Vec<u8>)>,
    guard: Guard,
    tokens: AtomicUsize,
    requests: AtomicUsize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Guard {
    #[default]
    Open,
    Basic,
    Token,
    /// Every token is refused once.
    ForgetfulToken,
}

impl Contents {
    fn add(&mut self, media_type: &str, body: &Value) -> Value {
        let bytes = body.to_string().into_bytes();
        let digest = Digest::of(DigestAlgorithm::Sha256, &bytes).to_string();
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.documents
            .insert(digest, (media_type.to_owned(), bytes));
        descriptor
    }

    fn tag(&mut self, tag: &str, descriptor: &Value) {
        let document = self.documents[descriptor["digest"].as_str().unwrap()].clone();
        self.documents.insert(tag.to_owned(), document);
    }

    fn image(&mut self, name: &str) -> Value {
        let body = json!({
            "schemaVersion": 2,
            "config": descriptor("config", &format!("{name} config"), 7),
            "layers": [descriptor("layer.v1.tar+gzip", "shared", 100), descriptor("layer.v1.tar+zstd", name, 200)],
        });
        self.add(MANIFEST, &body)
    }

    async fn serve(self) -> (SocketAddr, Arc<Self>) {
        let contents = Arc::new(self);
        let router = Router::new()
            .route("/token", get(token))
            .fallback(get(manifest))
            .with_state(contents.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (addr, contents)
    }
}

fn descriptor(kind: &str, name: &str, size: u64) -> Value {
    let digest = Digest::of(DigestAlgorithm::Sha256, name.as_bytes()).to_string();
    json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size})
}

async fn token(
    State(contents): State<Arc<Contents>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let count = contents.tokens.fetch_add(1, Ordering::SeqCst);
    assert_eq!(query["service"], "here");
    assert_eq!(query["scope"], "repository:team/app:pull");
    match headers
        .get(header::AUTHORIZATION)
        .map(|it| it.to_str().unwrap())
    {
        None | Some("Basic dTpw") => json!({"token": format!("token{count}"), "expires_in": 300})
            .to_string()
            .into_response(),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn manifest(State(contents): State<Arc<Contents>>, uri: Uri, headers: HeaderMap) -> Response {
    contents.requests.fetch_add(1, Ordering::SeqCst);
    let host = headers[header::HOST].to_str().unwrap();
    let shown = headers
        .get(header::AUTHORIZATION)
        .map(|it| it.to_str().unwrap());
    let allowed = match contents.guard {
        Guard::Open => true,
        Guard::Basic => shown == Some("Basic dTpw"),
        Guard::Token => shown == Some("Bearer token0"),
        Guard::ForgetfulToken => shown == Some("Bearer token1"),
    };
    if !allowed {
        let challenge = match contents.guard {
            Guard::Basic => "Basic realm=\"x\"".to_owned(),
            _ => format!("Bearer realm=\"http://{host}/token\",service=\"here\""),
        };
        return (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, challenge)],
        )
            .into_response();
    }
    let name = uri.path().rsplit('/').next().unwrap();
    match contents.documents.get(name) {
        Some((media_type, bytes)) => {
            ([(header::CONTENT_TYPE, media_type.clone())], bytes.clone()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn open(addr: SocketAddr, reference: &str, access: Access) -> Registry {
    let mut options = HttpOptions::default();
    options.proxy = ProxyUse::Direct;
    let client = Arc::new(Client::new(options).unwrap());
    let url = format!("http://{addr}/v2/team/app/manifests/{reference}");
    client.open(url.parse().unwrap(), access)
}

fn user(password: &str) -> Access {
    Access {
        credentials: Some(Credentials {
            username: "u".to_owned(),
            password: password.to_owned(),
        }),
        ..Access::default()
    }
}

async fn resolve(
    addr: SocketAddr,
    reference: &str,
    platforms: &str,
) -> Result<Image, RegistryError> {
    open(addr, reference, Access::default())
        .resolve(&platforms.parse().unwrap())
        .await
}

/// Two platforms and an attestation, as `buildx` makes them.
fn two_platforms() -> Contents {
    let mut contents = Contents::default();
    let mut entries = Vec::new();
    for (name, os, architecture) in [
        ("one", "linux", "amd64"),
        ("two", "linux", "arm64"),
        ("proof", "unknown", "unknown"),
    ] {
        let mut entry = contents.image(name);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    let index = contents.add(
        INDEX,
        &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}),
    );
    contents.tag("latest", &index);
    contents
}

#[tokio::test]
async fn an_index_leads_to_the_wanted_platforms() {
    let (addr, _) = two_platforms().serve().await;
    let one = resolve(addr, "latest", "linux/amd64").await.unwrap();
    let kinds: Vec<ContentKind> = one
        .manifests
        .iter()
        .chain(&one.blobs)
        .map(|it| it.kind)
        .collect();
    use ContentKind::{Config, Layer, Manifest, Tag};
    assert_eq!(kinds, [Tag, Manifest, Manifest, Config, Layer, Layer]);
    assert_eq!(
        one.manifests[0].url,
        format!("http://{addr}/v2/team/app/manifests/latest")
    );
    let blob = format!("http://{addr}/v2/team/app/blobs/{}", one.blobs[2].digest);
    assert_eq!(
        (one.blobs[2].url.as_str(), one.blobs[2].len),
        (blob.as_str(), 200)
    );
    // What two images share is there once, the attestation is not.
    let all = resolve(addr, "latest", "all").await.unwrap();
    assert_eq!((all.manifests.len(), all.blobs.len()), (4, 5));
    let two = resolve(addr, "latest", "linux/arm64,linux/amd64")
        .await
        .unwrap();
    assert_eq!(two, all);
    let error = resolve(addr, "latest", "windows/amd64")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("windows/amd64") && error.contains("linux/amd64, linux/arm64"),
        "{error}"
    );
}

#[tokio::test]
async fn a_digest_is_followed_and_held_to() {
    let mut contents = Contents::default();
    let image = contents.image("one");
    let digest = image["digest"].as_str().unwrap().to_owned();
    let wrong = format!("sha256:{}", "0".repeat(64));
    let document = contents.documents[&digest].clone();
    contents.documents.insert(wrong.clone(), document);
    let (addr, _) = contents.serve().await;
    let image = resolve(addr, &digest, "linux/amd64").await.unwrap();
    assert_eq!(image.manifests.len(), 1, "there is no tag");
    assert!(matches!(
        resolve(addr, &wrong, "all").await,
        Err(RegistryError::Digest { .. })
    ));
    assert!(matches!(
        resolve(addr, "absent", "all").await,
        Err(RegistryError::NotFound { .. })
    ));
}

#[tokio::test]
async fn what_is_too_deep_or_no_manifest_is_refused() {
    let mut contents = Contents::default();
    let mut inner = contents.image("one");
    for _ in 0..=DEPTH_MAX {
        inner = contents.add(INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
    }
    contents.tag("deep", &inner);
    contents.documents.insert(
        "html".to_owned(),
        ("text/html".to_owned(), b"<html>".to_vec()),
    );
    contents.documents.insert(
        "big".to_owned(),
        (MANIFEST.to_owned(), vec![b' '; MANIFEST_LEN_MAX + 1]),
    );
    let lies = json!({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": inner["digest"], "size": 1}]});
    let lies = contents.add(INDEX, &lies);
    contents.tag("lies", &lies);
    let (addr, _) = contents.serve().await;
    let failure = async |tag| resolve(addr, tag, "all").await.unwrap_err();
    assert!(matches!(
        failure("deep").await,
        RegistryError::TooLarge { .. }
    ));
    assert!(matches!(
        failure("html").await,
        RegistryError::Manifest { .. }
    ));
    assert!(matches!(
        failure("big").await,
        RegistryError::Source(SourceError::TooLong { .. })
    ));
    assert!(matches!(
        failure("lies").await,
        RegistryError::Digest { .. }
    ));
}

#[tokio::test]
async fn foreign_layers_are_left_out_with_a_note() {
    let mut contents = Contents::default();
    let layers = [
        descriptor("layer.nondistributable.v1.tar", "far", 9),
        descriptor("layer.v1.tar", "near", 9),
    ];
    let body =
        json!({"schemaVersion": 2, "config": descriptor("config", "c", 1), "layers": layers});
    let image = contents.add(MANIFEST, &body);
    contents.tag("x", &image);
    let (addr, _) = contents.serve().await;
    let image = resolve(addr, "x", "all").await.unwrap();
    assert_eq!(
        (image.blobs.len(), image.notes.len()),
        (2, 1),
        "{:?}",
        image.notes
    );
}

#[tokio::test]
async fn a_token_is_asked_for_once() {
    let contents = Contents {
        guard: Guard::Token,
        ..two_platforms()
    };
    let (addr, contents) = contents.serve().await;
    let registry = open(addr, "latest", user("p"));
    registry.resolve(&Platforms::All).await.unwrap();
    assert_eq!(
        registry.authorization().await.unwrap().as_deref(),
        Some("Bearer token0")
    );
    registry.resolve(&Platforms::All).await.unwrap();
    assert_eq!(contents.tokens.load(Ordering::SeqCst), 1);
    let headers = registry.headers().await.unwrap();
    assert_eq!(headers["Authorization"], "Bearer token0");
    registry.refused();
    assert_eq!(
        registry.authorization().await.unwrap().as_deref(),
        Some("Bearer token1")
    );
}

#[tokio::test]
async fn anybody_may_have_a_token_and_a_stale_one_is_replaced() {
    let contents = Contents {
        guard: Guard::ForgetfulToken,
        ..two_platforms()
    };
    let (addr, contents) = contents.serve().await;
    let registry = open(addr, "latest", Access::default());
    // The first token is refused although it is new: that is told, and the next call has another one.
    let error = registry.resolve(&Platforms::All).await.unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Unauthorized {
                status_code: 401,
                ..
            }
        ),
        "{error}"
    );
    registry.resolve(&Platforms::All).await.unwrap();
    assert_eq!(contents.tokens.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn passwords_are_given_to_who_asks_for_them() {
    let contents = Contents {
        guard: Guard::Basic,
        ..two_platforms()
    };
    let (addr, contents) = contents.serve().await;
    let registry = open(addr, "latest", user("p"));
    registry.resolve(&Platforms::All).await.unwrap();
    assert_eq!(
        registry.authorization().await.unwrap().as_deref(),
        Some("Basic dTpw")
    );
    for access in [Access::default(), user("wrong")] {
        let before = contents.requests.load(Ordering::SeqCst);
        let error = open(addr, "latest", access)
            .resolve(&Platforms::All)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                RegistryError::Unauthorized {
                    status_code: 401,
                    ..
                }
            ),
            "{error}"
        );
        assert!(!error.to_string().contains("wrong"), "{error}");
        assert!(
            contents.requests.load(Ordering::SeqCst) - before <= 2,
            "it gives up"
        );
    }
}

#[tokio::test]
async fn a_header_of_the_callers_own_is_used_as_it_is() {
    let contents = Contents {
        guard: Guard::Token,
        ..two_platforms()
    };
    let (addr, contents) = contents.serve().await;
    let with = |value: &str| Access {
        headers: HashMap::from([("AUTHORIZATION".to_owned(), value.to_owned())]),
        ..Access::default()
    };
    let registry = open(addr, "latest", with("Bearer token0"));
    registry.resolve(&Platforms::All).await.unwrap();
    assert_eq!(
        registry.authorization().await.unwrap().as_deref(),
        Some("Bearer token0")
    );
    assert!(
        open(addr, "latest", with("Bearer other"))
            .resolve(&Platforms::All)
            .await
            .is_err()
    );
    assert_eq!(contents.tokens.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn no_registry_is_a_passing_failure() {
    // Nobody listens on port 1 (tcpmux).
    let addr = "127.0.0.1:1".parse().unwrap();
    let error = resolve(addr, "latest", "all").await.unwrap_err();
    assert!(error.is_passing(), "{error}");
}

#[tokio::test]
async fn the_egress_policy_is_obeyed() {
    let (addr, _) = two_platforms().serve().await;
    let mut options = HttpOptions::default();
    options.egress = source::EgressPolicy::public_only();
    let client = Arc::new(Client::new(options).unwrap());
    let url = format!("http://{addr}/v2/team/app/manifests/latest");
    let error = client
        .open(url.parse().unwrap(), Access::default())
        .resolve(&Platforms::All)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Source(SourceError::Denied { .. })),
        "{error}"
    );
}

//! The proof: the runtime pulls an image, and the daemon's counter of proxy requests grows.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;
use tonic::transport::Endpoint;
use tower::service_fn;
use url::Url;

use super::detect::{Kind, Runtime};

/// The counter that grows with every request that the proxy takes (a name of Dragonfly v2).
const COUNTER: &str = "dragonfly_client_proxy_request_total";
/// Longest time for the daemon to tell its metrics.
const METRICS_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of metrics that are read; the daemon has some 100 KiB.
const METRICS_LEN_MAX: usize = 16 << 20;
/// Longest time for a socket of this host to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// What the probe showed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Proof {
    /// The runtime that pulled.
    pub(super) runtime: Kind,
    /// The image that was pulled.
    pub(super) image: String,
    /// Requests that reached the daemon's proxy during the pull.
    pub(super) requests: u64,
}

/// The probe proved nothing, or the contrary.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error(
        "the daemon's metrics at {url} cannot be read ({reason}): is it running? name the address with --metrics-addr"
    )]
    NoMetrics { url: String, reason: String },
    #[error("{runtime} could not pull {image}: {reason}{}", if *.requests > 0 { format!(" ({requests} requests reached the daemon)") } else { String::new() })]
    Pull {
        runtime: &'static str,
        image: String,
        reason: String,
        requests: u64,
    },
    #[error("{runtime} pulled {image}, but no request reached the daemon: {advice}")]
    NotAsked {
        runtime: &'static str,
        image: String,
        advice: String,
    },
}

/// Pulls `image` by `runtime` and counts what reaches the daemon whose metrics are at `metrics`.
pub(super) async fn probe(
    runtime: &Runtime,
    image: &str,
    metrics: &Url,
    limit: Duration,
    restart_due: bool,
) -> Result<Proof, ProbeError> {
    let name = runtime.kind.name();
    let before = requests(metrics).await?;
    let pulled = match tokio::time::timeout(limit, pull(runtime, image)).await {
        Ok(pulled) => pulled,
        Err(_) => Err(format!(
            "not done within {}: allow more with --probe-timeout",
            humantime::format_duration(limit)
        )),
    };
    let requests = requests(metrics).await?.saturating_sub(before);
    match pulled {
        Err(reason) => Err(ProbeError::Pull {
            runtime: name,
            image: image.to_owned(),
            reason,
            requests,
        }),
        Ok(()) if requests == 0 => Err(ProbeError::NotAsked {
            runtime: name,
            image: image.to_owned(),
            advice: advice(runtime.kind, restart_due),
        }),
        Ok(()) => Ok(Proof {
            runtime: runtime.kind,
            image: image.to_owned(),
            requests,
        }),
    }
}

fn advice(kind: Kind, restart_due: bool) -> String {
    if restart_due {
        return format!(
            "{} has not been restarted yet: do so, or run dfinit with --restart",
            kind.name()
        );
    }
    match kind {
        Kind::Containerd => "does containerd run with another configuration file (see `containerd config dump`), or does the registry of this image have a hosts.toml without the daemon?",
        Kind::Crio | Kind::Podman => "is the registry of this image listed in dfinit.yaml, and does a file in registries.conf.d say otherwise?",
        Kind::Docker => "with mode: mirror only images of Docker Hub go through the daemon",
    }
    .to_owned()
}

async fn pull(runtime: &Runtime, image: &str) -> Result<(), String> {
    match runtime.kind {
        Kind::Containerd | Kind::Crio => pull_by_cri(&runtime.socket, image).await,
        Kind::Docker => pull_by_command("docker", image).await,
        Kind::Podman => pull_by_command("podman", image).await,
    }
}

async fn pull_by_command(program: &str, image: &str) -> Result<(), String> {
    let output = Command::new(program)
        .args(["pull", "--quiet", image])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let told = String::from_utf8_lossy(&output.stderr);
            Err(told
                .lines()
                .next_back()
                .unwrap_or("it did not say why")
                .trim()
                .to_owned())
        }
    }
}

/// `runtime.v1.PullImageRequest`, as far as a pull without credentials needs it.
#[derive(Clone, PartialEq, prost::Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// `runtime.v1.ImageSpec`.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// `runtime.v1.PullImageResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

/// Pulls as a kubelet does, so that the configuration of the CRI counts, not that of a command line.
async fn pull_by_cri(socket: &Path, image: &str) -> Result<(), String> {
    let path = socket.to_owned();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://cri")
        .connect_timeout(CONNECT_LIMIT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| format!("nothing answers at {} ({error})", socket.display()))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| error.to_string())?;
    let request = PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
        }),
    };
    let method = http::uri::PathAndQuery::from_static("/runtime.v1.ImageService/PullImage");
    let codec = tonic_prost::ProstCodec::<PullImageRequest, PullImageResponse>::default();
    match client
        .unary(tonic::Request::new(request), method, codec)
        .await
    {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::Unimplemented => Err(format!(
            "{} does not serve the CRI: is its plugin disabled?",
            socket.display()
        )),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// The requests that the daemon's proxy has counted.
async fn requests(metrics: &Url) -> Result<u64, ProbeError> {
    let told = match tokio::time::timeout(METRICS_LIMIT, fetch(metrics)).await {
        Ok(told) => told,
        Err(_) => Err("it does not answer".to_owned()),
    };
    match told {
        Ok(text) => Ok(count(&text)),
        Err(reason) => Err(ProbeError::NoMetrics {
            url: metrics.to_string(),
            reason,
        }),
    }
}

async fn fetch(url: &Url) -> Result<String, String> {
    let host = url.host_str().unwrap_or_default();
    let authority = format!("{host}:{}", url.port_or_known_default().unwrap_or(80));
    let stream = TcpStream::connect(&authority)
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = hyper::Request::get(url.path())
        .header(hyper::header::HOST, &authority)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), METRICS_LEN_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    };
    tokio::pin!(exchange);
    // The connection does the work; the exchange ends first.
    tokio::select! {
        told = &mut exchange => told,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// The sum of the counter over its labels; 0 before the first request.
fn count(metrics: &str) -> u64 {
    let value = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(COUNTER)?;
        rest.starts_with(['{', ' '])
            .then(|| rest.rsplit(' ').next()?.parse().ok())?
    };
    let sum: f64 = metrics
        .lines()
        .filter_map(value)
        .filter(|value| value.is_finite() && *value >= 0.0)
        .sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a finite count, not below 0; `as` saturates"
    )]
    {
        sum as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_summed_over_its_labels() {
        let text = "# HELP dragonfly_client_proxy_request_total x\n\
                    dragonfly_client_proxy_request_total{scheme=\"http\",method=\"GET\"} 3\n\
                    dragonfly_client_proxy_request_total{scheme=\"http\",method=\"HEAD\"} 4\n\
                    dragonfly_client_proxy_request_total_other 100\n";
        assert_eq!(count(text), 7);
        assert_eq!(count(""), 0);
        assert_eq!(count("dragonfly_client_proxy_request_total NaN\n"), 0);
    }

    #[test]
    fn requests_are_encoded_as_the_cri_has_them() {
        use prost::Message;
        let request = PullImageRequest {
            image: Some(ImageSpec { image: "a".into() }),
        };
        assert_eq!(request.encode_to_vec(), [0x0a, 3, 0x0a, 1, b'a']);
    }

    #[test]
    fn what_to_look_at_depends_on_the_runtime() {
        assert!(advice(Kind::Containerd, true).contains("--restart"));
        assert!(advice(Kind::Podman, false).contains("registries.conf.d"));
    }
}

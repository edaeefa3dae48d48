//! What a preheat or a stat is about, and the scheduler that is asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytesize::ByteSize;
use clap::{ArgAction, Args};
use dragonfly_api::common::v2::{Hdfs, ObjectStorage};
use registry::ImageName;
use runtime::secret::{redact_url, redact_urls};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::dfget::{header, piece_length};
use crate::failure::Failure;
use crate::origin::OriginArguments;

/// Longest wait for the scheduler to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Most bytes of a file with certificates.
const CA_LEN_MAX: u64 = 1 << 20;

/// What is meant, and how its origin is reached.
#[derive(Debug, Clone, Args)]
pub(super) struct Subject {
    /// Address of a file or directory (which ends with a slash), or oci://registry/repository:tag for an image.
    pub url: String,

    /// The scheduler, such as http://127.0.0.1:8002.
    #[arg(long, env = "DFGET_SCHEDULER_ENDPOINT")]
    pub scheduler_endpoint: String,

    /// Name layers by their digest, as the proxy does by default; --enable-task-id-based-blob-digest=false by their URL.
    #[arg(long, env = "DFGET_ENABLE_TASK_ID_BASED_BLOB_DIGEST", value_name = "BOOL", default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub enable_task_id_based_blob_digest: bool,

    /// Platform of the image, such as linux/arm64; several with commas in between, or all [default: that of the scheduler].
    #[arg(long, env = "DFGET_PLATFORM")]
    pub platform: Option<String>,

    /// User of the registry.
    #[arg(long, env = "DFGET_USERNAME")]
    pub username: Option<String>,

    /// Password of the registry; the variable keeps it out of the list of processes.
    #[arg(long, env = "DFGET_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,

    /// The registry speaks plain HTTP.
    #[arg(long, env = "DFGET_PLAIN_HTTP")]
    pub plain_http: bool,

    /// Certificates (PEM) to trust besides those of the systems, for the scheduler and the daemons alike.
    #[arg(long, env = "DFGET_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,

    /// The scheduler does not verify the certificate of the registry. Daemons go by their own configuration.
    #[arg(long, env = "DFGET_INSECURE_SKIP_VERIFY")]
    pub insecure_skip_verify: bool,

    /// Length of a piece, at least 4MiB [default: by the length of the content].
    #[arg(long, env = "DFGET_PIECE_LENGTH", value_parser = piece_length)]
    pub piece_length: Option<ByteSize>,

    /// Application that the content belongs to.
    #[arg(long, env = "DFGET_APPLICATION", default_value = "")]
    pub application: String,

    /// Tag that separates equal addresses.
    #[arg(long, env = "DFGET_TAG", default_value = "")]
    pub tag: String,

    /// Header for the origin, "Name: value"; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    pub headers: Vec<(String, String)>,

    /// Query parameter that does not identify the content; giving any replaces the default list.
    #[arg(long = "filtered-query-param", value_name = "NAME")]
    pub filtered_query_params: Vec<String>,

    /// Hosts that are asked at once about one content, 1 to 1000 [default: the scheduler's, 500].
    #[arg(long, env = "DFGET_CONCURRENT_PEER_COUNT", value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub concurrent_peer_count: Option<i64>,

    /// Longest time for all of it.
    #[arg(long, env = "DFGET_TIMEOUT", default_value = "2h", value_parser = crate::dfget::timeout)]
    pub timeout: Duration,

    /// How origins other than HTTP are reached.
    #[command(flatten)]
    pub origin: OriginArguments,
}

/// An image or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// By the URL of its manifest.
    Image(String),
    /// By its URL.
    File(String),
}

impl Subject {
    /// What the address means.
    pub(super) fn target(&self) -> Result<Target, Failure> {
        let refused = |reason: String| Failure::Usage { reason };
        if self.url.starts_with("oci") {
            if !self.url.starts_with("oci://") {
                return Err(refused(format!(
                    "{} is no image: write it like oci://registry.example/team/app:1.0",
                    redact_url(&self.url)
                )));
            }
            let name: ImageName = self
                .url
                .parse()
                .map_err(|error| refused(redact_urls(&format!("{error}"))))?;
            let url = name
                .manifest_url(self.plain_http)
                .map_err(|error| refused(redact_urls(&error.to_string())))?;
            return Ok(Target::Image(url.to_string()));
        }
        let scheme = self.url.split_once("://").map_or("", |(scheme, _)| scheme);
        if matches!(scheme, "hf" | "modelscope" | "opencsg") {
            return Err(refused(format!(
                "{scheme}:// cannot be preheated: the scheduler's API has no fields for model hubs; run dfget on a host instead"
            )));
        }
        Ok(Target::File(self.url.clone()))
    }

    pub(super) fn object_storage(&self) -> Option<ObjectStorage> {
        self.of_scheme().0
    }

    pub(super) fn hdfs(&self) -> Option<Hdfs> {
        self.of_scheme().1
    }

    fn of_scheme(&self) -> (Option<ObjectStorage>, Option<Hdfs>) {
        let scheme = self.url.split_once("://").map_or("", |(scheme, _)| scheme);
        let download = self.origin.of_scheme(scheme);
        (download.object_storage, download.hdfs)
    }

    pub(super) fn timeout_message(&self) -> Option<prost_wkt_types::Duration> {
        self.timeout.try_into().ok()
    }

    /// The certificates to trust, each in DER.
    pub(super) fn certificate_chain(&self) -> Result<Vec<Vec<u8>>, Failure> {
        self.ca_cert
            .as_deref()
            .map_or(Ok(Vec::new()), read_certificates)
    }

    /// Connects to the scheduler.
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        let address = &self.scheduler_endpoint;
        let shown = redact_url(address);
        let endpoint = if address.contains("://") {
            Endpoint::from_shared(address.clone())
        } else {
            Endpoint::from_shared(format!("http://{address}"))
        };
        let endpoint = endpoint.map_err(|error| Failure::Usage {
            reason: format!(
                "--scheduler-endpoint {shown}: {error}: write it like http://127.0.0.1:8002"
            ),
        })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(Duration::from_secs(300))
            .keep_alive_timeout(Duration::from_secs(20));
        endpoint.connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
            Failure::Daemon {
                whose: "the scheduler",
                code: Code::Unavailable,
                message: format!("{shown} does not answer ({cause}): check that it runs, and --scheduler-endpoint"),
            }
        })
    }

    /// What a status of the scheduler means.
    pub(super) fn refused(&self, status: &Status) -> Failure {
        match status.code() {
            Code::DeadlineExceeded => Failure::Timeout {
                limit: self.timeout,
            },
            code => Failure::Daemon {
                whose: "the scheduler",
                code,
                message: redact_urls(status.message()),
            },
        }
    }
}

fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let unusable = |reason: String| Failure::Usage {
        reason: format!("--ca-cert {}: {reason}", path.display()),
    };
    let length = std::fs::metadata(path)
        .map_err(|error| unusable(error.to_string()))?
        .len();
    if length > CA_LEN_MAX {
        return Err(unusable("it is too long for certificates".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    certificates(&text).ok_or_else(|| unusable("it holds no certificate in PEM".to_owned()))
}

/// Every certificate of a PEM text; `None` if there is none, or one that is damaged.
fn certificates(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for part in text.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let (body, _) = part.split_once("-----END CERTIFICATE-----")?;
        let body: String = body.split_ascii_whitespace().collect();
        found.push(STANDARD.decode(body).ok()?);
    }
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        subject: Subject,
    }

    fn target(words: &str) -> Result<Target, Failure> {
        let line = format!("x --scheduler-endpoint http://s:8002 {words}");
        Line::try_parse_from(line.split(' '))
            .unwrap()
            .subject
            .target()
    }

    #[test]
    fn images_are_told_by_their_scheme() {
        let image = |url: &str| Target::Image(url.to_owned());
        assert_eq!(
            target("oci://nginx").unwrap(),
            image("https://registry-1.docker.io/v2/library/nginx/manifests/latest")
        );
        assert_eq!(
            target("oci://h:5000/a/b:c --plain-http").unwrap(),
            image("http://h:5000/v2/a/b/manifests/c")
        );
        for wrong in ["oci:/x", "ocix", "oci://", "hf://a/b"] {
            assert!(
                matches!(target(wrong), Err(Failure::Usage { .. })),
                "{wrong}"
            );
        }
        let file = "s3://bucket/dir/";
        assert_eq!(target(file).unwrap(), Target::File(file.to_owned()));
    }

    #[test]
    fn digests_name_layers_unless_told_otherwise() {
        let parse = |words: &str| {
            let line = format!("x --scheduler-endpoint s oci://a {words}");
            Line::try_parse_from(line.trim().split(' '))
                .unwrap()
                .subject
        };
        assert!(parse("").enable_task_id_based_blob_digest);
        assert!(parse("--enable-task-id-based-blob-digest").enable_task_id_based_blob_digest);
        assert!(
            !parse("--enable-task-id-based-blob-digest=false").enable_task_id_based_blob_digest
        );
    }

    #[test]
    fn no_message_holds_the_secrets_of_a_url() {
        let parse = |words: &str| {
            let line = format!("x --scheduler-endpoint http://u:S3CRET@s:8002 {words}");
            Line::try_parse_from(line.split(' ')).unwrap().subject
        };
        let subject = parse("http://h/f");
        let status = Status::invalid_argument("url: http://u:S3CRET@h/f?token=S3CRET: no");
        let mut told = vec![subject.refused(&status)];
        for url in ["ocix://u:S3CRET@h/a", "oci://u:S3CRET@h/a?x=S3CRET"] {
            told.push(parse(url).target().unwrap_err());
        }
        for failure in told {
            let text = failure.to_string();
            assert!(!text.contains("S3CRET"), "{text}");
        }
    }

    #[test]
    fn certificates_are_read_from_pem() {
        let one = "x\n-----BEGIN CERTIFICATE-----\nAQID\nBAU=\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(one), Some(vec![vec![1, 2, 3, 4, 5]]));
        assert_eq!(certificates(&one.repeat(2)).map(|all| all.len()), Some(2));
        for wrong in [
            "",
            "-----BEGIN CERTIFICATE-----\nAQID",
            &one.replace("AQID", "A!"),
        ] {
            assert_eq!(certificates(wrong), None);
        }
    }
}

//! Between wire messages and what the daemon works with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use dragonfly_api::common::v2::{self, SchedulingPolicy};
use dragonfly_api::dfdaemon::v2::{DownloadTaskStartedResponse, StatLocalTaskResponse};
use prost_wkt_types::Timestamp;
use protocol::{ByteRange, Digest, DigestError, PieceSpan, StandardTask, TaskIdError, TaskKind};
use source::{Hdfs, Hub, ObjectStorage, OriginOptions, Secret};
use storage::{Existing, TaskSummary};

use crate::engine::{DownloadSpec, PieceDone, Probe, Started};
use crate::output::OutputRequest;

/// Shortest piece that is accepted. The tools and the proxy refuse less than 4 MiB; this only keeps the number of pieces
/// of any content in bounds.
const PIECE_LENGTH_MIN: u64 = 64 << 10;

/// Longest piece that is accepted: a piece may be sent in one message.
const PIECE_LENGTH_MAX: u64 = 512 << 20;

/// Most query parameters that are filtered.
const FILTERS_MAX: usize = 1024;

/// Why a request means nothing. All of these are the caller's to correct.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// `DownloadTaskRequest.download` is absent.
    #[error("the request names no download")]
    NoDownload,
    /// No task id can be made of it.
    #[error("{0}")]
    TaskId(#[from] TaskIdError),
    /// `digest` is none.
    #[error("digest: {0}")]
    Digest(#[from] DigestError),
    /// `piece_length` is out of bounds.
    #[error(
        "piece length {0} is outside of {PIECE_LENGTH_MIN} to {PIECE_LENGTH_MAX} bytes: leave it out to have it chosen"
    )]
    PieceLength(u64),
    /// `range.length` is 0.
    #[error("a range of no bytes was asked for: give it a length of at least 1")]
    EmptyRange,
    /// Too many `filtered_query_params`.
    #[error("{0} filtered query parameters, the limit is {FILTERS_MAX}")]
    Filters(usize),
    /// A task kind with RPCs of its own.
    #[error("DownloadTask is for standard tasks: this kind has an RPC of its own")]
    Kind,
}

/// Which door a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The unix socket: a user of this host.
    Socket,
    /// The upload port: a scheduler or another host.
    Network,
}

/// What the engine is asked for.
///
/// # Errors
/// [`RequestError`].
pub fn download_spec(download: v2::Download, door: Door) -> Result<DownloadSpec, RequestError> {
    if download.r#type != v2::TaskType::Standard as i32 {
        return Err(RequestError::Kind);
    }
    if download.filtered_query_params.len() > FILTERS_MAX {
        return Err(RequestError::Filters(download.filtered_query_params.len()));
    }
    if let Some(length) = download.piece_length
        && !(PIECE_LENGTH_MIN..=PIECE_LENGTH_MAX).contains(&length)
    {
        return Err(RequestError::PieceLength(length));
    }
    let task_id = standard_task(&download).task_id()?;
    let stated = download.digest.as_deref().map(str::parse).transpose()?;
    let range = download.range.as_ref().map(byte_range).transpose()?;
    let (range_header, request_header) = split_range(&download.request_header);
    Ok(DownloadSpec {
        task_id,
        url: download.url.clone(),
        kind: TaskKind::Standard,
        tag: download.tag.clone(),
        application: download.application.clone(),
        priority: download.priority,
        filtered_query_params: download.filtered_query_params.clone(),
        request_header,
        piece_length: download.piece_length,
        range,
        range_header,
        // As in v2, only users of this host have a content checked against a digest of their own.
        digest: stated.filter(|_| door == Door::Socket),
        named_by: standard_task(&download).named_digest()?,
        probe: Probe::Measure,
        expected_length: None,
        in_order: false,
        disable_back_to_source: download.disable_back_to_source,
        need_back_to_source: download.need_back_to_source,
        // Whoever asks over the network wants it handed on: a seed that read small content past the scheduler would be unknown
        // as its holder, and everybody who waits for the seed would read the origin as well.
        scheduling_always: door == Door::Network
            || download.scheduling_policy == SchedulingPolicy::Always as i32,
        is_prefetch: download.is_prefetch,
        announce_if_held: door == Door::Network,
        remote_ip: download.remote_ip.clone(),
        certificate_chain: download.certificate_chain.clone(),
        origin: origin_options(OriginMessages {
            object_storage: download.object_storage.clone(),
            hdfs: download.hdfs.clone(),
            hugging_face: download.hugging_face.clone(),
            model_scope: download.model_scope.clone(),
            open_csg: download.open_csg.clone(),
        }),
        wire: Arc::new(download),
    })
}

/// The messages about origins, which `Download` and `ListTaskEntriesRequest` have in common.
#[derive(Debug, Default)]
pub struct OriginMessages {
    /// For object storages.
    pub object_storage: Option<v2::ObjectStorage>,
    /// For HDFS.
    pub hdfs: Option<v2::Hdfs>,
    /// For Hugging Face.
    pub hugging_face: Option<v2::HuggingFace>,
    /// For ModelScope.
    pub model_scope: Option<v2::ModelScope>,
    /// For OpenCSG.
    pub open_csg: Option<v2::OpenCsg>,
}

/// The same as the origins' backends take it.
pub fn origin_options(messages: OriginMessages) -> OriginOptions {
    let secret = |text: Option<String>| text.map(Secret::from);
    let hub = |revision, token, base_url| Hub {
        revision,
        token: secret(token),
        base_url,
    };
    OriginOptions {
        object_storage: messages.object_storage.map(|storage| ObjectStorage {
            region: storage.region,
            endpoint: storage.endpoint,
            access_key_id: storage.access_key_id,
            access_key_secret: secret(storage.access_key_secret),
            session_token: secret(storage.session_token),
            security_token: secret(storage.security_token),
            credential_path: storage.credential_path,
            insecure_skip_verify: storage.insecure_skip_verify.unwrap_or(false),
        }),
        hdfs: messages.hdfs.map(|hdfs| Hdfs {
            delegation_token: secret(hdfs.delegation_token),
        }),
        hugging_face: messages
            .hugging_face
            .map(|it| hub(it.revision, it.token, it.base_url)),
        model_scope: messages
            .model_scope
            .map(|it| hub(it.revision, it.token, it.base_url)),
        open_csg: messages
            .open_csg
            .map(|it| hub(it.revision, it.token, it.base_url)),
    }
}

/// Where the caller wants a file; `None` without an output path.
pub fn output_request(download: &v2::Download, digest: Option<Digest>) -> Option<OutputRequest> {
    let path = download.output_path.as_ref()?;
    Some(OutputRequest {
        path: PathBuf::from(path),
        existing: if download.overwrite {
            Existing::Replace
        } else {
            Existing::Refuse
        },
        force_hard_link: download.force_hard_link,
        digest,
    })
}

/// The first message of a download.
pub fn started_to_wire(started: &Started) -> DownloadTaskStartedResponse {
    DownloadTaskStartedResponse {
        content_length: started.content_length,
        range: started.range.map(range_to_wire),
        response_header: started.response_header.clone(),
        pieces: started.pieces.iter().map(span_to_wire).collect(),
        is_finished: started.is_finished,
    }
}

/// A piece that is here, with its content if the caller wants it.
pub fn piece_to_wire(piece: &PieceDone, content: Option<Vec<u8>>) -> v2::Piece {
    v2::Piece {
        number: piece.number.0,
        parent_id: piece.parent_id.as_ref().map(ToString::to_string),
        offset: piece.offset,
        length: piece.length,
        digest: piece.digest.to_string(),
        content,
        traffic_type: Some(piece.traffic.number().into()),
        cost: piece.cost.try_into().ok(),
        created_at: Some(piece.created_at.into()),
    }
}

/// What StatLocalTask tells of a task.
pub fn summary_to_wire(
    summary: &TaskSummary,
    response_header: HashMap<String, String>,
) -> StatLocalTaskResponse {
    let at = |time: Option<SystemTime>| time.map(Timestamp::from);
    StatLocalTaskResponse {
        task_id: summary.id.to_string(),
        piece_length: Some(summary.piece_length),
        content_length: Some(summary.content_length),
        response_header,
        uploading_count: 0,
        uploaded_count: 0,
        created_at: at(Some(summary.times.created_at)),
        updated_at: at(Some(summary.times.updated_at)),
        prefetched_at: at(summary.times.prefetched_at),
        failed_at: at(summary.times.failed_at),
        finished_at: at(summary.times.finished_at),
    }
}

fn standard_task(download: &v2::Download) -> StandardTask<'_> {
    // The first hub message that is there has the revision.
    let revision = download
        .hugging_face
        .as_ref()
        .map(|hub| hub.revision.as_str())
        .or_else(|| {
            download
                .model_scope
                .as_ref()
                .map(|hub| hub.revision.as_str())
        })
        .or_else(|| download.open_csg.as_ref().map(|hub| hub.revision.as_str()));
    StandardTask {
        url: &download.url,
        filtered_query_params: &download.filtered_query_params,
        tag: download.tag.as_deref(),
        application: download.application.as_deref(),
        revision,
        piece_length: download.piece_length,
        content: download.content_for_calculating_task_id.as_deref(),
        blob_digest: download.enable_task_id_based_blob_digest,
    }
}

fn byte_range(range: &v2::Range) -> Result<ByteRange, RequestError> {
    if range.length == 0 {
        return Err(RequestError::EmptyRange);
    }
    Ok(ByteRange {
        start: range.start,
        length: range.length,
    })
}

fn range_to_wire(range: ByteRange) -> v2::Range {
    v2::Range {
        start: range.start,
        length: range.length,
    }
}

/// A piece that will come: its place and no digest yet.
fn span_to_wire(span: &PieceSpan) -> v2::Piece {
    v2::Piece {
        number: span.number.0,
        offset: span.offset,
        length: span.length,
        ..Default::default()
    }
}

/// The `Range` header in any spelling, and the other headers.
fn split_range(headers: &HashMap<String, String>) -> (Option<String>, HashMap<String, String>) {
    let is_range = |name: &str| name.eq_ignore_ascii_case("range");
    let range = headers
        .iter()
        .find(|(name, _)| is_range(name))
        .map(|(_, value)| value.clone());
    let others = headers.iter().filter(|(name, _)| !is_range(name));
    (
        range,
        others
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download() -> v2::Download {
        v2::Download {
            url: "https://example.com".into(),
            tag: Some("foo".into()),
            application: Some("bar".into()),
            ..Default::default()
        }
    }

    fn spec(download: v2::Download) -> Result<DownloadSpec, RequestError> {
        download_spec(download, Door::Socket)
    }

    #[test]
    fn the_task_id_is_that_of_v2() {
        let id = |download| spec(download).unwrap().task_id.to_string();
        assert!(id(download()).starts_with("06408fbf247ddaca"));
        let hub = v2::HuggingFace {
            revision: "v1.0".into(),
            ..Default::default()
        };
        let with_revision = v2::Download {
            piece_length: Some(1 << 20),
            hugging_face: Some(hub),
            ..download()
        };
        assert_ne!(id(with_revision.clone()), id(download()));
        let other = v2::ModelScope {
            revision: "v2.0".into(),
            ..Default::default()
        };
        let both = v2::Download {
            model_scope: Some(other),
            ..with_revision.clone()
        };
        assert_eq!(id(both), id(with_revision), "the first hub counts");
        let content = v2::Download {
            content_for_calculating_task_id: Some("This is a test file".into()),
            ..download()
        };
        assert!(id(content).starts_with("e2d0fe1585a63ec6"));
    }

    #[test]
    fn a_range_header_is_taken_out_in_any_spelling() {
        let headers = [("RaNgE", "bytes=0-1"), ("X-Other", "1")]
            .map(|(name, value)| (name.into(), value.into()));
        let spec = spec(v2::Download {
            request_header: headers.into(),
            ..download()
        })
        .unwrap();
        assert_eq!(spec.range_header.as_deref(), Some("bytes=0-1"));
        assert_eq!(spec.request_header.keys().collect::<Vec<_>>(), ["X-Other"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |download| spec(download).unwrap_err();
        for length in [0, 1, u64::MAX] {
            let error = refused(v2::Download {
                piece_length: Some(length),
                ..download()
            });
            assert!(matches!(error, RequestError::PieceLength(_)), "{error}");
        }
        let range = Some(v2::Range {
            start: 5,
            length: 0,
        });
        assert!(matches!(
            refused(v2::Download {
                range,
                ..download()
            }),
            RequestError::EmptyRange
        ));
        let digest = Some("sha256:nonsense".to_owned());
        assert!(matches!(
            refused(v2::Download {
                digest,
                ..download()
            }),
            RequestError::Digest(_)
        ));
        let filters = vec![String::new(); FILTERS_MAX + 1];
        let download_with = v2::Download {
            filtered_query_params: filters,
            ..download()
        };
        assert!(matches!(refused(download_with), RequestError::Filters(_)));
        let blob = v2::Download {
            url: "https://r.example/v2/x/blobs/sha256:short".into(),
            enable_task_id_based_blob_digest: true,
            ..download()
        };
        assert!(matches!(refused(blob), RequestError::TaskId(_)));
        let persistent = v2::Download {
            r#type: v2::TaskType::Persistent as i32,
            ..download()
        };
        assert!(matches!(refused(persistent), RequestError::Kind));
    }

    #[test]
    fn doors_differ_in_what_is_announced() {
        let network = download_spec(download(), Door::Network).unwrap();
        assert!(network.announce_if_held && network.scheduling_always);
        let local = spec(download()).unwrap();
        assert!(!local.announce_if_held && !local.scheduling_always);
    }
}

//! Between the engine's types and the messages towards the scheduler.

use std::time::SystemTime;

use dragonfly_api::common::v2::{Download, Piece};
use dragonfly_api::errordetails::v2::Backend;
use prost_wkt_types::Timestamp;
use protocol::Geometry;
use source::SourceError;
use storage::PieceRecord;

use super::{DownloadError, DownloadSpec};

/// What a peer registers with: the caller's message, with what the probe has found out.
pub(super) fn registration(spec: &DownloadSpec, geometry: &Geometry) -> Download {
    Download {
        actual_piece_length: Some(geometry.piece_length()),
        actual_content_length: Some(geometry.content_length()),
        actual_piece_count: Some(u64::from(geometry.piece_count())),
        need_back_to_source: spec.need_back_to_source,
        // A path on this host is nobody else's business.
        output_path: None,
        ..Download::clone(&spec.wire)
    }
}

/// A piece as it is reported to the scheduler.
pub(super) fn piece(record: &PieceRecord) -> Piece {
    Piece {
        number: record.number.0,
        parent_id: record.origin.parent.as_ref().map(ToString::to_string),
        offset: record.offset,
        length: record.length,
        digest: record.crc32.to_string(),
        content: None,
        traffic_type: Some(record.origin.traffic as i32),
        cost: prost_wkt_types::Duration::try_from(record.origin.cost).ok(),
        created_at: Some(timestamp(record.origin.created_at)),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// What the origin answered, when it answered at all.
pub(super) fn backend_error(error: &SourceError) -> Option<Backend> {
    error.status_code()?;
    let detail = error.detail();
    Some(Backend {
        message: detail.message,
        header: detail.header,
        status_code: detail.status_code,
    })
}

/// An origin's refusal as our scheduler passes it on to those who waited for the reader.
#[derive(serde::Deserialize)]
struct PassedOn {
    message: String,
    #[serde(default)]
    header: std::collections::HashMap<String, String>,
    status_code: Option<i32>,
}

/// What the origin told another peer, if that is why the scheduler ended the conversation.
pub(super) fn passed_on_refusal(status: &tonic::Status) -> Option<DownloadError> {
    if status.code() != tonic::Code::FailedPrecondition {
        return None;
    }
    let refusal: PassedOn = serde_json::from_slice(status.details()).ok()?;
    Some(DownloadError::Refused {
        message: refusal.message,
        header: refusal.header,
        status_code: refusal.status_code?,
    })
}

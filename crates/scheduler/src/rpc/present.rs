//! To the wire: what the scheduler knows, as messages.

use std::collections::HashMap;
use std::time::Duration;

use dragonfly_api::common::v2 as wire;
use prost_wkt_types::{Duration as WireDuration, Timestamp};
use protocol::TrafficType;
use runtime::secret::is_secret_header;
use scheduling::PieceRecord;

use crate::brain::{Brain, PeerDraft, TaskDraft};

/// Whether the request headers of a task are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Headers {
    /// Those that hold no secret.
    Harmless,
    /// None: parents are named to strangers, who have no use for them.
    Withheld,
}

/// A peer with its task and host, as candidate parents and StatPeer have it. Every field that a v2 client must give back
/// when it reschedules is set.
pub(super) fn peer(brain: &Brain, draft: &PeerDraft, headers: Headers) -> wire::Peer {
    wire::Peer {
        id: draft.id.to_string(),
        range: draft.range.map(|range| wire::Range {
            start: range.start,
            length: range.length,
        }),
        priority: draft.priority,
        pieces: Vec::new(),
        cost: Some(duration(draft.cost)),
        state: draft.state.to_string(),
        task: Some(task(brain, &draft.task, headers)),
        host: Some(draft.host.as_ref().clone()),
        need_back_to_source: draft.need_back_to_source,
        created_at: Some(timestamp(brain.wall_time(draft.created_at))),
        updated_at: Some(timestamp(brain.wall_time(draft.updated_at))),
        concurrent_piece_count: Some(draft.concurrent_piece_count),
    }
}

/// A task without its pieces.
pub(super) fn task(brain: &Brain, draft: &TaskDraft, headers: Headers) -> wire::Task {
    let order = &draft.order;
    let request_header: HashMap<String, String> = match headers {
        Headers::Withheld => HashMap::new(),
        Headers::Harmless => {
            let harmless = order
                .request_header
                .iter()
                .filter(|(name, _)| !is_secret_header(name));
            harmless
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        }
    };
    wire::Task {
        id: draft.id.to_string(),
        r#type: order.r#type,
        url: order.url.clone(),
        digest: order.digest.clone(),
        tag: order.tag.clone(),
        application: order.application.clone(),
        filtered_query_params: order.filtered_query_params.clone(),
        request_header,
        // Dragonfly v2 has -1 for an unknown length, which its clients see as this.
        content_length: draft.content_length.unwrap_or(u64::MAX),
        piece_count: draft.piece_count.unwrap_or(0),
        size_scope: draft.size_scope.number(),
        pieces: Vec::new(),
        state: draft.state.to_string(),
        peer_count: u32::try_from(draft.peer_count).unwrap_or(u32::MAX),
        has_available_peer: false,
        created_at: Some(timestamp(brain.wall_time(draft.created_at))),
        updated_at: Some(timestamp(brain.wall_time(draft.updated_at))),
    }
}

/// A piece that a reader of the origin reported.
pub(super) fn piece(record: &PieceRecord) -> wire::Piece {
    wire::Piece {
        number: record.number,
        parent_id: None,
        offset: record.offset,
        length: record.length,
        digest: record.digest.to_string(),
        content: None,
        traffic_type: Some(TrafficType::BackToSource.number().into()),
        cost: Some(duration(record.cost)),
        created_at: Some(timestamp(record.created_at)),
    }
}

fn duration(duration: Duration) -> WireDuration {
    WireDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    let WireDuration { seconds, nanos } = duration(since_epoch);
    Timestamp { seconds, nanos }
}

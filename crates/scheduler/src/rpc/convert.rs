//! From the wire: messages become what the core is told, or a refusal that names the field.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::{Download, Host, Piece};
use dragonfly_api::scheduler::v2::announce_peer_request::Request;
use dragonfly_api::scheduler::v2::download_piece_back_to_source_failed_request::Response as Failure;
use dragonfly_api::scheduler::v2::{
    AnnounceHostRequest, AnnouncePeerRequest, DownloadPieceBackToSourceFailedRequest,
};
use protocol::{ByteRange, HostId, HostRole, PeerId, TaskId, TaskKind, TrafficType};
use runtime::secret::is_secret_header;
use scheduling::{
    HostAnnouncement, Lengths, OriginWish, PieceRecord, Registration, Report, SourceFailure,
    StreamId,
};
use tonic::Status;

use super::validate::{self, id, invalid};
use crate::brain::{HostRecord, TaskRecord};
use crate::dynconfig::Dynconfig;

/// Pieces that a peer fetches at once if it does not say (scheduler sheet, section 2.3).
const CONCURRENT_PIECE_COUNT: u32 = 8;

/// Parents that one reschedule may name.
const NAMED_PARENTS_MAX: usize = 1024;

/// Longest text of an origin's failure that is kept, bytes.
const FAILURE_TEXT_LEN_MAX: usize = 1024;

/// A message of an AnnouncePeer stream.
pub(super) struct Message {
    pub(super) host_id: HostId,
    pub(super) task_id: TaskId,
    pub(super) peer_id: PeerId,
    pub(super) said: Said,
}

/// What it says.
pub(super) enum Said {
    /// The peer registers.
    Register(Box<Download>),
    /// It reports.
    Report(SaidReport),
    /// Something about a piece that makes no sense; such never ends a stream.
    Nonsense(&'static str),
}

/// A report, and what it means for the figures.
pub(crate) struct SaidReport {
    /// For the core.
    pub(crate) report: Report,
    /// Where the bytes of a piece came from, and how many.
    pub(crate) traffic: Option<(TrafficType, u64)>,
}

impl TryFrom<AnnouncePeerRequest> for Message {
    type Error = Status;

    fn try_from(message: AnnouncePeerRequest) -> Result<Self, Status> {
        let said = match message
            .request
            .ok_or_else(|| invalid("request", "one of its kinds"))?
        {
            Request::RegisterPeerRequest(it) => {
                let download = it
                    .download
                    .ok_or_else(|| invalid("register_peer_request.download", "a download"))?;
                Said::Register(Box::new(download))
            }
            Request::ReschedulePeerRequest(it) => {
                if it.candidate_parents.len() > NAMED_PARENTS_MAX {
                    return Err(invalid(
                        "reschedule_peer_request.candidate_parents",
                        "at most 1024 parents",
                    ));
                }
                let parents = it
                    .candidate_parents
                    .into_iter()
                    .map(|parent| id("candidate_parents.id", parent.id));
                Said::plain(Report::Rescheduled {
                    parents: parents.collect::<Result<_, _>>()?,
                })
            }
            Request::DownloadPieceFinishedRequest(it) => piece_finished(it.piece, Origin::No)?,
            Request::DownloadPieceBackToSourceFinishedRequest(it) => {
                piece_finished(it.piece, Origin::Yes)?
            }
            Request::DownloadPieceFailedRequest(it) if !it.temporary => {
                Said::Nonsense("a piece failure for good")
            }
            Request::DownloadPieceFailedRequest(it) => Said::plain(Report::PieceFailed {
                parent: id("parent_id", it.parent_id)?,
            }),
            Request::DownloadPieceBackToSourceFailedRequest(it) => {
                Said::plain(Report::SourcePieceFailed(source_failure(it)))
            }
            Request::DownloadPeerStartedRequest(_) => Said::plain(Report::Started),
            Request::DownloadPeerBackToSourceStartedRequest(_) => {
                Said::plain(Report::BackToSourceStarted)
            }
            Request::DownloadPeerFinishedRequest(_) => Said::plain(Report::Finished),
            Request::DownloadPeerBackToSourceFinishedRequest(_) => {
                Said::plain(Report::BackToSourceFinished)
            }
            Request::DownloadPeerFailedRequest(_) => Said::plain(Report::Failed),
            Request::DownloadPeerBackToSourceFailedRequest(_) => {
                Said::plain(Report::BackToSourceFailed)
            }
        };
        Ok(Self {
            host_id: id("host_id", message.host_id)?,
            task_id: id("task_id", message.task_id)?,
            peer_id: id("peer_id", message.peer_id)?,
            said,
        })
    }
}

impl Said {
    fn plain(report: Report) -> Self {
        Self::Report(SaidReport {
            report,
            traffic: None,
        })
    }
}

/// Who registers, and where.
pub(super) struct Order {
    pub(super) stream: StreamId,
    pub(super) mesh: bool,
    pub(super) host_id: HostId,
    pub(super) task_id: TaskId,
    pub(super) peer_id: PeerId,
}

impl Order {
    /// The registration that `download` asks for.
    pub(super) fn registration(
        self,
        mut download: Download,
        dynconfig: &Dynconfig,
    ) -> Result<Registration<TaskRecord>, Status> {
        validate::download(&download)?;
        // A peer that claims a whole number of pieces beyond what any file has is not believed; lengths are then unknown.
        let piece_count = download
            .actual_piece_count
            .and_then(|count| u32::try_from(count).ok());
        let lengths = Lengths {
            content_length: download.actual_content_length,
            piece_length: download
                .actual_piece_length
                .or(download.piece_length)
                .unwrap_or(0),
            piece_count,
        };
        let origin = match (
            download.need_back_to_source,
            download.disable_back_to_source,
        ) {
            (true, _) => OriginWish::Wanted,
            (false, true) => OriginWish::Forbidden,
            (false, false) => OriginWish::AsTold,
        };
        let kind = u8::try_from(download.r#type)
            .ok()
            .and_then(TaskKind::from_number)
            .unwrap_or(TaskKind::Standard);
        // Nobody else has a use for where this peer puts its file.
        download.output_path = None;
        let registration = Registration {
            stream: self.stream,
            host_id: self.host_id,
            task_id: self.task_id,
            peer_id: self.peer_id,
            mesh: self.mesh,
            kind,
            lengths,
            range: download.range.map(|range| ByteRange {
                start: range.start,
                length: range.length,
            }),
            priority: download.priority,
            effective_priority: dynconfig.effective_priority(&download),
            concurrent_piece_count: download
                .concurrent_piece_count
                .unwrap_or(CONCURRENT_PIECE_COUNT)
                .clamp(1, 1024),
            origin,
            credentials: credentials(&download),
            metadata_only: download.metadata_only,
            data: Arc::new(download),
        };
        Ok(registration)
    }
}

/// A fingerprint of what the origin would know the caller by.
fn credentials(download: &Download) -> u64 {
    let secrets: BTreeMap<String, &String> = download
        .request_header
        .iter()
        .filter(|(name, _)| is_secret_header(name))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let mut hasher = DefaultHasher::new();
    secrets.hash(&mut hasher);
    download.object_storage.hash(&mut hasher);
    hasher.finish()
}

/// Whether a piece came from the origin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Yes,
    No,
}

fn piece_finished(piece: Option<Piece>, origin: Origin) -> Result<Said, Status> {
    let piece = piece.ok_or_else(|| invalid("piece", "a piece"))?;
    let (Some(cost), Some(created_at)) = (piece.cost, piece.created_at) else {
        return Err(invalid(
            "piece.cost, piece.created_at",
            "a duration and a time",
        ));
    };
    if !validate::is_digest(&piece.digest) {
        return Ok(Said::Nonsense("a piece with a malformed digest"));
    }
    let cost = duration(cost.seconds, cost.nanos);
    let kind = match origin {
        Origin::Yes => TrafficType::BackToSource,
        Origin::No => {
            let number = piece
                .traffic_type
                .and_then(|number| u8::try_from(number).ok());
            number
                .and_then(TrafficType::from_number)
                .unwrap_or(TrafficType::RemotePeer)
        }
    };
    let traffic = Some((kind, piece.length));
    let report = match origin {
        Origin::Yes => Report::SourcePieceFinished(PieceRecord {
            number: piece.number,
            offset: piece.offset,
            length: piece.length,
            digest: piece.digest.into(),
            cost,
            created_at: duration(created_at.seconds, created_at.nanos),
        }),
        Origin::No => {
            let parent = piece
                .parent_id
                .map(|parent| id("piece.parent_id", parent))
                .transpose()?;
            Report::PieceFinished { parent, cost }
        }
    };
    Ok(Said::Report(SaidReport { report, traffic }))
}

fn source_failure(message: DownloadPieceBackToSourceFailedRequest) -> SourceFailure {
    let (status, text) = match message.response {
        Some(Failure::Backend(backend)) => {
            let status = backend
                .status_code
                .and_then(|status| u16::try_from(status).ok());
            (
                status.filter(|status| (100..=599).contains(status)),
                backend.message,
            )
        }
        Some(Failure::Unknown(unknown)) => (None, unknown.message.unwrap_or_default()),
        None => (None, String::new()),
    };
    let mut end = text.len().min(FAILURE_TEXT_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    SourceFailure {
        status,
        message: text[..end].to_owned(),
    }
}

/// A host that announces itself.
pub(super) fn announcement(
    message: AnnounceHostRequest,
    cluster_id: u64,
) -> Result<HostAnnouncement<HostRecord>, Status> {
    let mut host = message.host.ok_or_else(|| invalid("host", "a host"))?;
    validate::host(&host)?;
    host.scheduler_cluster_id = cluster_id;
    let host_id = id("host.id", host.id.clone())?;
    let network = host.network.as_ref();
    let text = |text: Option<&String>| {
        text.filter(|text| !text.is_empty())
            .map(|text| text.as_str().into())
    };
    Ok(HostAnnouncement {
        id: host_id,
        name: name_of(&host).into(),
        role: role_of(&host),
        disable_shared: host.disable_shared,
        idc: text(network.and_then(|network| network.idc.as_ref())),
        location: text(network.and_then(|network| network.location.as_ref())),
        max_tx_bandwidth: network.map_or(0, |network| network.max_tx_bandwidth),
        announce_interval: message
            .interval
            .map_or(Duration::ZERO, |it| duration(it.seconds, it.nanos)),
        data: Arc::new(host),
    })
}

/// The name by which clients place a seed on their ring: `name`, which older daemons leave empty.
fn name_of(host: &Host) -> &str {
    if host.name.is_empty() {
        &host.hostname
    } else {
        &host.name
    }
}

/// Every type but 0 is a kind of seed (`super`, `strong`, `weak`).
fn role_of(host: &Host) -> HostRole {
    if host.r#type == 0 {
        HostRole::Normal
    } else {
        HostRole::Seed
    }
}

/// A protobuf duration or time; what lies before zero is zero.
fn duration(seconds: i64, nanos: i32) -> Duration {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(nanos).unwrap_or(0).min(999_999_999))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dragonfly_api::errordetails::v2::Backend;

    #[test]
    fn credentials_tell_secrets_apart_and_nothing_else() {
        let with = |name: &str, value: &str| {
            let request_header = [(name.to_owned(), value.to_owned())].into();
            credentials(&Download {
                request_header,
                ..Default::default()
            })
        };
        assert_eq!(with("Authorization", "a"), with("authorization", "a"));
        assert_ne!(with("Authorization", "a"), with("Authorization", "b"));
        assert_eq!(with("Accept", "a"), with("Accept", "b"));
    }

    #[test]
    fn an_origins_failure_is_bounded_on_a_character() {
        let message = format!("a{}", "é".repeat(FAILURE_TEXT_LEN_MAX));
        let backend = Backend {
            message,
            status_code: Some(404),
            ..Default::default()
        };
        let response = Some(Failure::Backend(backend));
        let failure = source_failure(DownloadPieceBackToSourceFailedRequest {
            response,
            ..Default::default()
        });
        assert_eq!(
            (failure.status, failure.message.len()),
            (Some(404), FAILURE_TEXT_LEN_MAX - 1)
        );
    }
}

//! What a caller wants, and the numbers that bound how it is done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2;
use protocol::{ByteRange, Digest, TaskId, TaskKind};
use source::Facts;

/// One caller's wish, as `rpc` understood it from a `common.v2.Download`.
#[derive(Debug, Clone)]
pub struct DownloadSpec {
    /// The task that the URL and its companions name.
    pub task_id: TaskId,
    /// Where the origin has it.
    pub url: String,
    /// Which policy applies.
    pub kind: TaskKind,
    /// Free text of the caller; part of the task id.
    pub tag: Option<String>,
    /// The caller's application; part of the task id.
    pub application: Option<String>,
    /// 0 to 6 as in `common.v2.Priority`; the scheduler knows its meaning.
    pub priority: i32,
    /// Query parameters that do not name the content.
    pub filtered_query_params: Vec<String>,
    /// Headers for the origin, without `Range`.
    pub request_header: HashMap<String, String>,
    /// Bytes per piece when the caller insists.
    pub piece_length: Option<u64>,
    /// The part that is wanted; everything when absent.
    pub range: Option<ByteRange>,
    /// The part that is wanted as an HTTP `Range` value; used when `range` is absent.
    pub range_header: Option<String>,
    /// What the whole content must hash to, as the caller says.
    pub digest: Option<Digest>,
    /// The digest that names the content: then the task id is its text, and other bytes are not this content.
    pub named_by: Option<Digest>,
    /// What is known of the origin already, or may be asked of it, when the task is new here.
    pub probe: Probe,
    /// How long the content should be, if a listing said so. A hint, not a condition.
    pub expected_length: Option<u64>,
    /// The caller reads in order and waits for each byte: fetch what lies before it first.
    pub in_order: bool,
    /// Never ask the origin for content.
    pub disable_back_to_source: bool,
    /// Ask the origin and nobody else; a scheduler says so to a seed peer.
    pub need_back_to_source: bool,
    /// Ask the scheduler even for small content.
    pub scheduling_always: bool,
    /// Fetched ahead of need.
    pub is_prefetch: bool,
    /// Tell the scheduler when everything wanted is here already; for requests that came over the upload port.
    pub announce_if_held: bool,
    /// Who asked, for logs.
    pub remote_ip: Option<String>,
    /// Certificates (DER) that the origin may present besides the usual ones.
    pub certificate_chain: Vec<Vec<u8>>,
    /// What the origin must be told if it is no web server: keys, tokens, addresses.
    pub origin: source::OriginOptions,
    /// The message as it came, repeated to the scheduler at registration.
    pub wire: Arc<v2::Download>,
}

/// How the length of a content is learnt that is new on this host.
#[derive(Debug, Clone)]
pub enum Probe {
    /// The origin is asked; the swarm when the origin does not answer. Content without a length is read to its end to measure it.
    Measure,
    /// As before, but content without a length that the swarm does not know either is refused with
    /// [`DownloadError::Unmeasured`](super::DownloadError::Unmeasured).
    Ask,
    /// The origin was asked a moment ago.
    Known(Arc<Facts>),
    /// The origin is known to be away: only the swarm is asked.
    Swarm,
}

impl DownloadSpec {
    /// The URL without its secrets, for messages.
    pub fn url_redacted(&self) -> String {
        source::Redacted::text(&self.url).to_string()
    }
}

/// Numbers from the configuration that the engine obeys.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `download.concurrentPieceCount`: pieces in flight from parents, per task.
    pub concurrent_pieces: usize,
    /// `download.backToSourceConcurrentPieceCount`: pieces in flight from the origin, per task.
    pub concurrent_source_pieces: usize,
    /// `download.pieceTimeout`: how long anything about one piece may take in all.
    pub piece_timeout: Duration,
    /// `scheduler.maxScheduleCount`: answers of a Dragonfly v2 scheduler after which the origin is asked instead.
    pub schedule_count_max: u32,
    /// Tasks that may be in progress at once; more are refused.
    pub sessions_max: usize,
    /// `proxy.prefetchBandwidthLimit`: bytes a second that are read from origins ahead of need.
    pub prefetch: Arc<transfer::RateLimit>,
    /// The configuration adds no credentials to what is asked of origins, so that whatever is given without a caller's
    /// credentials is given to anybody.
    pub origins_know_nobody: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_pieces: 8,
            concurrent_source_pieces: 8,
            piece_timeout: Duration::from_secs(360),
            schedule_count_max: 5,
            sessions_max: 4096,
            prefetch: Arc::new(transfer::RateLimit::new(10_000_000_000)),
            origins_know_nobody: true,
        }
    }
}

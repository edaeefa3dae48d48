//! What every edge of the service shares.

use std::sync::Arc;

use crate::brain::Brain;
use crate::dynconfig::Current;
use crate::metrics::Metrics;
use crate::preheat::Preheats;
use crate::seeds::Probe;

/// The shared parts of one scheduler.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) brain: Arc<Brain>,
    pub(crate) dynconfig: Arc<Current>,
    pub(crate) metrics: Arc<Metrics>,
    /// Has the seed hosts looked at, out of turn.
    pub(crate) probe: Arc<Probe>,
    /// Carries preheats out.
    pub(crate) preheats: Preheats,
    /// The scheduler cluster, which every host is entered with.
    pub(crate) cluster_id: u64,
}

//! The domain: clusters, the schedulers and seed peers in them, and applications.
//!
//! Two kinds of cluster exist side by side, as in Dragonfly v2: a scheduler cluster (one P2P network) and a seed peer
//! cluster, joined by a link. Configuration that only schedulers and daemons understand stays an opaque [`JsonMap`].

use std::collections::BTreeMap;
use std::fmt;

/// A JSON object whose keys are always written in alphabetical order, so that equal configurations are equal bytes.
pub type JsonMap = BTreeMap<String, serde_json::Value>;

macro_rules! row_ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(i64);

        impl $name {
            /// Takes a number off the wire; `None` unless it is in `1..=i64::MAX`, which every row id is.
            pub fn new(id: u64) -> Option<Self> {
                i64::try_from(id).ok().filter(|id| *id > 0).map(Self)
            }

            pub(crate) fn from_row(id: i64) -> Self {
                Self(id)
            }

            /// The number as the database stores it.
            pub fn row(self) -> i64 {
                self.0
            }

            /// The number as the wire carries it; 0 if the database held a negative one, which ours never writes.
            pub fn get(self) -> u64 {
                u64::try_from(self.0).unwrap_or(0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

row_ids! {
    /// Names a scheduler cluster.
    SchedulerClusterId,
    /// Names a seed peer cluster.
    SeedPeerClusterId,
    /// Names a scheduler's row.
    SchedulerId,
    /// Names a seed peer's row.
    SeedPeerId,
}

/// Whether a scheduler or seed peer is being heard from (`state` on the wire and in the database).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its keepalive stream lives.
    Active,
    /// Registered, but not heard from (yet, or any more).
    Inactive,
}

impl State {
    /// The word that Dragonfly v2 uses for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }

    /// Anything but `active` counts as inactive: an unknown word must not attract daemons.
    pub(crate) fn from_column(text: &str) -> Self {
        if text == "active" {
            Self::Active
        } else {
            Self::Inactive
        }
    }
}

/// The feature of a scheduler that lets daemons be sent to it.
pub const FEATURE_SCHEDULE: &str = "schedule";
/// The feature of a scheduler that lets preheat jobs be sent to it.
pub const FEATURE_PREHEAT: &str = "preheat";

/// One P2P network: its schedulers and what they and their daemons shall do.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerCluster {
    /// Row id.
    pub id: SchedulerClusterId,
    /// Unique name.
    pub name: String,
    /// Free text for people.
    pub bio: String,
    /// For the schedulers: `candidate_parent_limit`, `filter_parent_limit`, `job_rate_limit`.
    pub config: JsonMap,
    /// For normal daemons: `load_limit`, `block_list`.
    pub client_config: JsonMap,
    /// For seed daemons: `load_limit`, `block_list`.
    pub seed_client_config: JsonMap,
    /// Which daemons belong here: `idc`, `location`, `cidrs`, `hostnames`; see [`crate::searcher`].
    pub scopes: JsonMap,
    /// Takes daemons that no scope claims. Several clusters may be default.
    pub is_default: bool,
}

/// A group of seed peers, linked to the scheduler clusters that may trigger them.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedPeerCluster {
    /// Row id.
    pub id: SeedPeerClusterId,
    /// Unique name.
    pub name: String,
    /// Free text for people.
    pub bio: String,
    /// `load_limit`, `block_list`.
    pub config: JsonMap,
}

/// A registered scheduler. Unique by host name, ip and cluster; a new port replaces the old one.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduler {
    /// Row id.
    pub id: SchedulerId,
    /// Its cluster; it may name a cluster that does not exist (yet).
    pub cluster_id: SchedulerClusterId,
    /// Host name as announced.
    pub hostname: String,
    /// IP literal as announced.
    pub ip: String,
    /// gRPC port.
    pub port: u16,
    /// Data centre label, empty if unknown.
    pub idc: String,
    /// `|`-separated topology path, empty if unknown.
    pub location: String,
    /// Whether it is heard from.
    pub state: State,
    /// Subset of [`FEATURE_SCHEDULE`], [`FEATURE_PREHEAT`].
    pub features: Vec<String>,
}

impl Scheduler {
    /// Whether daemons may be sent to it.
    pub fn schedules(&self) -> bool {
        self.features
            .iter()
            .any(|feature| feature == FEATURE_SCHEDULE)
    }
}

/// A registered seed peer. Only clients up to 1.0.10 register themselves; newer ones announce to their schedulers.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedPeer {
    /// Row id.
    pub id: SeedPeerId,
    /// Its cluster.
    pub cluster_id: SeedPeerClusterId,
    /// Host name as announced.
    pub hostname: String,
    /// IP literal as announced.
    pub ip: String,
    /// gRPC port.
    pub port: u16,
    /// Piece port.
    pub download_port: u16,
    /// Always `super` for new rows.
    pub kind: String,
    /// Data centre label, empty if unknown.
    pub idc: String,
    /// `|`-separated topology path, empty if unknown.
    pub location: String,
    /// Whether it is heard from.
    pub state: State,
}

/// Gives the tasks of one application a priority.
#[derive(Debug, Clone, PartialEq)]
pub struct Application {
    /// Row id.
    pub id: u64,
    /// Unique name, compared with `Download.application`.
    pub name: String,
    /// Informational.
    pub url: String,
    /// Free text for people.
    pub bio: String,
    /// The priority of its tasks.
    pub priority: Priority,
}

/// Priority of an application's tasks: the first matching URL rule, else `value`. 0 is the highest.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(default)]
pub struct Priority {
    /// For every URL without a rule of its own.
    pub value: i32,
    /// Rules, in the order in which they are tried.
    #[serde(deserialize_with = "null_is_empty")]
    pub urls: Vec<UrlPriority>,
}

/// The priority of tasks whose URL matches a regular expression.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(default)]
pub struct UrlPriority {
    /// Searched anywhere in the URL.
    pub regex: String,
    /// The priority of what it matches.
    pub value: i32,
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<UrlPriority>, D::Error> {
    use serde::Deserialize as _;
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Which host calls, and in which cluster it wants to be found: the natural key of schedulers and seed peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey<Cluster> {
    /// Host name as announced.
    pub hostname: String,
    /// IP literal; empty means "any", as in Dragonfly v2.
    pub ip: String,
    /// The cluster.
    pub cluster_id: Cluster,
}

/// What a scheduler says of itself in `UpdateScheduler`. Empty texts and `None` leave a known row's value alone.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerRegistration {
    /// Who; the ip is never empty here.
    pub key: HostKey<SchedulerClusterId>,
    /// gRPC port.
    pub port: u16,
    /// Data centre label.
    pub idc: String,
    /// Topology path.
    pub location: String,
    /// Never empty: "nothing said" has become the default pair.
    pub features: Vec<String>,
    /// Its own configuration, kept as told.
    pub config: Option<JsonMap>,
}

/// What a seed peer says of itself in `UpdateSeedPeer`.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedPeerRegistration {
    /// Who; the ip is never empty here.
    pub key: HostKey<SeedPeerClusterId>,
    /// gRPC port.
    pub port: u16,
    /// Piece port.
    pub download_port: u16,
    /// Data centre label.
    pub idc: String,
    /// Topology path.
    pub location: String,
}

//! Between `manager.v2` messages and the domain. What comes in is checked here and nowhere else.
//!
//! The rules are those of Dragonfly v2's interceptor; the published protos carry no annotations, so they stand here by hand.
//! A violation is `INVALID_ARGUMENT`, naming the field.

use dragonfly_api::manager::v2 as wire;
use serde_json::Value;
use std::net::IpAddr;
use tonic::Status;

use crate::db::{MemberKey, MemberKind};
use crate::directory::Offer;
use crate::keepalive::Heartbeat;
use crate::model::{
    Application, FEATURE_PREHEAT, FEATURE_SCHEDULE, HostKey, JsonMap, Scheduler, SchedulerCluster,
    SchedulerClusterId, SchedulerRegistration, SeedPeer, SeedPeerCluster, SeedPeerClusterId,
    SeedPeerRegistration,
};

/// Longest `idc`, `location`, `version`, `commit`.
const TEXT_LEN_MAX: usize = 1024;
/// Longest `config` of a scheduler. Dragonfly v2's has 40 bytes.
const CONFIG_LEN_MAX: usize = 64 * 1024;
/// Features that one scheduler may name, and how long each may be. Dragonfly v2 knows two.
const FEATURES_MAX: usize = 16;
const FEATURE_LEN_MAX: usize = 64;

/// A message that can be checked.
pub(super) trait Checked {
    /// What it means when it is right.
    type Meaning;

    /// # Errors
    /// `INVALID_ARGUMENT`, naming the first field that is wrong.
    fn checked(self) -> Result<Self::Meaning, Status>;
}

/// What a daemon asks in `ListSchedulers`.
pub(super) struct SchedulersAsked {
    pub(super) hostname: String,
    pub(super) ip: String,
    pub(super) idc: String,
    pub(super) location: String,
    pub(super) version: String,
    pub(super) commit: String,
    /// Only this cluster, if given.
    pub(super) cluster_id: Option<SchedulerClusterId>,
}

/// Who asks in `ListSeedPeers`.
pub(super) struct HostAsking {
    pub(super) hostname: String,
    pub(super) ip: String,
}

impl Checked for wire::GetSeedPeerRequest {
    type Meaning = HostKey<SeedPeerClusterId>;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        seed_peer_key(
            self.hostname,
            optional_ip(self.ip)?,
            self.seed_peer_cluster_id,
        )
    }
}

impl Checked for wire::DeleteSeedPeerRequest {
    type Meaning = HostKey<SeedPeerClusterId>;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        seed_peer_key(
            self.hostname,
            optional_ip(self.ip)?,
            self.seed_peer_cluster_id,
        )
    }
}

impl Checked for wire::ListSeedPeersRequest {
    type Meaning = HostAsking;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        text("version", self.version)?;
        text("commit", self.commit)?;
        Ok(HostAsking {
            hostname: hostname(self.hostname)?,
            ip: ip(self.ip)?,
        })
    }
}

impl Checked for wire::UpdateSeedPeerRequest {
    type Meaning = SeedPeerRegistration;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        if self.r#type != "super" {
            return Err(invalid("type", "super"));
        }
        Ok(SeedPeerRegistration {
            key: seed_peer_key(self.hostname, ip(self.ip)?, self.seed_peer_cluster_id)?,
            port: port("port", self.port)?,
            download_port: port("download_port", self.download_port)?,
            idc: text("idc", self.idc.unwrap_or_default())?,
            location: text("location", self.location.unwrap_or_default())?,
        })
    }
}

impl Checked for wire::GetSchedulerRequest {
    type Meaning = HostKey<SchedulerClusterId>;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        scheduler_key(
            self.hostname,
            optional_ip(self.ip)?,
            self.scheduler_cluster_id,
        )
    }
}

impl Checked for wire::UpdateSchedulerRequest {
    type Meaning = SchedulerRegistration;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        Ok(SchedulerRegistration {
            key: scheduler_key(self.hostname, ip(self.ip)?, self.scheduler_cluster_id)?,
            port: port("port", self.port)?,
            idc: text("idc", self.idc.unwrap_or_default())?,
            location: text("location", self.location.unwrap_or_default())?,
            features: features(self.features)?,
            config: scheduler_config(&self.config)?,
        })
    }
}

impl Checked for wire::ListSchedulersRequest {
    type Meaning = SchedulersAsked;

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        let cluster_id = match self.scheduler_cluster_id {
            0 => None,
            id => Some(scheduler_cluster_id("scheduler_cluster_id", id)?),
        };
        Ok(SchedulersAsked {
            hostname: hostname(self.hostname)?,
            ip: ip(self.ip)?,
            idc: text("idc", self.idc.unwrap_or_default())?,
            location: text("location", self.location.unwrap_or_default())?,
            version: text("version", self.version)?,
            commit: text("commit", self.commit)?,
            cluster_id,
        })
    }
}

impl Checked for wire::ListApplicationsRequest {
    type Meaning = ();

    fn checked(self) -> Result<Self::Meaning, Status> {
        source_type(self.source_type)?;
        hostname(self.hostname)?;
        ip(self.ip)?;
        Ok(())
    }
}

impl Checked for wire::KeepAliveRequest {
    type Meaning = Heartbeat;

    fn checked(self) -> Result<Self::Meaning, Status> {
        let source = source_type(self.source_type)?;
        let (hostname, ip) = (hostname(self.hostname)?, optional_ip(self.ip)?);
        // Both kinds of cluster have the same rule for their ids.
        let cluster_id = scheduler_cluster_id("cluster_id", self.cluster_id)?.row();
        let member = |kind| {
            Heartbeat::Member(MemberKey {
                kind,
                hostname,
                ip,
                cluster_id,
            })
        };
        Ok(match source {
            wire::SourceType::SchedulerSource => member(MemberKind::Scheduler),
            wire::SourceType::SeedPeerSource => member(MemberKind::SeedPeer),
            wire::SourceType::PeerSource => Heartbeat::Peer,
        })
    }
}

fn invalid(field: &str, expected: &str) -> Status {
    Status::invalid_argument(format!("{field}: expected {expected}"))
}

fn source_type(number: i32) -> Result<wire::SourceType, Status> {
    wire::SourceType::try_from(number)
        .map_err(|_| invalid("source_type", "0 (scheduler), 1 (peer) or 2 (seed peer)"))
}

/// A host name by RFC 1123; a trailing dot is allowed. Kept as it was written.
fn hostname(name: String) -> Result<String, Status> {
    let bare = name.strip_suffix('.').unwrap_or(&name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if bare.len() <= 253 && bare.split('.').all(is_label) {
        return Ok(name);
    }
    Err(invalid(
        "hostname",
        "a host name of letters, digits, hyphens and dots, such as node-3.example.com",
    ))
}

fn ip(literal: String) -> Result<String, Status> {
    match literal.parse::<IpAddr>() {
        Ok(_) => Ok(literal),
        Err(_) => Err(invalid("ip", "an IPv4 or IPv6 address")),
    }
}

fn optional_ip(literal: String) -> Result<String, Status> {
    if literal.is_empty() {
        Ok(literal)
    } else {
        ip(literal)
    }
}

fn scheduler_cluster_id(field: &str, id: u64) -> Result<SchedulerClusterId, Status> {
    SchedulerClusterId::new(id).ok_or_else(|| invalid(field, "a number from 1"))
}

fn scheduler_key(
    name: String,
    ip: String,
    cluster_id: u64,
) -> Result<HostKey<SchedulerClusterId>, Status> {
    let cluster_id = scheduler_cluster_id("scheduler_cluster_id", cluster_id)?;
    Ok(HostKey {
        hostname: hostname(name)?,
        ip,
        cluster_id,
    })
}

fn seed_peer_key(
    name: String,
    ip: String,
    cluster_id: u64,
) -> Result<HostKey<SeedPeerClusterId>, Status> {
    let cluster_id = SeedPeerClusterId::new(cluster_id)
        .ok_or_else(|| invalid("seed_peer_cluster_id", "a number from 1"))?;
    Ok(HostKey {
        hostname: hostname(name)?,
        ip,
        cluster_id,
    })
}

fn port(field: &str, number: i32) -> Result<u16, Status> {
    u16::try_from(number)
        .ok()
        .filter(|port| (1024..65535).contains(port))
        .ok_or_else(|| invalid(field, "a port from 1024 to 65534"))
}

/// NUL is no text for PostgreSQL; nobody has it in a label.
fn text(field: &str, value: String) -> Result<String, Status> {
    if value.chars().count() > TEXT_LEN_MAX || value.contains('\0') {
        return Err(invalid(field, "at most 1024 characters, none of them NUL"));
    }
    Ok(value)
}

/// A repeated field cannot tell "none" from "not said", so an empty list means both features, as in Dragonfly v2.
fn features(named: Vec<String>) -> Result<Vec<String>, Status> {
    if named.len() > FEATURES_MAX
        || named
            .iter()
            .any(|name| name.len() > FEATURE_LEN_MAX || name.contains('\0'))
    {
        return Err(invalid("features", "at most 16 short words"));
    }
    if named.is_empty() {
        return Ok(vec![
            FEATURE_SCHEDULE.to_owned(),
            FEATURE_PREHEAT.to_owned(),
        ]);
    }
    Ok(named)
}

/// Bad JSON is `INTERNAL`, not `INVALID_ARGUMENT`: Dragonfly v2 notices it only in the handler.
fn scheduler_config(bytes: &[u8]) -> Result<Option<JsonMap>, Status> {
    if bytes.len() > CONFIG_LEN_MAX {
        return Err(invalid("config", "at most 64 KiB"));
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Status::internal(format!("config is no JSON object: {error}")))
}

/// A row as its message, without the messages that can be nested in it.
pub(super) trait Flat {
    /// The message.
    type Message;

    fn flat(&self) -> Self::Message;
}

impl Flat for Scheduler {
    type Message = wire::Scheduler;

    fn flat(&self) -> wire::Scheduler {
        wire::Scheduler {
            id: self.id.get(),
            hostname: self.hostname.clone(),
            idc: Some(self.idc.clone()),
            location: Some(self.location.clone()),
            ip: self.ip.clone(),
            port: i32::from(self.port),
            state: self.state.as_str().to_owned(),
            scheduler_cluster_id: self.cluster_id.get(),
            scheduler_cluster: None,
            seed_peers: Vec::new(),
            features: json(&self.features),
        }
    }
}

impl Flat for SeedPeer {
    type Message = wire::SeedPeer;

    fn flat(&self) -> wire::SeedPeer {
        wire::SeedPeer {
            id: self.id.get(),
            hostname: self.hostname.clone(),
            r#type: self.kind.clone(),
            idc: Some(self.idc.clone()),
            location: Some(self.location.clone()),
            ip: self.ip.clone(),
            port: i32::from(self.port),
            download_port: i32::from(self.download_port),
            state: self.state.as_str().to_owned(),
            seed_peer_cluster_id: self.cluster_id.get(),
            seed_peer_cluster: None,
            schedulers: Vec::new(),
        }
    }
}

/// Every scheduler of the offers, in their order, each with its whole cluster and what `seeds_of` gives for it.
pub(super) fn schedulers(
    offers: &[Offer<'_>],
    seeds_of: impl Fn(SchedulerClusterId) -> Vec<wire::SeedPeer>,
) -> wire::ListSchedulersResponse {
    let mut schedulers = Vec::new();
    for offer in offers {
        let cluster = scheduler_cluster(Some(offer.cluster));
        let seed_peers = seeds_of(offer.cluster.id);
        schedulers.extend(offer.schedulers.iter().map(|scheduler| wire::Scheduler {
            scheduler_cluster: Some(cluster.clone()),
            seed_peers: seed_peers.clone(),
            ..scheduler.flat()
        }));
    }
    wire::ListSchedulersResponse { schedulers }
}

/// A cluster's message. A scheduler may be registered in a cluster that does not exist; Dragonfly v2 then sends an empty
/// cluster whose configurations read `null`.
pub(super) fn scheduler_cluster(cluster: Option<&SchedulerCluster>) -> wire::SchedulerCluster {
    let Some(cluster) = cluster else {
        let null = || b"null".to_vec();
        return wire::SchedulerCluster {
            config: null(),
            client_config: null(),
            scopes: null(),
            ..Default::default()
        };
    };
    wire::SchedulerCluster {
        id: cluster.id.get(),
        name: cluster.name.clone(),
        bio: cluster.bio.clone(),
        config: json(&cluster.config),
        client_config: json(&readable(&cluster.client_config)),
        scopes: json(&cluster.scopes),
        seed_client_config: json(&readable(&cluster.seed_client_config)),
    }
}

pub(super) fn seed_peer_cluster(cluster: Option<&SeedPeerCluster>) -> wire::SeedPeerCluster {
    let Some(cluster) = cluster else {
        return wire::SeedPeerCluster::default();
    };
    wire::SeedPeerCluster {
        id: cluster.id.get(),
        name: cluster.name.clone(),
        bio: cluster.bio.clone(),
        config: json(&readable(&cluster.config)),
    }
}

pub(super) fn application(application: &Application) -> wire::Application {
    let url = |rule: &crate::model::UrlPriority| wire::UrlPriority {
        regex: rule.regex.clone(),
        value: rule.value,
    };
    wire::Application {
        id: application.id,
        name: application.name.clone(),
        url: application.url.clone(),
        bio: application.bio.clone(),
        priority: Some(wire::ApplicationPriority {
            value: application.priority.value,
            urls: application.priority.urls.iter().map(url).collect(),
        }),
    }
}

/// Compact JSON with keys in alphabetical order, as services written in Go give it.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_value(value)
        .and_then(|value| serde_json::to_vec(&sorted(value)))
        .expect("JSON values with text keys always serialise")
}

/// The order of a map depends on whether anybody in this program wants serde_json to keep it: this does not. (What was
/// parsed is at most 128 levels deep.)
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let entries = entries.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(entries.collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        plain => plain,
    }
}

/// A client configuration as daemons can read it: one `"urls": null` in a block list makes the public client drop the
/// whole list, and Dragonfly v2's console writes exactly that where no URL was given.
fn readable(config: &JsonMap) -> JsonMap {
    fn mend(value: &mut Value) {
        let Value::Object(members) = value else {
            return;
        };
        for (key, member) in members {
            if key == "urls" && member.is_null() {
                *member = Value::Array(Vec::new());
            } else {
                mend(member);
            }
        }
    }
    let mut config = config.clone();
    for key in ["block_list", "blockList"] {
        if let Some(list) = config.get_mut(key) {
            mend(list);
        }
    }
    config
}

#[cfg(test)]
mod tests;

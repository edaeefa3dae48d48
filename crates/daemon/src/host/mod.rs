//! True figures about this host: what AnnounceHost tells the schedulers and SyncHost tells other peers.
//!
//! Everything is read from `/proc`, `/sys` and statvfs, which costs well under a millisecond, so nothing here sleeps to
//! sample: rates are differences between two readings, taken by whoever runs [`HostMonitor::run`] and by each
//! announcement. Before the second reading a rate is unknown, and said to be so.

mod cgroup;
mod interface;
mod procfs;
#[allow(unsafe_code)]
mod sys;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_api::common::v2;
use parking_lot::Mutex;
use protocol::HostRole;
use tokio::sync::watch;

use crate::identity::Identity;
use interface::Interface;

/// How often the interface's counters are read for SyncHost: v2 peers expect about one message a second.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Shorter spans between two readings give no meaningful rate.
const SPAN_MIN: Duration = Duration::from_millis(200);

/// What the configuration adds to the figures.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// `host.idc`.
    pub idc: Option<String>,
    /// `host.location`.
    pub location: Option<String>,
    /// `host.schedulerClusterID`.
    pub scheduler_cluster_id: u64,
    /// `upload.disableShared`.
    pub disable_shared: bool,
    /// Announced type: 1 for a seed peer of type super, else 0.
    pub host_type: u32,
    /// `upload.bandwidthLimit` in bit/s.
    pub bandwidth_limit_bits: u64,
    /// `storage.dir`, whose filesystem is reported.
    pub storage_dir: PathBuf,
}

/// Measured use of the network, in bit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkRates {
    /// Most that the host takes in.
    pub max_rx: u64,
    /// Taken in over the last second; unknown without the interface or before the second reading.
    pub rx: Option<u64>,
    /// Most that the host gives out.
    pub max_tx: u64,
    /// Given out over the last second; as `rx`.
    pub tx: Option<u64>,
}

impl NetworkRates {
    /// As `common.v2.Network`, in which SyncHost sends it.
    pub fn to_wire(self) -> v2::Network {
        v2::Network {
            max_rx_bandwidth: self.max_rx,
            rx_bandwidth: self.rx,
            max_tx_bandwidth: self.max_tx,
            tx_bandwidth: self.tx,
            ..Default::default()
        }
    }
}

/// Reads the host's figures.
#[derive(Debug)]
pub struct HostMonitor {
    identity: Arc<Identity>,
    options: HostOptions,
    interface: Option<Interface>,
    network: watch::Sender<NetworkRates>,
    /// The last reading of the counters that only announcements use.
    last: Mutex<Option<Reading>>,
}

/// Counters at one instant.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    cpu: procfs::CpuTicks,
    process_ticks: u64,
    io: procfs::ProcessIo,
    cgroup_cpu_usec: Option<u64>,
}

impl HostMonitor {
    /// Finds the interface that owns the host's address and takes the first reading.
    pub fn new(identity: Arc<Identity>, options: HostOptions) -> Self {
        let interface = Interface::owning(identity.ip);
        let most = interface
            .as_ref()
            .and_then(Interface::speed_bits)
            .map_or(options.bandwidth_limit_bits, |speed| {
                speed.min(options.bandwidth_limit_bits)
            });
        let network = watch::Sender::new(NetworkRates {
            max_rx: most,
            rx: None,
            max_tx: most,
            tx: None,
        });
        Self {
            identity,
            options,
            interface,
            network,
            last: Mutex::new(Some(Reading::now())),
        }
    }

    /// The last measurement of the network, and the next ones.
    pub fn network(&self) -> watch::Receiver<NetworkRates> {
        self.network.subscribe()
    }

    /// Measures the network once a second; never ends. Cancel-safe.
    pub async fn run(&self) {
        let Some(interface) = &self.interface else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = (Instant::now(), interface.counters());
        loop {
            ticks.tick().await;
            let now = (Instant::now(), interface.counters());
            let span = now.0 - before.0;
            if span < SPAN_MIN {
                continue;
            }
            if let (Some(old), Some(new)) = (before.1, now.1) {
                self.network.send_modify(|rates| {
                    rates.rx = Some(per_second(old.rx_bytes, new.rx_bytes, span).saturating_mul(8));
                    rates.tx = Some(per_second(old.tx_bytes, new.tx_bytes, span).saturating_mul(8));
                });
            }
            before = now;
        }
    }

    /// All figures, as AnnounceHost carries them. Blocks on `/proc` and statvfs: call it on a blocking thread.
    pub fn announcement(&self) -> v2::Host {
        let now = Reading::now();
        let before = self.last.lock().replace(now);
        let identity = &self.identity;
        let in_container = cgroup::in_container();
        v2::Host {
            id: identity.host_id.to_string(),
            r#type: self.options.host_type,
            hostname: identity.hostname.clone(),
            ip: identity.ip.to_string(),
            port: i32::from(identity.ports.upload),
            download_port: i32::from(identity.ports.upload),
            proxy_port: i32::from(identity.ports.proxy),
            os: std::env::consts::OS.to_owned(),
            platform: std::env::consts::OS.to_owned(),
            platform_family: std::env::consts::FAMILY.to_owned(),
            platform_version: procfs::os_version(),
            kernel_version: procfs::kernel_release(),
            cpu: Some(cpu(before.as_ref(), &now, in_container)),
            memory: Some(memory(in_container)),
            network: Some(v2::Network {
                idc: self.options.idc.clone(),
                location: self.options.location.clone(),
                ..self.network.borrow().to_wire()
            }),
            disk: Some(self.disk(before.as_ref(), &now)),
            build: Some(build()),
            scheduler_cluster_id: self.options.scheduler_cluster_id,
            disable_shared: self.options.disable_shared,
            name: name(&identity.hostname),
        }
    }

    fn disk(&self, before: Option<&Reading>, now: &Reading) -> v2::Disk {
        let (total, free) = disk_space(&self.options.storage_dir);
        let used = total.saturating_sub(free);
        let rate = |counter: fn(&procfs::ProcessIo) -> u64| {
            before
                .filter(|before| now.at - before.at >= SPAN_MIN)
                .map_or(0, |before| {
                    per_second(counter(&before.io), counter(&now.io), now.at - before.at)
                })
        };
        v2::Disk {
            total,
            free,
            used,
            used_percent: percent(used, total),
            read_bandwidth: rate(|io| io.read_bytes),
            write_bandwidth: rate(|io| io.write_bytes),
            ..Default::default()
        }
    }
}

impl Reading {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            cpu: procfs::cpu_ticks(),
            process_ticks: procfs::process_ticks(),
            io: procfs::process_io(),
            cgroup_cpu_usec: cgroup::cpu_usage_usec(),
        }
    }
}

/// Bytes in total and available to users on the filesystem of `path`; zeroes when it cannot be asked.
pub fn disk_space(path: &std::path::Path) -> (u64, u64) {
    rustix::fs::statvfs(path).map_or((0, 0), |stat| {
        (
            stat.f_blocks.saturating_mul(stat.f_frsize),
            stat.f_bavail.saturating_mul(stat.f_frsize),
        )
    })
}

/// The name that the system gives this host.
pub fn system_hostname() -> String {
    let name = procfs::line("/proc/sys/kernel/hostname");
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// The address that others most likely reach this host by: that of the default route, else the first that is not
/// loopback, else loopback. Sends nothing.
pub fn default_ip(prefer_ipv6: bool) -> IpAddr {
    let v4 = || {
        routed(
            SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
            Ipv4Addr::UNSPECIFIED.into(),
        )
    };
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let v6 = || {
        routed(
            SocketAddr::from((documentation, 9)),
            Ipv6Addr::UNSPECIFIED.into(),
        )
    };
    let found = if prefer_ipv6 {
        v6().or_else(v4)
    } else {
        v4().or_else(v6)
    };
    found
        .or_else(|| interface::first_address(prefer_ipv6))
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The source address that the kernel would use towards `target`.
fn routed(target: SocketAddr, any: IpAddr) -> Option<IpAddr> {
    // Connecting a datagram socket only looks up the route.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

/// The announced type: 1 for a seed peer that does not ask to be a normal one.
pub fn host_type(role: HostRole, announce_as_super: bool) -> u32 {
    u32::from(role == HostRole::Seed && announce_as_super)
}

fn cpu(before: Option<&Reading>, now: &Reading, in_container: bool) -> v2::Cpu {
    let logical = std::thread::available_parallelism()
        .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let before = before.filter(|before| now.at - before.at >= SPAN_MIN);
    let (used, process) = before.map_or((0.0, 0.0), |before| {
        let total = now.cpu.total.saturating_sub(before.cpu.total);
        let busy = now.cpu.busy.saturating_sub(before.cpu.busy);
        let process = now.process_ticks.saturating_sub(before.process_ticks);
        // Ticks of the system add up over all processors, so both are shares of the whole machine.
        (percent(busy, total), percent(process, total))
    });
    v2::Cpu {
        logical_count: logical,
        physical_count: procfs::physical_cores().unwrap_or(logical),
        percent: used,
        process_percent: process,
        times: None,
        cgroup: in_container
            .then(|| {
                cgroup::cpu(before.and_then(|before| {
                    let usec = now.cgroup_cpu_usec?.saturating_sub(before.cgroup_cpu_usec?);
                    Some((usec, now.at - before.at))
                }))
            })
            .flatten(),
    }
}

fn memory(in_container: bool) -> v2::Memory {
    let memory = procfs::memory();
    let used = memory.total.saturating_sub(memory.available);
    v2::Memory {
        total: memory.total,
        available: memory.available,
        used,
        used_percent: percent(used, memory.total),
        process_used_percent: percent(procfs::resident_bytes(), memory.total),
        free: memory.free,
        cgroup: in_container.then(cgroup::memory).flatten(),
    }
}

fn build() -> v2::Build {
    v2::Build {
        git_version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: Some(crate::GIT_COMMIT.to_owned()),
        go_version: None,
        rust_version: Some(env!("CARGO_PKG_RUST_VERSION").to_owned()),
        platform: None,
    }
}

/// In Kubernetes the pod's name, else the host's.
fn name(hostname: &str) -> String {
    match (std::env::var("POD_NAMESPACE"), std::env::var("POD_NAME")) {
        (Ok(namespace), Ok(pod)) => format!("{namespace}-{pod}"),
        _ => hostname.to_owned(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage needs no more than 52 bits"
)]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64 * 100.0).min(100.0)
    }
}

/// The growth of a counter per second; 0 when it was reset meanwhile.
fn per_second(before: u64, now: u64, span: Duration) -> u64 {
    let grown = u128::from(now.saturating_sub(before));
    let micros = span.as_micros().max(1);
    u64::try_from(grown * 1_000_000 / micros).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Ports;

    fn monitor() -> HostMonitor {
        let ports = Ports {
            upload: 4000,
            piece_tcp: 4005,
            piece_quic: 4006,
            proxy: 4001,
        };
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let identity = Identity::new(ip, "here", HostRole::Seed, ports);
        HostMonitor::new(
            Arc::new(identity),
            HostOptions {
                idc: Some("idc-1".into()),
                location: None,
                scheduler_cluster_id: 7,
                disable_shared: false,
                host_type: 1,
                bandwidth_limit_bits: 8_000_000_000,
                storage_dir: std::env::temp_dir(),
            },
        )
    }

    #[test]
    fn an_announcement_tells_the_truth_about_this_host() {
        let host = monitor().announcement();
        assert_eq!(host.id, "127.0.0.1-here-seed");
        assert_eq!(
            (host.port, host.download_port, host.proxy_port),
            (4000, 4000, 4001)
        );
        let memory = host.memory.unwrap();
        assert!(
            memory.total > 1 << 20 && memory.available <= memory.total,
            "{memory:?}"
        );
        assert!(
            memory.process_used_percent > 0.0 && memory.used_percent <= 100.0,
            "{memory:?}"
        );
        let disk = host.disk.unwrap();
        assert!(
            disk.total > 0 && disk.used + disk.free == disk.total,
            "{disk:?}"
        );
        let cpu = host.cpu.unwrap();
        assert!(cpu.logical_count >= 1 && cpu.physical_count >= 1, "{cpu:?}");
        let network = host.network.unwrap();
        assert_eq!(network.idc.as_deref(), Some("idc-1"));
        assert!(network.max_tx_bandwidth > 0 && network.max_tx_bandwidth <= 8_000_000_000);
        assert!(!host.kernel_version.is_empty());
    }

    #[tokio::test]
    async fn network_rates_follow_the_interface() {
        let monitor = Arc::new(monitor());
        let mut rates = monitor.network();
        let task = tokio::spawn({
            let monitor = monitor.clone();
            async move { monitor.run().await }
        });
        let sample = tokio::time::timeout(Duration::from_secs(20), rates.changed());
        sample.await.expect("a sample within seconds").unwrap();
        assert!(rates.borrow().rx.is_some() && rates.borrow().tx.is_some());
        task.abort();
    }

    #[test]
    fn rates_survive_counters_that_restart() {
        assert_eq!(per_second(100, 50, Duration::from_secs(1)), 0);
        assert_eq!(per_second(0, 500, Duration::from_millis(500)), 1000);
        assert_eq!(percent(1, 0), 0.0);
        assert_eq!(percent(300, 200), 100.0);
    }

    #[test]
    fn there_is_always_some_address_and_name() {
        assert!(!system_hostname().is_empty());
        let _ = (default_ip(false), default_ip(true));
    }
}

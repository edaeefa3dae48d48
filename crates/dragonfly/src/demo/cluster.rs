//! A real cluster on this machine: a manager, a scheduler, a seed peer and some peers, each a process of its own.
//!
//! Every host has a loopback address of its own, as hosts have in a real network, and free ports on it, so that a demo
//! disturbs nothing that runs already (see [`super::net`]). They are started in the order in which they need each other, and each step waits
//! until the last one can be seen from outside.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dragonfly_api::manager::v2::manager_client::ManagerClient;
use dragonfly_api::manager::v2::{ListSchedulersRequest, SourceType};
use dragonfly_api::scheduler::v2::ListHostsRequest;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use runtime::grpc::{self, ClientOptions, DialError};
use tonic::transport::Channel;

use super::fleet::{Fleet, Rank};
use super::net::{Net, free_ports};

/// How long one step of the start may take. A healthy one takes tenths of a second, a busy machine some seconds.
const STEP_WAIT: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is not ready yet.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
/// How long one look may take.
const LOOK_WAIT: Duration = Duration::from_secs(2);
/// Lines of a process's output that are shown when it fails.
const LINE_COUNT_SHOWN: usize = 8;

/// The programs that a demo starts.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) dragonfly: PathBuf,
    pub(super) dfdaemon: PathBuf,
    pub(super) dfget: PathBuf,
}

/// The running cluster.
pub(super) struct Cluster {
    pub(super) seed: Host,
    pub(super) peers: Vec<Host>,
    /// Nobody else's as long as the cluster runs.
    _net: Net,
}

/// One daemon and how to reach it.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) ip: IpAddr,
    /// The socket for tools.
    pub(super) socket: PathBuf,
    pub(super) metrics: SocketAddr,
    upload: SocketAddr,
}

/// Why a cluster did not come up.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("{program} is not there: build it with `cargo build --release --bins`", program = .0.display())]
    ProgramMissing(PathBuf),
    #[error("cannot start {name}: {error}")]
    Spawn { name: String, error: std::io::Error },
    #[error("{path}: {error}", path = .path.display())]
    File {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("no loopback network for the demo: {0}")]
    Net(std::io::Error),
    #[error("no free port on {ip}: {error}")]
    Port { ip: Ipv4Addr, error: std::io::Error },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{name} ended ({status}) while it was starting; its last words:\n{}", indented(.output))]
    Ended {
        name: String,
        status: std::process::ExitStatus,
        output: Vec<String>,
    },
    #[error("{what} within {} s; the last words of {name}:\n{}", STEP_WAIT.as_secs(), indented(.output))]
    Slow {
        what: &'static str,
        name: String,
        output: Vec<String>,
    },
}

impl Programs {
    /// The programs beside the running one.
    pub(super) fn beside(dragonfly: PathBuf) -> Result<Self, StartError> {
        let beside = |name: &str| {
            let path = dragonfly.with_file_name(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(StartError::ProgramMissing(path))
            }
        };
        Ok(Self {
            dfdaemon: beside("dfdaemon")?,
            dfget: beside("dfget")?,
            dragonfly,
        })
    }
}

impl Host {
    /// Whether a peer id names a part of this host: `<ip>-<hostname>-<uuid>` (daemon sheet, section 1.2).
    pub(super) fn owns_peer(&self, peer_id: &str) -> bool {
        peer_id
            .strip_prefix(&format!("{}-{}-", self.ip, self.name))
            .is_some()
    }
}

impl Cluster {
    /// Starts everything and waits until a download can begin. On failure the caller stops the fleet.
    pub(super) async fn start(
        fleet: &mut Fleet,
        programs: &Programs,
        folder: &Path,
        peer_count: u8,
    ) -> Result<Self, StartError> {
        let net = Net::claim().map_err(StartError::Net)?;
        let start = Start { programs, folder };
        let manager = start.manager(fleet, net.services()).await?;
        let scheduler = start.scheduler(fleet, net.services(), manager).await?;
        let seed = start.daemon(fleet, manager, "seed", net.seed(), Role::Seed)?;
        let mut peers = Vec::new();
        for number in 1..=peer_count {
            let name = format!("peer-{number}");
            peers.push(start.daemon(fleet, manager, &name, net.peer(number), Role::Peer)?);
        }
        let cluster = Self {
            seed: seed.0,
            peers: peers.iter().map(|(host, _)| host.clone()).collect(),
            _net: net,
        };
        for (host, member) in
            std::iter::once((&cluster.seed, seed.1)).chain(peers.iter().map(|(h, m)| (h, *m)))
        {
            wait_healthy(fleet, member, host.upload).await?;
            let socket = grpc::channel_unix(&host.socket, &ClientOptions::default())?;
            until("the daemon did not serve its socket", fleet, member, || {
                serves(socket.clone())
            })
            .await?;
        }
        let hosts = cluster.peers.len() + 1;
        let channel = grpc::channel(&scheduler.to_string(), &ClientOptions::default())?;
        until(
            "the scheduler did not hear of all hosts",
            fleet,
            seed.1,
            || knows_hosts(channel.clone(), hosts),
        )
        .await?;
        Ok(cluster)
    }
}

/// What all starts need.
struct Start<'a> {
    programs: &'a Programs,
    folder: &'a Path,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Seed,
    Peer,
}

impl Start<'_> {
    async fn manager(&self, fleet: &mut Fleet, ip: Ipv4Addr) -> Result<SocketAddr, StartError> {
        let [grpc, rest] = ports(ip)?;
        let config = format!(
            "server:\n  grpc:\n    listenIP: {ip}\n    advertiseIP: {ip}\n    port: {{start: {grpc_port}}}\n  rest:\n    addr: {rest}\n\
             database:\n  url: sqlite://{folder}/manager.db\n",
            ip = grpc.ip(),
            grpc_port = grpc.port(),
            folder = self.folder.display(),
        );
        let member = self.service(fleet, "manager", &config)?;
        wait_healthy(fleet, member, grpc).await?;
        Ok(grpc)
    }

    async fn scheduler(
        &self,
        fleet: &mut Fleet,
        ip: Ipv4Addr,
        manager: SocketAddr,
    ) -> Result<SocketAddr, StartError> {
        let [grpc] = ports(ip)?;
        let config = format!(
            "server:\n  listenIP: {ip}\n  advertiseIP: {ip}\n  port: {port}\n  host: scheduler\n  dataDir: {folder}/scheduler\n\
             manager:\n  addr: {manager}\n",
            ip = grpc.ip(),
            port = grpc.port(),
            folder = self.folder.display(),
        );
        let member = self.service(fleet, "scheduler", &config)?;
        wait_healthy(fleet, member, grpc).await?;
        let channel = grpc::channel(&manager.to_string(), &ClientOptions::default())?;
        until(
            "the manager did not list the scheduler",
            fleet,
            member,
            || lists_scheduler(channel.clone()),
        )
        .await?;
        Ok(grpc)
    }

    fn daemon(
        &self,
        fleet: &mut Fleet,
        manager: SocketAddr,
        name: &str,
        ip: Ipv4Addr,
        role: Role,
    ) -> Result<(Host, usize), StartError> {
        let folder = self.folder.join(name);
        make_folder(&folder)?;
        let [upload, metrics, health, stats, proxy, tcp, quic] = ports(ip)?;
        let socket = folder.join("dfdaemon.sock");
        let listen = |address: SocketAddr| {
            format!(
                "{{server: {{ip: {}, port: {}}}}}",
                address.ip(),
                address.port()
            )
        };
        let config = format!(
            "host:\n  ip: {ip}\n  hostname: {name}\n\
             server:\n  cacheDir: {folder}/cache\n  pluginDir: {folder}/plugins\n\
             download:\n  server:\n    socketPath: {socket}\n\
             upload: {upload}\nmetrics: {metrics_listen}\nhealth: {health}\nstats: {stats}\nproxy: {proxy}\n\
             storage:\n  dir: {folder}/storage\n  server: {{ip: {ip}, tcpPort: {tcp}, quicPort: {quic}}}\n\
             manager:\n  addr: http://{manager}\nseedPeer:\n  enable: {seed}\n",
            folder = folder.display(),
            socket = socket.display(),
            upload = listen(upload),
            metrics_listen = listen(metrics),
            health = listen(health),
            stats = listen(stats),
            proxy = listen(proxy),
            tcp = tcp.port(),
            quic = quic.port(),
            seed = role == Role::Seed,
        );
        let config = self.config_file(name, &config)?;
        let member = self.spawn(fleet, name, Rank::Host, &config)?;
        Ok((
            Host {
                name: name.to_owned(),
                ip: ip.into(),
                socket,
                metrics,
                upload,
            },
            member,
        ))
    }

    /// Starts `dragonfly NAME` with this configuration.
    fn service(&self, fleet: &mut Fleet, name: &str, config: &str) -> Result<usize, StartError> {
        make_folder(&self.folder.join(name))?;
        let config = self.config_file(name, config)?;
        self.spawn(fleet, name, Rank::Service, &config)
    }

    fn config_file(&self, name: &str, config: &str) -> Result<PathBuf, StartError> {
        let path = self.folder.join(format!("{name}.yaml"));
        std::fs::write(&path, config).map_err(|error| StartError::File {
            path: path.clone(),
            error,
        })?;
        Ok(path)
    }

    /// Starts a daemon, or `dragonfly NAME` for a service.
    fn spawn(
        &self,
        fleet: &mut Fleet,
        name: &str,
        rank: Rank,
        config: &Path,
    ) -> Result<usize, StartError> {
        let (program, mut arguments) = match rank {
            Rank::Host => (&self.programs.dfdaemon, Vec::new()),
            Rank::Service => (&self.programs.dragonfly, vec![name.to_owned()]),
        };
        arguments.extend([
            "--config".to_owned(),
            config.display().to_string(),
            "--console".to_owned(),
        ]);
        let log = self.folder.join(format!("{name}.log"));
        fleet
            .start(name, rank, program, &arguments, log)
            .map_err(|error| StartError::Spawn {
                name: name.to_owned(),
                error,
            })
    }
}

fn ports<const COUNT: usize>(ip: Ipv4Addr) -> Result<[SocketAddr; COUNT], StartError> {
    free_ports(ip).map_err(|error| StartError::Port { ip, error })
}

fn make_folder(path: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(path).map_err(|error| StartError::File {
        path: path.to_owned(),
        error,
    })
}

async fn wait_healthy(
    fleet: &mut Fleet,
    member: usize,
    address: SocketAddr,
) -> Result<(), StartError> {
    let channel = grpc::channel(&address.to_string(), &ClientOptions::default())?;
    until(
        "the service did not answer health checks",
        fleet,
        member,
        || serves(channel.clone()),
    )
    .await
}

async fn serves(channel: Channel) -> bool {
    grpc::is_serving(channel, "", LOOK_WAIT).await
}

async fn lists_scheduler(channel: Channel) -> bool {
    let request = ListSchedulersRequest {
        source_type: SourceType::PeerSource.into(),
        hostname: "demo".to_owned(),
        ip: Ipv4Addr::LOCALHOST.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let answer = tokio::time::timeout(
        LOOK_WAIT,
        ManagerClient::new(channel).list_schedulers(request),
    )
    .await;
    matches!(answer, Ok(Ok(response)) if !response.get_ref().schedulers.is_empty())
}

async fn knows_hosts(channel: Channel, count: usize) -> bool {
    let request = ListHostsRequest { r#type: None };
    let answer =
        tokio::time::timeout(LOOK_WAIT, SchedulerClient::new(channel).list_hosts(request)).await;
    matches!(answer, Ok(Ok(response)) if response.get_ref().hosts.len() >= count)
}

/// Looks again and again until `look` sees it, the process behind it ends, or the time is up.
async fn until<F: Future<Output = bool>>(
    what: &'static str,
    fleet: &mut Fleet,
    member: usize,
    look: impl Fn() -> F,
) -> Result<(), StartError> {
    let deadline = tokio::time::Instant::now() + STEP_WAIT;
    loop {
        if look().await {
            return Ok(());
        }
        fleet.sample();
        let process = fleet.member(member);
        let name = process.name.clone();
        if let Some((status, _)) = process.ended() {
            return Err(StartError::Ended {
                name,
                status,
                output: process.last_lines(LINE_COUNT_SHOWN),
            });
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(StartError::Slow {
                what,
                name,
                output: process.last_lines(LINE_COUNT_SHOWN),
            });
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn indented(lines: &[String]) -> String {
    lines
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_names_its_host() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let host = |name: &str| Host {
            name: name.to_owned(),
            ip: "127.0.0.11".parse().unwrap(),
            socket: PathBuf::new(),
            metrics: any,
            upload: any,
        };
        let id = "127.0.0.11-peer-1-3f0c1f1e-6c1b-4c83-9f55-3f0a6a7f8c21";
        assert!(host("peer-1").owns_peer(id) && !host("peer-11").owns_peer(id));
    }

    #[test]
    fn missing_programs_are_named() {
        let error = Programs::beside("/nowhere/dragonfly".into())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/nowhere/dfdaemon is not there"),
            "{error}"
        );
    }
}

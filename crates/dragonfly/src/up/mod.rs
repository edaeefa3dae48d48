//! `dragonfly up`: manager, scheduler and seed peer in one process, on embedded storage under one data folder.
//!
//! The services are the same crates that run as processes of their own, started one after the other on one runtime under
//! one shutdown tree; they meet on loopback sockets as they would on a network. What each of them runs with stands in
//! `manager.yaml`, `scheduler.yaml` and `dfdaemon.yaml` in the data folder: written at the first start, read at every
//! start, and the operator's to change.

mod folder;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use runtime::config::Document;
use runtime::shutdown::{Shutdown, Signals};

use folder::{DAEMON, Folder, MANAGER, SCHEDULER};

/// How long each service may take to end; the daemon takes most, as it lets downloads finish (`server.shutdownTimeout`, 10 s
/// by default, and some seconds for the rest).
const GRACE: Duration = Duration::from_secs(20);

/// Run a manager, a scheduler and a seed peer in this process: all that a cluster needs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Folder for everything that is kept: configuration, database, pieces, logs
    /// [default: /var/lib/dragonfly for root, else ~/.dragonfly].
    #[arg(long, value_name = "DIR", env = "DRAGONFLY_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Log level or filter.
    #[arg(long, short = 'l', value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// Log to standard error instead of a file in the data folder.
    #[arg(long)]
    console: bool,
}

/// Runs until a signal.
///
/// # Errors
/// A service does not start or cannot go on.
pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let folder = Folder::open(&options)?;
    let _log = runtime::log::init(&folder.log_options(&options))?;
    let configs = Configs::load(&folder)?;
    let mut signals = Signals::new().context("signals cannot be handled")?;
    let shutdown = Shutdown::new();
    // In the order in which they need each other; they end the other way round.
    let parts = [shutdown.child(), shutdown.child(), shutdown.child()];
    let serving = tokio::select! {
        biased;
        _ = signals.next() => None,
        serving = start(&folder, configs, &parts) => Some(serving),
    };
    let serving = match serving {
        Some(Ok(serving)) => serving,
        // Told to stop while starting is no failure.
        None => {
            shutdown.drain(GRACE).await;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Err(error)) => {
            shutdown.drain(GRACE).await;
            return Err(error);
        }
    };
    // Whoever started this may not be reading; that is no reason to stop.
    let _ = writeln!(
        std::io::stdout(),
        "{}",
        serving.banner(&folder, begun.elapsed())
    );
    let [manager, scheduler, daemon] = parts;
    let drained = shutdown
        .run_in_order(&mut signals, &[daemon, scheduler, manager], GRACE)
        .await;
    match drained.failure {
        None => Ok(ExitCode::SUCCESS),
        Some(failure) => Err(failure.into()),
    }
}

/// Where everything listens.
struct Serving {
    manager: manager::Addresses,
    scheduler: SocketAddr,
    daemon: daemon::Addresses,
    /// Under which address other hosts reach this one.
    advertised: IpAddr,
    socket: PathBuf,
}

/// What the three run with.
struct Configs {
    manager: manager::Config,
    scheduler: scheduler::Config,
    daemon: daemon::Config,
}

impl Configs {
    /// Reads all files before anything starts, so that a slip in the last one costs no time.
    fn load(folder: &Folder) -> anyhow::Result<Self> {
        Ok(Self {
            manager: folder.load(MANAGER, |file| manager::Config::read(Document::load(file)?))?,
            scheduler: folder.load(SCHEDULER, scheduler::Config::load)?,
            daemon: folder.load(DAEMON, daemon::Config::load)?,
        })
    }
}

/// Starts one after the other; each serves before the next one asks it. `parts` are theirs, in this order.
async fn start(
    folder: &Folder,
    configs: Configs,
    parts: &[Shutdown; 3],
) -> anyhow::Result<Serving> {
    let [manager, scheduler, daemon] = parts;
    let named = |name: &str| folder.file(name).display().to_string();
    let (advertised, socket) = (
        configs.daemon.host.ip,
        configs.daemon.download.socket_path.clone(),
    );
    let manager = manager::start(configs.manager, manager)
        .await
        .with_context(|| named(MANAGER))?;
    let scheduler = scheduler::Scheduler::start(configs.scheduler, scheduler)
        .await
        .with_context(|| named(SCHEDULER))?
        .grpc_addr();
    let daemon = daemon::start(configs.daemon, daemon)
        .await
        .with_context(|| named(DAEMON))?;
    Ok(Serving {
        manager,
        scheduler,
        daemon,
        advertised,
        socket,
    })
}

impl Serving {
    /// What the operator needs to know next.
    fn banner(&self, folder: &Folder, elapsed: Duration) -> String {
        let manager = SocketAddr::new(self.advertised, self.manager.grpc.port());
        format!(
            "Dragonfly serves after {elapsed} ms; its data and configuration are in {folder}\n\
             \n\
             manager     gRPC {manager_grpc}, REST {rest}\n\
             scheduler   gRPC {scheduler}\n\
             seed peer   gRPC {upload}, pieces {pieces}, tools {socket}\n\
             \n\
             download    dfget -e {socket} -O FILE URL\n\
             add a host  printf 'manager:\\n  addr: http://{manager}\\n' > dfdaemon.yaml && dfdaemon --config dfdaemon.yaml --console\n\
             stop        Ctrl-C",
            elapsed = elapsed.as_millis(),
            folder = folder.path().display(),
            manager_grpc = self.manager.grpc,
            rest = self.manager.rest,
            scheduler = self.scheduler,
            upload = self.daemon.upload,
            pieces = self.daemon.pieces,
            socket = self.socket.display(),
        )
    }
}

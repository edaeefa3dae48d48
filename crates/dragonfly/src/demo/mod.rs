//! `dragonfly demo`: a real swarm on one machine, shown live.
//!
//! The story: make a folder, serve a generated file from an HTTP origin (or take a URL), start a cluster of real processes,
//! run the real dfget on all peers at once, watch, compare what arrived, and tell. [`run`] is that story from top to bottom.
//!
//! Two promises are kept whatever happens: no process that the demo started outlives it (see [`fleet`] and [`sys`]), and its
//! folder goes with it (see [`folder`]).

mod cluster;
mod content;
mod fleet;
mod folder;
mod net;
mod origin;
mod progress;
mod scrape;
mod summary;
mod sys;
mod view;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use runtime::config::ByteSize;
use runtime::secret::redact_url;
use runtime::shutdown::{Shutdown, Signals};
use sha2::{Digest, Sha256};

use cluster::{Cluster, Programs};
use content::Content;
use fleet::{Fleet, Rank};
use folder::Folder;
use origin::Origin;
use progress::{Board, Giver};
use summary::{BytesFrom, PeerSummary, ProcessSummary, Summary};
use view::{Moment, View};

/// Time between two looks at the processes: how exactly the time of a download is known.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Time between two pictures.
const PICTURE_PAUSE: Duration = Duration::from_millis(100);
/// Time for the demo's own tasks to end.
const GRACE: Duration = Duration::from_secs(1);
/// Lines of dfget's output that are shown when it fails.
const LINE_COUNT_SHOWN: usize = 6;
/// What shells report for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Show a real swarm on this machine: one file crosses it from peer to peer.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Download this URL instead of a generated file.
    #[arg(long, conflicts_with = "size")]
    url: Option<String>,
    /// Length of the generated file.
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    size: ByteSize,
    /// How many peers download it.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=100))]
    peers: u8,
    /// End after the summary; the exit code is 0 only if everything held.
    #[arg(long)]
    once: bool,
    /// Print the summary as one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size),
        _ => Err("expected a size above 0, such as 64MiB or 1GiB".to_owned()),
    }
}

/// Runs the demo until it is over or interrupted. Call it on the main thread (see [`sys::bind_to_this_process`]).
///
/// # Errors
/// Something that the demo itself needs is missing or failed; nothing is left running then.
pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new().context("signals cannot be handled")?;
    let programs = Programs::beside(std::env::current_exe().context("this program's own path")?)?;
    let folder = Folder::create(&std::env::temp_dir(), space_needed(&options))?;
    let mut fleet = Fleet::default();
    let shutdown = Shutdown::new();
    let stage = Stage {
        options: &options,
        programs: &programs,
        folder: folder.path(),
        shutdown: &shutdown,
    };
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => {
            eprintln!("dragonfly demo: {signal}, stopping all processes");
            Ok(ExitCode::from(INTERRUPTED))
        }
        outcome = stage.play(&mut fleet) => outcome,
    };
    let stopped = tokio::select! {
        biased;
        () = fleet.stop() => true,
        _ = signals.next() => false,
    };
    if !stopped {
        fleet.kill().await;
    }
    shutdown.drain(GRACE).await;
    // Last, when nobody writes to it any more.
    drop(folder);
    outcome
}

/// What the story needs.
struct Stage<'a> {
    options: &'a Options,
    programs: &'a Programs,
    folder: &'a Path,
    shutdown: &'a Shutdown,
}

impl Stage<'_> {
    async fn play(&self, fleet: &mut Fleet) -> anyhow::Result<ExitCode> {
        let options = self.options;
        let mut view = View::new(options.json);
        let file = Source::prepare(options, self.shutdown)?;

        view.say(&format!(
            "starting a manager, a scheduler, a seed peer and {} peers",
            options.peers
        ));
        let begun = Instant::now();
        let cluster =
            Arc::new(Cluster::start(fleet, self.programs, self.folder, options.peers).await?);
        view.say(&format!(
            "the cluster serves after {:.2} s",
            begun.elapsed().as_secs_f64()
        ));
        // Before the clock starts: hashing would take the processor from the swarm.
        let expected = file.sha256().await?;

        view.say(&format!(
            "downloading {} on {} peers at once",
            redact_url(&file.url()),
            options.peers
        ));
        let run = Run {
            cluster: &cluster,
            folder: self.folder,
            dfget: &self.programs.dfget,
            url: file.url(),
        };
        let summary = run.download(fleet, self.shutdown, &mut view).await?;
        let origin_bytes = match &file {
            Source::Generated(origin, _) => origin.sent(),
            Source::Url(_) => run.origin_bytes().await,
        };
        let summary = Summary {
            origin_bytes,
            ..summary
        }
        .judge(expected.as_deref());
        tell(&summary, options, &mut view)?;
        if !options.once && summary.ok {
            invite(&cluster, self.programs, &mut view);
            std::future::pending::<()>().await;
        }
        Ok(if summary.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// The stores of all hosts hold the file once; outputs are hard links. For a URL the length is not known yet.
fn space_needed(options: &Options) -> u64 {
    let hosts = u64::from(options.peers) + 1;
    if options.url.is_some() {
        0
    } else {
        options.size.as_u64().saturating_mul(hosts)
    }
}

fn tell(summary: &Summary, options: &Options, view: &mut View) -> anyhow::Result<()> {
    view.say("");
    for line in summary.lines() {
        view.say(&line);
    }
    if options.json {
        let json = serde_json::to_string(summary).context("the summary as JSON")?;
        writeln!(std::io::stdout(), "{json}").context("standard output")?;
    }
    Ok(())
}

fn invite(cluster: &Cluster, programs: &Programs, view: &mut View) {
    let Some(peer) = cluster.peers.first() else {
        return;
    };
    view.say("");
    view.say("The swarm keeps running; Ctrl-C stops it. Download something of your own with");
    view.say(&format!(
        "  {} -e {} -O FILE URL",
        programs.dfget.display(),
        peer.socket.display()
    ));
}

/// Where the file comes from.
enum Source {
    Generated(Origin, Content),
    Url(String),
}

impl Source {
    fn prepare(options: &Options, shutdown: &Shutdown) -> anyhow::Result<Self> {
        if let Some(url) = &options.url {
            return Ok(Self::Url(url.clone()));
        }
        // Another file each time, so that nothing old can be mistaken for it.
        let nanos = std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |since| since.as_nanos());
        let seed = u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or_default();
        let content = Content {
            seed,
            len: options.size.as_u64(),
        };
        Ok(Self::Generated(Origin::start(content, shutdown)?, content))
    }

    fn url(&self) -> String {
        match self {
            Self::Generated(origin, _) => origin.url(),
            Self::Url(url) => url.clone(),
        }
    }

    /// The digest that every copy must have, if it is known.
    async fn sha256(&self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Generated(_, content) => {
                let content = *content;
                Ok(Some(
                    tokio::task::spawn_blocking(move || content.sha256()).await?,
                ))
            }
            Self::Url(_) => Ok(None),
        }
    }
}

/// One download on all peers.
struct Run<'a> {
    cluster: &'a Arc<Cluster>,
    folder: &'a Path,
    dfget: &'a Path,
    url: String,
}

impl Run<'_> {
    /// Runs dfget on every peer, shows how they get on, and sums up. Origin bytes and judgement are the caller's.
    async fn download(
        &self,
        fleet: &mut Fleet,
        shutdown: &Shutdown,
        view: &mut View,
    ) -> anyhow::Result<Summary> {
        let board = Board::new(self.cluster.peers.len());
        let mut members = Vec::new();
        for peer in &self.cluster.peers {
            let output = self.output(&peer.name);
            let arguments = [
                "--no-progress".to_owned(),
                // Otherwise every host would read a file of at most 4 MiB from the origin itself.
                "--scheduling-policy=always".to_owned(),
                "--endpoint".to_owned(),
                peer.socket.display().to_string(),
                "--output".to_owned(),
                output.display().to_string(),
                self.url.clone(),
            ];
            let name = format!("dfget {}", peer.name);
            let log = self.folder.join(format!("dfget-{}.log", peer.name));
            members.push(
                fleet
                    .start(&name, Rank::Host, self.dfget, &arguments, log)
                    .with_context(|| format!("cannot start {name}"))?,
            );
        }
        for index in 0..members.len() {
            let watch =
                progress::watch(self.cluster.clone(), index, self.url.clone(), board.clone());
            shutdown.spawn_until_begun("watcher", watch);
        }
        let watch = progress::watch_seed(self.cluster.clone(), board.clone());
        shutdown.spawn_until_begun("watcher of the seed", watch);
        self.follow(fleet, &members, &board, view).await;
        self.sum_up(fleet, &members, &board).await
    }

    /// Shows the swarm until every dfget has ended.
    async fn follow(&self, fleet: &mut Fleet, members: &[usize], board: &Board, view: &mut View) {
        let begun = Instant::now();
        let names: Vec<&str> = self
            .cluster
            .peers
            .iter()
            .map(|peer| peer.name.as_str())
            .collect();
        let mut last_picture = None;
        loop {
            let running = members.iter().any(|member| fleet.is_running(*member));
            if !running || last_picture.is_none_or(|at: Instant| at.elapsed() >= PICTURE_PAUSE) {
                last_picture = Some(Instant::now());
                fleet.sample();
                view.show(&Moment {
                    elapsed: begun.elapsed(),
                    names: &names,
                    standing: board.read(),
                });
            }
            if !running {
                return;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn sum_up(
        &self,
        fleet: &mut Fleet,
        members: &[usize],
        board: &Board,
    ) -> anyhow::Result<Summary> {
        let progress = board.read().peers;
        let mut errors = Vec::new();
        let mut peers = Vec::new();
        let mut file_bytes = 0;
        for ((host, member), progress) in self.cluster.peers.iter().zip(members).zip(&progress) {
            let process = fleet.member(*member);
            let (status, time) = process.ended().context("dfget is still running")?;
            let mut sha256 = String::new();
            if status.success() {
                let output = self.output(&host.name);
                let (digest, len) =
                    tokio::task::spawn_blocking(move || digest_of(&output)).await??;
                (sha256, file_bytes) = (digest, len);
            } else {
                let words = process.last_lines(LINE_COUNT_SHOWN).join(" | ");
                errors.push(format!("dfget on {} ended ({status}): {words}", host.name));
            }
            let bytes_from = BytesFrom {
                origin: progress.bytes_from(Giver::Origin),
                seed: progress.bytes_from(Giver::Seed),
                peers: progress.bytes_from_peers(),
            };
            peers.push(PeerSummary {
                name: host.name.clone(),
                seconds: time.as_secs_f64(),
                sha256,
                bytes_from,
            });
        }
        fleet.sample();
        let processes = fleet.members().iter().map(process_summary).collect();
        Ok(Summary {
            ok: false,
            file_bytes,
            origin_bytes: 0,
            peers,
            processes,
            errors,
        })
    }

    /// What all daemons together say that they read from the origin.
    async fn origin_bytes(&self) -> u64 {
        let mut sum = 0;
        for host in std::iter::once(&self.cluster.seed).chain(&self.cluster.peers) {
            sum += scrape::origin_bytes(host.metrics).await.unwrap_or(0);
        }
        sum
    }

    fn output(&self, peer: &str) -> PathBuf {
        self.folder.join(peer).join("output")
    }
}

#[expect(clippy::cast_precision_loss, reason = "MiB for people")]
fn process_summary(member: &fleet::Member) -> ProcessSummary {
    ProcessSummary {
        name: member.name.clone(),
        rss_mib_max: member.figures.rss_bytes_max as f64 / f64::from(1 << 20),
        cpu_seconds: member.figures.cpu.as_secs_f64(),
    }
}

/// SHA-256 in hex and length of a file.
fn digest_of(path: &Path) -> anyhow::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)
        .with_context(|| format!("dfget left no file at {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut len = 0;
    loop {
        match file
            .read(&mut buffer)
            .with_context(|| path.display().to_string())?
        {
            0 => return Ok((hex::encode(hasher.finalize()), len)),
            read => {
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
        }
    }
}

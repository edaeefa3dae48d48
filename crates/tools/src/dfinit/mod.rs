//! `dfinit`: the container runtime of this host pulls images through the daemon's proxy.
//!
//! The steps, one module each: what is wanted (`config`); which runtimes are here ([`detect`]); what to change in their files, decided
//! completely before anything is written (`plan`, with `containerd`, `hosts_toml`, `registries`, `docker`); writing it so that it can be taken
//! back (`journal`, `files`); a restart, at most one and only if needed (`restart`); the proof (`probe`).
//!
//! Below these: where a path leads to on a host that is mounted here (`root`); edits that leave the rest of a text as it is
//! (`written`, `json_text`).
//!
//! A second run changes nothing, and what the files said besides stays, comments included. What dfinit does not understand it
//! leaves alone, and says what to do. It knows nothing of the daemon but the address of its proxy and of its metrics.

mod arguments;
mod config;
mod containerd;
pub mod detect;
mod docker;
mod files;
mod hosts_toml;
mod journal;
mod json_text;
mod plan;
mod probe;
mod registries;
mod report;
mod restart;
mod root;
mod standing;
mod version;
mod written;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use url::Url;

use crate::failure::Failure;
use crate::logging::LogLevel;
use crate::program::{self, Format, Streams, Told};

pub use arguments::{Action, Arguments};
pub use standing::{Standing, standings};
pub use version::Version;

use config::{Config, DockerConfig, DockerMode, RuntimeConfig, proxy_authority, proxy_url};
use detect::{Kind, Runtime};
use journal::Journal;
use plan::{Edit, Plan, Refusal};
use report::{Outcome, Restart};
use root::HostRoot;

/// The port of the daemon's metrics unless configured.
const METRICS_PORT: u16 = 4002;

/// Parses `arguments` (the first is the program's name), sets up or undoes, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().collect();
    let parsed = command()
        .try_get_matches_from(&words)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    match parsed {
        Ok(arguments) => {
            let format = arguments.output;
            program::run("dfinit", format, Streams::Result, run(arguments))
        }
        Err(error) => {
            let format = Format::json_if(program::has_json_output(&words));
            program::usage(&error, format, Streams::Result)
        }
    }
}

/// The whole command line. As in v2, no option has an environment variable.
pub fn command() -> clap::Command {
    Arguments::command().mut_args(|argument| argument.env(None::<&str>))
}

/// Sets up or undoes as `arguments` say.
///
/// # Errors
///
/// [`Failure::Usage`] for options that do not fit together, else [`Failure::Refused`] with what failed and what to do.
pub async fn run(arguments: Arguments) -> Result<Told, Failure> {
    restart_is_of_the_host(&arguments)?;
    let outcome = match arguments.command {
        Some(Action::Undo { force }) => undo(&arguments, force).await,
        None => set_up(&arguments).await,
    };
    outcome.map(|outcome| Told::new(&outcome))
}

/// The systemd of this process would restart a runtime of the wrong host.
fn restart_is_of_the_host(arguments: &Arguments) -> Result<(), Failure> {
    let is_known = arguments.host_root().is_own() || arguments.restart_command.is_some();
    if !arguments.restart || is_known {
        return Ok(());
    }
    Err(Failure::Usage {
        reason: format!(
            "how the runtime of the host at {} is restarted is not known here: say it with --restart-command, as in 'nsenter -t 1 -m -- systemctl restart containerd', or leave --restart out",
            arguments.root.display()
        ),
    })
}

async fn set_up(arguments: &Arguments) -> Result<Outcome, Failure> {
    let (file, named) = arguments.config_file();
    let loaded = Config::load(file, named).map_err(not_done)?;
    let root = arguments.host_root();
    let mut outcome = Outcome::new(arguments.dry_run);
    outcome
        .notes
        .extend(loaded.warnings.iter().map(ToString::to_string));
    let config = loaded.value;
    let found = detect::detect(&root).await;
    for runtime in &found {
        say(arguments, || {
            format!("found {}", report::described(runtime))
        });
    }
    let mut journal = Journal::open(&root, &arguments.state_folder()).map_err(not_done)?;
    let plans = plans(&root, &config, &found, &journal).map_err(not_done)?;
    if plans.is_empty() {
        outcome.notes.push(match found.is_empty() {
            true => "no container runtime was found on this host: name one in the configuration, under containerRuntime".to_owned(),
            false => "of what was found nothing can be set up without a list of registries: name them in the configuration, under containerRuntime".to_owned(),
        });
    }
    outcome.hear(&plans);
    if arguments.dry_run {
        return Ok(outcome);
    }
    let edits: Vec<(&str, &Edit)> = plans
        .iter()
        .flat_map(|plan| {
            plan.edits
                .iter()
                .map(|edit| (plan.runtime.kind.name(), edit))
        })
        .collect();
    journal.apply(&edits).map_err(not_done)?;
    let runtimes: Vec<Runtime> = plans.into_iter().map(|plan| plan.runtime).collect();
    restart(arguments, &runtimes, &mut journal, &mut outcome).await?;
    if let Some(image) = &arguments.probe {
        let metrics = arguments
            .metrics_addr
            .clone()
            .unwrap_or_else(|| metrics_of(&config.proxy));
        for runtime in &runtimes {
            let due = journal.is_restart_due(runtime.kind.name());
            let proof = probe::probe(runtime, image, &metrics, arguments.probe_timeout, due)
                .await
                .map_err(not_done)?;
            outcome.probes.push(proof);
        }
    }
    Ok(outcome)
}

async fn undo(arguments: &Arguments, force: bool) -> Result<Outcome, Failure> {
    let root = arguments.host_root();
    let mut outcome = Outcome::new(arguments.dry_run);
    let mut journal = Journal::open(&root, &arguments.state_folder()).map_err(not_done)?;
    if arguments.dry_run {
        return Err(Failure::Usage {
            reason: "undo has no dry run: the files as they were lie in --state-dir".to_owned(),
        });
    }
    outcome.restored = journal.undo(force).map_err(not_done)?;
    let found = detect::detect(&root).await;
    restart(arguments, &found, &mut journal, &mut outcome).await?;
    Ok(outcome)
}

/// What to change, for the runtime that is configured or for all that were found.
fn plans(
    root: &HostRoot,
    config: &Config,
    found: &[Runtime],
    journal: &Journal,
) -> Result<Vec<Plan>, Refusal> {
    if let Some(settings) = &config.runtime {
        let (kind, path) = target(settings);
        let runtime = detect::named(root, found, kind, &root.named(path));
        return Ok(vec![plan(
            root,
            &runtime,
            settings,
            &config.proxy,
            journal,
        )?]);
    }
    let mut plans = Vec::new();
    for runtime in found {
        let settings = match RuntimeConfig::usual(runtime.kind) {
            // Nobody asked for a proxy without which no pull works.
            RuntimeConfig::Docker(docker) => RuntimeConfig::Docker(DockerConfig {
                mode: DockerMode::Mirror,
                ..docker
            }),
            // They mirror listed registries only, and none is listed.
            RuntimeConfig::Crio(_) | RuntimeConfig::Podman(_) => continue,
            containerd => containerd,
        };
        plans.push(plan(root, runtime, &settings, &config.proxy, journal)?);
    }
    Ok(plans)
}

fn target(settings: &RuntimeConfig) -> (Kind, &Path) {
    match settings {
        RuntimeConfig::Containerd(settings) => (Kind::Containerd, &settings.config_path),
        RuntimeConfig::Docker(settings) => (Kind::Docker, &settings.config_path),
        RuntimeConfig::Crio(settings) => (Kind::Crio, &settings.config_path),
        RuntimeConfig::Podman(settings) => (Kind::Podman, &settings.config_path),
    }
}

fn plan(
    root: &HostRoot,
    runtime: &Runtime,
    settings: &RuntimeConfig,
    proxy: &Url,
    journal: &Journal,
) -> Result<Plan, Refusal> {
    match settings {
        RuntimeConfig::Containerd(settings) => {
            containerd::plan(root, runtime, settings, &proxy_url(proxy))
        }
        RuntimeConfig::Docker(settings) => docker::plan(
            root,
            runtime,
            settings,
            &proxy_url(proxy),
            journal.wrote(&runtime.config),
        ),
        RuntimeConfig::Crio(settings) | RuntimeConfig::Podman(settings) => {
            registries::plan(root, runtime, settings, &proxy_authority(proxy))
        }
    }
}

/// Restarts what has to be restarted, now or since an earlier run, or leaves a sign that it has to be.
async fn restart(
    arguments: &Arguments,
    runtimes: &[Runtime],
    journal: &mut Journal,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let sentinel = arguments.sentinel();
    let found_sentinel = arguments.host_root().find(&sentinel).map_err(not_done)?;
    for runtime in runtimes {
        if let Some(started) = runtime.started() {
            journal
                .hear_started(runtime.kind.name(), started)
                .map_err(not_done)?;
        }
    }
    let due: Vec<Runtime> = runtimes
        .iter()
        .filter(|runtime| journal.is_restart_due(runtime.kind.name()))
        .cloned()
        .collect();
    if due.is_empty() {
        // What an earlier run asked for was done by somebody else, or is not wanted any more.
        let _ = std::fs::remove_file(&found_sentinel);
        return Ok(());
    }
    if !arguments.restart {
        make_sentinel(&found_sentinel).map_err(not_done)?;
        outcome.restarts = due
            .iter()
            .map(|runtime| Restart::due(runtime.kind))
            .collect();
        outcome.sentinel = Some(sentinel);
        return Ok(());
    }
    for runtime in due {
        let ran = restart::restart(&runtime, arguments.restart_command.as_deref())
            .await
            .map_err(not_done)?;
        journal.restarted(runtime.kind.name()).map_err(not_done)?;
        outcome.restarts.push(Restart::done(runtime.kind, ran));
    }
    // An earlier run may have left it; its wish is fulfilled.
    let _ = std::fs::remove_file(&found_sentinel);
    Ok(())
}

fn make_sentinel(path: &Path) -> Result<(), String> {
    path.parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(path, ""))
        .map_err(|error| format!("cannot make the sentinel {}: {error}: the files are changed, and the runtime has to be restarted", path.display()))
}

fn metrics_of(proxy: &Url) -> Url {
    let host = proxy.host_str().unwrap_or("127.0.0.1");
    Url::parse(&format!("http://{host}:{METRICS_PORT}/metrics"))
        .expect("the host of a URL makes a URL")
}

fn say(arguments: &Arguments, line: impl FnOnce() -> String) {
    arguments
        .log
        .say(LogLevel::Info, || format!("dfinit: {}", line()));
}

fn not_done(error: impl ToString) -> Failure {
    Failure::Refused {
        reason: error.to_string(),
    }
}

#[cfg(test)]
#[path = "tests/roots.rs"]
mod tests;

//! The Docker engine: `daemon.json`.
//!
//! As in v2 the engine goes through the daemon as its forward proxy: every pull, without falling back, and HTTPS only if the engine
//! trusts the CA of the proxy. The other way (`mode: mirror`) is a registry mirror: Docker Hub only, but the engine goes on by
//! itself when the daemon is away, and needs no CA.

use serde_json::{Value, json};

use super::config::{DockerConfig, DockerMode};
use super::detect::Runtime;
use super::json_text::Settings;
use super::plan::{self, Edit, Plan, Refusal, Unclear};
use super::root::HostRoot;
use super::version::Version;

/// The first version that reads `proxies` from `daemon.json` (release notes of Docker Engine 23.0).
const PROXIES_SINCE: u32 = 23;

pub(super) fn plan(
    root: &HostRoot,
    runtime: &Runtime,
    settings: &DockerConfig,
    proxy: &str,
    wrote_before: bool,
) -> Result<Plan, Refusal> {
    let path = &runtime.config;
    if settings.mode == DockerMode::Proxies {
        knows_proxies(runtime.version).map_err(|unclear| unclear.at(path))?;
    }
    let before = plan::read(root, path)?;
    let after = edit(before.as_deref(), settings.mode, proxy, wrote_before)
        .map_err(|unclear| unclear.at(path))?;
    let note = match settings.mode {
        DockerMode::Proxies => {
            "docker now needs the daemon for every pull, and must trust the CA of its proxy (`dfctl ca install`)"
        }
        DockerMode::Mirror => {
            "docker asks mirrors for images of Docker Hub only: the daemon's proxy.registryMirror.addr must be Docker Hub's address, as it is unless configured"
        }
    };
    Ok(Plan {
        runtime: runtime.clone(),
        edits: vec![Edit::new(path.clone(), before, after, true)],
        notes: vec![note.to_owned()],
    })
}

/// Older engines do not start with a key in `daemon.json` that they do not know. Where the version is not known, it is one of today's.
fn knows_proxies(version: Option<Version>) -> Result<(), Unclear> {
    match version {
        Some(version) if version.major < PROXIES_SINCE => Err(Unclear::new(
            format!(
                "Docker {version} would not start with proxies in it, {PROXIES_SINCE}.0 and later do"
            ),
            "use mode: mirror, or update Docker",
        )),
        _ => Ok(()),
    }
}

/// The text that `daemon.json` shall have. `wrote_before`: an earlier run has edited it, so that a proxy that it names is ours.
fn edit(
    before: Option<&str>,
    mode: DockerMode,
    proxy: &str,
    wrote_before: bool,
) -> Result<String, Unclear> {
    let text = before.unwrap_or("");
    let mut settings = match text.trim() {
        "" => Settings::default(),
        text => Settings::parse(text).map_err(|error| Unclear::syntax("JSON", &error))?,
    };
    match mode {
        DockerMode::Proxies => set_proxies(&mut settings, proxy, wrote_before)?,
        DockerMode::Mirror => set_mirror(&mut settings, proxy)?,
    }
    if !settings.changed() && before.is_some() {
        return Ok(text.to_owned());
    }
    Ok(settings.written(indent_of(text)))
}

fn set_proxies(settings: &mut Settings, proxy: &str, wrote_before: bool) -> Result<(), Unclear> {
    let mut proxies = settings.get("proxies").unwrap_or_else(|| json!({}));
    let Some(entries) = proxies.as_object_mut() else {
        return Err(Unclear::new(
            "its proxies are not an object",
            "repair it, then try again",
        ));
    };
    for key in ["http-proxy", "https-proxy"] {
        match entries.get(key).and_then(Value::as_str) {
            Some(other) if other != proxy && !other.is_empty() && !wrote_before => {
                return Err(Unclear::new(
                    format!("docker already goes through {other} ({key})"),
                    "give that one to the Dragonfly daemon as its way to the registries, remove it here, then try again",
                ));
            }
            _ => {
                entries.insert(key.to_owned(), json!(proxy));
            }
        }
    }
    settings.set("proxies", proxies);
    Ok(())
}

fn set_mirror(settings: &mut Settings, proxy: &str) -> Result<(), Unclear> {
    let mut mirrors = settings
        .get("registry-mirrors")
        .unwrap_or_else(|| json!([]));
    let Some(entries) = mirrors.as_array_mut() else {
        return Err(Unclear::new(
            "its registry-mirrors are not a list",
            "repair it, then try again",
        ));
    };
    let is_ours = |mirror: &Value| {
        mirror
            .as_str()
            .is_some_and(|mirror| mirror.trim_end_matches('/') == proxy)
    };
    if !entries.first().is_some_and(is_ours) {
        entries.retain(|mirror| !is_ours(mirror));
        entries.insert(0, json!(proxy));
    }
    settings.set("registry-mirrors", mirrors);
    Ok(())
}

/// The indentation of the first key, or two blanks.
fn indent_of(text: &str) -> &str {
    let line = text.lines().find(|line| line.trim_start().starts_with('"'));
    let indent = line.map_or("", |line| &line[..line.len() - line.trim_start().len()]);
    if indent.is_empty() { "  " } else { indent }
}

#[cfg(test)]
#[path = "tests/docker.rs"]
mod tests;

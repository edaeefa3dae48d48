//! CRI-O, podman and all that read `registries.conf`: the daemon's proxy becomes the first mirror of the listed registries.
//!
//! These clients do not tell a mirror which registry they mean: the daemon asks the one in its `proxy.registryMirror.addr`. With
//! several registries a tag could be looked up at the wrong one, so that then the mirror is asked by digest only, where a
//! wrong answer cannot pass.

use std::path::Path;

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::config::{MirroredRegistry, RegistriesConfig};
use super::detect::{Kind, Runtime};
use super::plan::{self, Edit, Plan, Refusal, Unclear};
use super::root::HostRoot;
use super::written::set_value;

/// What v2 writes into a new file, in this order.
const SEARCH_REGISTRIES: [&str; 3] = [
    "registry.fedoraproject.org",
    "registry.access.redhat.com",
    "docker.io",
];

pub(super) fn plan(
    root: &HostRoot,
    runtime: &Runtime,
    settings: &RegistriesConfig,
    mirror: &str,
) -> Result<Plan, Refusal> {
    let path = &runtime.config;
    let before = plan::read(root, path)?;
    let after = edit(before.as_deref(), settings, mirror).map_err(|unclear| unclear.at(path))?;
    let mut notes = Vec::new();
    match settings.registries.as_slice() {
        [] => notes.push(nothing_listed(path)),
        [one] => notes.push(format!(
            "{} sends no name of a registry to a mirror: the daemon's proxy.registryMirror.addr must be the address of {}",
            runtime.kind.name(),
            one.location
        )),
        _ => notes.push(format!(
            "{} sends no name of a registry to a mirror, so that of several registries only the one in the daemon's \
             proxy.registryMirror.addr profits; for all of them the mirror is asked by digest only",
            runtime.kind.name()
        )),
    }
    // podman has no daemon; what its API service starts reads the file anew.
    let needs_restart = runtime.kind == Kind::Crio;
    let edit = Edit::new(path.clone(), before, after, needs_restart);
    Ok(Plan {
        runtime: runtime.clone(),
        edits: vec![edit],
        notes,
    })
}

fn nothing_listed(path: &Path) -> String {
    format!(
        "no registry is listed for {}: name those that shall be mirrored under containerRuntime, registries",
        path.display()
    )
}

/// The text that `registries.conf` shall have. `mirror` is `host:port` of the proxy.
fn edit(
    before: Option<&str>,
    settings: &RegistriesConfig,
    mirror: &str,
) -> Result<String, Unclear> {
    let text = before.unwrap_or("");
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error| Unclear::syntax("TOML", &error))?;
    if document.contains_key("registries") {
        return Err(Unclear::new(
            "it is written in the first version of the format ([registries.search])",
            "bring it to version 2 ([[registry]] tables, see containers-registries.conf(5)), then try again",
        ));
    }
    let is_new = text.trim().is_empty();
    let search = match &settings.unqualified_search_registries {
        Some(search) => Some(search.clone()),
        None if is_new && !settings.registries.is_empty() => {
            Some(SEARCH_REGISTRIES.map(str::to_owned).to_vec())
        }
        None => None,
    };
    if let Some(search) = search {
        let wanted = Array::from_iter(&search);
        let found = document
            .get("unqualified-search-registries")
            .and_then(Item::as_array);
        if !found.is_some_and(|found| found.iter().filter_map(|item| item.as_str()).eq(&search)) {
            set_value(
                document.as_table_mut(),
                "unqualified-search-registries",
                value(wanted),
            );
        }
    }
    if settings.registries.is_empty() {
        return Ok(document.to_string());
    }
    let digest_only = settings.registries.len() > 1;
    let registries = array_of_tables(document.as_table_mut(), "registry")?;
    for wanted in &settings.registries {
        let found = registries
            .iter_mut()
            .find(|registry| prefix_of(registry) == prefix(wanted));
        match found {
            Some(registry) => put_first(registry, mirror, digest_only)?,
            None => {
                let mut registry = Table::new();
                registry["prefix"] = value(prefix(wanted));
                registry["location"] = value(&wanted.location);
                put_first(&mut registry, mirror, digest_only)?;
                registries.push(registry);
            }
        }
    }
    Ok(document.to_string())
}

/// The names that a registry is for; without a prefix those that begin with its location.
fn prefix(registry: &MirroredRegistry) -> &str {
    match registry.prefix.as_str() {
        "" => &registry.location,
        prefix => prefix,
    }
}

fn prefix_of(registry: &Table) -> &str {
    let text = |key| {
        registry
            .get(key)
            .and_then(Item::as_str)
            .filter(|text| !text.is_empty())
    };
    text("prefix").or_else(|| text("location")).unwrap_or("")
}

/// Puts our mirror before the others.
fn put_first(registry: &mut Table, location: &str, digest_only: bool) -> Result<(), Unclear> {
    let mirrors = array_of_tables(registry, "mirror")?;
    let is_ours = |mirror: &Table| mirror.get("location").and_then(Item::as_str) == Some(location);
    if mirrors
        .get(0)
        .is_some_and(|first| is_ours(first) && says(first, digest_only))
    {
        return Ok(());
    }
    let mut others: Vec<Table> = mirrors.iter().cloned().collect();
    // With the comment above it, if it was there already.
    let mut ours = match others.iter().position(is_ours) {
        Some(place) => others.remove(place),
        None => Table::new(),
    };
    set_value(&mut ours, "insecure", value(true));
    set_value(&mut ours, "location", value(location));
    if digest_only {
        set_value(&mut ours, "pull-from-mirror", value("digest-only"));
    } else {
        ours.remove("pull-from-mirror");
    }
    let mut reordered = ArrayOfTables::new();
    for mut mirror in std::iter::once(ours).chain(others) {
        // Their place in the file is now that in the list.
        mirror.set_position(None);
        reordered.push(mirror);
    }
    *mirrors = reordered;
    Ok(())
}

fn says(mirror: &Table, digest_only: bool) -> bool {
    let pull = mirror.get("pull-from-mirror").and_then(Item::as_str);
    mirror.get("insecure").and_then(Item::as_bool) == Some(true)
        && pull == digest_only.then_some("digest-only")
}

fn array_of_tables<'t>(table: &'t mut Table, key: &str) -> Result<&'t mut ArrayOfTables, Unclear> {
    let item = table
        .entry(key)
        .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    item.as_array_of_tables_mut().ok_or_else(|| {
        Unclear::new(
            format!("{key} is not written as [[{key}]] tables"),
            "write it as tables, then try again",
        )
    })
}

#[cfg(test)]
#[path = "tests/registries.rs"]
mod tests;

//! containerd: where its CRI plugin looks for `hosts.toml` files, and these files.
//!
//! `config.toml` is touched only if it names no folder for them yet (`config_path`), or if containerd would not look into the
//! folder that it names: from 2.1 on the CRI pulls by the transfer service, which takes a list of folders for the name of one
//! folder that does not exist, so that no mirror is ever asked; `use_local_image_pull` brings the former way back.
//! The `hosts.toml` files are read at every pull, so that a change of them needs no restart.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use super::config::ContainerdConfig;
use super::detect::Runtime;
use super::hosts_toml::{self, Mirror};
use super::plan::{self, Edit, Plan, Refusal, Unclear};
use super::root::HostRoot;
use super::version::Version;
use super::written::set_value;

/// The plugin that pulls, in configurations of version 2 (containerd 1.x).
const GRPC_CRI: &str = "io.containerd.grpc.v1.cri";
/// The same in versions 3 and 4 (containerd 2.x). Version 4, of containerd 2.3, has the server's own settings elsewhere.
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// The newest version of the format that is known here.
const NEWEST_FORMAT: i64 = 4;
/// The folder that is named if none is yet: the usual one.
const CERTS_D: &str = "/etc/containerd/certs.d";
/// The first version whose CRI pulls by the transfer service.
const TRANSFER_SERVICE: Version = Version {
    major: 2,
    minor: 1,
    patch: 0,
};
/// Most files that `imports` may name; a pattern that matches more is not followed further.
const IMPORTS_MAX: usize = 64;

/// Decides what to change for `runtime`.
pub(super) fn plan(
    root: &HostRoot,
    runtime: &Runtime,
    settings: &ContainerdConfig,
    proxy: &str,
) -> Result<Plan, Refusal> {
    let path = &runtime.config;
    let before = plan::read(root, path)?;
    if before.is_none() && runtime.version.is_none() {
        let reason = "there is no such file, and no containerd was found";
        let advice =
            "install containerd, or name its file with containerRuntime.containerd.configPath";
        return Err(Unclear::new(reason, advice).at(path));
    }
    let mut config = ConfigToml::parse(before.as_deref().unwrap_or(""), runtime, settings)
        .map_err(|unclear| unclear.at(path))?;
    for import in config.imports(root, path) {
        if let Some(text) = plan::read(root, &import)? {
            config
                .hear_import(&text)
                .map_err(|unclear| unclear.at(&import))?;
        }
    }
    let edited = config.edit(proxy).map_err(|unclear| unclear.at(path))?;
    let mut plan = Plan {
        runtime: runtime.clone(),
        edits: Vec::new(),
        notes: edited.notes,
    };
    let folder = root.named(&edited.folder);
    for mirror in mirrors(settings) {
        let path = folder.join(mirror.namespace()).join("hosts.toml");
        let before = plan::read(root, &path)?;
        let after = hosts_toml::edit(before.as_deref(), &mirror, proxy)
            .map_err(|unclear| unclear.at(&path))?;
        plan.edits.push(Edit::new(path, before, after, false));
    }
    plan.edits
        .push(Edit::new(path.clone(), before, edited.text, true));
    Ok(plan)
}

fn mirrors(settings: &ContainerdConfig) -> Vec<Mirror<'_>> {
    let mut mirrors: Vec<_> = settings.registries.iter().map(Mirror::Of).collect();
    if settings.proxy_all_registries {
        mirrors.push(Mirror::Rest);
    }
    mirrors
}

/// `config.toml` as it is.
struct ConfigToml<'a> {
    text: &'a str,
    document: DocumentMut,
    /// The version of the format.
    format: i64,
    runtime: &'a Runtime,
    settings: &'a ContainerdConfig,
    /// The folders that are in effect, as written: of this file or of one that it imports.
    config_path: Option<String>,
}

/// `config.toml` as it shall be.
struct Edited {
    text: String,
    /// Where the `hosts.toml` files go.
    folder: PathBuf,
    notes: Vec<String>,
}

impl<'a> ConfigToml<'a> {
    fn parse(
        text: &'a str,
        runtime: &'a Runtime,
        settings: &'a ContainerdConfig,
    ) -> Result<Self, Unclear> {
        let document: DocumentMut = text
            .parse()
            .map_err(|error| Unclear::syntax("TOML", &error))?;
        let newest = match runtime.version {
            Some(version) if version.major >= 2 => 3,
            _ => 2,
        };
        let format = match document.get("version").map(Item::as_integer) {
            Some(Some(format @ 2..=NEWEST_FORMAT)) => format,
            None if document.is_empty() => newest,
            found => {
                return Err(match found {
                    Some(Some(format)) if format > NEWEST_FORMAT => Unclear::new(
                        format!(
                            "its format has version {format}, {NEWEST_FORMAT} is the newest that is known here"
                        ),
                        "look for a newer dfinit, or write hosts.toml files by hand",
                    ),
                    _ => Unclear::new(
                        "it has no version = 2 or more, so that containerd takes it for one of version 1, which names plugins otherwise",
                        "write it anew with `containerd config migrate`, look at the result, then try again",
                    ),
                });
            }
        };
        let mut config = Self {
            text,
            document,
            format,
            runtime,
            settings,
            config_path: None,
        };
        config.config_path = config.registry_of(&config.document)?;
        Ok(config)
    }

    /// The plugin whose table owns `registry`.
    fn plugin_id(&self) -> &str {
        if let Some(id) = &self.settings.cri_plugin_id {
            return id;
        }
        let has = |id| table_at(self.document.as_table(), &["plugins", id]).is_some();
        match self.format {
            // containerd 2 moves what a file of version 2 says to the new plugins by itself.
            ..=2 if !has(GRPC_CRI) && has(CRI_IMAGES) => CRI_IMAGES,
            ..=2 => GRPC_CRI,
            // Here the former table holds the streaming server only.
            _ => CRI_IMAGES,
        }
    }

    /// The `config_path` that `document` sets, if its registry table is one that can be edited.
    fn registry_of(&self, document: &DocumentMut) -> Result<Option<String>, Unclear> {
        let id = self.plugin_id();
        let Some(registry) = table_at(document.as_table(), &["plugins", id, "registry"]) else {
            return Ok(None);
        };
        let filled = |key| {
            registry
                .get(key)
                .and_then(Item::as_table_like)
                .filter(|table| !table.is_empty())
        };
        if let Some(mirrors) = filled("mirrors") {
            let names: Vec<&str> = mirrors.iter().map(|(name, _)| name).collect();
            return Err(Unclear::new(
                format!(
                    "it has registry.mirrors for {}, which containerd refuses beside config_path",
                    names.join(", ")
                ),
                format!(
                    "write each as {CERTS_D}/NAME/hosts.toml, with its endpoints as [host.\"URL\"] tables, remove registry.mirrors, then try again"
                ),
            ));
        }
        let with_tls = filled("configs").and_then(|configs| {
            let tls = |item: &Item| {
                item.as_table_like()
                    .is_some_and(|config| config.contains_key("tls"))
            };
            configs
                .iter()
                .find(|(_, config)| tls(config))
                .map(|(name, _)| name.to_owned())
        });
        if let Some(name) = with_tls {
            return Err(Unclear::new(
                format!(
                    "it has registry.configs.\"{name}\".tls, which containerd refuses beside config_path"
                ),
                format!(
                    "say it in {CERTS_D}/{name}/hosts.toml instead (ca, client, skip_verify), remove the tls table, then try again"
                ),
            ));
        }
        match registry.get("config_path") {
            None => Ok(None),
            Some(item) => match item.as_str() {
                Some("") => Ok(None),
                Some(path) => Ok(Some(path.to_owned())),
                None => Err(Unclear::new(
                    "its registry.config_path is not a text",
                    "repair it, then try again",
                )),
            },
        }
    }

    /// The files that this one imports; they have the last word.
    fn imports(&self, root: &HostRoot, path: &Path) -> Vec<PathBuf> {
        let Some(imports) = self.document.get("imports").and_then(Item::as_array) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for pattern in imports.iter().filter_map(|item| item.as_str()) {
            let pattern = match Path::new(pattern) {
                absolute if absolute.is_absolute() => root.named(absolute),
                relative => path.with_file_name("").join(relative),
            };
            found.extend(matches_of(root, &pattern));
        }
        found.truncate(IMPORTS_MAX);
        found
    }

    fn hear_import(&mut self, text: &str) -> Result<(), Unclear> {
        let document = text
            .parse()
            .map_err(|error| Unclear::syntax("TOML", &error))?;
        if let Some(config_path) = self.registry_of(&document)? {
            self.config_path = Some(config_path);
        }
        Ok(())
    }

    fn edit(mut self, proxy: &str) -> Result<Edited, Unclear> {
        let mut notes = Vec::new();
        if self.cri_is_disabled() {
            notes.push(format!("containerd's CRI plugin is disabled in {}: only ctr and nerdctl read what was written", self.runtime.config.display()));
            return Ok(self.unedited(CERTS_D.into(), notes));
        }
        let Some(config_path) = self.config_path.clone() else {
            self.refuse_generated(proxy)?;
            let id = self.plugin_id().to_owned();
            if self.document.is_empty() {
                self.document["version"] = value(self.format);
            }
            set(
                &mut self.document,
                &["plugins", &id, "registry"],
                "config_path",
                value(CERTS_D),
            )?;
            return Ok(Edited {
                text: self.document.to_string(),
                folder: CERTS_D.into(),
                notes,
            });
        };
        let folders: Vec<&str> = config_path
            .split(':')
            .filter(|folder| !folder.is_empty())
            .collect();
        let folder = PathBuf::from(folders.first().copied().unwrap_or(CERTS_D));
        if self.wants_local_pull(folders.len()) {
            if self.format < 3 {
                notes.push(format!(
                    "from containerd 2.1 on, pulls by the CRI ignore a config_path of several folders ({config_path}): \
                     name one folder, or bring the file to version 3 (`containerd config migrate`) and run dfinit again"
                ));
                return Ok(self.unedited(folder, notes));
            }
            self.refuse_generated(proxy)?;
            set(
                &mut self.document,
                &["plugins", CRI_IMAGES],
                "use_local_image_pull",
                value(true),
            )?;
            notes.push(format!(
                "use_local_image_pull was set: without it, containerd 2.1 and later ignore a config_path of several folders ({config_path})"
            ));
            return Ok(Edited {
                text: self.document.to_string(),
                folder,
                notes,
            });
        }
        Ok(self.unedited(folder, notes))
    }

    fn unedited(self, folder: PathBuf, notes: Vec<String>) -> Edited {
        Edited {
            text: self.text.to_owned(),
            folder,
            notes,
        }
    }

    /// Whether `use_local_image_pull` has to be set.
    fn wants_local_pull(&self, folder_count: usize) -> bool {
        let set_already = table_at(self.document.as_table(), &["plugins", CRI_IMAGES])
            .and_then(|table| table.get("use_local_image_pull"))
            .and_then(Item::as_bool)
            == Some(true);
        let by_transfer_service = match self.runtime.version {
            Some(version) => version >= TRANSFER_SERVICE,
            None => self.format >= 3,
        };
        let wanted = self
            .settings
            .use_local_image_pull
            .unwrap_or(by_transfer_service && folder_count > 1);
        wanted && !set_already
    }

    fn cri_is_disabled(&self) -> bool {
        let disabled = self
            .document
            .get("disabled_plugins")
            .and_then(Item::as_array);
        disabled.is_some_and(|plugins| {
            plugins
                .iter()
                .filter_map(|item| item.as_str())
                .any(|name| matches!(name, "cri" | GRPC_CRI | CRI_IMAGES))
        })
    }

    /// What k3s and RKE2 write anew at each start is not worth an edit.
    fn refuse_generated(&self, proxy: &str) -> Result<(), Unclear> {
        let Some(who) = self.runtime.shipped_by else {
            return Ok(());
        };
        let folder = who.to_lowercase();
        Err(Unclear::new(
            format!("{who} writes this file anew at each start"),
            format!(
                "put `mirrors: {{\"*\": {{endpoint: [\"{proxy}\"]}}}}` into /etc/rancher/{folder}/registries.yaml, restart {who}, then run dfinit again"
            ),
        ))
    }
}

/// The files that a path matches whose last part may hold `*`.
fn matches_of(root: &HostRoot, pattern: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (
        pattern.parent(),
        pattern.file_name().and_then(|name| name.to_str()),
    ) else {
        return Vec::new();
    };
    let Some((begin, end)) = name.split_once('*') else {
        return vec![pattern.to_owned()];
    };
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| {
            name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
        })
    };
    let mut found: Vec<PathBuf> = root
        .find(folder)
        .and_then(std::fs::read_dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(folder.join(entry.ok()?.file_name())))
        .filter(fits)
        .collect();
    found.sort();
    found
}

fn table_at<'t>(table: &'t dyn TableLike, path: &[&str]) -> Option<&'t dyn TableLike> {
    match path {
        [] => Some(table),
        [key, rest @ ..] => table_at(table.get(key)?.as_table_like()?, rest),
    }
}

/// Sets `key` in the table at `path`, which is made if it is missing, in the style of what surrounds it. A comment behind the old
/// value stays.
fn set(document: &mut DocumentMut, path: &[&str], key: &str, new: Item) -> Result<(), Unclear> {
    let mut table: &mut Table = document.as_table_mut();
    let mut indent = String::new();
    for (depth, name) in path.iter().enumerate() {
        let missing = !table.contains_key(name);
        let item = table.entry(name).or_insert_with(|| {
            let mut made = Table::new();
            // Only the innermost table needs a header of its own.
            made.set_implicit(depth + 1 < path.len());
            Item::Table(made)
        });
        let Some(inner) = item.as_table_mut() else {
            return Err(Unclear::new(
                format!("{} is written on one line", path[..=depth].join(".")),
                "write it as a [table] of its own, then try again",
            ));
        };
        if missing {
            inner.decor_mut().set_prefix(format!("\n{indent}"));
        } else if !inner.is_implicit() && !inner.is_dotted() {
            let prefix = inner
                .decor()
                .prefix()
                .and_then(|prefix| prefix.as_str())
                .unwrap_or("");
            let own = prefix.rsplit('\n').next().unwrap_or("");
            indent = if own.is_empty() || depth == 0 {
                own.to_owned()
            } else {
                format!("{own}  ")
            };
        }
        table = inner;
    }
    let missing = !table.contains_key(key);
    set_value(table, key, new);
    if missing {
        let indent = match table.decor().prefix().and_then(|prefix| prefix.as_str()) {
            Some(prefix) if !table.is_implicit() => {
                match prefix.rsplit('\n').next().unwrap_or("") {
                    "" => String::new(),
                    own => format!("{own}  "),
                }
            }
            _ => String::new(),
        };
        if let Some(mut key) = table.key_mut(key) {
            key.leaf_decor_mut().set_prefix(indent);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/containerd.rs"]
mod tests;

//! `dfinit.yaml`: the keys of Dragonfly v2, and two of ours.

use std::path::{Path, PathBuf};

use runtime::config::{ConfigError, Document, Loaded, Section};
use url::Url;

use super::detect::Kind;

const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
const REGISTRIES_CONF: &str = "/etc/containers/registries.conf";
const DAEMON_JSON: &str = "/etc/docker/daemon.json";
const PROXY_ADDR: &str = "http://127.0.0.1:4001";

/// What dfinit shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// The daemon's proxy, as the runtime reaches it.
    pub(super) proxy: Url,
    /// The runtime to set up; `None` for all that this host has.
    pub(super) runtime: Option<RuntimeConfig>,
}

/// The runtime that the configuration names, with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RuntimeConfig {
    Containerd(ContainerdConfig),
    Docker(DockerConfig),
    Crio(RegistriesConfig),
    Podman(RegistriesConfig),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerdConfig {
    pub(super) config_path: PathBuf,
    /// The plugin whose table owns `registry`; found out unless given.
    pub(super) cri_plugin_id: Option<String>,
    /// Whether the registries that are not listed go through the proxy too.
    pub(super) proxy_all_registries: bool,
    /// Ours: whether the CRI pulls by itself instead of by the transfer service; found out unless given.
    pub(super) use_local_image_pull: Option<bool>,
    pub(super) registries: Vec<HostNamespace>,
}

/// A registry by the name that images carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostNamespace {
    pub(super) name: String,
    pub(super) server: String,
    pub(super) capabilities: Vec<String>,
    pub(super) skip_verify: Option<bool>,
    pub(super) ca: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegistriesConfig {
    pub(super) config_path: PathBuf,
    /// `None` leaves what the file has.
    pub(super) unqualified_search_registries: Option<Vec<String>>,
    pub(super) registries: Vec<MirroredRegistry>,
}

/// A registry by the beginning of the names of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MirroredRegistry {
    pub(super) prefix: String,
    pub(super) location: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DockerConfig {
    pub(super) config_path: PathBuf,
    pub(super) mode: DockerMode,
}

/// How the Docker engine comes to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DockerMode {
    /// As a forward proxy, as v2 does: every registry, without falling back, and the engine must trust the proxy's CA.
    Proxies,
    /// Ours: as a registry mirror: Docker Hub only, falls back by itself, needs no CA.
    Mirror,
}

impl Config {
    /// Reads `file`. A missing one is an empty one unless the user named it.
    pub(super) fn load(file: &Path, named: bool) -> Result<Loaded<Self>, ConfigError> {
        let document = match named {
            true => Document::load(file)?,
            false => Document::load_if_present(file)?,
        };
        Self::read(document)
    }

    pub(super) fn read(document: Document) -> Result<Loaded<Self>, ConfigError> {
        let root = document.root();
        let proxy = proxy_addr(&root.section("proxy"));
        let runtimes = root.section("containerRuntime");
        // With several of them this order decides, as in v2.
        let runtime = [Kind::Containerd, Kind::Docker, Kind::Crio, Kind::Podman]
            .into_iter()
            .filter_map(|kind| {
                let key = kind.name();
                match runtimes.optional_section(key) {
                    Some(section) => Some(RuntimeConfig::read(kind, &section)),
                    // "containerd:" with nothing below it names the runtime all the same.
                    None if runtimes.is_null(key) => Some(RuntimeConfig::usual(kind)),
                    None => None,
                }
            })
            .collect::<Vec<_>>()
            .into_iter()
            .next();
        document.finish(Self { proxy, runtime })
    }
}

impl RuntimeConfig {
    /// The settings of a runtime of which nothing is configured.
    pub(super) fn usual(kind: Kind) -> Self {
        let empty = Document::parse("", "").expect("an empty text is an empty document");
        Self::read(kind, &empty.root())
    }

    fn read(kind: Kind, section: &Section<'_>) -> Self {
        match kind {
            Kind::Containerd => Self::Containerd(ContainerdConfig {
                config_path: section.get_or("configPath", CONTAINERD_CONFIG.into()),
                cri_plugin_id: section
                    .get("criPluginId")
                    .filter(|id: &String| !id.is_empty()),
                proxy_all_registries: section.get_or("proxyAllRegistries", true),
                use_local_image_pull: section.get("useLocalImagePull"),
                registries: section
                    .sections("registries")
                    .iter()
                    .filter_map(HostNamespace::read)
                    .collect(),
            }),
            Kind::Docker => Self::Docker(DockerConfig {
                config_path: section.get_or("configPath", DAEMON_JSON.into()),
                mode: section.one_of(
                    "mode",
                    DockerMode::Proxies,
                    &[
                        ("proxies", DockerMode::Proxies),
                        ("mirror", DockerMode::Mirror),
                    ],
                ),
            }),
            Kind::Crio => Self::Crio(RegistriesConfig::read(section)),
            Kind::Podman => Self::Podman(RegistriesConfig::read(section)),
        }
    }
}

impl HostNamespace {
    fn read(section: &Section<'_>) -> Option<Self> {
        let name: String = section.required("hostNamespace")?;
        // It becomes the name of a folder.
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if !plain {
            section.mistake("hostNamespace", "the name of a registry, such as ghcr.io");
        }
        let server: String = section.required("serverAddr")?;
        let url = Url::parse(&server).ok();
        if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            section.mistake("serverAddr", "a URL, such as https://ghcr.io");
        }
        let capabilities = section
            .list("capabilities")
            .unwrap_or_else(|| vec!["pull".to_owned(), "resolve".to_owned()]);
        if !capabilities
            .iter()
            .all(|word| matches!(word.as_str(), "pull" | "resolve" | "push"))
        {
            section.mistake("capabilities", "a list of pull, resolve, push");
        }
        Some(Self {
            name,
            server,
            capabilities,
            skip_verify: section.get("skipVerify"),
            ca: section.list("ca"),
        })
    }
}

impl RegistriesConfig {
    fn read(section: &Section<'_>) -> Self {
        Self {
            config_path: section.get_or("configPath", REGISTRIES_CONF.into()),
            unqualified_search_registries: section.list("unqualifiedSearchRegistries"),
            registries: section
                .sections("registries")
                .iter()
                .filter_map(|registry| {
                    Some(MirroredRegistry {
                        prefix: registry.get_or("prefix", String::new()),
                        location: registry.required("location")?,
                    })
                })
                .collect(),
        }
    }
}

fn proxy_addr(section: &Section<'_>) -> Url {
    let usual = Url::parse(PROXY_ADDR).expect("the constant is a URL");
    let Some(text) = section.get::<String>("addr") else {
        return usual;
    };
    match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            section.mistake("addr", "a URL, such as http://127.0.0.1:4001");
            usual
        }
    }
}

/// The proxy as a base URL without a trailing slash, as it stands in the runtimes' files.
pub(super) fn proxy_url(proxy: &Url) -> String {
    proxy.as_str().trim_end_matches('/').to_owned()
}

/// `host:port` of the proxy.
pub(super) fn proxy_authority(proxy: &Url) -> String {
    let host = proxy.host_str().unwrap_or_default();
    let port = proxy.port_or_known_default().unwrap_or(80);
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Document::parse("dfinit.yaml", text)
            .and_then(Config::read)
            .map(|loaded| loaded.value)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_names_no_runtime() {
        let config = read("").unwrap();
        assert_eq!(proxy_url(&config.proxy), PROXY_ADDR);
        assert_eq!(config.runtime, None);
    }

    #[test]
    fn every_key_of_v2_is_read() {
        let config = read(
            "proxy: {addr: http://10.0.0.9:80/}\n\
             containerRuntime:\n  podman: {}\n  containerd:\n    configPath: /c.toml\n    criPluginId: x\n    proxyAllRegistries: false\n\
             \x20   registries:\n    - hostNamespace: ghcr.io\n      serverAddr: https://ghcr.io\n      capabilities: [pull]\n\
             \x20     skipVerify: true\n      ca: [/a.pem, /b.pem]\n",
        )
        .unwrap();
        assert_eq!(proxy_url(&config.proxy), "http://10.0.0.9");
        assert_eq!(proxy_authority(&config.proxy), "10.0.0.9:80");
        let expected = RuntimeConfig::Containerd(ContainerdConfig {
            config_path: "/c.toml".into(),
            cri_plugin_id: Some("x".into()),
            proxy_all_registries: false,
            use_local_image_pull: None,
            registries: vec![HostNamespace {
                name: "ghcr.io".into(),
                server: "https://ghcr.io".into(),
                capabilities: vec!["pull".into()],
                skip_verify: Some(true),
                ca: Some(vec!["/a.pem".into(), "/b.pem".into()]),
            }],
        });
        assert_eq!(config.runtime, Some(expected));
    }

    #[test]
    fn registries_conf_and_docker_are_read() {
        let config = read(
            "containerRuntime:\n  crio:\n    unqualifiedSearchRegistries: [quay.io]\n    registries:\n    - prefix: docker.io\n      location: docker.io\n",
        )
        .unwrap();
        let Some(RuntimeConfig::Crio(crio)) = config.runtime else {
            panic!("{config:?}")
        };
        assert_eq!(crio.config_path, Path::new(REGISTRIES_CONF));
        assert_eq!(crio.unqualified_search_registries.unwrap(), ["quay.io"]);
        assert_eq!(crio.registries[0].location, "docker.io");
        let config = read("containerRuntime:\n  docker:\n").unwrap();
        assert_eq!(config.runtime, Some(RuntimeConfig::usual(Kind::Docker)));
    }

    #[test]
    fn mistakes_are_told_with_their_lines() {
        let error = read(
            "proxy: {addr: 127.0.0.1:4001}\ncontainerRuntime:\n  containerd:\n    registries:\n    - hostNamespace: ../x\n      serverAddr: ghcr.io\n    - {}\n  docker: {mode: magic}\n",
        )
        .unwrap_err();
        for told in [
            "dfinit.yaml:1: proxy.addr",
            "dfinit.yaml:5: containerRuntime.containerd.registries[0].hostNamespace",
            "dfinit.yaml:6: containerRuntime.containerd.registries[0].serverAddr",
            "dfinit.yaml:7: containerRuntime.containerd.registries[1].hostNamespace: missing",
            "expected one of proxies, mirror",
        ] {
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}

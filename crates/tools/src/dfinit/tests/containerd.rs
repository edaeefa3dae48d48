//! What real configurations become: those of Debian, of `containerd config default` by version, of clouds, of k3s.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::dfinit::config::{HostNamespace, RuntimeConfig};
use crate::dfinit::detect::Kind;

const PROXY: &str = "http://127.0.0.1:4001";

fn runtime(path: &Path, version: &str) -> Runtime {
    Runtime {
        kind: Kind::Containerd,
        shipped_by: None,
        version: Version::find(version),
        config: path.to_owned(),
        socket: "/run/containerd/containerd.sock".into(),
        units: &["containerd.service"],
        started_file: "/run/containerd/containerd.sock".into(),
        running: false,
    }
}

fn settings() -> ContainerdConfig {
    match RuntimeConfig::usual(Kind::Containerd) {
        RuntimeConfig::Containerd(settings) => settings,
        other => panic!("{other:?}"),
    }
}

/// `config.toml` after a run, and the notes.
fn edited(
    text: &str,
    version: &str,
    settings: &ContainerdConfig,
) -> Result<(String, PathBuf, Vec<String>), Unclear> {
    let runtime = runtime(Path::new("/etc/containerd/config.toml"), version);
    let edited = ConfigToml::parse(text, &runtime, settings)?.edit(PROXY)?;
    Ok((edited.text, edited.folder, edited.notes))
}

/// Checks the lines that a run takes away and adds, and that a second run changes nothing.
fn check(text: &str, version: &str, difference: &str) {
    let (after, _, _) = edited(text, version, &settings()).unwrap();
    let diff = similar::TextDiff::from_lines(text, &after);
    let told: String = diff
        .iter_all_changes()
        .filter(|change| change.tag() != similar::ChangeTag::Equal)
        .map(|change| format!("{}{}", change.tag(), change))
        .collect();
    assert_eq!(told, difference, "{version}\n{after}");
    let (again, _, _) = edited(&after, version, &settings()).unwrap();
    assert_eq!(again, after, "{version}: the second run changes something");
}

fn refused(text: &str, version: &str) -> String {
    let unclear = edited(text, version, &settings()).unwrap_err();
    unclear.at(Path::new("/c.toml")).to_string()
}

#[test]
fn a_file_that_is_not_there_is_made_for_the_version() {
    let table = "\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    let (text, folder, _) = edited("", "1.7.2", &settings()).unwrap();
    assert_eq!(text, format!("version = 2\n{table}"));
    assert_eq!(folder, Path::new("/etc/containerd/certs.d"));
    let (text, _, _) = edited("", "2.0.1", &settings()).unwrap();
    assert_eq!(
        text,
        format!(
            "version = 3\n{}",
            table.replace("grpc.v1.cri", "cri.v1.images")
        )
    );
}

#[test]
fn debian_keeps_its_style() {
    check(
        include_str!("golden/containerd-debian.toml"),
        "1.6.20",
        "+\n+    [plugins.\"io.containerd.grpc.v1.cri\".registry]\n+      config_path = \"/etc/containerd/certs.d\"\n",
    );
}

#[test]
fn the_default_of_1_6_gets_its_empty_value_filled() {
    check(
        include_str!("golden/containerd-1.6-default.toml"),
        "1.6.20",
        "-      config_path = \"\"\n+      config_path = \"/etc/containerd/certs.d\"\n",
    );
}

#[test]
fn the_default_of_2_0_gets_its_empty_value_filled_beside_its_comment() {
    check(
        include_str!("golden/containerd-2.0-default.toml"),
        "2.0.0",
        "-      config_path = '' # none yet\n+      config_path = \"/etc/containerd/certs.d\" # none yet\n",
    );
}

#[test]
fn the_default_of_2_4_whose_server_is_a_plugin() {
    check(
        include_str!("golden/containerd-2.4-default.toml"),
        "2.4.2",
        "-      config_path = ''\n+      config_path = \"/etc/containerd/certs.d\"\n",
    );
}

#[test]
fn several_folders_and_the_transfer_service() {
    let eks = include_str!("golden/containerd-2.1-eks.toml");
    let set = "+use_local_image_pull = true\n";
    check(eks, "2.1.4", set);
    check(eks, "2.2.0", set);
    // The program does not tell its version, but the file is of version 3.
    check(eks, "", set);
    check(eks, "2.0.4", "");
    let (_, folder, notes) = edited(eks, "2.1.4", &settings()).unwrap();
    assert_eq!(folder, Path::new("/etc/containerd/certs.d"));
    assert!(notes[0].contains("use_local_image_pull"), "{notes:?}");
    // One folder is no list, and who says no means no.
    let one = eks.replace(":/etc/docker/certs.d", "");
    check(&one, "2.1.4", "");
    let never = ContainerdConfig {
        use_local_image_pull: Some(false),
        ..settings()
    };
    assert_eq!(edited(eks, "2.1.4", &never).unwrap().0, eks);
}

#[test]
fn several_folders_in_the_former_format_are_told_of() {
    let text =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n";
    let (after, folder, notes) = edited(text, "2.1.0", &settings()).unwrap();
    assert_eq!((after.as_str(), folder.as_path()), (text, Path::new("/a")));
    assert!(notes[0].contains("containerd config migrate"), "{notes:?}");
    assert_eq!(edited(text, "1.7.0", &settings()).unwrap().2, [""; 0]);
}

#[test]
fn the_table_follows_the_format_not_what_is_left_of_the_former_plugin() {
    let text = "version = 3\n\n[plugins.'io.containerd.grpc.v1.cri']\nstream_server_port = '0'\n";
    let (after, _, _) = edited(text, "2.0.0", &settings()).unwrap();
    assert!(
        after.contains("[plugins.\"io.containerd.cri.v1.images\".registry]"),
        "{after}"
    );
    let named = ContainerdConfig {
        cri_plugin_id: Some("other.cri".into()),
        ..settings()
    };
    let (after, _, _) = edited(text, "2.0.0", &named).unwrap();
    assert!(
        after.contains("[plugins.\"other.cri\".registry]"),
        "{after}"
    );
}

#[test]
fn what_was_there_stays() {
    let text = "version = 2 # of the format\n\n# about the registry\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r.example.com\".auth]\n\
                username = \"u\" # who\n[plugins.\"io.containerd.grpc.v1.cri\".registry.headers]\nX = [\"1\"]\n";
    check(
        text,
        "1.6.0",
        "+[plugins.\"io.containerd.grpc.v1.cri\".registry]\n+config_path = \"/etc/containerd/certs.d\"\n+\n",
    );
}

#[test]
fn what_containerd_refuses_beside_config_path_is_refused_with_words() {
    let mirrors = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n";
    let told = refused(mirrors, "1.6.0");
    for word in [
        "registry.mirrors for docker.io",
        "nothing was changed",
        "/etc/containerd/certs.d/NAME/hosts.toml",
    ] {
        assert!(told.contains(word), "{told}");
    }
    let tls = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r\".tls]\nca_file = \"/x\"\n";
    let told = refused(tls, "1.6.0");
    assert!(
        told.contains("configs.\"r\".tls") && told.contains("certs.d/r/hosts.toml"),
        "{told}"
    );
}

#[test]
fn formats_that_are_not_known_are_refused_with_words() {
    for text in [
        "[plugins.cri.registry]\n",
        "version = 1\n",
        "version = \"2\"\n",
    ] {
        let told = refused(text, "1.6.0");
        assert!(told.contains("containerd config migrate"), "{text}: {told}");
    }
    assert!(refused("version = 5\n", "3.0.0").contains("4 is the newest that is known"));
    assert!(refused("version = \n", "1.6.0").contains("not valid TOML"));
    let inline = "version = 2\nplugins = {\"io.containerd.grpc.v1.cri\" = {}}\n";
    assert!(refused(inline, "1.6.0").contains("as a [table]"));
}

#[test]
fn a_disabled_cri_is_left_alone() {
    let text = "version = 2\ndisabled_plugins = [\"cri\"]\n";
    let (after, _, notes) = edited(text, "1.6.0", &settings()).unwrap();
    assert_eq!(after, text);
    assert!(notes[0].contains("disabled"), "{notes:?}");
}

#[test]
fn what_k3s_generates_is_not_edited_but_its_folder_is_used() {
    let folder = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d";
    let text = format!(
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{folder}\"\n"
    );
    let k3s = Runtime {
        shipped_by: Some("k3s"),
        ..runtime(Path::new("/k3s/config.toml"), "1.7.0")
    };
    let settings = settings();
    let edited = ConfigToml::parse(&text, &k3s, &settings)
        .unwrap()
        .edit(PROXY)
        .unwrap();
    assert_eq!((edited.text, edited.folder), (text, folder.into()));
    let told = ConfigToml::parse("version = 2\n", &k3s, &settings)
        .unwrap()
        .edit(PROXY)
        .err()
        .unwrap();
    assert!(
        told.advice.contains("/etc/rancher/k3s/registries.yaml"),
        "{told:?}"
    );
}

/// A host's file system in a temporary folder.
fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

fn planned(root: &Path, settings: &ContainerdConfig) -> Result<Plan, Refusal> {
    let runtime = runtime(&root.join("etc/containerd/config.toml"), "1.6.20");
    super::plan(&HostRoot::new(root), &runtime, settings, PROXY)
}

#[test]
fn one_hosts_toml_per_registry_and_one_for_the_rest() {
    let root = host(&[(
        "etc/containerd/config.toml",
        include_str!("golden/containerd-debian.toml"),
    )]);
    let settings = ContainerdConfig {
        registries: vec![HostNamespace {
            name: "ghcr.io".into(),
            server: "https://ghcr.io".into(),
            capabilities: vec!["pull".into()],
            skip_verify: None,
            ca: None,
        }],
        ..settings()
    };
    let plan = planned(root.path(), &settings).unwrap();
    let written: Vec<_> = plan
        .edits
        .iter()
        .map(|edit| {
            edit.path
                .strip_prefix(root.path())
                .unwrap()
                .to_str()
                .unwrap()
        })
        .collect();
    assert_eq!(
        written,
        [
            "etc/containerd/certs.d/ghcr.io/hosts.toml",
            "etc/containerd/certs.d/_default/hosts.toml",
            "etc/containerd/config.toml"
        ]
    );
    assert!(plan.needs_restart());
    let listed_only = ContainerdConfig {
        proxy_all_registries: false,
        ..settings
    };
    assert_eq!(planned(root.path(), &listed_only).unwrap().edits.len(), 2);
}

#[test]
fn the_folder_of_an_imported_file_is_in_effect() {
    let registry = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
    let root = host(&[
        (
            "etc/containerd/config.toml",
            "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\", \"absent.toml\"]\n",
        ),
        (
            "etc/containerd/conf.d/a.toml",
            &format!("{registry}config_path = \"/etc/elsewhere\"\n"),
        ),
        ("etc/containerd/conf.d/other.txt", "not toml ="),
    ]);
    let plan = planned(root.path(), &settings()).unwrap();
    assert!(
        plan.edits[0]
            .path
            .ends_with("etc/elsewhere/_default/hosts.toml"),
        "{plan:?}"
    );
    assert!(!plan.needs_restart());
    let mirrors = format!(
        "{registry}[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.x]\nendpoint = []\n"
    );
    std::fs::write(root.path().join("etc/containerd/conf.d/b.toml"), mirrors).unwrap();
    let told = planned(root.path(), &settings()).unwrap_err().to_string();
    assert!(
        told.contains("conf.d/b.toml") && told.contains("registry.mirrors"),
        "{told}"
    );
}

#[test]
fn without_file_and_program_there_is_nothing_to_set_up() {
    let root = host(&[]);
    let absent = Runtime {
        version: None,
        ..runtime(&root.path().join("config.toml"), "")
    };
    let told = super::plan(&HostRoot::new(root.path()), &absent, &settings(), PROXY)
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("no containerd was found") && told.contains("configPath"),
        "{told}"
    );
}

#[test]
fn the_ends_of_lines_stay() {
    let config = "version = 2 # ours\r\n# a comment\r\nroot = \"/r\"\r\n";
    let hosts = "server = \"https://ghcr.io\" # upstream\r\n\r\n# theirs\r\n[host.\"https://cache\"]\r\ncapabilities = [\"pull\"]\r\n";
    let root = host(&[
        ("etc/containerd/config.toml", config),
        ("etc/containerd/certs.d/_default/hosts.toml", hosts),
    ]);
    let plan = planned(root.path(), &settings()).unwrap();
    for edit in &plan.edits {
        let plain = edit.after.replace("\r\n", "");
        assert!(!plain.contains(['\r', '\n']), "{:?}", edit.after);
        assert!(edit.changes());
    }
    let written = plan.edits[1].after.clone();
    std::fs::write(root.path().join("etc/containerd/config.toml"), &written).unwrap();
    std::fs::write(
        root.path()
            .join("etc/containerd/certs.d/_default/hosts.toml"),
        &plan.edits[0].after,
    )
    .unwrap();
    let again = planned(root.path(), &settings()).unwrap();
    assert!(!again.edits.iter().any(Edit::changes), "{again:?}");
}

/// Texts like configurations: pieces of real ones in any order, valid or not.
fn any_config() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("version = 2\n"),
        Just("version = 3\n"),
        Just("version = 4\n"),
        Just("# a comment\n"),
        Just("\n"),
        Just("root = \"/r\" # r\n"),
        Just("[plugins]\n"),
        Just("  [plugins.\"io.containerd.grpc.v1.cri\"]\n    a = 1\n"),
        Just("[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n"),
        Just("[plugins.\"io.containerd.grpc.v1.cri\".registry]\n"),
        Just("[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"/a:/b\"\n"),
        Just("config_path = \"\" # empty\n"),
        Just("[plugins.\"io.containerd.grpc.v1.cri\".registry.headers]\nx = [\"y\"]\n"),
        Just("plugins.x.y = 1\n"),
        Just("[[array]]\nk = 1\n"),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn twice_is_once_and_nothing_is_lost(text in any_config(), version in prop_oneof![Just("1.6.0"), Just("2.0.0"), Just("2.1.0"), Just("")]) {
        let Ok((once, folder, _)) = edited(&text, version, &settings()) else { return Ok(()) };
        let (twice, again, _) = edited(&once, version, &settings()).unwrap();
        prop_assert_eq!(&twice, &once);
        prop_assert_eq!(again, folder);
        for line in text.lines().filter(|line| !line.contains("config_path")) {
            prop_assert!(once.contains(line), "lost {:?} of\n{}\nin\n{}", line, text, once);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".*", version in "[0-9.]*") {
        let _ = edited(&text, &version, &settings());
    }
}

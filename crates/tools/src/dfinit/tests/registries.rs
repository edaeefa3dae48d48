use proptest::prelude::*;

use super::*;
use crate::dfinit::config::RuntimeConfig;
use crate::dfinit::detect::Kind;

const MIRROR: &str = "127.0.0.1:4001";

fn settings(registries: &[(&str, &str)]) -> RegistriesConfig {
    let RuntimeConfig::Podman(usual) = RuntimeConfig::usual(Kind::Podman) else {
        panic!("podman has another configuration")
    };
    RegistriesConfig {
        registries: registries
            .iter()
            .map(|(prefix, location)| MirroredRegistry {
                prefix: (*prefix).into(),
                location: (*location).into(),
            })
            .collect(),
        ..usual
    }
}

fn edited(before: Option<&str>, settings: &RegistriesConfig) -> String {
    let after = edit(before, settings, MIRROR).unwrap();
    assert_eq!(
        edit(Some(&after), settings, MIRROR).unwrap(),
        after,
        "the second run changes something"
    );
    after
}

const HUB: &str = r#"
[[registry]]
prefix = "docker.io"
location = "docker.io"

[[registry.mirror]]
insecure = true
location = "127.0.0.1:4001"
"#;

#[test]
fn a_new_file_is_that_of_v2() {
    let search = "unqualified-search-registries = [\"registry.fedoraproject.org\", \"registry.access.redhat.com\", \"docker.io\"]\n";
    let hub = settings(&[("docker.io", "docker.io")]);
    assert_eq!(edited(None, &hub), format!("{search}{HUB}"));
    assert_eq!(edited(Some(""), &hub), format!("{search}{HUB}"));
}

#[test]
fn what_was_there_stays() {
    let before = "# ours\nunqualified-search-registries = [\"quay.io\"]\nshort-name-mode = \"enforcing\"\n\n[[registry]]\nlocation = \"quay.io\" # ok\nblocked = false\n";
    assert_eq!(
        edited(Some(before), &settings(&[("", "docker.io")])),
        format!("{before}{HUB}")
    );
    let named = RegistriesConfig {
        unqualified_search_registries: Some(vec!["docker.io".into()]),
        ..settings(&[])
    };
    assert_eq!(
        edited(Some(before), &named),
        before.replace("[\"quay.io\"]", "[\"docker.io\"]")
    );
}

#[test]
fn other_mirrors_of_the_same_registry_stay_behind_ours() {
    let before = "[[registry]]\nlocation = \"docker.io\"\n# nearby\n[[registry.mirror]]\nlocation = \"cache\"\n\n[[registry]]\nlocation = \"quay.io\"\n";
    let after = edited(Some(before), &settings(&[("", "docker.io")]));
    let expected = "[[registry]]\nlocation = \"docker.io\"\n\n[[registry.mirror]]\ninsecure = true\nlocation = \"127.0.0.1:4001\"\n# nearby\n[[registry.mirror]]\nlocation = \"cache\"\n\n[[registry]]\nlocation = \"quay.io\"\n";
    assert_eq!(after, expected);
}

#[test]
fn of_several_registries_only_digests_are_asked() {
    let after = edited(
        None,
        &settings(&[("docker.io", "docker.io"), ("quay.io", "quay.io")]),
    );
    assert_eq!(
        after.matches("pull-from-mirror = \"digest-only\"").count(),
        2,
        "{after}"
    );
    let one = edited(Some(&after), &settings(&[("docker.io", "docker.io")]));
    assert_eq!(one.matches("pull-from-mirror").count(), 1, "{one}");
}

#[test]
fn the_first_version_of_the_format_is_refused() {
    let told = edit(
        Some("[registries.search]\nregistries = ['docker.io']\n"),
        &settings(&[]),
        MIRROR,
    )
    .unwrap_err();
    assert!(told.reason.contains("first version"), "{told:?}");
    for text in ["registry = 1\n", "registry = []\n", "= 1"] {
        assert!(
            edit(Some(text), &settings(&[("", "a")]), MIRROR).is_err(),
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn twice_is_once(pieces in proptest::collection::vec(prop_oneof![
        Just("# comment\n"), Just("short-name-mode = \"x\"\n"), Just("[[registry]]\nlocation = \"docker.io\"\n"),
        Just("[[registry]]\nprefix = \"quay.io\"\nlocation = \"q\" # q\n"), Just("[[registry.mirror]]\nlocation = \"m\"\n"),
        Just("[[registry.mirror]]\nlocation = \"127.0.0.1:4001\"\n"), Just("[aliases]\na = \"b\"\n"),
    ], 0..8), several in any::<bool>()) {
        let text = pieces.concat();
        let hub = settings(&[("docker.io", "docker.io")]);
        let both = settings(&[("docker.io", "docker.io"), ("quay.io", "quay.io")]);
        let settings = if several { both } else { hub };
        let Ok(once) = edit(Some(&text), &settings, MIRROR) else { return Ok(()) };
        prop_assert_eq!(edit(Some(&once), &settings, MIRROR).unwrap(), once.clone());
        for line in text.lines().filter(|line| !line.contains(MIRROR)) {
            prop_assert!(once.contains(line), "lost {:?} of\n{}\nin\n{}", line, text, once);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".*") {
        let _ = edit(Some(&text), &settings(&[("", "a")]), MIRROR);
    }
}

use proptest::prelude::*;

use super::*;

const PROXY: &str = "http://127.0.0.1:4001";

fn ghcr() -> HostNamespace {
    HostNamespace {
        name: "ghcr.io".into(),
        server: "https://ghcr.io".into(),
        capabilities: vec!["pull".into(), "resolve".into()],
        skip_verify: None,
        ca: None,
    }
}

fn edited(before: Option<&str>, registry: &HostNamespace) -> String {
    let mirror = Mirror::Of(registry);
    let after = edit(before, &mirror, PROXY).unwrap();
    assert_eq!(
        edit(Some(&after), &mirror, PROXY).unwrap(),
        after,
        "the second run changes something"
    );
    after
}

const GHCR: &str = r#"server = "https://ghcr.io"

# Written by dfinit: the Dragonfly daemon of this host is asked first.
[host."http://127.0.0.1:4001"]
capabilities = ["pull", "resolve"]

[host."http://127.0.0.1:4001".header]
X-Dragonfly-Registry = "https://ghcr.io"
"#;

#[test]
fn a_new_file_is_that_of_v2() {
    assert_eq!(edited(None, &ghcr()), GHCR);
    let rest = edit(None, &Mirror::Rest, PROXY).unwrap();
    assert_eq!(
        rest,
        "# Written by dfinit: the Dragonfly daemon of this host is asked first.\n\
         [host.\"http://127.0.0.1:4001\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    assert_eq!(edit(Some(&rest), &Mirror::Rest, PROXY).unwrap(), rest);
}

#[test]
fn trust_is_written_for_the_mirror_and_for_the_registry() {
    let own_ca = HostNamespace {
        skip_verify: Some(false),
        ca: Some(vec!["/ca.pem".into()]),
        ..ghcr()
    };
    let expected = GHCR
        .replace(
            "ghcr.io\"\n\n#",
            "ghcr.io\"\nskip_verify = false\nca = [\"/ca.pem\"]\n\n#",
        )
        .replace(
            "resolve\"]\n",
            "resolve\"]\nskip_verify = false\nca = [\"/ca.pem\"]\n",
        );
    assert_eq!(edited(None, &own_ca), expected);
}

#[test]
fn what_v2_wrote_is_taken_over() {
    let v2 = GHCR.replace(
        "# Written by dfinit: the Dragonfly daemon of this host is asked first.\n",
        "",
    );
    assert_eq!(edited(Some(&v2), &ghcr()), v2);
    assert_eq!(edited(Some(&v2.replace("ghcr", "quay")), &ghcr()), GHCR);
}

#[test]
fn other_hosts_stay_behind_ours() {
    let before = "# my registry\nserver = \"https://ghcr.io\" # upstream\n\n# the company's cache\n[host.\"https://cache\"]\n  capabilities = [\"pull\"]\n";
    let expected = format!(
        "# my registry\nserver = \"https://ghcr.io\" # upstream\n\n{}\n# the company's cache\n[host.\"https://cache\"]\n  capabilities = [\"pull\"]\n",
        GHCR.split_once("\n\n").unwrap().1
    );
    assert_eq!(edited(Some(before), &ghcr()), expected);
}

#[test]
fn ours_comes_first_again_when_somebody_moved_it() {
    let ours = GHCR.split_once("\n\n").unwrap().1;
    let before = format!("server = \"https://ghcr.io\"\n\n[host.\"https://cache\"]\n\n{ours}");
    let after = edited(Some(&before), &ghcr());
    assert_eq!(
        after,
        format!("server = \"https://ghcr.io\"\n\n{ours}\n[host.\"https://cache\"]\n")
    );
}

#[test]
fn what_somebody_added_to_ours_stays() {
    let ours = "# Written by dfinit: the Dragonfly daemon of this host is asked first.\n\
                [host.\"http://127.0.0.1:4001\"]\ncapabilities = [\"pull\"] # ask me\n\
                skip_verify = true # mine\n\n\
                # for the audit\n[host.\"http://127.0.0.1:4001\".header]\n\
                X-Audit = \"yes\" # theirs\nX-Dragonfly-Registry = \"https://old\" # which\n";
    let expected = ours
        .replace("[\"pull\"]", "[\"pull\", \"resolve\"]")
        .replace("https://old", "https://ghcr.io");
    let server = "server = \"https://ghcr.io\" # up\n\n";
    // In its place.
    assert_eq!(
        edited(Some(&format!("{server}{ours}")), &ghcr()),
        format!("{server}{expected}")
    );
    // Brought to the front.
    let cache = "[host.\"https://cache\"]\n";
    assert_eq!(
        edited(Some(&format!("{server}{cache}\n{ours}")), &ghcr()),
        format!("{server}{expected}\n{cache}")
    );
    // Under a new address.
    let moved = ours.replace("127.0.0.1", "10.9.8.7");
    assert_eq!(
        edited(Some(&format!("{server}{moved}")), &ghcr()),
        format!("{server}{expected}")
    );
    // Beside another one.
    let both = format!("{server}{moved}\n[host.\"{PROXY}\"]\nskip_verify = false\n");
    let after = edited(Some(&both), &ghcr());
    for line in ["skip_verify = false", "X-Audit = \"yes\" # theirs"] {
        assert!(after.contains(line), "{after}");
    }
    // Of another registry than the one that is meant.
    let rest = edit(Some(ours), &Mirror::Rest, PROXY).unwrap();
    assert!(!rest.contains("X-Dragonfly-Registry"), "{rest}");
    assert!(rest.contains("X-Audit = \"yes\" # theirs"), "{rest}");
}

#[test]
fn comments_behind_what_is_set_stay() {
    let before = "server = \"https://mirror\" # up\nskip_verify = true # ours\n";
    let registry = HostNamespace {
        skip_verify: Some(false),
        ..ghcr()
    };
    let after = edited(Some(before), &registry);
    let begin = "server = \"https://ghcr.io\" # up\nskip_verify = false # ours\n";
    assert!(after.starts_with(begin), "{after}");
}

#[test]
fn the_host_of_somebody_else_keeps_its_comment_when_it_becomes_ours() {
    let before = "  # the daemon\n  [host.\"http://127.0.0.1:4001\"]\n    skip_verify = true\n";
    let after = edit(Some(before), &Mirror::Rest, PROXY).unwrap();
    let expected = "  # the daemon\n  # Written by dfinit: the Dragonfly daemon of this host is asked first.\n  \
                    [host.\"http://127.0.0.1:4001\"]\n    skip_verify = true\ncapabilities = [\"pull\", \"resolve\"]\n";
    assert_eq!(after, expected);
}

#[test]
fn a_new_address_of_the_proxy_replaces_the_former() {
    let after = edit(Some(GHCR), &Mirror::Of(&ghcr()), "http://10.0.0.1:4001").unwrap();
    assert_eq!(after, GHCR.replace("127.0.0.1", "10.0.0.1"));
}

#[test]
fn forms_whose_order_cannot_be_told_are_refused() {
    for text in [
        "host.\"http://x\".capabilities = [\"pull\"]\n",
        "host = {x = {}}\n",
        "host = 1\n",
        "[host]\nx = {}\n",
        "= 1",
    ] {
        assert!(edit(Some(text), &Mirror::Rest, PROXY).is_err(), "{text}");
    }
}

fn any_hosts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("server = \"https://a\" # up\n"),
        Just("ca = \"/x\"\n"),
        Just("# a comment\n"),
        Just("\n"),
        Just("[host.\"https://b\"]\n"),
        Just("  [host.\"https://c\"]\n  capabilities = [\"pull\"]\n"),
        Just("[host]\n"),
        Just("[host.\"https://b\".header]\nx = \"y\"\n"),
        Just("[host.\"http://127.0.0.1:4001\"]\ncapabilities = [\"push\"]\n"),
    ];
    proptest::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn twice_is_once_and_ours_is_first(text in any_hosts(), rest in any::<bool>()) {
        let registry = ghcr();
        let mirror = if rest { Mirror::Rest } else { Mirror::Of(&registry) };
        let Ok(once) = edit(Some(&text), &mirror, PROXY) else { return Ok(()) };
        prop_assert_eq!(edit(Some(&once), &mirror, PROXY).unwrap(), once.clone());
        let document: DocumentMut = once.parse().unwrap();
        let order = hosts(&document);
        prop_assert_eq!(order.first().map(String::as_str), Some(PROXY), "{}", once);
        for host in ["https://b", "https://c"] {
            prop_assert_eq!(order.iter().any(|name| name == host), text.contains(host), "{}", once);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in ".*") {
        let _ = edit(Some(&text), &Mirror::Rest, PROXY);
    }
}

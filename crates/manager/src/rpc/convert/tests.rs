//! What the edge lets in, field by field, and what it writes out.

use serde_json::json;
use tonic::Code;

use super::*;

/// A field with one value in place must be let in or refused by its name.
fn check<T: Checked>(message: T, wrong_field: Option<&str>) {
    match (message.checked(), wrong_field) {
        (Ok(_), None) => {}
        (Err(status), Some(field)) => {
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(
                status.message().starts_with(field),
                "{status:?}, expected {field}"
            );
        }
        (Ok(_), Some(field)) => panic!("a wrong {field} was let in"),
        (Err(status), None) => panic!("refused: {status:?}"),
    }
}

fn asked() -> wire::ListSchedulersRequest {
    wire::ListSchedulersRequest {
        source_type: 1,
        hostname: "node-3".to_owned(),
        ip: "10.0.0.9".to_owned(),
        ..Default::default()
    }
}

fn told() -> wire::UpdateSchedulerRequest {
    wire::UpdateSchedulerRequest {
        hostname: "s".to_owned(),
        scheduler_cluster_id: 1,
        ip: "::1".to_owned(),
        port: 8002,
        ..Default::default()
    }
}

#[test]
fn hostnames_follow_rfc_1123() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    for good in [
        "a",
        "node-3",
        "Node.Example.com",
        "trailing.dot.",
        "1",
        &longest,
    ] {
        check(
            wire::ListSchedulersRequest {
                hostname: good.to_owned(),
                ..asked()
            },
            None,
        );
    }
    let too_long = format!("{longest}a");
    let bad = [
        "",
        ".",
        "-a",
        "a-",
        "a_b",
        "a..b",
        "ü",
        "a b",
        &"a".repeat(64),
        &too_long,
        "a\0",
    ];
    for bad in bad {
        check(
            wire::ListSchedulersRequest {
                hostname: bad.to_owned(),
                ..asked()
            },
            Some("hostname"),
        );
    }
}

#[test]
fn addresses_ports_and_ids_are_checked() {
    for bad in ["", "10.0.0", "node", "10.0.0.1:80", "[::1]"] {
        check(
            wire::ListSchedulersRequest {
                ip: bad.to_owned(),
                ..asked()
            },
            Some("ip"),
        );
    }
    check(
        wire::GetSchedulerRequest {
            hostname: "s".to_owned(),
            scheduler_cluster_id: 1,
            ..Default::default()
        },
        None,
    );
    check(
        wire::GetSchedulerRequest {
            hostname: "s".to_owned(),
            ip: "x".to_owned(),
            scheduler_cluster_id: 1,
            source_type: 0,
        },
        Some("ip"),
    );
    for (port, good) in [
        (1023, false),
        (1024, true),
        (65534, true),
        (65535, false),
        (-1, false),
        (70000, false),
    ] {
        check(
            wire::UpdateSchedulerRequest { port, ..told() },
            (!good).then_some("port"),
        );
    }
    for (id, good) in [(0, false), (1, true), (u64::MAX, false)] {
        check(
            wire::UpdateSchedulerRequest {
                scheduler_cluster_id: id,
                ..told()
            },
            (!good).then_some("scheduler_cluster_id"),
        );
    }
    check(
        wire::ListSchedulersRequest {
            scheduler_cluster_id: 0,
            ..asked()
        },
        None,
    );
    for source_type in [-1, 3] {
        check(
            wire::ListSchedulersRequest {
                source_type,
                ..asked()
            },
            Some("source_type"),
        );
    }
}

#[test]
fn texts_are_bounded_in_characters() {
    check(
        wire::ListSchedulersRequest {
            idc: Some("ü".repeat(1024)),
            ..asked()
        },
        None,
    );
    check(
        wire::ListSchedulersRequest {
            idc: Some("x".repeat(1025)),
            ..asked()
        },
        Some("idc"),
    );
    check(
        wire::ListSchedulersRequest {
            version: "x".repeat(1025),
            ..asked()
        },
        Some("version"),
    );
    check(
        wire::UpdateSchedulerRequest {
            location: Some("a\0".to_owned()),
            ..told()
        },
        Some("location"),
    );
    check(
        wire::UpdateSchedulerRequest {
            features: vec![String::new(); 17],
            ..told()
        },
        Some("features"),
    );
    check(
        wire::UpdateSchedulerRequest {
            config: vec![b' '; 65 * 1024],
            ..told()
        },
        Some("config"),
    );
}

#[test]
fn seed_peers_are_super() {
    let told = wire::UpdateSeedPeerRequest {
        hostname: "seed".to_owned(),
        r#type: "super".to_owned(),
        ip: "10.0.0.1".to_owned(),
        port: 4000,
        download_port: 4001,
        seed_peer_cluster_id: 1,
        ..Default::default()
    };
    check(told.clone(), None);
    check(
        wire::UpdateSeedPeerRequest {
            r#type: "strong".to_owned(),
            ..told.clone()
        },
        Some("type"),
    );
    check(
        wire::UpdateSeedPeerRequest {
            download_port: 80,
            ..told.clone()
        },
        Some("download_port"),
    );
    check(
        wire::UpdateSeedPeerRequest {
            seed_peer_cluster_id: 0,
            ..told
        },
        Some("seed_peer_cluster_id"),
    );
}

#[test]
fn a_scheduler_that_names_no_feature_has_both() {
    assert_eq!(told().checked().unwrap().features, ["schedule", "preheat"]);
    let one = wire::UpdateSchedulerRequest {
        features: vec!["schedule".to_owned()],
        ..told()
    };
    assert_eq!(one.checked().unwrap().features, ["schedule"]);
}

#[test]
fn a_configuration_is_an_object_or_nothing() {
    assert_eq!(told().checked().unwrap().config, None);
    let config = |text: &str| {
        wire::UpdateSchedulerRequest {
            config: text.into(),
            ..told()
        }
        .checked()
    };
    assert_eq!(config("null").unwrap().config, None);
    assert_eq!(config(r#"{"a":1}"#).unwrap().config.unwrap()["a"], json!(1));
    for bad in ["{", "[]", "7", "\u{fe}"] {
        assert_eq!(config(bad).unwrap_err().code(), Code::Internal, "{bad}");
    }
}

#[test]
fn null_urls_become_an_empty_list_in_every_rule_of_a_block_list() {
    let config: JsonMap = serde_json::from_value(json!({
        "z": {"urls": null},
        "block_list": {
            "task": {"download": {"urls": null, "tags": null}},
            "persistent_task": {"download": {"urls": ["a"]}, "upload": {"urls": null}},
            "persistent_cache_task": null
        }
    }))
    .unwrap();
    let text = String::from_utf8(json(&readable(&config))).unwrap();
    let expected = concat!(
        r#"{"block_list":{"persistent_cache_task":null,"#,
        r#""persistent_task":{"download":{"urls":["a"]},"upload":{"urls":[]}},"#,
        r#""task":{"download":{"tags":null,"urls":[]}}},"z":{"urls":null}}"#
    );
    assert_eq!(text, expected, "keys in alphabetical order, no spaces");
}

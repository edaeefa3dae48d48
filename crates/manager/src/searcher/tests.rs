//! The worked examples of Dragonfly v2 and the rules one by one.

use serde_json::json;

use super::*;

struct Cluster {
    name: &'static str,
    scopes: Scopes,
    is_default: bool,
}

fn scopes(value: serde_json::Value) -> Scopes {
    Scopes::from_json(&serde_json::from_value(value).unwrap())
}

fn cluster(name: &'static str, is_default: bool, value: serde_json::Value) -> Cluster {
    Cluster {
        name,
        scopes: scopes(value),
        is_default,
    }
}

const PLACE: Place<'_> = Place {
    ip: "128.168.1.0",
    hostname: "foo",
    idc: "idc-1",
    location: "location-1|location-2",
};

/// Ranks and compares names and scores, best first.
fn check(clusters: &[Cluster], expected: &[(&str, f64)]) {
    let ranked = rank(clusters, &PLACE, |cluster| {
        (&cluster.scopes, cluster.is_default)
    });
    let got: Vec<(&str, f64)> = ranked
        .iter()
        .map(|cluster| {
            (
                cluster.name,
                cluster.scopes.score(&PLACE, cluster.is_default),
            )
        })
        .collect();
    assert_eq!(got.len(), expected.len());
    for ((name, score), (expected_name, expected_score)) in got.iter().zip(expected) {
        assert_eq!(name, expected_name, "{got:?}");
        assert!(
            (score - expected_score).abs() < 1e-9,
            "{name}: {score}, expected {expected_score}"
        );
    }
}

#[test]
fn first_worked_example() {
    let clusters = [
        cluster(
            "foo",
            false,
            json!({"idc": "idc-3", "location": "location-1"}),
        ),
        cluster(
            "bar",
            false,
            json!({"idc": "idc-1", "location": "location-3"}),
        ),
        cluster(
            "baz",
            false,
            json!({"idc": "idc-1", "location": "location-1|location-2"}),
        ),
        cluster(
            "bac",
            false,
            json!({"idc": "idc-1", "location": "location-2"}),
        ),
        cluster(
            "bax",
            true,
            json!({"idc": "idc-3", "location": "location-3"}),
        ),
    ];
    check(
        &clusters,
        &[
            ("baz", 0.39),
            ("bar", 0.25),
            ("bac", 0.25),
            ("foo", 0.028),
            ("bax", 0.01),
        ],
    );
}

#[test]
fn second_worked_example() {
    let scopes = |location: &str, cidr: &str, hostnames: &[&str]| json!({"idc": "IDC-1", "location": location, "cidrs": [cidr], "hostnames": hostnames});
    let near = "128.168.1.0/24";
    let clusters = [
        cluster("foo", false, scopes("LOCATION-2", near, &[])),
        cluster("bar", false, scopes("LOCATION-1", near, &["c.*"])),
        cluster(
            "baz",
            false,
            scopes("LOCATION-1|LOCATION-2", near, &["f.*"]),
        ),
        cluster("bac", false, scopes("LOCATION-2", near, &[])),
        cluster("bax", true, scopes("LOCATION-2", near, &[])),
        cluster("bae", true, scopes("LOCATION-2", near, &[])),
        cluster("bat", true, scopes("LOCATION-2", "192.168.1.0/24", &[])),
    ];
    let expected = [
        ("baz", 0.99),
        ("bar", 0.578),
        ("bax", 0.56),
        ("bae", 0.56),
        ("foo", 0.55),
        ("bac", 0.55),
        ("bat", 0.26),
    ];
    check(&clusters, &expected);
}

#[test]
fn a_daemon_outside_every_scope_gets_the_default_cluster_first() {
    let clusters = [
        cluster(
            "east",
            false,
            json!({"idc": "east", "cidrs": ["10.0.0.0/8"]}),
        ),
        cluster("plain", false, json!({})),
        cluster("home", true, json!({})),
    ];
    check(&clusters, &[("home", 0.01), ("east", 0.0), ("plain", 0.0)]);
}

#[test]
fn prefixes_hold_addresses_of_their_family() {
    let holds = |prefix: &str, ip: &str| scopes(json!({"cidrs": [prefix]})).holds_ip(ip);
    assert!(
        holds("10.1.2.3/8", "10.255.0.1"),
        "bits behind the prefix do not matter"
    );
    assert!(!holds("10.0.0.0/8", "11.0.0.1"));
    assert!(holds("0.0.0.0/0", "8.8.8.8"));
    assert!(holds("10.0.0.7/32", "10.0.0.7") && !holds("10.0.0.7/32", "10.0.0.6"));
    assert!(
        holds("10.0.0.0/8", "::ffff:10.0.0.1"),
        "a mapped address is the IPv4 one"
    );
    assert!(holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "fe80::1"));
    assert!(holds("::/0", "::1") && !holds("::/0", "10.0.0.1"));
    for bad in [
        "10.0.0.0",
        "10.0.0.0/33",
        "::/129",
        "x/8",
        "/8",
        "10.0.0.0/-1",
    ] {
        assert!(!holds(bad, "10.0.0.1"), "{bad}");
    }
    assert!(!holds("0.0.0.0/0", "not an ip"));
}

#[test]
fn hostname_patterns_match_anywhere_and_mind_the_case() {
    let score = |patterns: serde_json::Value, hostname| {
        scopes(json!({"hostnames": patterns})).score(
            &Place {
                hostname,
                ip: "",
                idc: "",
                location: "",
            },
            false,
        )
    };
    assert_eq!(score(json!(["web"]), "my-web-1"), HOSTNAME_WEIGHT);
    assert_eq!(score(json!(["^web"]), "my-web-1"), 0.0);
    assert_eq!(score(json!(["WEB"]), "my-web-1"), 0.0);
    assert_eq!(
        score(json!(["(", "web"]), "my-web-1"),
        HOSTNAME_WEIGHT,
        "a bad pattern hides no good one"
    );
    assert_eq!(score(json!([7]), "7"), 0.0);
}

#[test]
fn only_the_clusters_idc_is_split() {
    assert!(fits_idc("b", "a|B"));
    assert!(fits_idc("a|b", "A|B"), "equal as a whole");
    assert!(!fits_idc("a|b", "a"));
    assert!(!fits_idc("", "") && !fits_idc("a", "") && !fits_idc("", "a"));
}

#[test]
fn locations_count_leading_elements_in_fifths() {
    assert_eq!(location_part("a|b|c", "A|B|x"), 0.4);
    assert_eq!(location_part("a|b", "a"), 0.2);
    assert_eq!(location_part("a|b", "x|b"), 0.0);
    assert_eq!(
        location_part("a|b|c|d|e|f", "a|b|c|d|e|g"),
        1.0,
        "five are compared at most"
    );
    assert_eq!(location_part("a", "A"), 1.0);
    assert_eq!(location_part("", "a"), 0.0);
}

#[test]
fn scopes_of_any_form_are_read() {
    let odd = scopes(
        json!({"idc": 5, "location": null, "cidrs": "10.0.0.0/8", "hostnames": {}, "extra": 1}),
    );
    assert_eq!(odd.score(&PLACE, false), 0.0);
}

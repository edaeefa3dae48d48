//! Every kind of mistake, with the line and the words that an operator would see.

use super::*;
use crate::secret::Secret;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A configuration with one key of each kind.
#[derive(Debug, PartialEq)]
struct Example {
    ip: Option<IpAddr>,
    port: u16,
    timeout: Duration,
    limit: ByteSize,
    count: u32,
    enable: bool,
    mode: u8,
    names: Vec<String>,
    headers: Vec<(String, String)>,
    password: Option<Secret>,
    rules: Vec<Option<PathBuf>>,
}

fn read(text: &str) -> Result<Loaded<Example>, ConfigError> {
    let document = Document::parse("c.yaml", text)?;
    let root = document.root();
    let server = root.section("server");
    let example = Example {
        ip: server.get("ip"),
        port: server.get_or("port", 4000),
        timeout: server.get_or("timeout", Duration::from_secs(30)),
        limit: root.get_or("bandwidthLimit", ByteSize::gb(50)),
        count: root.checked("count", 8, "a whole number from 1", |count| *count >= 1),
        enable: root.get_or("enable", false),
        mode: root.one_of("mode", 0, &[("async", 0), ("sync", 1)]),
        names: root.list("names").unwrap_or_default(),
        headers: root.map("headers").into_iter().collect(),
        password: root.get("password"),
        rules: root
            .sections("rules")
            .iter()
            .map(|rule| rule.required("path"))
            .collect(),
    };
    document.finish(example)
}

/// The lines of the error for `text`.
fn mistakes(text: &str) -> Vec<String> {
    match read(text).unwrap_err() {
        ConfigError::Mistakes(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    }
}

fn warnings(text: &str) -> Vec<String> {
    let warnings = read(text).unwrap().warnings;
    warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    for text in [
        "",
        "# only a comment\n",
        "---\n",
        "server:\ncount: ~\nenable: null\n",
    ] {
        let loaded = read(text).unwrap();
        assert_eq!(
            (loaded.value.port, loaded.value.count),
            (4000, 8),
            "{text:?}"
        );
        assert_eq!(loaded.warnings, [], "{text:?}");
    }
}

#[test]
fn every_kind_of_value_is_read() {
    let example = read(
        "server: {ip: 'fd00::1', PORT: 0x50, timeout: 1h30m}\nbandwidthLimit: 2MiB\ncount: 3\nenable: true\nmode: sync\n\
         names: [a, \"1\"]\nheaders:\n  X-A: b\n  X-N: 5\npassword: hunter2\nrules:\n- path: /a\n- path: /b\n",
    )
    .unwrap()
    .value;
    let expected = Example {
        ip: Some("fd00::1".parse().unwrap()),
        port: 80,
        timeout: Duration::from_secs(5400),
        limit: ByteSize::mib(2),
        count: 3,
        enable: true,
        mode: 1,
        names: vec!["a".into(), "1".into()],
        headers: vec![("X-A".into(), "b".into()), ("X-N".into(), "5".into())],
        password: Some(Secret::new("hunter2")),
        rules: vec![Some("/a".into()), Some("/b".into())],
    };
    assert_eq!(example, expected);
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_lines() {
    let text = "server:\n  port: 70000\n  ip: localhost\n  timeout: 30\nbandwidthLimit: lots\ncount: 0\nenable: yes\n\
                mode: fast\nnames: one\nheaders: [1]\nrules:\n- path: /a\n- {}\n- x\n";
    let expected = [
        "c.yaml:2: server.port: found \"70000\", expected a whole number from 0 to 65535",
        "c.yaml:3: server.ip: found \"localhost\", expected an IP address, such as 10.0.0.1 or fd00::1",
        "c.yaml:4: server.timeout: found \"30\", expected a duration with its unit, such as 500ms, 30s, 5m or 1h30m",
        "c.yaml:5: bandwidthLimit: found \"lots\", expected a size, such as 4MiB (binary), 50GB (decimal) or a number of bytes",
        "c.yaml:6: count: found \"0\", expected a whole number from 1",
        "c.yaml:7: enable: found \"yes\", expected true or false",
        "c.yaml:8: mode: found \"fast\", expected one of async, sync",
        "c.yaml:9: names: found \"one\", expected a list",
        "c.yaml:10: headers: found a list of 1, expected names with values",
        "c.yaml:13: rules[1].path: missing, expected a path",
        "c.yaml:14: rules[2]: found \"x\", expected a section of keys",
    ];
    assert_eq!(mistakes(text), expected);
    let whole = read(text).unwrap_err().to_string();
    assert!(
        whole.starts_with("11 mistakes in the configuration\n  c.yaml:2: "),
        "{whole}"
    );
}

#[test]
fn one_mistake_is_one_line() {
    let text = read("count: 0").unwrap_err().to_string();
    assert_eq!(
        text,
        "c.yaml:1: count: found \"0\", expected a whole number from 1"
    );
}

#[test]
fn a_section_where_a_value_should_be_and_the_reverse() {
    assert_eq!(
        mistakes("server: 5"),
        ["c.yaml:1: server: found \"5\", expected a section of keys"]
    );
    assert_eq!(
        mistakes("count:\n  a: 1"),
        ["c.yaml:1: count: found a section of keys, expected a whole number from 0 to 4294967295"]
    );
    assert_eq!(
        mistakes("just text"),
        ["c.yaml:1: the file: found \"just text\", expected keys with values, such as \"server:\""]
    );
}

#[test]
fn a_wrong_secret_is_not_shown() {
    let text = mistakes("password: [hunter2]");
    assert_eq!(text, ["c.yaml:1: password: found <secret>, expected text"]);
}

#[test]
fn credentials_in_a_wrong_value_are_not_shown_and_long_ones_are_cut() {
    assert_eq!(
        mistakes("mode: http://u:p@h"),
        ["c.yaml:1: mode: found \"http://<redacted>@h\", expected one of async, sync"]
    );
    let long = mistakes(&format!("mode: {}", "é".repeat(1000)));
    assert!(
        long[0].chars().count() < 160 && long[0].contains("é…"),
        "{long:?}"
    );
}

#[test]
fn unknown_keys_are_warnings_with_the_nearest_known_key() {
    let text = "server:\n  prot: 1\n  zzz: {deep: 1}\nConcurrency: 1\nenabel: true\nrules:\n- path: /a\n  pth: /b\n\
                headers: {anything: 1}\n";
    assert_eq!(
        warnings(text),
        [
            "c.yaml:2: server.prot: unknown key, it has no effect; did you mean port?",
            "c.yaml:3: server.zzz: unknown key, it has no effect",
            "c.yaml:4: Concurrency: unknown key, it has no effect",
            "c.yaml:5: enabel: unknown key, it has no effect; did you mean enable?",
            "c.yaml:8: rules[0].pth: unknown key, it has no effect; did you mean path?",
        ]
    );
}

#[test]
fn keys_of_v2_without_effect_are_not_warned_about() {
    let document = Document::parse("c.yaml", "old: {a: {b: 1}}\nother: 1\n").unwrap();
    document.root().accept_unused(&["old"]);
    let warnings = document.finish(()).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].key, "other");
}

#[test]
fn text_that_is_not_yaml_names_line_and_column() {
    for (text, place) in [
        ("server:\n  port: [1\n", "c.yaml:"),
        ("a: 1\n b: 2\n", "c.yaml:2:"),
        (
            "a: 1\na: 2\n",
            "c.yaml:2:1: not valid YAML: key \"a\" stands here again, first on line 1: remove one",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "c.yaml:2:1: not valid YAML: a second document begins here, one is expected",
        ),
        ("? [a]\n: 1\n", "c.yaml:1:"),
        ("a: *nobody\n", "c.yaml:1:"),
    ] {
        let error = read(text).unwrap_err();
        assert!(
            matches!(error, ConfigError::Syntax { .. }),
            "{text:?}: {error}"
        );
        assert!(error.to_string().starts_with(place), "{text:?}: {error}");
    }
}

#[test]
fn aliases_are_followed_and_bombs_are_refused() {
    let example = read("names: &n [a, b]\nheaders: {x: &v y, z: *v}\n")
        .unwrap()
        .value;
    assert_eq!(example.headers[1], ("z".into(), "y".into()));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let alias = format!("*a{}", level - 1);
        bomb += &format!(
            "a{level}: &a{level} [{}]\n",
            [alias.as_str(); 10].join(", ")
        );
    }
    assert!(matches!(read(&bomb), Err(ConfigError::Syntax { .. })));
    assert!(matches!(
        read(&"[".repeat(10_000)),
        Err(ConfigError::Syntax { .. })
    ));
}

#[test]
fn files_that_cannot_be_read_are_told_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.yaml");
    let error = Document::load(&missing).err().unwrap().to_string();
    assert!(
        error.contains("none.yaml") && error.contains("--config"),
        "{error}"
    );
    assert!(Document::load_if_present(&missing).is_ok());
    let large = directory.path().join("large.yaml");
    std::fs::write(&large, " ".repeat(1024 * 1024 + 1)).unwrap();
    assert!(matches!(
        Document::load(Path::new(&large)),
        Err(ConfigError::TooLarge { .. })
    ));
}

#[test]
fn durations_of_both_styles() {
    for (text, millis) in [
        ("500ms", Some(500)),
        ("30s", Some(30_000)),
        ("1h30m", Some(5_400_000)),
        ("1h 30m", Some(5_400_000)),
        ("1.5h", Some(5_400_000)),
        ("0.5s", Some(500)),
        ("15days", Some(15 * 86_400_000)),
        ("0", Some(0)),
        ("0s", Some(0)),
        ("30", None),
        ("-1s", None),
        ("s", None),
        ("1e400h", None),
        ("", None),
    ] {
        assert_eq!(
            parse_duration(text),
            millis.map(Duration::from_millis),
            "{text:?}"
        );
    }
}

#[test]
fn sizes_are_decimal_or_binary_as_written() {
    for (text, bytes) in [
        ("50GB", Some(50_000_000_000)),
        ("64MiB", Some(64 * 1024 * 1024)),
        ("4 KiB", Some(4096)),
        ("1.5MB", Some(1_500_000)),
        ("2097152", Some(2_097_152)),
        ("-1", None),
        ("4 parsecs", None),
    ] {
        assert_eq!(
            ByteSize::parse(text).map(|size| size.as_u64()),
            bytes,
            "{text:?}"
        );
    }
}

#[test]
fn socket_addresses_of_both_styles() {
    assert_eq!(
        SocketAddr::parse(":8080"),
        Some(SocketAddr::from(([0, 0, 0, 0], 8080)))
    );
    assert_eq!(
        SocketAddr::parse("[::1]:80").map(|address| address.port()),
        Some(80)
    );
    assert_eq!(SocketAddr::parse("host:80"), None);
}

use proptest::prelude::*;

use super::*;

const PROXY: &str = "http://127.0.0.1:4001";

fn edited(before: Option<&str>, mode: DockerMode) -> String {
    let after = edit(before, mode, PROXY, false).unwrap();
    assert_eq!(
        edit(Some(&after), mode, PROXY, false).unwrap(),
        after,
        "the second run changes something"
    );
    after
}

#[test]
fn a_new_file_has_the_proxies_of_v2() {
    let expected = "{\n  \"proxies\": {\n    \"http-proxy\": \"http://127.0.0.1:4001\",\n    \"https-proxy\": \"http://127.0.0.1:4001\"\n  }\n}\n";
    assert_eq!(edited(None, DockerMode::Proxies), expected);
    assert_eq!(edited(Some(" \n"), DockerMode::Proxies), expected);
}

#[test]
fn the_rest_stays_in_its_order_and_style() {
    let before = "{\n    \"log-driver\": \"journald\",\n    \"data-root\": \"/d\",\n    \"proxies\": {\n        \"no-proxy\": \"10.0.0.0/8\"\n    }\n}\n";
    let expected = "{\n    \"log-driver\": \"journald\",\n    \"data-root\": \"/d\",\n    \"proxies\": {\n        \"no-proxy\": \"10.0.0.0/8\",\n        \"http-proxy\": \"http://127.0.0.1:4001\",\n        \"https-proxy\": \"http://127.0.0.1:4001\"\n    }\n}\n";
    assert_eq!(edited(Some(before), DockerMode::Proxies), expected);
}

#[test]
fn what_is_not_ours_stays_letter_by_letter() {
    let rest = "\"a\": 12345678901234567890123,\n    \"b\": 1.50e+2,\n    \"c\": { \"x\":[1,2],\n      \"y\": \"\\u00e9\\/\" },\n    \"c\": 1.0";
    let before = format!("{{\n    {rest}\n}}\n");
    let expected =
        format!("{{\n    {rest},\n    \"registry-mirrors\": [\n        \"{PROXY}\"\n    ]\n}}\n");
    assert_eq!(edited(Some(&before), DockerMode::Mirror), expected);
}

#[test]
fn a_mirror_comes_before_the_others() {
    let before = "{\"registry-mirrors\":[\"https://m\"]}";
    let after = edited(Some(before), DockerMode::Mirror);
    assert_eq!(
        after,
        "{\n  \"registry-mirrors\": [\n    \"http://127.0.0.1:4001\",\n    \"https://m\"\n  ]\n}\n"
    );
    // Docker itself writes a slash behind it.
    let slash = "{\"registry-mirrors\":[\"http://127.0.0.1:4001/\"]}";
    assert_eq!(edited(Some(slash), DockerMode::Mirror), slash);
}

#[test]
fn the_proxy_of_somebody_else_is_not_replaced() {
    let theirs = "{\"proxies\":{\"http-proxy\":\"http://company:3128\"}}";
    let told = edit(Some(theirs), DockerMode::Proxies, PROXY, false).unwrap_err();
    assert!(told.reason.contains("http://company:3128"), "{told:?}");
    // One that we wrote ourselves, before the daemon moved, is.
    assert!(
        edit(Some(theirs), DockerMode::Proxies, PROXY, true)
            .unwrap()
            .contains(PROXY)
    );
}

#[test]
fn an_engine_that_would_not_start_with_proxies_gets_none() {
    for (told, knows) in [
        ("Docker version 20.10.24+dfsg1, build 297e128", false),
        ("Docker version 23.0.0, build e92dd87", true),
        ("no version", true),
    ] {
        let version = Version::find(told);
        assert_eq!(knows_proxies(version).is_ok(), knows, "{told}");
    }
}

#[test]
fn what_is_not_a_configuration_is_refused() {
    for text in [
        "[]",
        "{",
        "{\"proxies\": 1}",
        "// comment\n{}",
        "{\"a\": \"\\ud800\"}",
    ] {
        assert!(
            edit(Some(text), DockerMode::Proxies, PROXY, false).is_err(),
            "{text}"
        );
    }
    assert!(
        edit(
            Some("{\"registry-mirrors\": {}}"),
            DockerMode::Mirror,
            PROXY,
            false
        )
        .is_err()
    );
}

proptest! {
    #[test]
    fn twice_is_once_and_other_keys_stay(
        keys in proptest::collection::btree_map("[a-z\"\\\\é]{0,6}", any::<i32>(), 0..5),
        indent in 0_usize..5,
        mirror in any::<bool>(),
    ) {
        let mode = if mirror { DockerMode::Mirror } else { DockerMode::Proxies };
        let mut settings = Settings::default();
        for (key, value) in &keys {
            settings.set(key, json!(value));
        }
        let text = settings.written(&" ".repeat(indent));
        let once = edit(Some(&text), mode, PROXY, false).unwrap();
        prop_assert_eq!(edit(Some(&once), mode, PROXY, false).unwrap(), once.clone());
        let read = Settings::parse(&once).unwrap();
        for (key, value) in &keys {
            prop_assert_eq!(read.get(key), Some(json!(value)));
        }
    }
}

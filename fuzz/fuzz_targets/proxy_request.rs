//! What strangers send to the proxy: request targets and the headers that say whose they are. Nothing panics, and what is
//! understood is a URL of the web, without the parameter that was only for us.
#![no_main]
#![allow(dead_code, reason = "the parsers are built from their own files, so that the daemon around them is not")]

#[path = "../../crates/daemon/src/proxy/headers.rs"]
mod headers;
#[path = "../../crates/daemon/src/proxy/target.rs"]
mod target;

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use libfuzzer_sys::fuzz_target;
use target::{Destination, Mode, Target};

fuzz_target!(|input: (&str, &[u8], &[u8], bool, bool)| {
    let (uri, registry, other, connect, tunnelled) = input;
    let mut given = HeaderMap::new();
    for (name, value) in [
        (header::HeaderName::from_static(target::REGISTRY_HEADER), registry),
        (header::CONNECTION, other),
        (header::UPGRADE, other),
        (header::VIA, other),
    ] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            given.append(name, value);
        }
    }
    let _ = headers::wanted_upgrade(&given);
    let _ = headers::has_passed(&given, "dragonfly-1");
    let mut passed_on = given.clone();
    headers::remove_hop_by_hop(&mut passed_on);
    assert!(!passed_on.contains_key(header::CONNECTION) && !passed_on.contains_key(header::UPGRADE));

    let Ok(uri) = uri.parse::<Uri>() else { return };
    let method = if connect { Method::CONNECT } else { Method::GET };
    let within = Destination { host: "h".to_owned(), port: 443 };
    let within = tunnelled.then_some(&within);
    match target::classify(&method, &uri, &given, within, &target::docker_registry()) {
        Ok(Target::Url { url, mode, .. }) => {
            assert!(matches!(url.scheme(), "http" | "https"));
            assert!(url.host_str().is_some_and(|host| !host.is_empty()));
            assert!(mode == Mode::Forward || url.query_pairs().all(|(name, _)| name != "ns"));
        }
        Ok(Target::Tunnel(to)) => assert!(connect && to.port > 0 && !to.host.is_empty()),
        Err(_) => {}
    }
});

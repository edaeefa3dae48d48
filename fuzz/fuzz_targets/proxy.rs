//! What clients and registries send to the proxy's way through the swarm: ranges, manifests, references. Nothing panics, and what
//! is read keeps its bounds.
#![no_main]
#![allow(dead_code, reason = "the parsers are built from their own files, so that the daemon with all it needs is not")]

#[path = "../../crates/daemon/src/proxy/p2p/manifest.rs"]
mod manifest;
#[path = "../../crates/daemon/src/proxy/p2p/range.rs"]
mod range;

use libfuzzer_sys::fuzz_target;
use manifest::{MANIFEST_LEN_MAX, Manifest, Reference, is_accepted};
use range::Part;

fuzz_target!(|input: (&str, u64, &[u8])| {
    let (text, length, bytes) = input;
    if let Part::Of(part) = range::part(Some(text), length) {
        assert!(part.length > 0 && part.start < length && part.end() <= length);
    }
    for content_type in [None, Some(text)] {
        if let Ok(manifest) = Manifest::read(bytes.to_vec().into(), content_type) {
            assert!(manifest.bytes.len() as u64 <= MANIFEST_LEN_MAX);
            let again = Manifest::read(manifest.bytes.clone(), Some(&manifest.content_type));
            assert_eq!(again.ok().as_ref(), Some(&manifest), "what was kept is understood again");
        }
    }
    let _ = is_accepted([text].into_iter(), text);
    if let Ok(url) = text.parse() {
        let _ = Reference::of(&url);
    }
});

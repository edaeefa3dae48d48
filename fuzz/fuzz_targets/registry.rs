//! What a registry sends: manifests and indexes, challenges, names. Nothing panics, and what is read keeps its bounds.
#![no_main]
#![allow(dead_code, reason = "the parsers are built from their own files, so that the HTTP stack below the crate is not")]

#[path = "../../crates/registry/src/challenge.rs"]
mod challenge;
#[path = "../../crates/registry/src/manifest.rs"]
mod manifest;
#[path = "../../crates/registry/src/name.rs"]
mod name;
#[path = "../../crates/registry/src/platform.rs"]
mod platform;

use challenge::Challenge;
use libfuzzer_sys::fuzz_target;
use manifest::Document;
use name::{ImageName, ManifestUrl};
use platform::Platforms;

fuzz_target!(|input: (&str, &[u8])| {
    let (text, bytes) = input;
    if let Ok(Document::Manifest { layers, .. }) = Document::parse(text, bytes) {
        assert!(layers.len() <= 1000);
    }
    let _ = Document::parse("", bytes);
    for challenge in Challenge::parse(text).unwrap_or_default() {
        assert!(!challenge.scheme.is_empty());
    }
    if let Ok(url) = text.parse::<ManifestUrl>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
    if let Ok(name) = text.parse::<ImageName>() {
        assert!(name.manifest_url(true).is_ok());
    }
    if let Ok(platforms) = text.parse::<Platforms>() {
        assert_eq!(platforms.to_string().parse(), Ok(platforms));
    }
});

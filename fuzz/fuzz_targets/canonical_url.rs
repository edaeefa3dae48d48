//! Any URL has a canonical form or a reason why not; that of a web URL is its own canonical form.
//!
//! For other schemes that is not promised: taking away the `/` of an empty path, as Dragonfly v2 does, can turn what
//! follows into an opaque path with rules of its own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::canonical_url;

fuzz_target!(|input: (&str, Vec<&str>)| {
    let (url, filtered) = input;
    let Ok(once) = canonical_url(url, &filtered) else {
        return;
    };
    if filtered.is_empty() {
        assert_eq!(once, url);
        return;
    }
    if once.starts_with("http://") || once.starts_with("https://") {
        assert_eq!(
            canonical_url(&once, &filtered).expect("it is still a URL"),
            once
        );
    }
});

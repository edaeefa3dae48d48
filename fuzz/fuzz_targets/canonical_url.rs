//! Any URL has a canonical form or a reason why not, and a canonical URL is its own canonical form.
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
    } else {
        assert_eq!(
            canonical_url(&once, &filtered).expect("it is still a URL"),
            once
        );
    }
});

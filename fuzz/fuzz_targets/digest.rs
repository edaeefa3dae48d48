//! Any digest text is refused, or stays the same but for the case of hex digits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{Crc32, Digest};

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert!(digest.to_string().eq_ignore_ascii_case(text));
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    if let Ok(crc) = text.parse::<Crc32>() {
        assert_eq!(crc.to_string(), text);
    }
});

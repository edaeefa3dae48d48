//! Any Range header is refused, or selects bytes of the content, and the selection can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::ByteRange;

fuzz_target!(|input: (u64, &str)| {
    let (content_length, header) = input;
    if let Ok(range) = ByteRange::parse_header(header, content_length) {
        assert!(range.length > 0 && range.end() <= content_length);
        assert_eq!(
            ByteRange::parse_header(&range.header(), content_length),
            Ok(range)
        );
    }
});

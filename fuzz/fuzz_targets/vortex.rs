//! Any packet of the piece port is refused, or survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::vortex::{
    HEADER_LEN, Header, METADATA_LEN_MAX, Reply, Request, SEGMENT_REQUEST_LEN_MAX,
};

fuzz_target!(|packet: &[u8]| {
    let Some((header, value)) = packet.split_first_chunk::<HEADER_LEN>() else {
        return;
    };
    let header = Header::from_bytes(*header);
    assert_eq!(Header::from_bytes(header.to_bytes()), header);
    if let Ok(len) = header.request_len() {
        assert!(len <= SEGMENT_REQUEST_LEN_MAX);
    }
    if let Ok(len) = header.reply_len() {
        assert!(len <= METADATA_LEN_MAX + 4);
    }
    if let Ok(request) = Request::decode(header.tag, value) {
        let again = request
            .to_packet(header.packet_id)
            .expect("what was read can be written");
        assert_eq!(again[1], packet[1]);
        assert_eq!(&again[HEADER_LEN..], value);
    }
    if let Ok(reply) = Reply::decode(header.tag, value) {
        let again = reply
            .to_packet(header.packet_id)
            .expect("what was read can be written");
        assert_eq!(
            Reply::decode(header.tag, &again[HEADER_LEN..]).expect("and read again"),
            reply
        );
    }
});

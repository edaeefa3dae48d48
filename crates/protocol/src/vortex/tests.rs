use proptest::prelude::*;

use super::*;
use crate::{Crc32, PieceNumber};

const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn bytes(hex_text: &str) -> Vec<u8> {
    hex::decode(hex_text.split_whitespace().collect::<String>()).unwrap()
}

fn decode_request(packet: &[u8]) -> Result<Request, DecodeError> {
    let (header, value) = packet.split_first_chunk().unwrap();
    let header = Header::from_bytes(*header);
    assert_eq!(header.request_len()?, value.len());
    Request::decode(header.tag, value)
}

fn decode_reply(packet: &[u8]) -> Result<Reply, DecodeError> {
    let (header, value) = packet.split_first_chunk().unwrap();
    let header = Header::from_bytes(*header);
    assert_eq!(header.reply_len()?, value.len());
    Reply::decode(header.tag, value)
}

fn empty_task_request() -> Request {
    Request::Piece(PieceRequest {
        kind: TaskKind::Standard,
        task_id: EMPTY_SHA256.parse().unwrap(),
        piece: PieceNumber(3),
    })
}

#[test]
fn golden_piece_request() {
    let golden = bytes(
        "12 00 00 00 00 44 65 33 62 30 63 34 34 32 39 38
         66 63 31 63 31 34 39 61 66 62 66 34 63 38 39 39
         36 66 62 39 32 34 32 37 61 65 34 31 65 34 36 34
         39 62 39 33 34 63 61 34 39 35 39 39 31 62 37 38
         35 32 62 38 35 35 00 00 00 03",
    );
    assert_eq!(empty_task_request().to_packet(0x12).unwrap(), golden);
    assert_eq!(decode_request(&golden).unwrap(), empty_task_request());
}

#[test]
fn golden_piece_head() {
    let golden = bytes(
        "9f 01 00 00 00 74 00 00 00 70 00 00 00 03 00 00
         00 00 00 c0 00 00 00 00 00 00 00 40 00 00 00 00
         00 0f 63 72 63 33 32 3a 32 38 39 38 38 32 32 31
         38 00 00 00 34 31 30 2e 30 2e 30 2e 37 2d 6e 6f
         64 65 2d 37 2d 31 62 34 65 32 38 62 61 2d 32 66
         61 31 2d 34 64 33 62 2d 61 33 66 35 2d 65 66 31
         39 62 35 61 37 36 33 33 62 01 00 00 00 00 00 00
         00 01 00 00 00 00 69 55 b9 00",
    );
    let head = PieceHead {
        piece: PieceNumber(3),
        offset: 12_582_912,
        length: 4 << 20,
        digest: Crc32::of(&vec![0; 4 << 20]).to_string(),
        parent_id: "10.0.0.7-node-7-1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b".to_owned(),
        traffic_type: 1,
        cost_seconds: 1,
        created_at: 1_767_225_600,
    };
    let reply = Reply::Piece(TaskKind::Standard, head);
    assert_eq!(reply.to_packet(0x9f).unwrap(), golden);
    assert_eq!(decode_reply(&golden).unwrap(), reply);
}

#[test]
fn golden_metadata_of_the_published_codec() {
    let value = bytes(
        "00000048 0000002a 0000000000000400 0000000000000800
         0000000e 63726333323a3836346262623034
         0000000d 3132372e302e302e312d666f6f 01 000000000000001e 000000006553f100",
    );
    assert_eq!(value.len(), 76);
    let head = PieceHead {
        piece: PieceNumber(42),
        offset: 1024,
        length: 2048,
        digest: "crc32:864bbb04".to_owned(),
        parent_id: "127.0.0.1-foo".to_owned(),
        traffic_type: 1,
        cost_seconds: 30,
        created_at: 1_700_000_000,
    };
    for kind in [
        TaskKind::Standard,
        TaskKind::Persistent,
        TaskKind::PersistentCache,
        TaskKind::Cache,
    ] {
        let reply = Reply::Piece(kind, head.clone());
        assert_eq!(reply.to_packet(0).unwrap()[HEADER_LEN..], value);
        assert_eq!(
            Reply::decode(Tag::PieceContent(kind), &value).unwrap(),
            reply
        );
    }
}

#[test]
fn golden_error() {
    let message = format!("piece {EMPTY_SHA256}-3 not found");
    let golden = [bytes("41 ff 00 00 00 53 02"), message.clone().into_bytes()].concat();
    let reply = Reply::Error(ErrorReply {
        code: ErrorCode::NotFound,
        message,
    });
    assert_eq!(reply.to_packet(0x41).unwrap(), golden);
    assert_eq!((golden.len(), decode_reply(&golden).unwrap()), (89, reply));
}

#[test]
fn golden_segment_packets() {
    let request = Request::Segment(SegmentRequest {
        link_token: 0x0102_0304_0506_0708,
        task_id: "abc".parse().unwrap(),
        piece: PieceNumber(7),
        offset: 0x10_0000,
        length: 0x20_0000,
    });
    let golden = bytes(
        "55 80 00 00 00 21 0102030405060708 0003 616263 00000007 0000000000100000 0000000000200000",
    );
    assert_eq!(request.to_packet(0x55).unwrap(), golden);
    assert_eq!(decode_request(&golden).unwrap(), request);

    let reply = Reply::Segment(SegmentHead {
        piece: PieceNumber(7),
        offset: 0x10_0000,
        length: 0x20_0000,
    });
    let golden = bytes("66 81 00 00 00 14 00000007 0000000000100000 0000000000200000");
    assert_eq!(reply.to_packet(0x66).unwrap(), golden);
    assert_eq!(decode_reply(&golden).unwrap(), reply);
}

#[test]
fn tags_are_those_of_the_published_codec() {
    for number in 0..=u8::MAX {
        assert_eq!(Tag::from_number(number).number(), number);
        assert_eq!(ErrorCode::from_number(number).number(), number);
    }
    for (number, kind) in [
        (0, TaskKind::Standard),
        (2, TaskKind::Persistent),
        (4, TaskKind::PersistentCache),
        (6, TaskKind::Cache),
    ] {
        assert_eq!(Tag::from_number(number), Tag::DownloadPiece(kind));
        assert_eq!(Tag::from_number(number + 1), Tag::PieceContent(kind));
    }
}

#[test]
fn hostile_lengths_are_refused_before_anything_is_read() {
    let header = |tag, value_len| Header {
        packet_id: 0,
        tag: Tag::from_number(tag),
        value_len,
    };
    for (tag, len) in [(0, 67), (0, 69), (4, u32::MAX), (128, 257), (128, u32::MAX)] {
        assert_eq!(
            header(tag, len).request_len(),
            Err(DecodeError::Length { tag, len })
        );
    }
    for (tag, len) in [
        (1, 65_541),
        (7, u32::MAX),
        (255, 0),
        (255, 65_537),
        (129, 19),
        (129, 21),
    ] {
        assert_eq!(
            header(tag, len).reply_len(),
            Err(DecodeError::Length { tag, len })
        );
    }
    for tag in [1, 8, 127, 129, 254, 255] {
        assert_eq!(
            header(tag, 0).request_len(),
            Err(DecodeError::NoRequest { tag })
        );
    }
    for tag in [0, 8, 128, 254] {
        assert_eq!(
            header(tag, 0).reply_len(),
            Err(DecodeError::NoReply { tag })
        );
    }
}

#[test]
fn hostile_fields_are_refused() {
    let head = |digest: usize, parent: usize| PieceHead {
        digest: "d".repeat(digest),
        parent_id: "p".repeat(parent),
        ..PieceHead::default()
    };
    let encode = |head| Reply::Piece(TaskKind::Standard, head).to_packet(0);
    assert!(encode(head(256, 4096)).is_ok());
    assert!(encode(head(257, 0)).is_err() && encode(head(0, 4097)).is_err());

    let packet = encode(head(1, 1)).unwrap();
    let value = &packet[HEADER_LEN..];
    let decode = |value: &[u8]| Reply::decode(Tag::PieceContent(TaskKind::Standard), value);
    for cut in 0..value.len() {
        assert!(decode(&value[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = value.to_vec();
    longer.extend(b"room for more");
    assert!(decode(&longer).is_err(), "bytes behind the metadata");
    longer[3] += 13;
    assert_eq!(decode(&longer), decode(value), "bytes within the metadata");
    let mut digest_len = value.to_vec();
    digest_len[24..28].copy_from_slice(&u32::MAX.to_be_bytes());
    let refused = DecodeError::FieldLength {
        field: "the digest",
        len: u32::MAX.into(),
    };
    assert_eq!(decode(&digest_len), Err(refused));
}

#[test]
fn requests_for_impossible_tasks_are_told_apart_from_malformed_ones() {
    let mut packet = empty_task_request().to_packet(0).unwrap();
    packet[HEADER_LEN] = b'/';
    assert!(matches!(
        decode_request(&packet),
        Err(DecodeError::TaskId(_))
    ));
    packet[HEADER_LEN] = 0xff;
    assert!(matches!(
        decode_request(&packet),
        Err(DecodeError::Utf8 { .. })
    ));
    let long = PieceRequest {
        kind: TaskKind::Standard,
        task_id: "a".repeat(128).parse().unwrap(),
        piece: PieceNumber(0),
    };
    assert_eq!(
        Request::Piece(long).to_packet(0),
        Err(EncodeError::TaskIdLength { len: 128 })
    );
}

#[test]
fn long_error_messages_are_cut_at_a_character() {
    let reply = Reply::Error(ErrorReply {
        code: ErrorCode::Internal,
        message: "é".repeat(40_000),
    });
    let Reply::Error(got) = decode_reply(&reply.to_packet(0).unwrap()).unwrap() else {
        panic!("no error")
    };
    assert_eq!(got.message, "é".repeat(32_767));
}

fn kinds() -> impl Strategy<Value = TaskKind> {
    (0u8..4).prop_map(|number| TaskKind::from_number(number).unwrap())
}

fn requests() -> impl Strategy<Value = Request> {
    let piece = (kinds(), "[0-9a-f]{64}", any::<u32>()).prop_map(|(kind, task_id, piece)| {
        Request::Piece(PieceRequest {
            kind,
            task_id: task_id.parse().unwrap(),
            piece: PieceNumber(piece),
        })
    });
    let segment = (any::<[u64; 3]>(), "[A-Za-z0-9._-]{3,128}", any::<u32>()).prop_map(
        |(numbers, task_id, piece)| {
            let [link_token, offset, length] = numbers;
            let (task_id, piece) = (task_id.parse().unwrap(), PieceNumber(piece));
            Request::Segment(SegmentRequest {
                link_token,
                task_id,
                piece,
                offset,
                length,
            })
        },
    );
    prop_oneof![piece, segment]
}

fn heads() -> impl Strategy<Value = PieceHead> {
    // Times that the published codec takes: its own type ends in the year 9999.
    (
        any::<u32>(),
        any::<[u64; 3]>(),
        ".{0,80}",
        ".{0,80}",
        any::<u8>(),
        0i64..253_402_300_799,
    )
        .prop_map(
            |(
                piece,
                [offset, length, cost_seconds],
                digest,
                parent_id,
                traffic_type,
                created_at,
            )| PieceHead {
                piece: PieceNumber(piece),
                offset,
                length,
                digest: digest.chars().take(60).collect(),
                parent_id,
                traffic_type,
                cost_seconds,
                created_at,
            },
        )
}

fn replies() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (kinds(), heads()).prop_map(|(kind, head)| Reply::Piece(kind, head)),
        (any::<u8>(), ".{0,80}").prop_map(|(code, message)| {
            Reply::Error(ErrorReply {
                code: ErrorCode::from_number(code),
                message,
            })
        }),
        any::<(u32, u64, u64)>().prop_map(|(piece, offset, length)| {
            Reply::Segment(SegmentHead {
                piece: PieceNumber(piece),
                offset,
                length,
            })
        }),
    ]
}

/// Packets that are nearly right: most random bytes fail in the first field.
fn near_packets() -> impl Strategy<Value = Vec<u8>> {
    let sound = prop_oneof![
        requests().prop_map(|request| request.to_packet(1).unwrap()),
        replies().prop_map(|reply| reply.to_packet(1).unwrap()),
    ];
    (
        sound,
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(mut packet, changes, cut)| {
            for (at, byte) in changes {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            packet.truncate(packet.len().min(HEADER_LEN + cut.index(packet.len() * 2)));
            packet
        })
}

proptest! {
    #[test]
    fn requests_survive_the_wire(request in requests(), packet_id: u8) {
        prop_assert_eq!(decode_request(&request.to_packet(packet_id).unwrap()), Ok(request));
    }

    #[test]
    fn replies_survive_the_wire(reply in replies(), packet_id: u8) {
        prop_assert_eq!(decode_reply(&reply.to_packet(packet_id).unwrap()), Ok(reply));
    }

    #[test]
    fn any_value_is_refused_or_understood(tag: u8, value: Vec<u8>) {
        let tag = Tag::from_number(tag);
        let _ = (Request::decode(tag, &value), Reply::decode(tag, &value));
    }

    #[test]
    fn the_published_codec_reads_what_we_write(request in requests(), reply in replies()) {
        use vortex_protocol::Vortex;
        for packet in [request.to_packet(7).unwrap(), reply.to_packet(7).unwrap()] {
            let theirs = Vortex::decode(&packet).unwrap();
            if !matches!(theirs, Vortex::Reserved(_)) {
                let mut again = Vec::new();
                theirs.encode(&mut again);
                prop_assert_eq!(again, packet);
            }
        }
    }

    #[test]
    fn we_agree_with_the_published_codec_on_nearly_right_packets(packet in near_packets()) {
        use vortex_protocol::Vortex;
        let (header, value) = packet.split_first_chunk().unwrap();
        let header = Header::from_bytes(*header);
        let ours = match (header.request_len(), header.reply_len()) {
            (Ok(len), _) if len == value.len() => Request::decode(header.tag, value).map(|request| request.to_packet(header.packet_id).unwrap()),
            (_, Ok(len)) if len == value.len() => Reply::decode(header.tag, value).map(|reply| reply.to_packet(header.packet_id).unwrap()),
            _ => return Ok(()),
        };
        match (Vortex::decode(&packet), ours) {
            (Ok(Vortex::Reserved(_)), _) => {}
            (Ok(theirs), Ok(ours)) => {
                let mut again = Vec::new();
                theirs.encode(&mut again);
                prop_assert_eq!(again, ours);
            }
            // We alone refuse ids that cannot name a file, and alone keep errors with a broken text or odd times.
            (Ok(_), Err(DecodeError::TaskId(_))) | (Err(_), Ok(_)) => {}
            (Ok(theirs), Err(error)) => prop_assert!(false, "{theirs:?} refused: {error}"),
            (Err(_), Err(_)) => {}
        }
    }
}

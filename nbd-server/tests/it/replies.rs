use bytes::BytesMut;
use nbd_server::proto::client::{Replies, ReplyEvent};
use nbd_server::proto::{
    BlockDescriptor, ChunkKind, ContextId, Cookie, ErrorCode, Extent, Head, block_status_payload,
    error_payload,
};
use proptest::prelude::*;

const COOKIE: Cookie = Cookie(0x1122_3344_5566_7788);

/// What a client sees of these bytes, fed at once and byte by byte; data is taken off as it comes.
fn events(bytes: &[u8]) -> Vec<ReplyEvent> {
    let at_once = events_in_parts([bytes]);
    assert_eq!(events_in_parts(bytes.chunks(1)), at_once);
    at_once
}

fn events_in_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<ReplyEvent> {
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    let mut data_left = 0_usize;
    for part in parts {
        input.extend_from_slice(part);
        loop {
            let here = data_left.min(input.len());
            let _ = input.split_to(here);
            data_left -= here;
            if data_left > 0 {
                break;
            }
            let event = Replies.next(&mut input).unwrap();
            match event {
                ReplyEvent::NeedBytes(_) => break,
                ReplyEvent::Data { len_bytes, .. } => data_left = len_bytes as usize,
                _ => {}
            }
            events.push(event);
        }
    }
    events
}

#[test]
fn every_kind_of_reply_is_understood() {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(Head::simple(COOKIE, ErrorCode::NOSPC).as_bytes());
    bytes.extend_from_slice(Head::data(COOKIE, 512, 3, false).as_bytes());
    bytes.extend_from_slice(b"abc");
    let error = error_payload(ErrorCode::IO, "read failed");
    let len = u32::try_from(error.len()).unwrap();
    bytes.extend_from_slice(Head::chunk(ChunkKind::ERROR, COOKIE, len, true).as_bytes());
    bytes.extend_from_slice(&error);
    bytes.extend_from_slice(Head::chunk(ChunkKind::OFFSET_HOLE, COOKIE, 12, false).as_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9]);
    bytes.extend_from_slice(Head::chunk(ChunkKind::NONE, COOKIE, 0, true).as_bytes());
    assert_eq!(
        events(&bytes),
        [
            ReplyEvent::Simple {
                cookie: COOKIE,
                error: ErrorCode::NOSPC
            },
            ReplyEvent::Data {
                cookie: COOKIE,
                offset: 512,
                len_bytes: 3,
                done: false
            },
            ReplyEvent::Error {
                cookie: COOKIE,
                code: ErrorCode::IO,
                text: "read failed".to_owned(),
                done: true
            },
            ReplyEvent::Hole {
                cookie: COOKIE,
                offset: 512,
                len_bytes: 9,
                done: false
            },
            ReplyEvent::End { cookie: COOKIE },
        ]
    );
}

fn extent(len_bytes: u64, hole: bool) -> Extent {
    Extent {
        len_bytes,
        hole,
        reads_zero: hole,
    }
}

#[test]
fn block_status_joins_clips_and_bounds() {
    let describe = |extents: &[Extent], max_bytes, max| {
        let payload = block_status_payload(ContextId(5), extents, max_bytes, max)?;
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = Head::chunk(ChunkKind::BLOCK_STATUS, COOKIE, len, true)
            .as_bytes()
            .to_vec();
        bytes.extend_from_slice(&payload);
        match events(&bytes).pop() {
            Some(ReplyEvent::Status {
                context: ContextId(5),
                descriptors,
                done: true,
                ..
            }) => Some(
                descriptors
                    .iter()
                    .map(|d| (d.len_bytes, d.status))
                    .collect::<Vec<_>>(),
            ),
            other => panic!("{other:?}"),
        }
    };
    let extents = [
        extent(4, true),
        extent(4, true),
        extent(0, false),
        extent(8, false),
    ];
    assert_eq!(describe(&extents, 100, 10), Some(vec![(8, 3), (8, 0)]));
    assert_eq!(describe(&extents, 10, 10), Some(vec![(8, 3), (2, 0)]));
    assert_eq!(describe(&extents, 100, 1), Some(vec![(8, 3)]));
    assert_eq!(
        describe(&[extent(1 << 40, true)], u32::MAX, 1),
        Some(vec![(u32::MAX, 3)])
    );
    assert_eq!(describe(&[extent(0, true)], 10, 1), None);
    let run = Extent::from_descriptor(BlockDescriptor {
        len_bytes: 7,
        status: 3,
    });
    assert_eq!(run, extent(7, true));
}

#[test]
fn what_breaks_the_frame_is_an_error() {
    let zero_data = Head::chunk(ChunkKind::OFFSET_DATA, COOKIE, 8, true);
    let mut zero_data = zero_data.as_bytes().to_vec();
    zero_data.extend_from_slice(&[0; 8]);
    let long_error = Head::chunk(ChunkKind::ERROR, COOKIE, u32::MAX, true)
        .as_bytes()
        .to_vec();
    let none_not_done = Head::chunk(ChunkKind::NONE, COOKIE, 0, false)
        .as_bytes()
        .to_vec();
    let unknown = Head::chunk(ChunkKind(9), COOKIE, 0, true)
        .as_bytes()
        .to_vec();
    let mut text_past_end = Head::chunk(ChunkKind::ERROR, COOKIE, 6, true)
        .as_bytes()
        .to_vec();
    text_past_end.extend_from_slice(&[0, 0, 0, 5, 0, 9]);
    let mut no_descriptor = Head::chunk(ChunkKind::BLOCK_STATUS, COOKIE, 4, true)
        .as_bytes()
        .to_vec();
    no_descriptor.extend_from_slice(&[0; 4]);
    for (what, bytes) in [
        ("magic", vec![0; 4]),
        ("data chunk without data", zero_data),
        ("endless error", long_error),
        ("NONE that is not the last", none_not_done),
        ("unknown chunk", unknown),
        ("text past the end", text_past_end),
        ("status without descriptors", no_descriptor),
    ] {
        let mut input = BytesMut::from(&bytes[..]);
        assert!(Replies.next(&mut input).is_err(), "{what}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), structured: bool) {
        let magic: u32 = if structured { 0x668e_33ef } else { 0x6744_6698 };
        let mut input = BytesMut::from(&magic.to_be_bytes()[..]);
        input.extend_from_slice(&bytes);
        // Whatever comes back, it is an answer and not a panic.
        let _ = Replies.next(&mut input);
    }
}

use bytes::BytesMut;
use nbd_server::proto::client::{Replies, ReplyEvent};
use nbd_server::proto::{
    BlockDescriptor, ChunkKind, ContextId, Cookie, ErrorCode, Extent, Head, HeaderStyle,
    MetaContext, ReplyHeader, RequestId, SelectedContext, block_status_payload, error_payload,
};
use proptest::prelude::*;

const COOKIE: Cookie = Cookie(0x1122_3344_5566_7788);
const ID: RequestId = RequestId {
    cookie: COOKIE,
    offset: 0x99aa_bbcc_ddee_ff00,
};
const CHUNKED: [HeaderStyle; 2] = [HeaderStyle::Structured, HeaderStyle::Extended];

/// What a client sees of these bytes, fed at once and byte by byte; data is taken off as it comes.
fn events(style: HeaderStyle, bytes: &[u8]) -> Vec<ReplyEvent> {
    let at_once = events_in_parts(style, [bytes]);
    assert_eq!(events_in_parts(style, bytes.chunks(1)), at_once);
    at_once
}

fn events_in_parts<'a>(
    style: HeaderStyle,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<ReplyEvent> {
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
            let event = Replies::new(style).next(&mut input).unwrap();
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
fn simple_replies_are_understood_where_there_are_any() {
    let failed = Head::simple(COOKIE, ErrorCode::NOSPC);
    for style in [HeaderStyle::Simple, HeaderStyle::Structured] {
        let mut bytes = failed.as_bytes().to_vec();
        bytes.extend_from_slice(Head::success(style, ID).as_bytes());
        let expected = [ErrorCode::NOSPC, ErrorCode::NONE].map(|error| ReplyEvent::Simple {
            cookie: COOKIE,
            error,
        });
        assert_eq!(events(style, &bytes), expected);
    }
    let done = Head::success(HeaderStyle::Extended, ID);
    let end = ReplyEvent::End { cookie: COOKIE };
    assert_eq!(events(HeaderStyle::Extended, done.as_bytes()), [end]);
}

#[test]
fn a_reply_of_another_style_is_refused() {
    use HeaderStyle::{Extended, Simple, Structured};
    let chunk = |style| Head::chunk(style, ChunkKind::NONE, ID, 0, true);
    let simple = Head::simple(COOKIE, ErrorCode::NONE);
    for (head, refused_by) in [
        (simple, vec![Extended]),
        (chunk(Structured), vec![Simple, Extended]),
        (chunk(Extended), vec![Simple, Structured]),
    ] {
        for style in [Simple, Structured, Extended] {
            let mut input = BytesMut::from(&head.as_bytes()[..4]);
            let refused = Replies::new(style).next(&mut input).is_err();
            assert_eq!(refused, refused_by.contains(&style), "{style:?} {head:?}");
        }
    }
}

#[test]
fn every_kind_of_chunk_is_understood() {
    CHUNKED.into_iter().for_each(every_kind_of_chunk);
}

fn every_kind_of_chunk(style: HeaderStyle) {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(Head::data(style, ID, 512, 3, false).as_bytes());
    bytes.extend_from_slice(b"abc");
    let error = error_payload(ErrorCode::IO, "read failed");
    let len = u32::try_from(error.len()).unwrap();
    bytes.extend_from_slice(Head::chunk(style, ChunkKind::ERROR, ID, len, true).as_bytes());
    bytes.extend_from_slice(&error);
    bytes.extend_from_slice(Head::hole(style, ID, 512, 9, false).as_bytes());
    bytes.extend_from_slice(Head::chunk(style, ChunkKind::NONE, ID, 0, true).as_bytes());
    assert_eq!(
        events(style, &bytes),
        [
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
    Extent::flat(len_bytes, hole, hole)
}

#[test]
fn block_status_joins_clips_and_bounds() {
    CHUNKED.into_iter().for_each(block_status_of);
}

fn block_status_of(style: HeaderStyle) {
    let selected = SelectedContext {
        id: ContextId(5),
        context: MetaContext::Allocation,
    };
    let describe = |extents: &[Extent], max_bytes: u64, max| {
        let payload = block_status_payload(style, &selected, extents, max_bytes, max)?;
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = Head::chunk(style, ChunkKind::block_status(style), ID, len, true)
            .as_bytes()
            .to_vec();
        bytes.extend_from_slice(&payload);
        match events(style, &bytes).pop() {
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
    let longest = if style == HeaderStyle::Extended {
        1 << 40
    } else {
        u64::from(u32::MAX)
    };
    assert_eq!(
        describe(&[extent(1 << 40, true)], u64::MAX, 1),
        Some(vec![(longest, 3)])
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
    CHUNKED.into_iter().for_each(frame_breakers);
}

fn frame_breakers(style: HeaderStyle) {
    let chunk = |kind, len, done| Head::chunk(style, kind, ID, len, done).as_bytes().to_vec();
    let zero_data = Head::chunk(style, ChunkKind::OFFSET_DATA, ID, 8, true);
    let mut zero_data = zero_data.as_bytes().to_vec();
    zero_data.extend_from_slice(&[0; 8]);
    let long_error = chunk(ChunkKind::ERROR, u32::MAX, true);
    let none_not_done = chunk(ChunkKind::NONE, 0, false);
    let unknown = chunk(ChunkKind(9), 0, true);
    let mut text_past_end = chunk(ChunkKind::ERROR, 6, true);
    text_past_end.extend_from_slice(&[0, 0, 0, 5, 0, 9]);
    let wide = style == HeaderStyle::Extended;
    let status = ChunkKind::block_status(style);
    let mut no_descriptor = chunk(status, if wide { 8 } else { 4 }, true);
    no_descriptor.extend_from_slice(&[0; 8][..if wide { 8 } else { 4 }]);
    let mut empty_run = chunk(status, if wide { 24 } else { 12 }, true);
    empty_run.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1][..if wide { 8 } else { 4 }]);
    empty_run.extend_from_slice(&[0; 16][..if wide { 16 } else { 8 }]);
    let other = if wide {
        ChunkKind::BLOCK_STATUS
    } else {
        ChunkKind::BLOCK_STATUS_EXT
    };
    let mut other_width = chunk(other, 24, true);
    other_width.extend_from_slice(&[1; 24]);
    let mut miscounted = chunk(status, 24, true);
    miscounted.extend_from_slice(&[9; 24]);
    if !wide {
        // Without a count the fault is a missing byte.
        miscounted = chunk(status, 11, true);
        miscounted.extend_from_slice(&[9; 11]);
    }
    for (what, bytes) in [
        ("magic", vec![0; 4]),
        ("data chunk without data", zero_data),
        ("endless error", long_error),
        ("NONE that is not the last", none_not_done),
        ("unknown chunk", unknown),
        ("text past the end", text_past_end),
        ("status without descriptors", no_descriptor),
        ("status of nothing", empty_run),
        ("status of the other width", other_width),
        ("miscounted status", miscounted),
    ] {
        let mut input = BytesMut::from(&bytes[..]);
        let outcome = Replies::new(style).next(&mut input);
        assert!(outcome.is_err(), "{style:?} {what}: {outcome:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), style in 0..3_usize) {
        let (magic, style) = [
            (0x6744_6698_u32, HeaderStyle::Simple),
            (0x668e_33ef, HeaderStyle::Structured),
            (0x6e8a_278c, HeaderStyle::Extended),
        ][style];
        let mut input = BytesMut::from(&magic.to_be_bytes()[..]);
        input.extend_from_slice(&bytes);
        // Whatever comes back, it is an answer and not a panic.
        let _ = Replies::new(style).next(&mut input);
    }

    #[test]
    fn heads_survive_the_wire(kind in 0..9_u16, cookie: u64, offset: u64, payload_bytes: u32, done: bool, extended: bool) {
        let style = CHUNKED[usize::from(extended)];
        let (kind, cookie) = (ChunkKind(kind), Cookie(cookie));
        let head = Head::chunk(style, kind, RequestId { cookie, offset }, payload_bytes, done);
        let Ok(ReplyHeader::Chunk(chunk)) = ReplyHeader::parse(style, head.as_bytes()) else {
            panic!("a chunk")
        };
        prop_assert_eq!((chunk.kind, chunk.cookie, chunk.flags.0), (kind, cookie, u16::from(done)));
        prop_assert_eq!(chunk.len_bytes, u64::from(payload_bytes));
        prop_assert_eq!(chunk.offset, extended.then_some(offset));
    }

    /// What a client learns of a block status is what the export said, context by context.
    #[test]
    fn block_status_survives_the_wire(
        runs in prop::collection::vec((1..1_u64 << 33, any::<bool>(), any::<bool>(), 0..4_u32), 1..20),
        extended: bool,
    ) {
        let style = CHUNKED[usize::from(extended)];
        let extents: Vec<_> = runs
            .into_iter()
            .map(|(len_bytes, hole, reads_zero, depth)| Extent { len_bytes, hole, reads_zero, depth })
            .collect();
        let whole: u64 = extents.iter().map(|extent| extent.len_bytes).sum();
        let told = if extended { whole } else { whole.min(u32::MAX.into()) };
        let changes = MetaContext::Changes { bitmap: "x".to_owned(), layers: 2 };
        for context in [MetaContext::Allocation, MetaContext::AllocationDepth, changes] {
            let selected = SelectedContext { id: ContextId(7), context };
            let payload = block_status_payload(style, &selected, &extents, whole, 1000).unwrap();
            let len = u32::try_from(payload.len()).unwrap();
            let kind = ChunkKind::block_status(style);
            let mut bytes = Head::chunk(style, kind, ID, len, true).as_bytes().to_vec();
            bytes.extend_from_slice(&payload);
            let Some(ReplyEvent::Status { context, descriptors, .. }) = events(style, &bytes).pop() else {
                panic!("a status")
            };
            prop_assert_eq!(context, ContextId(7));
            let mut at = 0;
            let mut ends = Vec::new();
            for extent in &extents {
                at += extent.len_bytes;
                ends.push((at, u64::from(selected.context.status(extent))));
            }
            let mut at = 0;
            for descriptor in &descriptors {
                let here = ends.iter().find(|(end, _)| *end > at).unwrap();
                prop_assert_eq!(descriptor.status, here.1);
                at += descriptor.len_bytes;
            }
            prop_assert_eq!(at, told);
            let joined = descriptors.windows(2).all(|pair| pair[0].status != pair[1].status);
            prop_assert!(joined, "neighbours differ");
        }
    }
}

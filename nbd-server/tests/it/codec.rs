//! Properties of the codec: what one side says is what the other one hears, however the stream is cut.

use bytes::BytesMut;
use nbd_server::proto::client::{Replies, ReplyEvent};
use nbd_server::proto::{
    ChunkKind, ContextId, Cookie, ErrorCode, Head, HeaderStyle, Info, InfoKind, OptionCode,
    OptionReply, OptionReplyHeader, ReplyCode, RequestId, TransmissionFlags, error_payload,
};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,60}"
}

fn infos() -> impl Strategy<Value = Info> {
    prop_oneof![
        (any::<u64>(), any::<u16>()).prop_map(|(size_bytes, flags)| Info::Export {
            size_bytes,
            flags: TransmissionFlags(flags),
        }),
        text().prop_map(Info::Name),
        text().prop_map(Info::Description),
        any::<[u32; 3]>().prop_map(|[minimum, preferred, maximum]| Info::BlockSize {
            minimum,
            preferred,
            maximum,
        }),
        (4_u16..).prop_map(|kind| Info::Other(InfoKind(kind))),
    ]
}

fn option_replies() -> impl Strategy<Value = OptionReply> {
    prop_oneof![
        Just(OptionReply::Ack),
        (text(), text()).prop_map(|(name, details)| OptionReply::Server { name, details }),
        infos().prop_map(OptionReply::Info),
        (any::<u32>(), text()).prop_map(|(id, name)| OptionReply::MetaContext {
            id: ContextId(id),
            name,
        }),
        (0x8000_0000_u32.., text()).prop_map(|(code, text)| OptionReply::Error {
            code: ReplyCode(code),
            text,
        }),
        (5..0x8000_0000_u32).prop_map(|code| OptionReply::Other(ReplyCode(code))),
    ]
}

/// A part of a reply with what belongs to it.
fn reply(
    style: HeaderStyle,
    what: u8,
    (cookie, offset): (u64, u64),
    len: u16,
    done: bool,
) -> (Vec<u8>, ReplyEvent) {
    let cookie = Cookie(cookie);
    let id = RequestId { cookie, offset };
    let len_bytes = u32::from(len) + 1;
    let with = |head: Head, payload: &[u8]| [head.as_bytes(), payload].concat();
    match what {
        0 => {
            let payload = vec![0x67; usize::from(len) + 1];
            let event = ReplyEvent::Data {
                cookie,
                offset,
                len_bytes,
                done,
            };
            let head = Head::data(style, id, offset, len_bytes, done);
            (with(head, &payload), event)
        }
        1 => {
            let event = ReplyEvent::Hole {
                cookie,
                offset,
                len_bytes,
                done,
            };
            (
                with(Head::hole(style, id, offset, len_bytes, done), &[]),
                event,
            )
        }
        2 => {
            let (code, text) = (ErrorCode(len_bytes), "x".repeat(usize::from(len % 200)));
            let payload = error_payload(code, &text);
            let payload_bytes = u32::try_from(payload.len()).unwrap();
            let head = Head::chunk(style, ChunkKind::ERROR, id, payload_bytes, done);
            let event = ReplyEvent::Error {
                cookie,
                code,
                text,
                done,
            };
            (with(head, &payload), event)
        }
        _ => {
            let event = match style {
                HeaderStyle::Extended => ReplyEvent::End { cookie },
                _ => ReplyEvent::Simple {
                    cookie,
                    error: ErrorCode::NONE,
                },
            };
            (with(Head::success(style, id), &[]), event)
        }
    }
}

proptest! {
    #[test]
    fn option_replies_survive_the_wire(option: u32, reply in option_replies()) {
        let mut out = BytesMut::new();
        reply.encode(OptionCode(option), &mut out);
        let (header, payload) = out.split_at(OptionReplyHeader::BYTES);
        let header = OptionReplyHeader::parse(header).unwrap();
        prop_assert_eq!(header.option, OptionCode(option));
        prop_assert_eq!(header.len_bytes as usize, payload.len());
        prop_assert_eq!(OptionReply::parse(header.code, payload), Ok(reply));
    }

    #[test]
    fn arbitrary_option_replies_never_panic(code: u32, known in 0..5_u32, payload in prop::collection::vec(any::<u8>(), 0..80)) {
        for code in [code, known] {
            // Whatever comes back, it is an answer and not a panic.
            let _ = OptionReply::parse(ReplyCode(code), &payload);
        }
    }

    /// A stream of replies means the same wherever the network cuts it.
    #[test]
    fn replies_survive_any_cut(
        parts in prop::collection::vec((0..4_u8, any::<(u64, u64)>(), 0..3000_u16, any::<bool>()), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        extended: bool,
    ) {
        let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Structured };
        let replies = parts.into_iter().map(|(what, id, len, done)| reply(style, what, id, len, done));
        let (bytes, expected): (Vec<_>, Vec<_>) = replies.unzip();
        let bytes = bytes.concat();
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let (mut input, mut from, mut data_left) = (BytesMut::new(), 0, 0);
        let mut heard = Vec::new();
        for end in ends {
            input.extend_from_slice(&bytes[from..end]);
            from = end;
            loop {
                let here = usize::min(data_left, input.len());
                let data = input.split_to(here);
                prop_assert!(data.iter().all(|byte| *byte == 0x67), "data, and nothing else");
                data_left -= here;
                if data_left > 0 {
                    break;
                }
                match Replies::new(style).next(&mut input).unwrap() {
                    ReplyEvent::NeedBytes(need) => {
                        prop_assert!(need > 0);
                        break;
                    }
                    event => {
                        if let ReplyEvent::Data { len_bytes, .. } = &event {
                            data_left = *len_bytes as usize;
                        }
                        heard.push(event);
                    }
                }
            }
        }
        prop_assert_eq!(heard, expected);
        prop_assert!(input.is_empty() && data_left == 0);
    }
}

//! A hostile server against the client's half: errors, never panics, never unbounded memory.
#![no_main]

use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use nbd_server::proto::client::{ClientGoal, ClientHandshake, ClientStep, Replies, ReplyEvent};
use nbd_server::proto::{BASE_ALLOCATION, ExportName, HeaderStyle};

fuzz_target!(|data: &[u8]| {
    let Some((setting, bytes)) = data.split_first() else {
        return;
    };
    let mut input = BytesMut::from(bytes);
    let goal = if setting & 1 == 0 {
        ClientGoal::List
    } else {
        ClientGoal::Use {
            name: ExportName::new("disk").expect("plain"),
            contexts: vec![BASE_ALLOCATION.to_owned(); usize::from(setting >> 1 & 1)],
            extended_headers: setting & 8 != 0,
        }
    };
    let mut style = match setting >> 4 & 3 {
        0 => HeaderStyle::Simple,
        1 => HeaderStyle::Structured,
        _ => HeaderStyle::Extended,
    };
    if setting & 4 == 0 {
        let mut handshake = ClientHandshake::new(goal);
        match handshake.step(&mut input) {
            Ok(ClientStep::Ready(remote)) => {
                assert!(remote.min_block_bytes.is_power_of_two());
                assert!(remote.max_block_bytes >= remote.min_block_bytes);
                assert!(remote.contexts.len() <= 1, "no more than were asked for");
                style = remote.style;
            }
            Ok(ClientStep::NeedBytes(need)) => assert!(need > 0),
            Ok(ClientStep::Listed(_)) | Err(_) => return,
        }
    }
    let replies = Replies::new(style);
    loop {
        match replies.next(&mut input) {
            Ok(ReplyEvent::NeedBytes(need)) => {
                assert!(need > 0);
                return;
            }
            Ok(ReplyEvent::Data { len_bytes, .. }) => {
                let here = usize::try_from(len_bytes)
                    .unwrap_or(usize::MAX)
                    .min(input.len());
                input.advance(here);
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
});

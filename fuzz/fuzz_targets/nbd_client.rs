//! A hostile server against the client's half: errors, never panics, never unbounded memory.
#![no_main]

use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use nbd_server::proto::ExportName;
use nbd_server::proto::client::{ClientGoal, ClientHandshake, ClientStep, Replies, ReplyEvent};

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
            block_status: setting & 2 != 0,
        }
    };
    if setting & 4 == 0 {
        let mut handshake = ClientHandshake::new(goal);
        match handshake.step(&mut input) {
            Ok(ClientStep::Ready(remote)) => {
                assert!(remote.min_block_bytes.is_power_of_two());
                assert!(remote.max_block_bytes >= remote.min_block_bytes);
            }
            Ok(ClientStep::NeedBytes(need)) => assert!(need > 0),
            Ok(ClientStep::Listed(_)) | Err(_) => return,
        }
    }
    let replies = Replies;
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

//! A hostile client's requests: what is admitted lies inside the device and within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_server::proto::{
    Command, ContextId, ExportInfo, ExportName, Negotiated, Request, TransmissionFlags, admit,
    limits,
};

fuzz_target!(|data: &[u8]| {
    let Some((setting, bytes)) = data.split_first() else {
        return;
    };
    let read_only = setting & 1 != 0;
    let size_bytes = 1u64 << (setting >> 3).min(62);
    let negotiated = Negotiated {
        name: ExportName::new("disk").expect("a plain name"),
        info: ExportInfo {
            size_bytes,
            read_only,
            multi_conn: true,
            fast_zero: setting & 2 != 0,
            description: String::new(),
        },
        flags: TransmissionFlags(u16::MAX),
        structured_replies: true,
        base_allocation: (setting & 4 != 0).then_some(ContextId(0)),
    };
    for header in bytes.chunks(Request::BYTES) {
        let Ok(request) = Request::parse(header) else {
            continue;
        };
        assert_eq!(request.encode(), header, "a request is what was sent");
        let range = match admit(&request, &negotiated) {
            Ok(Command::Read { range, .. }) => {
                assert!(range.len_bytes <= u64::from(limits::MAX_PAYLOAD_BYTES));
                range
            }
            Ok(Command::Write { range, .. }) => {
                assert!(!read_only);
                assert!(range.len_bytes <= u64::from(limits::MAX_PAYLOAD_BYTES));
                range
            }
            Ok(Command::Zero { range, .. } | Command::Trim { range, .. }) => {
                assert!(!read_only);
                range
            }
            Ok(Command::BlockStatus { range, .. }) => {
                assert!(range.len_bytes > 0 && negotiated.base_allocation.is_some());
                range
            }
            Ok(Command::Flush | Command::Cache | Command::Disconnect) => continue,
            Err(refused) => {
                assert_ne!(refused.code.0, 0, "a refusal is an error");
                continue;
            }
        };
        let end = range
            .offset
            .checked_add(range.len_bytes)
            .expect("no overflow");
        assert!(end <= size_bytes, "inside the device");
    }
});

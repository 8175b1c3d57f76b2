//! A hostile client's requests, in every style: what is admitted lies inside the device and within the limits.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nbd_server::proto::{
    ByteRange, Command, ContextId, ExportInfo, ExportName, HeaderStyle, MetaContext, Negotiated,
    Refused, Request, SelectedContext, TransmissionFlags, admit, admit_filtered, limits,
};

/// What was agreed on, as the first byte of the input says.
fn negotiated(setting: u8, style: HeaderStyle) -> Negotiated {
    let ids = if setting & 4 != 0 { 0..3 } else { 0..0 };
    Negotiated {
        name: ExportName::new("disk").expect("a plain name"),
        info: ExportInfo {
            size_bytes: 1u64 << (setting >> 3).min(62),
            read_only: setting & 1 != 0,
            multi_conn: true,
            fast_zero: setting & 2 != 0,
            description: String::new(),
            contexts: Vec::new(),
        },
        flags: TransmissionFlags(u16::MAX),
        style,
        contexts: ids
            .map(|id| SelectedContext {
                id: ContextId(id),
                context: MetaContext::Allocation,
            })
            .collect(),
    }
}

/// The range that reaches the export, if one does.
fn range_of(command: Command, negotiated: &Negotiated) -> Option<ByteRange> {
    let read_only = negotiated.info.read_only;
    match command {
        Command::Read { range, .. } => {
            assert!(range.len_bytes <= u64::from(limits::MAX_PAYLOAD_BYTES));
            Some(range)
        }
        Command::Write { range, .. } => {
            assert!(!read_only);
            assert!(range.len_bytes <= u64::from(limits::MAX_PAYLOAD_BYTES));
            Some(range)
        }
        Command::Zero { range, .. } | Command::Trim { range, .. } => {
            assert!(!read_only);
            Some(range)
        }
        Command::BlockStatus {
            range, contexts, ..
        } => {
            assert!(range.len_bytes > 0 && !contexts.is_empty());
            assert!(contexts.len() <= negotiated.contexts.len());
            Some(range)
        }
        Command::BlockStatusFilter { .. } => unreachable!("its payload was taken"),
        Command::Flush | Command::Cache | Command::Disconnect => None,
    }
}

fn decide(request: &Request, payload: &[u8], negotiated: &Negotiated) -> Result<Command, Refused> {
    match admit(request, negotiated) {
        Ok(Command::BlockStatusFilter { payload_bytes }) => {
            assert!(payload_bytes <= 64, "a few numbers");
            admit_filtered(request, payload, negotiated)
        }
        decided => decided,
    }
}

fuzz_target!(|data: &[u8]| {
    let [setting, style, rest @ ..] = data else {
        return;
    };
    let style = match style % 3 {
        0 => HeaderStyle::Simple,
        1 => HeaderStyle::Structured,
        _ => HeaderStyle::Extended,
    };
    let negotiated = negotiated(*setting, style);
    let mut rest = rest;
    // A stream: each request begins where the payload of the last one ended.
    while let Some((header, after)) = rest.split_at_checked(style.request_bytes()) {
        let Ok(request) = Request::parse(style, header) else {
            assert!(Request::check_magic(style, &header[..4]).is_err());
            return;
        };
        let mut again = BytesMut::new();
        request
            .encode(style, &mut again)
            .expect("it fits its style");
        assert_eq!(again, header, "a request is what was sent");
        let Ok(payload_bytes) = request.payload_bytes(style) else {
            return;
        };
        let payload_len = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
        let Some((payload, next)) = after.split_at_checked(payload_len) else {
            return;
        };
        rest = next;
        match decide(&request, payload, &negotiated) {
            Ok(command) => {
                if let Some(range) = range_of(command, &negotiated) {
                    let end = range.offset.checked_add(range.len_bytes);
                    let end = end.expect("no overflow");
                    assert!(end <= negotiated.info.size_bytes, "inside the device");
                }
            }
            Err(refused) => assert_ne!(refused.code.0, 0, "a refusal is an error"),
        }
    }
});

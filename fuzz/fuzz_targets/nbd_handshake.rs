//! A hostile client's handshake: any bytes, cut anywhere, give the same answers as in one piece.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nbd_server::proto::{
    ExportInfo, Handshake, HeaderStyle, MetaContext, Offer, ProtocolError, Refusal, Step, TlsPolicy,
};

/// What a server with one export says to the bytes before TLS and to those in it, given to it in
/// pieces of `piece` bytes.
fn talk(offer: Offer, (plain, secret): (&[u8], &[u8]), piece: usize) -> (Vec<u8>, String, usize) {
    let mut handshake = Handshake::new(offer);
    let mut said = handshake.output().split().to_vec();
    let mut input = BytesMut::new();
    let mut rest = plain;
    let mut in_tls = false;
    loop {
        let step = handshake.step(&mut input);
        said.extend_from_slice(&handshake.output().split());
        assert!(said.len() < 64 << 20, "answers are bounded");
        match step {
            Ok(Step::NeedBytes(need)) => {
                assert!(need > 0);
                if rest.is_empty() {
                    return (said, "waits".to_owned(), input.len());
                }
                let (now, later) = rest.split_at(piece.min(rest.len()));
                input.extend_from_slice(now);
                rest = later;
            }
            Ok(Step::StartTls) => {
                assert!(offer.tls != TlsPolicy::Off && !in_tls, "once, and as told");
                assert!(input.is_empty(), "nothing is heard before its time");
                if !rest.is_empty() {
                    // Nobody said when these came: at once, they end the connection.
                    return (Vec::new(), "says more in plaintext".to_owned(), 0);
                }
                in_tls = true;
                rest = secret;
                handshake.tls_started();
            }
            Ok(Step::FindExport(..) | Step::ListExports | Step::Negotiated(_))
                if offer.tls == TlsPolicy::Require && !in_tls =>
            {
                panic!("nothing is looked up before tls")
            }
            Ok(Step::FindExport(name, _)) => match name.as_str() {
                "" | "disk" => handshake.export_found(ExportInfo {
                    size_bytes: 1 << 30,
                    read_only: false,
                    multi_conn: true,
                    fast_zero: true,
                    description: "a disk".to_owned(),
                    contexts: vec![MetaContext::Allocation, MetaContext::AllocationDepth],
                }),
                "secret" => handshake.export_refused(&Refusal::Policy("not for you".to_owned())),
                _ => handshake.export_refused(&Refusal::Unknown),
            },
            Ok(Step::ListExports) => handshake.exports_listed(vec!["disk".to_owned()]),
            Ok(Step::Negotiated(agreed)) => {
                let extended = agreed.style == HeaderStyle::Extended;
                assert!(offer.extended_headers || !extended, "it was not offered");
                assert!(agreed.contexts.is_empty() || agreed.style.has_chunks());
                return (said, format!("{agreed:?}"), input.len() + rest.len());
            }
            Ok(Step::Close) => return (said, "closes".to_owned(), 0),
            Err(ProtocolError::PlaintextAfterStartTls { .. }) => {
                return (Vec::new(), "says more in plaintext".to_owned(), 0);
            }
            Err(error) => return (said, error.to_string(), 0),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [cut, offer, before, bytes @ ..] = data else {
        return;
    };
    let parts = bytes.split_at(usize::from(*before).min(bytes.len()));
    let offer = Offer {
        extended_headers: offer & 1 != 0,
        tls: match offer >> 1 & 3 {
            0 => TlsPolicy::Require,
            1 => TlsPolicy::On,
            _ => TlsPolicy::Off,
        },
    };
    let in_pieces = talk(offer, parts, usize::from(*cut) + 1);
    assert_eq!(in_pieces, talk(offer, parts, usize::MAX));
});

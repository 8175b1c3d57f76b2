//! `NBD_OPT_STARTTLS` in the pure handshake: every policy, before TLS and in it.

use bytes::BytesMut;
use nbd_server::proto::limits::MAX_OPTION_BYTES;
use nbd_server::proto::{
    ClientOption, Handshake, HeaderStyle, InfoRequest, MetaQuery, Offer, OptionCode, ProtocolError,
    ReplyCode, Step, TlsPolicy,
};
use proptest::prelude::*;

use crate::handshake::{
    Transcript, go, hello, name, options, raw_option, serve_offer, set_context,
};

const POLICIES: [TlsPolicy; 3] = [TlsPolicy::Off, TlsPolicy::On, TlsPolicy::Require];

fn offer(tls: TlsPolicy) -> Offer {
    Offer {
        tls,
        ..Offer::default()
    }
}

/// Options without the client flags before them.
fn inside(options: &[ClientOption]) -> Vec<u8> {
    hello(0, options).split_off(4)
}

fn into_tls(before: &[ClientOption]) -> Vec<u8> {
    let mut bytes = hello(3, before);
    bytes.extend(inside(&[ClientOption::StartTls]));
    bytes
}

/// Every option, and its first answer where TLS plays no part; `None` where there is none.
fn every_option() -> Vec<(ClientOption, Option<ReplyCode>)> {
    let info = || InfoRequest {
        name: name("disk"),
        kinds: vec![],
    };
    let query = || MetaQuery {
        name: name("disk"),
        queries: vec![],
    };
    let (ack, unsupported) = (Some(ReplyCode::ACK), Some(ReplyCode::ERR_UNSUP));
    let early = Some(ReplyCode::ERR_INVALID);
    vec![
        (ClientOption::ExportName(name("disk")), None),
        (ClientOption::Abort, ack),
        (ClientOption::List, Some(ReplyCode::SERVER)),
        (ClientOption::StructuredReply, ack),
        (ClientOption::ExtendedHeaders, ack),
        (ClientOption::Info(info()), Some(ReplyCode::INFO)),
        (ClientOption::Go(info()), Some(ReplyCode::INFO)),
        (ClientOption::ListMetaContext(query()), early),
        (ClientOption::SetMetaContext(query()), early),
        (ClientOption::Unsupported(OptionCode(4)), unsupported),
        (ClientOption::Unsupported(OptionCode(0)), unsupported),
        (ClientOption::Unsupported(OptionCode(9999)), unsupported),
    ]
}

/// The questions but those about TLS itself.
fn asked(transcript: &Transcript) -> usize {
    let asked = transcript.questions.iter();
    asked.filter(|step| **step != Step::StartTls).count()
}

#[test]
fn before_tls_every_option_is_answered_by_policy() {
    for policy in POLICIES {
        for (option, open) in every_option() {
            let code = option.code();
            let transcript = serve_offer(offer(policy), [&hello(3, &[option])[..]]);
            let context = format!("{policy:?} {code}: {:?}", transcript.end);
            if policy != TlsPolicy::Require || code == OptionCode::ABORT {
                if let Some(open) = open {
                    assert_eq!(transcript.codes()[0], open, "{context}");
                } else {
                    transcript.negotiated();
                }
                continue;
            }
            assert_eq!(asked(&transcript), 0, "nothing is looked up: {context}");
            if code == OptionCode::EXPORT_NAME {
                assert_eq!(transcript.end, Ok(Some(Step::Close)), "{context}");
                assert_eq!(transcript.output.len(), 18, "{context}");
            } else {
                assert_eq!(transcript.codes(), [ReplyCode::ERR_TLS_REQD], "{context}");
                assert_eq!(transcript.end, Ok(None), "{context}");
            }
        }
    }
}

#[test]
fn in_tls_every_option_is_answered_as_without() {
    for policy in [TlsPolicy::On, TlsPolicy::Require] {
        for (option, _) in every_option() {
            let code = option.code();
            let plain = serve_offer(
                offer(TlsPolicy::Off),
                [&hello(3, std::slice::from_ref(&option))[..]],
            );
            let (before, after) = (into_tls(&[]), inside(&[option]));
            let transcript = serve_offer(offer(policy), [&before[..], &after[..]]);
            let ack_bytes = 20;
            let told = &transcript.output[18 + ack_bytes..];
            assert_eq!(told, &plain.output[18..], "{policy:?} {code}");
            assert_eq!(transcript.end, plain.end, "{policy:?} {code}");
            assert_eq!(transcript.questions[0], Step::StartTls);
            assert_eq!(transcript.questions[1..], plain.questions);
        }
    }
}

#[test]
fn what_is_malformed_or_long_is_told_about_tls_first() {
    let long = MAX_OPTION_BYTES + 1;
    let payload = vec![1; usize::try_from(long).unwrap()];
    let mut bytes = hello(3, &[]);
    for code in [3, 7, 10, 4242] {
        bytes.extend(raw_option(code, 3, b"bad"));
        bytes.extend(raw_option(code, long, &payload));
    }
    bytes.extend(inside(&[ClientOption::StartTls]));
    let rest = inside(&[go("disk", &[])]);
    let transcript = serve_offer(offer(TlsPolicy::Require), [&bytes[..], &rest[..]]);
    let codes = transcript.codes();
    let (early, late) = codes.split_at(8);
    assert_eq!(early, [ReplyCode::ERR_TLS_REQD; 8]);
    assert_eq!(late, [ReplyCode::ACK, ReplyCode::INFO, ReplyCode::ACK]);
    transcript.negotiated();
}

#[test]
fn starttls_is_refused_where_it_cannot_be_and_the_connection_lives() {
    let disk = inside(&[go("disk", &[])]);
    let check = |policy, parts: &[&[u8]], expected: ReplyCode| {
        let transcript = serve_offer(offer(policy), parts.iter().copied());
        let codes = transcript.codes();
        let end = codes.len() - 2;
        assert_eq!(codes[end - 1], expected, "{policy:?} {codes:?}");
        assert_eq!(codes[end..], [ReplyCode::INFO, ReplyCode::ACK]);
        transcript.negotiated();
    };
    // Never, also when more follows at once.
    let refused = [into_tls(&[]), disk.clone()].concat();
    check(TlsPolicy::Off, &[&refused], ReplyCode::ERR_POLICY);
    // With data.
    let data = [&hello(3, &[])[..], &raw_option(5, 1, b"x")[..], &disk[..]].concat();
    for policy in [TlsPolicy::Off, TlsPolicy::On] {
        check(policy, &[&data], ReplyCode::ERR_INVALID);
    }
    // Twice.
    let again = [inside(&[ClientOption::StartTls]), disk.clone()].concat();
    for policy in [TlsPolicy::On, TlsPolicy::Require] {
        check(policy, &[&into_tls(&[]), &again], ReplyCode::ERR_INVALID);
    }
    let data = [&hello(3, &[])[..], &raw_option(5, 1, b"x")[..]].concat();
    let transcript = serve_offer(offer(TlsPolicy::Require), [&data[..]]);
    assert_eq!(transcript.codes(), [ReplyCode::ERR_INVALID]);
    assert_eq!(transcript.end, Ok(None));
}

#[test]
fn cutting_the_input_at_every_byte_gives_the_same_steps_in_tls() {
    let before = into_tls(&[
        ClientOption::List,
        ClientOption::StructuredReply,
        set_context("disk"),
    ]);
    let mut after = inside(&[
        ClientOption::StructuredReply,
        set_context("disk"),
        go("disk", &[]),
    ]);
    after.extend_from_slice(b"the first request");
    for policy in [TlsPolicy::On, TlsPolicy::Require] {
        let whole = serve_offer(offer(policy), [&before[..], &after[..]]);
        assert_eq!(whole.negotiated().contexts.len(), 1);
        assert_eq!(whole.left, b"the first request");
        for cut in 0..=before.len() {
            let (first, second) = before.split_at(cut);
            let parts = [first, second, &after[..]];
            assert_eq!(serve_offer(offer(policy), parts), whole, "before={cut}");
        }
        for cut in 0..=after.len() {
            let (first, second) = after.split_at(cut);
            let parts = [&before[..], first, second];
            assert_eq!(serve_offer(offer(policy), parts), whole, "after={cut}");
        }
    }
}

/// CVE-2021-3716 (nbdkit): options that somebody on the line put behind STARTTLS were heard as if
/// they had come through TLS.
#[test]
fn what_follows_starttls_in_plaintext_is_never_heard() {
    let asked_for = into_tls(&[]);
    let added = inside(&[ClientOption::StructuredReply, go("disk", &[])]);
    let bytes = [&asked_for[..], &added[..]].concat();
    for policy in [TlsPolicy::On, TlsPolicy::Require] {
        // However little of it is there, and however STARTTLS itself was cut.
        for end in asked_for.len() + 1..=bytes.len() {
            for cut in 0..asked_for.len() {
                let parts = [&bytes[..cut], &bytes[cut..end]];
                let transcript = serve_offer(offer(policy), parts);
                let count = end - asked_for.len();
                let broken = ProtocolError::PlaintextAfterStartTls { count };
                assert_eq!(transcript.end, Err(broken));
                assert_eq!(transcript.questions, [], "end={end} cut={cut}");
                assert_eq!(transcript.codes(), [], "no answer: end={end} cut={cut}");
            }
        }
    }
}

#[test]
fn nothing_that_was_agreed_on_in_plaintext_counts_in_tls() {
    let agreed = [
        vec![ClientOption::StructuredReply, set_context("disk")],
        vec![ClientOption::ExtendedHeaders, set_context("disk")],
    ];
    for before in agreed {
        let (before, after) = (into_tls(&before), inside(&[go("disk", &[])]));
        let transcript = serve_offer(offer(TlsPolicy::On), [&before[..], &after[..]]);
        assert_eq!(transcript.negotiated().style, HeaderStyle::Simple);
        assert_eq!(transcript.negotiated().contexts, []);
        // Contexts need structured replies again.
        let after = inside(&[set_context("disk"), go("disk", &[])]);
        let transcript = serve_offer(offer(TlsPolicy::On), [&before[..], &after[..]]);
        assert_eq!(transcript.negotiated().contexts, []);
        assert!(transcript.codes().contains(&ReplyCode::ERR_INVALID));
    }
}

#[test]
fn the_client_flags_count_in_tls_too() {
    for (flags, padding) in [(1, 124), (3, 0)] {
        let mut before = hello(flags, &[]);
        before.extend(inside(&[ClientOption::StartTls]));
        let after = inside(&[ClientOption::ExportName(name("disk"))]);
        let transcript = serve_offer(offer(TlsPolicy::Require), [&before[..], &after[..]]);
        assert_eq!(transcript.output.len(), 18 + 20 + 10 + padding);
        transcript.negotiated();
    }
}

#[test]
#[should_panic(expected = "sent in plaintext")]
fn what_was_said_in_plaintext_is_never_said_in_tls() {
    let mut handshake = Handshake::new(offer(TlsPolicy::On));
    let mut input = BytesMut::from(&into_tls(&[])[..]);
    assert_eq!(handshake.step(&mut input), Ok(Step::StartTls));
    handshake.tls_started();
}

/// Options that leave the handshake where it is.
fn that_stay() -> impl Strategy<Value = Vec<ClientOption>> {
    let stays = options().prop_map(|option| match option {
        ClientOption::Abort
        | ClientOption::ExportName(_)
        | ClientOption::Go(_)
        | ClientOption::StartTls => set_context("disk"),
        option => option,
    });
    prop::collection::vec(stays, 0..8)
}

proptest! {
    #[test]
    fn the_past_in_plaintext_makes_no_difference(
        before in that_stay(),
        after in that_stay(),
        require: bool,
    ) {
        let policy = if require { TlsPolicy::Require } else { TlsPolicy::On };
        let mut after = after;
        after.push(go("disk", &[]));
        let after = inside(&after);
        let (with, without) = (into_tls(&before), into_tls(&[]));
        let with = serve_offer(offer(policy), [&with[..], &after[..]]);
        let without = serve_offer(offer(policy), [&without[..], &after[..]]);
        prop_assert_eq!(with.negotiated(), without.negotiated());
        let answers = without.replies();
        let later = with.replies().split_off(with.replies().len() - answers.len());
        prop_assert_eq!(later, answers);
        if require {
            prop_assert_eq!(asked(&with), asked(&without));
        }
    }
}

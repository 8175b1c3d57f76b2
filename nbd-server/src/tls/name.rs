//! The name in a certificate, as far as a log needs it.

use crate::proto::limits::MAX_PEER_NAME_CHARS;

/// `id-at-commonName` (RFC 5280, appendix A.1).
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// The context-specific tag of `version`.
const VERSION: u8 = 0xA0;
/// Serial number, signature algorithm, issuer and validity stand before the subject.
const BEFORE_SUBJECT: usize = 4;
/// `UTF8String`, `PrintableString` and `IA5String`: those whose bytes are UTF-8.
const TEXTS: [u8; 3] = [0x0C, 0x13, 0x16];

/// The last common name in the subject of a certificate (RFC 5280, section 4.1), for people: without
/// control characters, and cut at [`MAX_PEER_NAME_CHARS`]. Whether the certificate is any good was
/// decided before by those who know.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let mut body = element(element(certificate)?.contents)?.contents;
    if element(body)?.tag == VERSION {
        body = element(body)?.rest;
    }
    for _ in 0..BEFORE_SUBJECT {
        body = element(body)?.rest;
    }
    let mut sets = element(body)?.contents;
    let mut name = None;
    while let Some(set) = element(sets) {
        let mut attributes = set.contents;
        while let Some(attribute) = element(attributes) {
            name = text_of(attribute.contents).or(name);
            attributes = attribute.rest;
        }
        sets = set.rest;
    }
    name
}

/// The value of an attribute that is a common name in an encoding of today.
fn text_of(attribute: &[u8]) -> Option<String> {
    let kind = element(attribute)?;
    let value = element(kind.rest)?;
    if kind.contents != COMMON_NAME || !TEXTS.contains(&value.tag) {
        return None;
    }
    let text = std::str::from_utf8(value.contents).ok()?;
    let shown = text.chars().filter(|char| !char.is_control());
    Some(shown.take(MAX_PEER_NAME_CHARS).collect())
}

/// An element of DER: tag, length, contents.
struct Element<'a> {
    tag: u8,
    contents: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match usize::from(first) {
        len @ 0..=0x7F => (len, rest),
        // Lengths in up to 3 octets: no certificate has 16 MiB.
        long @ 0x81..=0x83 => {
            let (octets, rest) = rest.split_at_checked(long - 0x80)?;
            let add = |len, octet: &u8| len << 8 | usize::from(*octet);
            (octets.iter().fold(0, add), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some(Element {
        tag,
        contents,
        rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    fn certificate(names: &[DnValue]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "not this");
        for name in names {
            params
                .distinguished_name
                .push(DnType::CommonName, name.clone());
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_is_found_in_what_others_made() {
        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        let printable = DnValue::PrintableString("node 1".try_into().unwrap());
        assert_eq!(common_name(&certificate(&[])), None);
        let found = |name| common_name(&certificate(&[name]));
        assert_eq!(found(utf8("knoten-ä")).as_deref(), Some("knoten-ä"));
        assert_eq!(found(printable).as_deref(), Some("node 1"));
        assert_eq!(found(utf8("a\nb\x1b[31m")).as_deref(), Some("ab[31m"));
        let long = "x".repeat(200);
        assert_eq!(found(utf8(&long)).map(|name| name.len()), Some(64));
    }

    #[test]
    fn a_certificate_cut_or_changed_anywhere_is_no_panic() {
        let whole = certificate(&[DnValue::Utf8String("node".to_owned())]);
        for end in 0..whole.len() {
            assert_eq!(common_name(&whole[..end]), None, "end={end}");
            for value in [0, 0x7f, 0x80, 0x83, 0xff] {
                let mut changed = whole.clone();
                changed[end] = value;
                // Whatever comes out, it is bounded.
                assert!(common_name(&changed).is_none_or(|name| name.len() <= 64 * 4));
            }
        }
    }
}

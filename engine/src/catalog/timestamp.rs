//! Times as the database has them: UTC text `YYYY-MM-DD HH:MM:SS.ffffff`.
//!
//! That is how MariaDB shows a `TIMESTAMP(6)`, it sorts as text, and the legacy hub reads it. Its own rows may lack the fraction.

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{PrimitiveDateTime, UtcOffset};

use crate::clock::Timestamp;
use crate::error::Error;

const WRITTEN: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]");
const READ: &[BorrowedFormatItem<'static>] = format_description!(
    version = 2,
    "[year]-[month]-[day] [hour]:[minute]:[second][optional [.[subsecond]]]"
);

/// The text of a moment; what is below a microsecond is cut.
pub(super) fn to_text(at: Timestamp) -> String {
    at.to_offset(UtcOffset::UTC)
        .format(WRITTEN)
        .expect("the format has only parts that every moment has")
}

/// The moment of a text.
pub(super) fn from_text(column: &'static str, text: &str) -> Result<Timestamp, Error> {
    let parsed = PrimitiveDateTime::parse(text, READ);
    parsed.map(PrimitiveDateTime::assume_utc).map_err(|source| {
        let quoted: String = text.chars().take(40).collect();
        Error::corrupt(
            "database error",
            format!("a row has a malformed time column={column} text={quoted:?}"),
        )
        .with_source(source)
    })
}

/// The moment of a text that may be missing.
pub(super) fn from_optional_text(
    column: &'static str,
    text: Option<&str>,
) -> Result<Option<Timestamp>, Error> {
    text.map(|text| from_text(column, text)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let at = Timestamp::from_unix_timestamp_nanos(1_760_000_000_123_456_789).expect("a moment");
        assert_eq!(to_text(at), "2025-10-09 08:53:20.123456");
        let back = from_text("t", &to_text(at)).expect("a time");
        assert_eq!(back.unix_timestamp_nanos(), 1_760_000_000_123_456_000);
        let east = at.to_offset(UtcOffset::from_hms(5, 30, 0).expect("an offset"));
        assert_eq!(to_text(east), to_text(at));
        assert_eq!(to_text(Timestamp::UNIX_EPOCH), "1970-01-01 00:00:00.000000");
    }

    #[test]
    fn legacy_times_have_no_fraction() {
        let at = from_text("t", "2025-10-08 10:15:00").expect("a time");
        assert_eq!(at.unix_timestamp(), 1_759_918_500);
        for malformed in [
            "",
            "2025-10-08",
            "0000-00-00 00:00:00",
            "2025-10-08T10:15:00Z",
            "2025-10-08 10:15:00.",
            "x",
        ] {
            assert!(from_text("t", malformed).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn text_order_is_time_order() {
        let mut texts: Vec<String> = [
            0,
            1,
            999_999_999,
            1_000_000_000,
            1_000_001_000,
            59_999_999_999,
        ]
        .into_iter()
        .map(|nanos| to_text(Timestamp::from_unix_timestamp_nanos(nanos).expect("a moment")))
        .collect();
        let in_time_order = texts.clone();
        texts.sort();
        assert_eq!(texts, in_time_order);
    }
}

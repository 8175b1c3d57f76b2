//! Sizes as people and qemu-img write them.

/// Bytes of `64M`, `1.5G`, `4096`: powers of 1024, as qemu-img reads them.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let refused = |why: &str| Err(format!("{why}: text={text:?}"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        _ => return refused("unknown unit"),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let only_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !only_digits(whole) || !only_digits(fraction) {
        return refused("no number");
    }
    let unit = 1_u128 << shift;
    let Ok(whole) = whole.parse::<u128>() else {
        return refused("too large");
    };
    let Some(scale) = u32::try_from(fraction.len())
        .ok()
        .and_then(|digits| 10_u128.checked_pow(digits))
    else {
        return refused("too many digits");
    };
    let part = fraction.parse::<u128>().unwrap_or(0);
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(part.checked_mul(unit)? / scale))
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or(())
        .or_else(|()| refused("too large"))
}

/// `1.5 GiB` for people.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scaled = bytes;
    let mut rest = 0;
    let mut unit = None;
    for name in UNITS {
        if scaled < 1024 {
            break;
        }
        rest = scaled % 1024;
        scaled /= 1024;
        unit = Some(name);
    }
    match unit {
        None => format!("{bytes} B"),
        Some(unit) => format!("{scaled}.{} {unit}", rest * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        let check = |text: &str, bytes: u64| assert_eq!(parse(text), Ok(bytes), "{text}");
        check("0", 0);
        check("4096", 4096);
        check("512b", 512);
        check("64k", 64 << 10);
        check("64KiB", 64 << 10);
        check("1.5G", 3 << 29);
        check("2T", 2 << 40);
        check("18446744073709551615", u64::MAX);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1e3",
            "1..5M",
            "0x10",
            "1 M",
            "17179869184G",
            "é",
            "1.5é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people_have_one_decimal() {
        let check = |bytes: u64, text: &str| assert_eq!(human(bytes), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(3 << 29, "1.5 GiB");
        check(u64::MAX, "15.9 EiB");
    }
}

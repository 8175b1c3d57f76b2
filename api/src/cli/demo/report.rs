//! What the demo says.

use std::io::Write as _;
use std::time::Duration;

use engine::{ChainLayer, DiskIndex};

/// One line on stdout. A closed pipe is the reader's choice, not an error.
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// A heading of a step.
pub(super) fn step(number: usize, text: &str) {
    line(&format!("\n{number}. {text}"));
}

/// `1.25 GiB`: the largest unit that fits, cut (never rounded up) after two digits.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (1..=UNITS.len())
        .rev()
        .find(|unit| bytes >> (10 * unit) > 0);
    let Some(unit) = unit else {
        return format!("{bytes} B");
    };
    let hundredths = (u128::from(bytes) * 100) >> (10 * unit);
    format!(
        "{}.{:02} {}",
        hundredths / 100,
        hundredths % 100,
        UNITS[unit - 1]
    )
}

/// `312 MiB/s`.
pub(super) fn rate(bytes: u64, elapsed: Duration) -> String {
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    format!("{}/s", size(bytes.saturating_mul(1000) / millis))
}

/// `4.2 %` of a whole.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let tenths = part.saturating_mul(1000) / whole.max(1);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// One disk's chain, as `qemu-img info --backing-chain` would tell it.
pub(super) fn chain(disk: DiskIndex, layers: &[ChainLayer]) {
    for layer in layers {
        line("");
        line(&format!("   image: {}", layer.path));
        line(&format!("   disk: {disk}"));
        line("   file format: qcow2");
        line(&format!(
            "   virtual size: {} ({} bytes)",
            size(layer.virtual_size_bytes),
            layer.virtual_size_bytes
        ));
        line(&format!(
            "   file length: {} ({} bytes)",
            size(layer.file_size_bytes),
            layer.file_size_bytes
        ));
        line(&format!("   cluster_size: {}", layer.cluster_size_bytes));
        if let Some(name) = &layer.backing_name {
            line(&format!("   backing file: {name}"));
            line("   backing file format: qcow2");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_sizes() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(9_999), "9.76 KiB");
        assert_eq!(size(1 << 20), "1.00 MiB");
        assert_eq!(size(1_342_177_280), "1.25 GiB");
        assert_eq!(size(300 << 20), "300.00 MiB");
        assert_eq!(percent(42, 1000), "4.2 %");
        assert_eq!(rate(1 << 30, Duration::from_secs(2)), "512.00 MiB/s");
    }
}

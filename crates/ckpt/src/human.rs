//! Sizes, times, counts and paths as text.

use chrono::{DateTime, Local, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::path::Path;

/// `512 B`, `1.5 KiB`, `20.0 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// `2026-11-22 14:03:11`, in local time.
pub fn time(time: DateTime<Utc>) -> String {
    time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// As [`time`], with the offset from UTC.
pub fn time_and_offset(time: DateTime<Utc>) -> String {
    time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// The time from which ages are counted: `SOURCE_DATE_EPOCH` in seconds, if it is set, so that outputs can be
/// reproduced; otherwise the present.
pub fn now() -> DateTime<Utc> {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    epoch.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).unwrap_or_else(Utc::now)
}

/// `12s`, `5m`, `3h`, `12d`: the largest unit of which there is at least one.
pub fn age(age: TimeDelta) -> String {
    let seconds = age.num_seconds();
    match seconds {
        ..0 => "in the future".to_string(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `850 µs`, `12.3 ms`, `1.5 s`, `12 min`, `3 h`: with three digits.
pub fn seconds(seconds: f64) -> String {
    let (number, unit) = match seconds.abs() {
        0.0 => (0.0, "s"),
        ..1e-3 => (seconds * 1e6, "µs"),
        ..1.0 => (seconds * 1e3, "ms"),
        ..120.0 => (seconds, "s"),
        ..7200.0 => (seconds / 60.0, "min"),
        _ => (seconds / 3600.0, "h"),
    };
    let rounded: f64 = format!("{number:.2e}").parse().unwrap_or(number);
    format!("{} {unit}", figure(rounded))
}

/// `1.5 GiB/s`, or `-` if there is none.
pub fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_string(), |rate| format!("{}/s", bytes(rate as u64)))
}

/// `1 tensor`, `2 tensors`.
pub fn count(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        _ => format!("{count} {thing}s"),
    }
}

/// `loss=0.25 per=0.5`.
pub fn metrics(metrics: &BTreeMap<String, f64>) -> String {
    let metrics: Vec<String> = metrics.iter().map(|(name, value)| format!("{name}={}", figure(*value))).collect();
    metrics.join(" ")
}

/// Pins or notes: `best, paper (table 2)`.
pub fn notes(notes: &BTreeMap<String, String>) -> String {
    let note = |(name, text): (&String, &String)| match text.is_empty() {
        true => name.clone(),
        false => format!("{name} ({text})"),
    };
    notes.iter().map(note).collect::<Vec<_>>().join(", ")
}

/// A number with 6 digits: `0.25`, `0.333333`, `1.19209e-7`.
pub fn figure(value: f64) -> String {
    let rounded = format!("{value:.5e}").parse().unwrap_or(value);
    match rounded == 0.0 || (1e-4..1e9).contains(&rounded.abs()) {
        true => rounded.to_string(),
        false => format!("{rounded:e}"),
    }
}

/// A path as text. Bytes that are not Unicode become `U+FFFD`.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A number, or `-` if there is none.
pub fn number<N: ToString>(number: Option<N>) -> String {
    number.map_or_else(|| "-".to_string(), |number| number.to_string())
}

/// At most `length` characters of `text`, those around the character `at`.
pub fn excerpt(text: &str, at: usize, length: usize) -> String {
    let total = text.chars().count();
    if total <= length {
        return text.to_string();
    }
    let start = at.saturating_sub(length / 4).min(total - length);
    let part: String = text.chars().skip(start).take(length).collect();
    let (before, after) = (if start > 0 { "…" } else { "" }, if start + length < total { "…" } else { "" });
    format!("{before}{part}{after} ({total} characters)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn figures() {
        let cases = [
            (0.0, "0"),
            (255.0, "255"),
            (1.0 / 3.0, "0.333333"),
            (-0.080_000_400_54, "-0.0800004"),
            (f64::from(f32::EPSILON), "1.19209e-7"),
            (u64::MAX as f64, "1.84467e19"),
        ];
        for (value, text) in cases {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        let cases = [
            (0.0, "0 s"),
            (1.234e-9, "0.00123 µs"),
            (850e-6, "850 µs"),
            (0.012_345, "12.3 ms"),
            (0.9999, "1000 ms"),
            (1.5, "1.5 s"),
            (90.0, "90 s"),
            (600.0, "10 min"),
            (10_800.0, "3 h"),
            (u64::MAX as f64 / 1e9, "5120000 h"),
        ];
        for (time, text) in cases {
            assert_eq!(seconds(time), text);
        }
        assert_eq!((rate(None), rate(Some(1536.0))), ("-".to_string(), "1.5 KiB/s".to_string()));
    }

    #[test]
    fn excerpts_show_the_place_asked_for() {
        assert_eq!(excerpt("short", 3, 10), "short");
        assert_eq!(excerpt("0123456789abcdef", 0, 8), "01234567… (16 characters)");
        assert_eq!(excerpt("0123456789abcdef", 8, 4), "…789a… (16 characters)");
        assert_eq!(excerpt("0123456789abcdef", 99, 4), "…cdef (16 characters)");
    }
}

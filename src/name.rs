//! Names of objects, tensors and files.
//!
//! * An object's **path** is the names from the root down to it. A name is any non-empty text of at most 255 bytes.
//! * Its **key** in the manifest is the path joined by `/`; inside a name `%`, `/` and control characters are
//!   written as `%` and two upper-case hexadecimal digits, so that every key has one path.
//! * A component's **file** is the first name of the path and `.safetensors`; in it every byte other than
//!   `A-Z a-z 0-9 _ - .` is written as `%XX`, including a leading `.`, so that it is a plain file name on every system.

use crate::error::{Error, Result};
pub(crate) use crate::text::{component, short_message, shown};
use std::collections::BTreeMap;

/// The maximum length of a name, in bytes.
pub const MAX_NAME: usize = 255;

/// The maximum number of names in a path: a component and 64 levels below it.
pub const MAX_NAMES: usize = 65;

/// The extension of component files, with the dot.
pub(crate) const COMPONENT_EXTENSION: &str = ".safetensors";

/// Escapes one name for a key.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if c == '%' || c == '/' || c.is_control() {
            let mut utf8 = [0; 4];
            for byte in c.encode_utf8(&mut utf8).bytes() {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Undoes [`escape`]; `None` for what `escape` does not produce.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (escape(&name) == text).then_some(name)
}

/// Returns the key of a path.
///
/// ```
/// use tch_checkpoint::name::{key, path};
/// assert_eq!(key(["encoder", "gru.weight"]), "encoder/gru.weight");
/// assert_eq!(key(["a/b", "50%"]), "a%2Fb/50%25");
/// assert_eq!(path("a%2Fb/50%25").unwrap(), ["a/b", "50%"]);
/// ```
pub fn key<S: AsRef<str>>(path: impl IntoIterator<Item = S>) -> String {
    let mut key = String::new();
    for (i, name) in path.into_iter().enumerate() {
        if i > 0 {
            key.push('/');
        }
        key.push_str(&escape(name.as_ref()));
    }
    key
}

/// Returns the key of what is at the key `below`, relative to the object at `key`.
pub(crate) fn join(key: &str, below: &str) -> String {
    format!("{key}/{below}")
}

/// Returns what the keys of everything below the object at `key` start with.
pub(crate) fn prefix(key: &str) -> String {
    format!("{key}/")
}

/// Returns `true` if there is an entry for the object at `key`, or for anything below it.
pub(crate) fn has_at<V>(entries: &BTreeMap<String, V>, key: &str) -> bool {
    let below = prefix(key);
    entries.contains_key(key) || entries.range(below.clone()..).next().is_some_and(|(key, _)| key.starts_with(&below))
}

/// Returns the path of a key, or `None` if the text is not a key or has more than [`MAX_NAMES`] names.
///
/// ```
/// use tch_checkpoint::name;
/// assert_eq!(name::path("encoder/a%2Fb"), Some(vec!["encoder".to_string(), "a/b".to_string()]));
/// assert_eq!(name::path("encoder//b"), None);
/// ```
#[must_use]
pub fn path(key: &str) -> Option<Vec<String>> {
    if key.split('/').nth(MAX_NAMES).is_some() {
        return None;
    }
    key.split('/').map(|part| unescape(part).filter(|name| !name.is_empty())).collect()
}

/// Returns the file stem of a component, without extension.
///
/// ```
/// assert_eq!(tch_checkpoint::name::file_stem("my encoder"), "my%20encoder");
/// ```
#[must_use]
pub fn file_stem(component: &str) -> String {
    let mut stem = String::with_capacity(component.len());
    for (i, byte) in component.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && i > 0);
        if plain {
            stem.push(byte as char);
        } else {
            stem.push_str(&format!("%{byte:02X}"));
        }
    }
    if is_device_name(&stem) {
        // On Windows, names such as CON, NUL and COM1 are devices, regardless of the extension.
        stem = format!("%{:02X}{}", stem.as_bytes()[0], &stem[1..]);
    }
    stem
}

fn is_device_name(stem: &str) -> bool {
    let base = stem.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let numbered = |device: &str| {
        base.strip_prefix(device).is_some_and(|n| n.len() == 1 && n != "0" && n.as_bytes()[0].is_ascii_digit())
    };
    matches!(base.as_str(), "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT")
}

/// Returns `true` if a manifest may name this file: a plain name as [`file_stem`] returns, without a path.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'%');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Returns `true` if `text`, such as a key, matches `pattern`, in which `*` matches any text, including `/`.
///
/// ```
/// use tch_checkpoint::name::matches;
/// assert!(matches("decoder/*", "decoder/gru.weight"));
/// assert!(!matches("decoder", "decoder/gru.weight"));
/// ```
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Checks one name of a path. `parent` is the key of its parent, for the message.
pub(crate) fn check(parent: &str, name: &str) -> Result<()> {
    let full = || if parent.is_empty() { name.to_string() } else { format!("{parent}/{name}") };
    if name.is_empty() {
        return Err(Error::name(full(), "a name must not be empty"));
    }
    if name.len() > MAX_NAME {
        return Err(Error::name(full(), format!("it has {} bytes, at most {MAX_NAME} are allowed", name.len())));
    }
    Ok(())
}

/// Checks the name of a component, whose file name must be valid, too.
pub(crate) fn check_component(name: &str) -> Result<()> {
    check("", name)?;
    if file_stem(name).len() > 200 {
        return Err(Error::name(name, "as a file name it is longer than 200 bytes; choose a shorter name"));
    }
    Ok(())
}

/// Returns the most similar of `candidates`, if any is similar enough, as a hint for messages. The work is bounded:
/// names longer than [`MAX_NAME`] are ignored, and after [`MAX_WORK`] steps the best candidate so far is returned.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut left = MAX_WORK;
    nearest_within(name, candidates, &mut left)
}

/// Returns the end of a message about an unknown name: the most similar of the first 10,000 candidates.
pub(crate) fn nearest_hint<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    nearest(name, candidates.take(10_000)).map(|near| format!("; the nearest is {}", shown(near))).unwrap_or_default()
}

/// The maximum number of steps for a hint: comparisons of two bytes.
const MAX_WORK: usize = 4_000_000;

/// Like [`nearest`], with the number of steps that are left.
fn nearest_within<'a>(name: &str, candidates: impl Iterator<Item = &'a str>, left: &mut usize) -> Option<&'a str> {
    if name.len() > MAX_NAME {
        return None;
    }
    let letters = letters(name);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        // A candidate that differs in more than a third is not similar.
        let most = best.map_or(name.len().max(candidate.len()) / 3, |(distance, _)| distance);
        let too_long = candidate.len() > MAX_NAME || name.len().abs_diff(candidate.len()) > most;
        if !work(left, if too_long { 1 } else { 256 + candidate.len() }) {
            break;
        }
        if too_long || at_least(&letters, candidate) > most {
            continue;
        }
        if !work(left, name.len() * candidate.len()) {
            break;
        }
        let found = (distance(name, candidate), candidate);
        if found.0 <= most && best.is_none_or(|best| found < best) {
            best = Some(found);
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Subtracts `steps` from `left`. Returns `false` if there were fewer.
fn work(left: &mut usize, steps: usize) -> bool {
    let enough = *left >= steps;
    *left = left.saturating_sub(steps);
    enough
}

/// Counts each byte of a text.
fn letters(text: &str) -> [i32; 256] {
    let mut counts = [0; 256];
    text.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
    counts
}

/// Returns a lower bound of the distance of two texts: one step changes the counts of at most two bytes by one.
fn at_least(a: &[i32; 256], b: &str) -> usize {
    let b = letters(b);
    let differing: u32 = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).sum();
    differing.div_ceil(2) as usize
}

/// Returns the Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_path_has_one_key_and_back(names in prop::collection::vec("\\PC{1,12}|[%/.\u{1}\n]{1,4}", 1..5)) {
            prop_assert_eq!(path(&key(&names)), Some(names));
        }

        #[test]
        fn a_key_that_parses_is_the_key_of_its_path(text in "[a-zA-Z0-9%/.]{0,12}") {
            if let Some(names) = path(&text) {
                prop_assert_eq!(key(&names), text);
            }
        }

        #[test]
        fn file_stems_are_plain_and_distinct(a in "\\PC{1,12}", b in "\\PC{1,12}") {
            prop_assert!(is_plain_file_name(&file_stem(&a)));
            prop_assert_eq!(a == b, file_stem(&a) == file_stem(&b));
        }
    }

    #[test]
    fn hostile_file_names_are_not_plain() {
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "ü"] {
            assert!(!is_plain_file_name(name), "{name:?}");
        }
        assert!(is_plain_file_name(&file_stem("..")));
        assert_eq!(file_stem("nul"), "%6Eul");
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, fits) in [
            ("decoder/*", "decoder/gru.w", true),
            ("decoder/*", "encoder/decoder/x", false),
            ("*bias", "a/b.bias", true),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn the_nearest_name_is_a_hint_only_when_alike() {
        assert_eq!(nearest("encoder/gru.w", ["encoder/gru.v", "decoder/x"].into_iter()), Some("encoder/gru.v"));
        assert_eq!(nearest("encoder", ["zzzzzzz"].into_iter()), None);
    }

    #[test]
    fn a_hint_takes_a_bounded_number_of_steps() {
        let alike: Vec<String> = (0..100_000).map(|n| format!("{n:06}{}", "x".repeat(240))).collect();
        let mut left = MAX_WORK;
        let name = format!("abcdef{}", "x".repeat(240));
        assert!(nearest_within(&name, alike.iter().map(String::as_str), &mut left).is_some());
        assert_eq!(left, 0);
        // Among many names that are not alike, the one that is costs little to find.
        let names: Vec<String> = (0..9_000).map(|n| format!("decoder/block{n}/weight")).collect();
        let all = names.iter().map(String::as_str).chain(["tokenizer/merges"]);
        let mut left = MAX_WORK;
        assert_eq!(nearest_within("tokeniser/merges", all, &mut left), Some("tokenizer/merges"));
        // What is too long is not compared at all.
        let long = "y".repeat(100_000);
        let mut left = MAX_WORK;
        assert_eq!(nearest_within("y", vec![long.as_str(); 1000].into_iter(), &mut left), None);
        assert_eq!(left, MAX_WORK - 1000);
    }

    #[test]
    fn quoted_names_and_messages_are_short() {
        assert_eq!(shown("plain").to_string(), "\"plain\"");
        let long = "é".repeat(100_000);
        assert!(shown(&long).to_string().len() < 400 && shown(&long).to_string().contains("200000 bytes"));
        assert!(short_message(long).len() < 2100);
    }

    #[test]
    fn a_path_has_at_most_65_names() {
        let key = |names: usize| vec!["a"; names].join("/");
        assert_eq!(path(&key(MAX_NAMES)).map(|names| names.len()), Some(MAX_NAMES));
        assert_eq!(path(&key(MAX_NAMES + 1)), None);
    }
}

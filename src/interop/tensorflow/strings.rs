//! Tensors of strings: their encoding, their own kind of checksum, and their JSON form.

use super::checksum::mask;
use super::wire::{Parsed, put_varint, take, varint};
use serde_json::Value;

/// Returns the elements of a tensor of `count` strings, whose checksums hold.
pub(super) fn decode(bytes: &[u8], count: u64, crc: u32) -> Parsed<Vec<&[u8]>> {
    let wrong = || "a tensor of strings is not readable".to_string();
    let mut rest = bytes;
    // Every length has at least one byte.
    if count > bytes.len() as u64 {
        return Err(wrong());
    }
    let lengths: Option<Vec<u64>> = (0..count).map(|_| varint(&mut rest)).collect();
    let lengths = lengths.ok_or_else(wrong)?;
    let found = crc_of_lengths(&lengths);
    let stored = take(&mut rest, 4).ok_or_else(wrong)?;
    let all = crc32c::crc32c_append(crc32c::crc32c_append(found, stored), rest);
    if stored != mask(found).to_le_bytes() || mask(all) != crc {
        return Err("checksum mismatch in a tensor of strings".into());
    }
    let elements: Option<Vec<&[u8]>> = lengths.iter().map(|length| take(&mut rest, *length)).collect();
    match elements {
        Some(elements) if rest.is_empty() => Ok(elements),
        _ => Err(wrong()),
    }
}

/// Returns the encoded elements, and the masked checksum of the entry.
pub(super) fn encode(elements: &[&[u8]]) -> (Vec<u8>, u32) {
    let lengths: Vec<u64> = elements.iter().map(|element| element.len() as u64).collect();
    let mut bytes = Vec::new();
    lengths.iter().for_each(|length| put_varint(&mut bytes, *length));
    let crc = crc_of_lengths(&lengths);
    let stored = mask(crc).to_le_bytes();
    bytes.extend(stored);
    let mut crc = crc32c::crc32c_append(crc, &stored);
    for element in elements {
        crc = crc32c::crc32c_append(crc, element);
        bytes.extend_from_slice(element);
    }
    (bytes, mask(crc))
}

/// Lengths are checksummed as 32-bit numbers, not as the varints they are stored as.
fn crc_of_lengths(lengths: &[u64]) -> u32 {
    lengths.iter().fold(0, |crc, length| match u32::try_from(*length) {
        Ok(length) => crc32c::crc32c_append(crc, &length.to_le_bytes()),
        Err(_) => crc32c::crc32c_append(crc, &length.to_le_bytes()),
    })
}

/// Returns how many lists the JSON form of a shape has.
pub(super) fn lists(shape: &[u64]) -> u64 {
    let lists = shape
        .iter()
        .fold((0u64, 1u64), |(lists, outer), length| (lists.saturating_add(outer), outer.saturating_mul(*length)));
    lists.0
}

/// Returns the strings as JSON: text, or `{"hex": …}` where it is not UTF-8; lists of lists by the shape.
pub(super) fn to_json(elements: &[&[u8]], shape: &[u64]) -> Value {
    let mut values: Vec<Value> = elements.iter().map(|element| element_to_json(element)).collect();
    if values.is_empty() {
        return Value::Array(values);
    }
    // No dimension is 0 here, so that the lengths are at most the number of elements.
    for length in shape.iter().skip(1).rev() {
        let mut rest = values.into_iter().peekable();
        let mut lists = Vec::new();
        while rest.peek().is_some() {
            lists.push(Value::Array(rest.by_ref().take(*length as usize).collect()));
        }
        values = lists;
    }
    match (shape.is_empty(), values.pop()) {
        (true, Some(scalar)) => scalar,
        (_, last) => Value::Array(values.into_iter().chain(last).collect()),
    }
}

fn element_to_json(element: &[u8]) -> Value {
    match std::str::from_utf8(element) {
        Ok(text) => Value::from(text),
        Err(_) => {
            let hex: String = element.iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::json!({ "hex": hex })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strings_go_there_and_back() {
        let elements = [&b"foo"[..], b"", "hé".as_bytes()];
        let (bytes, crc) = encode(&elements);
        assert_eq!((bytes.len(), &bytes[..3]), (13, &[3, 0, 3][..]));
        assert_eq!(decode(&bytes, 3, crc).unwrap(), elements);
        assert_eq!(encode(&[]).0.len(), 4);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged, 3, crc).is_err(), "byte {at}");
            assert!(decode(&bytes[..at], 3, crc).is_err(), "cut at {at}");
        }
        assert!(decode(&bytes, u64::MAX, crc).is_err());
    }

    #[test]
    fn shapes_become_lists() {
        assert_eq!(to_json(&[b"a"], &[]), json!("a"));
        assert_eq!(to_json(&[b"a"], &[1]), json!(["a"]));
        assert_eq!(to_json(&[b"a", b"b", b"c", b"\xff"], &[2, 2]), json!([["a", "b"], ["c", { "hex": "ff" }]]));
        assert_eq!(to_json(&[b"a", b"b"], &[2, 1, 1]), json!([[["a"]], [["b"]]]));
        assert_eq!(to_json(&[], &[1 << 40, 0]), json!([]));
        assert_eq!([lists(&[]), lists(&[9]), lists(&[2, 3]), lists(&[5, 1, 1])], [0, 1, 3, 11]);
    }
}

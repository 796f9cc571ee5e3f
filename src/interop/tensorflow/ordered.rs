//! The keys of slices: TensorFlow's "ordered code", whose bytes sort as the values do.

use super::wire::{Parsed, take};

/// A range of a dimension. A length of `None` stands for the whole dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    pub start: u64,
    pub length: Option<u64>,
}

/// Returns the key under which the slice of a tensor is stored.
pub(super) fn slice_key(name: &[u8], extents: &[Extent]) -> Vec<u8> {
    let mut key = vec![0];
    for byte in name {
        match byte {
            0x00 => key.extend([0x00, 0xff]),
            0xff => key.extend([0xff, 0x00]),
            byte => key.push(*byte),
        }
    }
    key.extend([0x00, 0x01]);
    put_number(&mut key, extents.len() as u64);
    for extent in extents {
        put_signed(&mut key, extent.start as i64);
        put_signed(&mut key, extent.length.map_or(-1, |length| length as i64));
    }
    key
}

/// Name and extents of a slice's key.
pub(super) fn parse_slice_key(key: &[u8]) -> Parsed<(Vec<u8>, Vec<Extent>)> {
    parse(key).ok_or_else(|| "the key of a slice is not readable".to_string())
}

fn parse(key: &[u8]) -> Option<(Vec<u8>, Vec<Extent>)> {
    let mut rest = key.strip_prefix(&[0])?;
    let mut name = Vec::new();
    loop {
        match *take(&mut rest, 1)?.first()? {
            0x00 => match *take(&mut rest, 1)?.first()? {
                0x01 => break,
                0xff => name.push(0x00),
                _ => return None,
            },
            0xff => match *take(&mut rest, 1)?.first()? {
                0x00 => name.push(0xff),
                _ => return None,
            },
            byte => name.push(byte),
        }
    }
    let mut extents = Vec::new();
    for _ in 0..number(&mut rest)? {
        let (start, length) = (signed(&mut rest)?, signed(&mut rest)?);
        let length = if length == -1 { None } else { Some(u64::try_from(length).ok()?) };
        extents.push(Extent { start: u64::try_from(start).ok()?, length });
    }
    rest.is_empty().then_some((name, extents))
}

fn put_number(key: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    let significant = bytes.len() - value.leading_zeros() as usize / 8;
    key.push(significant as u8);
    key.extend(&bytes[bytes.len() - significant..]);
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let length = *take(bytes, 1)?.first()?;
    if length > 8 {
        return None;
    }
    Some(take(bytes, u64::from(length))?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Returns what the first bytes are combined with, by the number of bytes.
fn header(length: usize) -> [u8; 2] {
    match length {
        9 => [0xff, 0x80],
        10 => [0xff, 0xc0],
        length => [!(0xffu16 >> length) as u8, 0],
    }
}

fn put_signed(key: &mut Vec<u8>, value: i64) {
    let fits = |n: &usize| *n >= 10 || { (value >> (7 * n - 1)) == 0 || (value >> (7 * n - 1)) == -1 };
    let length = (1..=10).find(fits).unwrap_or(10);
    let mut bytes = [if value < 0 { 0xff } else { 0 }; 10];
    bytes[2..].copy_from_slice(&value.to_be_bytes());
    let bytes = &mut bytes[10 - length..];
    let header = header(length);
    bytes[0] ^= header[0];
    if length > 1 {
        bytes[1] ^= header[1];
    }
    key.extend_from_slice(bytes);
}

fn signed(bytes: &mut &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    let negative = first & 0x80 == 0;
    let positive = |byte: u8| if negative { !byte } else { byte };
    let length = match positive(first) {
        0xff => match positive(*bytes.get(1)?) {
            second if second >= 0xc0 => 10,
            second if second >= 0x80 => 9,
            _ => 8,
        },
        first => first.leading_ones() as usize,
    };
    let coded = take(bytes, length as u64)?;
    let mut value = if negative { -1i128 } else { 0 };
    let header = header(length);
    for (i, byte) in coded.iter().enumerate() {
        value = value << 8 | i128::from(byte ^ header.get(i).copied().unwrap_or(0));
    }
    // As many bytes as were used hold the value, sign-extended.
    let bits = 8 * length as u32;
    let value = if negative { value | (-1i128 << (bits - 1)) } else { value & !(-1i128 << bits) };
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_vectors() {
        for (value, coded) in [
            (0, &[0x80][..]),
            (63, &[0xbf]),
            (64, &[0xc0, 0x40]),
            (100, &[0xc0, 0x64]),
            (136, &[0xc0, 0x88]),
            (8129, &[0xdf, 0xc1]),
            (8192, &[0xe0, 0x20, 0x00]),
            (11808, &[0xe0, 0x2e, 0x20]),
            (-1, &[0x7f]),
        ] {
            let mut key = Vec::new();
            put_signed(&mut key, value);
            assert_eq!(key, coded, "{value}");
            assert_eq!(signed(&mut &key[..]), Some(value));
        }
        let extents = [Extent { start: 0, length: Some(64) }, Extent { start: 0, length: None }];
        let key = slice_key(b"x/y", &extents);
        assert_eq!(key, [0, 0x78, 0x2f, 0x79, 0, 1, 1, 2, 0x80, 0xc0, 0x40, 0x80, 0x7f]);
    }

    proptest! {
        #[test]
        fn signed_numbers_go_there_and_back(value: i64, shift in 0u32..64) {
            for value in [value, value >> shift] {
                let mut key = Vec::new();
                put_signed(&mut key, value);
                let mut rest = &key[..];
                prop_assert_eq!(signed(&mut rest), Some(value));
                prop_assert!(rest.is_empty());
            }
        }

        #[test]
        fn slice_keys_go_there_and_back(name: Vec<u8>, extents in prop::collection::vec((0u64..1 << 40, prop::option::of(0u64..1 << 40)), 0..5)) {
            let extents: Vec<Extent> = extents.into_iter().map(|(start, length)| Extent { start, length }).collect();
            prop_assert_eq!(parse_slice_key(&slice_key(&name, &extents)), Ok((name, extents)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(key: Vec<u8>) {
            let _ = parse_slice_key(&[&[0][..], &key].concat());
        }
    }
}

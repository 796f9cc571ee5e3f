//! The header of a `.npy` file: a Python dictionary as text.

use crate::error::Result;
use crate::interop::blob::Blob;
use crate::interop::pytorch::TorchType;
use crate::interop::pytorch::numpy_type;

/// The maximum length of a header in bytes; NumPy's own limit is 10,000 characters.
const MAX_HEADER: u64 = 64 << 10;

pub(super) struct Header {
    /// The offset of the elements.
    pub begin: u64,
    /// The element type; `None` for a record of several.
    pub descr: Option<String>,
    pub fortran: bool,
    pub shape: Vec<u64>,
}

/// Returns the numeric element type, and whether it is big-endian.
pub(super) fn number(descr: &str) -> Option<(TorchType, bool)> {
    numpy_type(descr)
}

impl Header {
    pub(super) fn read(blob: &Blob) -> Result<Header> {
        let wrong = || blob.damaged("it does not begin as an array of NumPy");
        let mut start = [0; 12];
        let length = blob.len().min(12) as usize;
        blob.read(0, &mut start[..length])?;
        let (begin, length) = match &start {
            [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high, ..] => {
                (10, u64::from(u16::from_le_bytes([*low, *high])))
            }
            [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d] => {
                (12, u64::from(u32::from_le_bytes([*a, *b, *c, *d])))
            }
            _ => return Err(wrong()),
        };
        if length > MAX_HEADER || begin + length > blob.len() {
            return Err(blob.damaged(format!("its header would have {length} bytes")));
        }
        let mut text = vec![0; length as usize];
        blob.read(begin, &mut text)?;
        let text = String::from_utf8(text).map_err(|_| wrong())?;
        let (descr, fortran, shape) = parse(&text).ok_or_else(|| blob.damaged("its header is not right"))?;
        Ok(Header { begin: begin + length, descr, fortran, shape })
    }
}

/// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, in any order.
fn parse(text: &str) -> Option<(Option<String>, bool, Vec<u64>)> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim_start();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        rest = after.trim_start().strip_prefix(':')?.trim_start();
        match key {
            "descr" if rest.starts_with('[') => {
                // The fields of a record are not parsed.
                rest = &rest[closing(rest)?..];
                descr = Some(None);
            }
            "descr" => {
                let (text, after) = quoted(rest)?;
                (descr, rest) = (Some(Some(text.to_string())), after);
            }
            "fortran_order" => {
                let after = rest.strip_prefix("True").map(|after| (true, after));
                let (value, after) = after.or_else(|| rest.strip_prefix("False").map(|after| (false, after)))?;
                (fortran, rest) = (Some(value), after);
            }
            "shape" => {
                let (inner, after) = rest.strip_prefix('(')?.split_once(')')?;
                let lengths = inner.split(',').map(str::trim).filter(|length| !length.is_empty());
                let lengths: Vec<u64> =
                    lengths.map(|length| length.trim_end_matches('L').parse().ok()).collect::<Option<_>>()?;
                (shape, rest) = (Some(lengths).filter(|lengths| lengths.len() <= 64), after);
            }
            _ => return None,
        }
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some((descr?, fortran?, shape?))
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    text[1..].split_once(quote)
}

/// Returns the place after the bracket that closes the first one.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b'[' => depth += 1,
            b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(i + 1);
        }
    }
    None
}

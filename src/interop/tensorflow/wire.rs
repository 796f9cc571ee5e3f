//! Protocol buffers on the wire: fields out of bytes, bytes out of fields. No schema, no recursion, no allocation.

/// What parsers of this module return: the reason without a path, which the caller knows.
pub(super) type Parsed<T> = Result<T, String>;

/// The value of a field, by its wire type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Field<'a> {
    pub(super) fn varint(self, what: &str) -> Parsed<u64> {
        match self {
            Field::Varint(value) => Ok(value),
            _ => Err(format!("{what} is no number in this protocol buffer")),
        }
    }

    pub(super) fn bytes(self, what: &str) -> Parsed<&'a [u8]> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(format!("{what} is no message or text in this protocol buffer")),
        }
    }

    pub(super) fn text(self, what: &str) -> Parsed<String> {
        let bytes = self.bytes(what)?;
        std::str::from_utf8(bytes).map(str::to_string).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// A number that must not be negative.
    pub(super) fn count(self, what: &str) -> Parsed<u64> {
        match self.varint(what)? {
            value if i64::try_from(value).is_ok() => Ok(value),
            value => Err(format!("{what} is negative: {}", value as i64)),
        }
    }

    /// A number that must fit an `i32` and not be negative.
    pub(super) fn small(self, what: &str) -> Parsed<u32> {
        let value = self.count(what)?;
        match i32::try_from(value) {
            Ok(value) => Ok(value as u32),
            Err(_) => Err(format!("{what} is too large: {value}")),
        }
    }
}

/// A varint at the start of `bytes`, which is moved behind it.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let byte = *bytes.get(i)?;
        let low = u64::from(byte & 0x7f);
        // The tenth byte holds one bit.
        if i == 9 && byte > 1 {
            return None;
        }
        value |= low << (7 * i);
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(value);
        }
    }
    None
}

/// Returns the first `count` bytes, and `bytes` is moved behind them.
pub(super) fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let count = usize::try_from(count).ok()?;
    let (head, tail) = bytes.split_at_checked(count)?;
    *bytes = tail;
    Some(head)
}

/// The fields of a message, in order. Ends after the first error.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Parsed<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| "a protocol buffer ends early or has an unknown wire type".to_string());
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = varint(&mut self.0)?;
        let number = tag >> 3;
        if number == 0 || tag > u64::from(u32::MAX) {
            return None;
        }
        let field = match tag & 7 {
            0 => Field::Varint(varint(&mut self.0)?),
            1 => Field::Fixed64(u64::from_le_bytes(take(&mut self.0, 8)?.try_into().ok()?)),
            2 => {
                let length = varint(&mut self.0)?;
                Field::Bytes(take(&mut self.0, length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(take(&mut self.0, 4)?.try_into().ok()?)),
            // Groups are long obsolete, and TensorFlow has none.
            _ => return None,
        };
        Some((number, field))
    }
}

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a number field, unless it is 0.
pub(super) fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_varint(out, u64::from(field) << 3);
        put_varint(out, value);
    }
}

/// Appends a message or text field.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a text field, unless it is empty.
pub(super) fn put_text(out: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(out, field, text.as_bytes());
    }
}

/// Appends a 32-bit field, unless it is 0.
pub(super) fn put_fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    if value != 0 {
        put_varint(out, u64::from(field) << 3 | 5);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_go_there_and_back() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = &bytes[..];
            assert_eq!((varint(&mut rest), rest.len()), (Some(value), 0));
            let mut cut = &bytes[..bytes.len() - 1];
            assert_eq!(varint(&mut cut), None);
        }
        assert_eq!(varint(&mut &[0xff; 10][..]), None, "more than 64 bits");
        assert_eq!(varint(&mut &[0x80; 11][..]), None, "no end");
    }

    #[test]
    fn fields_end_at_the_first_error() {
        let fields: Vec<_> = Fields(&[0x08, 0x01, 0x12, 0x05, 0x00]).collect();
        assert_eq!(fields.len(), 2);
        assert_eq!(fields[0], Ok((1, Field::Varint(1))));
        assert!(fields[1].is_err());
        assert!(Fields(&[0x0b]).next().unwrap().is_err(), "a group");
        assert!(Fields(&[0x00, 0x00]).next().unwrap().is_err(), "field 0");
    }
}

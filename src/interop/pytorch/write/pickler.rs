//! Writing pickles, of protocol 2: the one that all versions of `torch.load(weights_only=True)` take.

use super::plain::{Integer, integer};
use ciborium::Value;
use std::collections::HashMap;

/// A pickle being written.
#[derive(Debug)]
pub(super) struct Pickler {
    bytes: Vec<u8>,
    /// Places in the memo of globals and of whole tensors.
    memo: HashMap<String, u32>,
}

impl Pickler {
    pub(super) fn new() -> Pickler {
        Pickler { bytes: vec![0x80, 2], memo: HashMap::new() }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    pub(super) fn op(&mut self, opcode: u8) {
        self.bytes.push(opcode);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.op(b'X');
        // Names and texts are far shorter than 4 GiB.
        self.bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.op(if value { 0x88 } else { 0x89 });
    }

    pub(super) fn int(&mut self, value: i128) {
        if let Ok(value) = u8::try_from(value) {
            self.bytes.extend_from_slice(&[b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.op(b'M');
            self.bytes.extend_from_slice(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.op(b'J');
            self.bytes.extend_from_slice(&value.to_le_bytes());
        } else {
            // As few bytes as keep the sign.
            let all = value.to_le_bytes();
            let fill = if value < 0 { 0xff } else { 0 };
            let is_sign = |byte: u8| (byte & 0x80 != 0) == (value < 0);
            let mut length = all.len();
            while length > 1 && all[length - 1] == fill && is_sign(all[length - 2]) {
                length -= 1;
            }
            self.bytes.extend_from_slice(&[0x8a, length as u8]);
            self.bytes.extend_from_slice(&all[..length]);
        }
    }

    /// An integer above those of [`int`](Pickler::int).
    fn larger(&mut self, value: u128) {
        self.bytes.extend_from_slice(&[0x8a, 17]);
        self.bytes.extend_from_slice(&value.to_le_bytes());
        // The sign.
        self.bytes.push(0);
    }

    pub(super) fn float(&mut self, value: f64) {
        self.op(b'G');
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// A global, by its place in the memo from the second time on.
    pub(super) fn global(&mut self, module: &str, name: &str) {
        let key = format!("{module}\n{name}");
        if !self.recall(&key) {
            self.op(b'c');
            self.bytes.extend_from_slice(format!("{module}\n{name}\n").as_bytes());
            self.remember(key);
        }
    }

    /// Gets what was remembered under `key`, if anything was.
    pub(super) fn recall(&mut self, key: &str) -> bool {
        let Some(&place) = self.memo.get(key) else { return false };
        match u8::try_from(place) {
            Ok(place) => self.bytes.extend_from_slice(&[b'h', place]),
            Err(_) => {
                self.op(b'j');
                self.bytes.extend_from_slice(&place.to_le_bytes());
            }
        }
        true
    }

    /// Remembers the last object.
    pub(super) fn remember(&mut self, key: String) {
        let place = self.memo.len() as u32;
        match u8::try_from(place) {
            Ok(place) => self.bytes.extend_from_slice(&[b'q', place]),
            Err(_) => {
                self.op(b'r');
                self.bytes.extend_from_slice(&place.to_le_bytes());
            }
        }
        self.memo.insert(key, place);
    }

    /// A [plain](super::plain) value as a Python object.
    pub(super) fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::Float(value) => self.float(*value),
            Value::Text(text) => self.text(text),
            Value::Array(items) => {
                self.op(b']');
                if !items.is_empty() {
                    self.op(b'(');
                    items.iter().for_each(|item| self.value(item));
                    self.op(b'e');
                }
            }
            Value::Map(entries) => {
                self.op(b'}');
                if !entries.is_empty() {
                    self.op(b'(');
                    entries.iter().for_each(|(key, value)| {
                        self.value(key);
                        self.value(value);
                    });
                    self.op(b'u');
                }
            }
            other => match integer(other) {
                Some(Integer::Signed(value)) => self.int(value),
                Some(Integer::Larger(value)) => self.larger(value),
                None => self.op(b'N'),
            },
        }
    }

    /// A tuple of lengths.
    pub(super) fn lengths(&mut self, lengths: &[u64]) {
        if lengths.is_empty() {
            return self.op(b')');
        }
        self.op(b'(');
        lengths.iter().for_each(|&length| self.int(length.into()));
        self.op(b't');
    }
}

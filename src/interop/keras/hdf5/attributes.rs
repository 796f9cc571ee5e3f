//! Attributes: only texts matter here.

use super::metadata::Metadata;
use super::types::{self, Kind, Type};
use crate::error::Result;
use std::collections::BTreeMap;

/// The texts of an object's attributes: one for a scalar, a list otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::interop::keras) struct Attributes(BTreeMap<String, Vec<String>>);

impl Attributes {
    /// Returns the one text of the attribute `name`.
    pub(in crate::interop::keras) fn text(&self, name: &str) -> Option<&str> {
        match &self.0.get(name)?[..] {
            [text] => Some(text),
            _ => None,
        }
    }

    /// Returns the list `name`. Long ones are in parts: `name0`, `name1` …
    pub(in crate::interop::keras) fn list(&self, name: &str) -> Option<Vec<&str>> {
        if let Some(whole) = self.0.get(name) {
            return Some(whole.iter().map(String::as_str).collect());
        }
        let parts = (0..).map_while(|part| self.0.get(&format!("{name}{part}")));
        let list: Vec<&str> = parts.flatten().map(String::as_str).collect();
        (!list.is_empty()).then_some(list)
    }

    /// Adds the attribute of a message. What is no text counts as an empty list.
    pub(super) fn add(&mut self, metadata: &Metadata<'_>, message: &[u8]) -> Result<()> {
        let mut cursor = metadata.cursor(message);
        let (version, flags) = (cursor.u8()?, cursor.u8()?);
        let sizes = [u64::from(cursor.u16()?), u64::from(cursor.u16()?), u64::from(cursor.u16()?)];
        match version {
            1 | 2 => {}
            3 => cursor.skip(1)?,
            _ => return Err(metadata.unsupported(format!("version {version} of an attribute"))),
        }
        let mut part = |size: u64| cursor.take(if version == 1 { size.next_multiple_of(8) } else { size });
        let (name, kind, space) = (part(sizes[0])?, part(sizes[1])?, part(sizes[2])?);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        if version > 1 && flags & 3 != 0 {
            self.0.insert(name, Vec::new());
            return Ok(());
        }
        let kind = Type::parse(metadata, kind)?;
        let shape = types::shape(metadata, space)?;
        let count = shape.map_or(Some(0), |shape| shape.iter().try_fold(1u64, |all, length| all.checked_mul(*length)));
        let texts = texts(metadata, &kind, count.unwrap_or(u64::MAX), cursor.bytes)?;
        metadata.charge(8 * texts.len() as u64)?;
        self.0.insert(name, texts);
        Ok(())
    }
}

/// Returns the texts that `count` elements are; nothing for elements of another kind.
pub(super) fn texts(metadata: &Metadata<'_>, kind: &Type, count: u64, bytes: &[u8]) -> Result<Vec<String>> {
    if !matches!(kind.kind, Kind::FixedText | Kind::Text) || count == 0 {
        return Ok(Vec::new());
    }
    let size = kind.size as usize;
    // Elements are in the message, so that their number is bounded by its length.
    let needed = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
    let Some(bytes) = needed.filter(|_| size > 0).and_then(|needed| bytes.get(..needed)) else {
        return Err(metadata.damaged("an attribute ends early"));
    };
    let texts = bytes.chunks(size).map(|element| {
        let text = match kind.kind {
            Kind::Text => metadata.text(element)?,
            _ => element.to_vec(),
        };
        let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    });
    texts.collect()
}

//! The messages of a bundle: its header, its entries, the object graph.

use super::ordered::Extent;
use super::wire::{Field, Fields, Parsed, put_bytes, put_fixed32, put_number, put_text};

/// The version of the format that is read and written.
const VERSION: u64 = 1;
/// TensorFlow's own limit.
const MAX_RANK: usize = 254;

/// Shards, from the entry with the empty key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub shards: u32,
    pub producer: u32,
}

impl Header {
    pub(super) fn new(shards: u32) -> Header {
        Header { shards, producer: VERSION as u32 }
    }

    pub(super) fn parse(bytes: &[u8]) -> Parsed<Header> {
        let mut header = Header { shards: 0, producer: 0 };
        let (mut least, mut bad) = (0, false);
        for field in Fields(bytes) {
            match field? {
                (1, value) => header.shards = value.small("the number of shards")?,
                (2, value) if value.varint("the byte order")? != 0 => {
                    return Err("its numbers are big-endian, which this version does not read".into());
                }
                (3, value) => {
                    for field in Fields(value.bytes("the version")?) {
                        match field? {
                            (1, value) => header.producer = value.small("the version")?,
                            (2, value) => least = value.small("the least version")?,
                            (3, Field::Bytes(mut packed)) => {
                                while let Some(version) = super::wire::varint(&mut packed) {
                                    bad |= version == VERSION;
                                }
                            }
                            (3, value) => bad |= value.varint("a version")? == VERSION,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if u64::from(least) > VERSION || bad {
            return Err(format!("it needs version {least} of the format; this version of the crate reads {VERSION}"));
        }
        Ok(header)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut version = Vec::new();
        put_number(&mut version, 1, u64::from(self.producer));
        let mut out = Vec::new();
        put_number(&mut out, 1, u64::from(self.shards));
        put_bytes(&mut out, 3, &version);
        out
    }
}

/// Where a tensor, or a slice of one, is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub dtype: u32,
    pub shape: Vec<u64>,
    pub shard: u32,
    pub offset: u64,
    pub size: u64,
    pub crc: u32,
    /// Of a partitioned tensor: its slices, each of which has an entry of its own.
    pub slices: Vec<Vec<Extent>>,
}

impl Entry {
    pub(super) fn parse(bytes: &[u8]) -> Parsed<Entry> {
        let mut entry = Entry::default();
        for field in Fields(bytes) {
            match field? {
                (1, value) => entry.dtype = value.small("the type")?,
                (2, value) => entry.shape = shape(value.bytes("the shape")?)?,
                (3, value) => entry.shard = value.small("the shard")?,
                (4, value) => entry.offset = value.count("the offset")?,
                (5, value) => entry.size = value.count("the size")?,
                (6, Field::Fixed32(crc)) => entry.crc = crc,
                (6, _) => return Err("the checksum of a tensor is not readable".into()),
                (7, value) => entry.slices.push(slice(value.bytes("a slice")?)?),
                _ => {}
            }
        }
        Ok(entry)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut shape = Vec::new();
        for length in &self.shape {
            let mut dimension = Vec::new();
            put_number(&mut dimension, 1, *length);
            put_bytes(&mut shape, 2, &dimension);
        }
        let mut out = Vec::new();
        put_number(&mut out, 1, u64::from(self.dtype));
        put_bytes(&mut out, 2, &shape);
        put_number(&mut out, 3, u64::from(self.shard));
        put_number(&mut out, 4, self.offset);
        put_number(&mut out, 5, self.size);
        put_fixed32(&mut out, 6, self.crc);
        for slice in &self.slices {
            let mut extents = Vec::new();
            for extent in slice {
                let mut message = Vec::new();
                put_number(&mut message, 1, extent.start);
                if let Some(length) = extent.length {
                    // In a `oneof`, so that 0 is written too.
                    message.push(0x10);
                    super::wire::put_varint(&mut message, length);
                }
                put_bytes(&mut extents, 1, &message);
            }
            put_bytes(&mut out, 7, &extents);
        }
        out
    }

    /// Elements in all; `None` when that is more than a `u64` holds.
    pub(super) fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length))
    }
}

fn shape(bytes: &[u8]) -> Parsed<Vec<u64>> {
    let mut shape = Vec::new();
    for field in Fields(bytes) {
        match field? {
            (2, value) => {
                let mut length = 0;
                for field in Fields(value.bytes("a dimension")?) {
                    if let (1, value) = field? {
                        length = value.count("the length of a dimension")?;
                    }
                }
                shape.push(length);
            }
            (3, value) if value.varint("the rank")? != 0 => return Err("a tensor has no rank".into()),
            _ => {}
        }
        if shape.len() > MAX_RANK {
            return Err(format!("a tensor has more than {MAX_RANK} dimensions"));
        }
    }
    Ok(shape)
}

fn slice(bytes: &[u8]) -> Parsed<Vec<Extent>> {
    let mut extents = Vec::new();
    for field in Fields(bytes) {
        if let (1, value) = field? {
            let mut extent = Extent { start: 0, length: None };
            for field in Fields(value.bytes("a range")?) {
                match field? {
                    (1, value) => extent.start = value.count("the start of a range")?,
                    (2, value) => extent.length = Some(value.count("the length of a range")?),
                    _ => {}
                }
            }
            extents.push(extent);
        }
        if extents.len() > MAX_RANK {
            return Err(format!("a slice has more than {MAX_RANK} dimensions"));
        }
    }
    Ok(extents)
}

/// An object of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Object {
    /// Edges: the object's number and the name.
    pub children: Vec<(u32, String)>,
    pub attributes: Vec<Attribute>,
    pub slots: Vec<SlotVariable>,
    pub has_values: Option<bool>,
}

/// A tensor of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Attribute {
    pub name: String,
    pub full_name: String,
    pub key: String,
}

/// What an optimizer keeps for a variable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SlotVariable {
    pub variable: u32,
    pub name: String,
    pub slot: u32,
}

/// Returns the objects of the graph, the root first.
pub(super) fn parse_graph(bytes: &[u8]) -> Parsed<Vec<Object>> {
    let mut objects = Vec::new();
    for field in Fields(bytes) {
        if let (1, value) = field? {
            objects.push(object(value.bytes("an object")?)?);
        }
    }
    let known = |id: &u32| (*id as usize) < objects.len();
    for object in &objects {
        let edges = object.children.iter().map(|(id, _)| id);
        let slots = object.slots.iter().flat_map(|slot| [&slot.variable, &slot.slot]);
        if let Some(unknown) = edges.chain(slots).find(|id| !known(id)) {
            return Err(format!("the object graph names object {unknown} of {}", objects.len()));
        }
    }
    Ok(objects)
}

fn object(bytes: &[u8]) -> Parsed<Object> {
    let mut object = Object::default();
    for field in Fields(bytes) {
        match field? {
            (1, value) => {
                let mut child = (0, String::new());
                for field in Fields(value.bytes("a child")?) {
                    match field? {
                        (1, value) => child.0 = value.small("the number of an object")?,
                        (2, value) => child.1 = value.text("the name of an object")?,
                        _ => {}
                    }
                }
                object.children.push(child);
            }
            (2, value) => {
                let mut attribute = Attribute::default();
                for field in Fields(value.bytes("an attribute")?) {
                    match field? {
                        (1, value) => attribute.name = value.text("the name of an attribute")?,
                        (2, value) => attribute.full_name = value.text("the name of a variable")?,
                        (3, value) => attribute.key = value.text("the key of a tensor")?,
                        _ => {}
                    }
                }
                object.attributes.push(attribute);
            }
            (3, value) => {
                let mut slot = SlotVariable::default();
                for field in Fields(value.bytes("a slot")?) {
                    match field? {
                        (1, value) => slot.variable = value.small("the number of an object")?,
                        (2, value) => slot.name = value.text("the name of a slot")?,
                        (3, value) => slot.slot = value.small("the number of an object")?,
                        _ => {}
                    }
                }
                object.slots.push(slot);
            }
            (5, value) => {
                let mut has = false;
                for field in Fields(value.bytes("a boolean")?) {
                    if let (1, value) = field? {
                        has = value.varint("a boolean")? != 0;
                    }
                }
                object.has_values = Some(has);
            }
            _ => {}
        }
    }
    Ok(object)
}

/// Returns the graph as bytes.
pub(super) fn encode_graph(objects: &[Object]) -> Vec<u8> {
    let mut out = Vec::new();
    for object in objects {
        let mut message = Vec::new();
        for (id, name) in &object.children {
            let mut child = Vec::new();
            put_number(&mut child, 1, u64::from(*id));
            put_text(&mut child, 2, name);
            put_bytes(&mut message, 1, &child);
        }
        for attribute in &object.attributes {
            let mut bytes = Vec::new();
            put_text(&mut bytes, 1, &attribute.name);
            put_text(&mut bytes, 2, &attribute.full_name);
            put_text(&mut bytes, 3, &attribute.key);
            put_bytes(&mut message, 2, &bytes);
        }
        for slot in &object.slots {
            let mut bytes = Vec::new();
            put_number(&mut bytes, 1, u64::from(slot.variable));
            put_text(&mut bytes, 2, &slot.name);
            put_number(&mut bytes, 3, u64::from(slot.slot));
            put_bytes(&mut message, 3, &bytes);
        }
        if let Some(has) = object.has_values {
            let mut bytes = Vec::new();
            put_number(&mut bytes, 1, u64::from(has));
            put_bytes(&mut message, 5, &bytes);
        }
        put_bytes(&mut out, 1, &message);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_they_need() {
        assert_eq!(Header::new(3).encode(), [0x08, 3, 0x1a, 2, 0x08, 1]);
        assert_eq!(Header::parse(&[0x08, 3, 0x1a, 2, 0x08, 99]), Ok(Header { shards: 3, producer: 99 }));
        assert!(Header::parse(&[0x08, 1, 0x10, 1]).is_err(), "big-endian");
        assert!(Header::parse(&[0x08, 1, 0x1a, 2, 0x10, 2]).is_err(), "a newer format");
        assert!(Header::parse(&[0x08, 1, 0x1a, 3, 0x1a, 1, 1]).is_err(), "a bad consumer");
    }

    #[test]
    fn entries_go_there_and_back() {
        let slice = vec![Extent { start: 0, length: Some(0) }, Extent { start: 5, length: None }];
        let entry = Entry { dtype: 1, shape: vec![0, 3], shard: 2, offset: 9, size: 0, crc: 7, slices: vec![slice] };
        assert_eq!(Entry::parse(&entry.encode()), Ok(entry));
        let negative = [0x12, 13, 0x12, 11, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(Entry::parse(&negative).unwrap_err().contains("negative"));
    }
}

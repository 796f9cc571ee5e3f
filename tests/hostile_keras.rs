//! HDF5 files that no Keras writes, made by hand: refused or read, within bounds.
#![cfg(feature = "keras")]

#[path = "common/memory.rs"]
mod memory;

use memory::measured;
use std::fs;
use std::io::Write;
use std::time::Duration;
use tch_checkpoint::interop::keras::Weights;
use tch_checkpoint::{Error, TensorSource};

/// The memory that a hostile file may need in addition to [`TIMES`] its length.
const MEMORY: u64 = 96 << 20;
const TIMES: u64 = 64;

/// What a name leads to: an object, or a path.
#[derive(Clone)]
enum Link {
    Hard(u64),
    Soft(String),
}

/// An HDF5 file, object by object.
struct Hdf5(Vec<u8>);

impl Hdf5 {
    fn new() -> Hdf5 {
        Hdf5(vec![0; 96])
    }

    fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.0.len() as u64;
        self.0.extend_from_slice(bytes);
        address
    }

    /// An object's header.
    fn object(&mut self, messages: &[(u16, Vec<u8>)]) -> u64 {
        let mut block = Vec::new();
        for (kind, data) in messages {
            block.extend(kind.to_le_bytes());
            block.extend((data.len() as u16).to_le_bytes());
            block.extend([0; 4]);
            block.extend_from_slice(data);
        }
        let mut header = vec![1, 0];
        header.extend((messages.len() as u16).to_le_bytes());
        header.extend(1u32.to_le_bytes());
        header.extend((block.len() as u32).to_le_bytes());
        header.extend([0; 4]);
        self.put(&[header, block].concat())
    }

    /// A node of a tree, at level 0.
    fn tree(&mut self, kind: u8, children: &[(Vec<u8>, u64)]) -> u64 {
        let mut node = [&b"TREE"[..], &[kind, 0], &(children.len() as u16).to_le_bytes(), &[0xff; 16]].concat();
        for (key, child) in children {
            node.extend_from_slice(key);
            node.extend(child.to_le_bytes());
        }
        self.put(&node)
    }

    fn group(&mut self, links: &[(String, Link)], attributes: &[Vec<u8>]) -> u64 {
        let mut names = vec![0; 8];
        let mut tables = Vec::new();
        for links in links.chunks(60_000) {
            let mut table = [&b"SNOD"[..], &[1, 0], &(links.len() as u16).to_le_bytes()].concat();
            for (name, link) in links {
                let mut text = |text: &str| {
                    let at = names.len() as u64;
                    names.extend_from_slice(text.as_bytes());
                    names.push(0);
                    at
                };
                table.extend(text(name).to_le_bytes());
                let (header, cached, target) = match link {
                    Link::Hard(address) => (*address, 0u32, 0),
                    Link::Soft(path) => (u64::MAX, 2, text(path) as u32),
                };
                table.extend(header.to_le_bytes());
                table.extend(cached.to_le_bytes());
                table.extend([0; 4]);
                table.extend(target.to_le_bytes());
                table.extend([0; 12]);
            }
            tables.push((vec![0; 8], self.put(&table)));
        }
        let tree = self.tree(0, &tables);
        let length = names.len() as u64;
        let address = self.put(&names);
        let header = [length, u64::MAX, address].iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let heap = self.put(&[&b"HEAP\0\0\0\0"[..], &header].concat());
        let table = (0x11, [tree.to_le_bytes(), heap.to_le_bytes()].concat());
        let attributes = attributes.iter().map(|attribute| (0x0c, attribute.clone()));
        self.object(&[table].into_iter().chain(attributes).collect::<Vec<_>>())
    }

    fn dataset(&mut self, shape: &[u64], kind: &[u8], layout: &[u8], filter: &[u8]) -> u64 {
        let mut messages = vec![(0x01, space(shape)), (0x03, kind.to_vec()), (0x08, layout.to_vec())];
        messages.extend((!filter.is_empty()).then(|| (0x0b, filter.to_vec())));
        self.object(&messages)
    }

    /// A dataset of one byte.
    fn byte(&mut self) -> u64 {
        self.dataset(&[1], &BYTES, &[3, 0, 1, 0, 7], &[])
    }

    fn finish(mut self, root: u64) -> Vec<u8> {
        let mut start = b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0".to_vec();
        start.extend([4, 0, 16, 0, 0, 0, 0, 0]);
        for number in [0, u64::MAX, self.0.len() as u64, u64::MAX, 0, root] {
            start.extend(number.to_le_bytes());
        }
        self.0[..start.len()].copy_from_slice(&start);
        self.0
    }
}

/// Bytes, as numbers.
const BYTES: [u8; 12] = [0x10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0];

/// Texts of a length.
fn text(length: u32) -> Vec<u8> {
    [&[0x13, 0, 0, 0][..], &length.to_le_bytes()].concat()
}

fn space(shape: &[u64]) -> Vec<u8> {
    let lengths: Vec<u8> = shape.iter().flat_map(|length| length.to_le_bytes()).collect();
    [&[2, shape.len() as u8, 0, 1][..], &lengths].concat()
}

/// An attribute of `bytes` in texts of a length.
fn attribute(name: &str, shape: &[u64], length: u32, bytes: &[u8]) -> Vec<u8> {
    let (kind, space) = (text(length), space(shape));
    let sizes = [name.len() + 1, kind.len(), space.len()].map(|size| (size as u16).to_le_bytes()).concat();
    [&[3, 0][..], &sizes, &[0], name.as_bytes(), &[0], &kind, &space, bytes].concat()
}

fn hard(name: impl Into<String>, address: u64) -> (String, Link) {
    (name.into(), Link::Hard(address))
}

/// Many names that lead to one object.
fn many(count: usize, address: u64) -> Vec<(String, Link)> {
    (0..count).map(|i| hard(format!("{i}"), address)).collect()
}

fn contiguous(address: u64, size: u64) -> Vec<u8> {
    [&[3, 1][..], &address.to_le_bytes(), &size.to_le_bytes()].concat()
}

/// Opens a file and reads all of it, within bounds.
fn read(file: &[u8]) -> Result<Weights, Error> {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.h5");
    fs::write(&path, file).unwrap();
    let (result, time, memory) = measured(|| {
        let weights = Weights::open(&path)?;
        weights.verify()?;
        for (key, spec) in weights.tensors() {
            if weights.first_alias(key) == key {
                weights.read(key, &mut vec![0; spec.bytes().unwrap() as usize])?;
            }
        }
        Ok(weights)
    });
    assert!(memory as u64 <= MEMORY + TIMES * file.len() as u64, "{} bytes: {memory} bytes of memory", file.len());
    assert!(time < Duration::from_secs(15), "{} bytes: {time:?}", file.len());
    if let Err(error) = &result {
        assert!(matches!(error, Error::Damaged { .. } | Error::Unsupported { .. }), "{error:?}");
    }
    result
}

fn refusal(file: &[u8]) -> String {
    read(file).unwrap_err().to_string()
}

#[test]
fn what_is_right_is_read() {
    let mut file = Hdf5::new();
    let byte = file.byte();
    let text = file.dataset(&[2], &text(3), &[3, 0, 6, 0, b'a', b'b', b'c', b'd', 0, 0], &[]);
    let weights = [hard("w", byte), hard("b", byte)];
    let layer = file.group(&weights, &[attribute("weight_names", &[2], 1, b"wb")]);
    let root = file.group(
        &[hard("a", layer), hard("t", text), hard("u", text), ("s".into(), Link::Soft("/a/w".into()))],
        &[attribute("layer_names", &[1], 1, b"a")],
    );
    let weights = read(&file.finish(root)).unwrap();
    assert_eq!(weights.format(), "Keras 2 (HDF5)");
    assert_eq!(weights.tensors().keys().collect::<Vec<_>>(), ["a/b", "a/w", "s"]);
    assert_eq!(weights.values()["t"], serde_json::json!(["abc", "d"]));
    assert_eq!(weights.values()["u"], weights.values()["t"]);
}

/// Each name of a layer with each name of a weight.
#[test]
fn names_of_layers_take_memory_in_proportion() {
    // One name, many times.
    let mut file = Hdf5::new();
    let byte = file.byte();
    let attribute_of = |name: &str, letter: u8| attribute(name, &[60_000], 1, &vec![letter; 60_000]);
    let layer = file.group(&[hard("w", byte)], &[attribute_of("weight_names", b'w')]);
    let root = file.group(&[hard("a", layer)], &[attribute_of("layer_names", b'a')]);
    assert!(refusal(&file.finish(root)).contains("names of its layers"));
    // Many layers that are the same group, in which no weight of its list is.
    let mut file = Hdf5::new();
    let byte = file.byte();
    let numbers: Vec<u8> = (0..13_000).flat_map(|i| format!("{i:05}").into_bytes()).collect();
    let layer = file.group(&[hard("w", byte)], &[attribute("weight_names", &[13_000], 5, &numbers)]);
    let links: Vec<_> = (0..13_000).map(|i| hard(format!("{i:05}"), layer)).collect();
    let root = file.group(&links, &[attribute("layer_names", &[13_000], 5, &numbers)]);
    assert!(refusal(&file.finish(root)).contains("names of its layers"));
    // A long name of a layer of many variables.
    let mut file = Hdf5::new();
    let byte = file.byte();
    let long = attribute("name", &[], 60_000, &vec![b'n'; 60_000]);
    let vars = file.group(&many(20_000, byte), &[long]);
    let layer = file.group(&[hard("vars", vars)], &[]);
    let root = file.group(&[hard("layer", layer)], &[]);
    assert!(refusal(&file.finish(root)).contains("names of its layers"));
}

#[test]
fn paths_are_counted_before_they_are_copied() {
    for is_dangling in [false, true] {
        let mut file = Hdf5::new();
        let byte = file.byte();
        let links: Vec<_> = match is_dangling {
            true => (0..60_000).map(|i| (format!("{i}"), Link::Soft("no".into()))).collect(),
            false => many(60_000, byte),
        };
        let mut group = file.group(&links, &[]);
        for _ in 0..62 {
            group = file.group(&[hard("n".repeat(4000), group)], &[]);
        }
        assert!(refusal(&file.finish(group)).contains("too long paths"));
    }
}

/// Every soft link goes a long way, through others.
#[test]
fn soft_links_take_time_in_proportion() {
    let mut file = Hdf5::new();
    let byte = file.byte();
    let mut links = vec![hard("w", byte)];
    let way = |name: &str| Link::Soft(format!("{}{name}", "./".repeat(2000)));
    links.extend((0..25).map(|i| (format!("s{i}"), way(&if i < 24 { format!("s{}", i + 1) } else { "w".into() }))));
    let root = file.group(&links, &[]);
    assert_eq!(read(&file.finish(root)).unwrap().tensors().len(), 26);
    let mut file = Hdf5::new();
    links[0] = hard("w", file.byte());
    links.extend((0..100_000).map(|i| (format!("{i}"), Link::Soft("s0".into()))));
    let root = file.group(&links, &[]);
    assert!(refusal(&file.finish(root)).contains("ways"));
}

/// Many datasets may be the same bytes, or none at all.
#[test]
fn texts_take_memory_in_proportion() {
    const LENGTH: u64 = 1 << 20;
    for is_written in [true, false] {
        let mut file = Hdf5::new();
        let address = if is_written { file.put(&vec![b'a'; LENGTH as usize]) } else { u64::MAX };
        let links: Vec<_> = (0..2000)
            .map(|i| hard(format!("{i}"), file.dataset(&[LENGTH], &text(1), &contiguous(address, LENGTH), &[])))
            .collect();
        let root = file.group(&links, &[]);
        let weights = read(&file.finish(root)).unwrap();
        assert!(weights.unreadable().len() > 1900);
        assert_eq!(weights.unreadable().len() + weights.values().len(), 2000);
    }
    // One that has many names.
    for length in [LENGTH, 64] {
        let mut file = Hdf5::new();
        let address = file.put(&vec![b'a'; LENGTH as usize]);
        let dataset = file.dataset(&[length], &text(1), &contiguous(address, length), &[]);
        let root = file.group(&many(20_000, dataset), &[]);
        assert!(!read(&file.finish(root)).unwrap().values().is_empty());
    }
    // Elements of 1 MB that were never written.
    let mut file = Hdf5::new();
    let opaque = [&[0x15, 0, 0, 0][..], &(1u32 << 20).to_le_bytes()].concat();
    let links: Vec<_> =
        (0..5000).map(|i| hard(format!("{i}"), file.dataset(&[0], &opaque, &contiguous(u64::MAX, 0), &[]))).collect();
    let root = file.group(&links, &[]);
    assert_eq!(read(&file.finish(root)).unwrap().unreadable().len(), 5000);
}

/// The key of a chunk in a tree.
fn chunk(size: usize, offset: [u64; 2]) -> Vec<u8> {
    let offset = [offset[0], offset[1], 0].iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    [&(size as u32).to_le_bytes()[..], &[0; 4], &offset].concat()
}

fn chunked(tree: u64, lengths: [u32; 2], element: u32) -> Vec<u8> {
    let lengths = [lengths[0], lengths[1], element].iter().flat_map(|length| length.to_le_bytes()).collect::<Vec<u8>>();
    [&[3, 2, 3][..], &tree.to_le_bytes(), &lengths].concat()
}

#[test]
fn chunks_take_time_in_proportion() {
    // Of each chunk, one element is in the dataset, and all of it is read for that.
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 16 << 20]).unwrap();
    let packed = encoder.finish().unwrap();
    let mut file = Hdf5::new();
    let address = file.put(&packed);
    let chunks: Vec<_> = (0..2000).map(|i| (chunk(packed.len(), [i, 0]), address)).collect();
    let tree = file.tree(1, &chunks);
    let deflate = [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    let dataset = file.dataset(&[2000, 1], &BYTES, &chunked(tree, [1, 16 << 20], 1), &deflate);
    let root = file.group(&[hard("w", dataset)], &[]);
    assert!(refusal(&file.finish(root)).contains("max_expansion"));
    // Many datasets with the same list of chunks.
    let mut file = Hdf5::new();
    let chunks: Vec<_> = (0..60_000).map(|i| (chunk(1, [i, 0]), 0)).collect();
    let tree = file.tree(1, &chunks);
    let links: Vec<_> = (0..20_000)
        .map(|i| hard(format!("{i}"), file.dataset(&[60_000, 1], &BYTES, &chunked(tree, [1, 1], 1), &[])))
        .collect();
    let root = file.group(&links, &[]);
    assert!(refusal(&file.finish(root)).contains("over and over"));
    // More filters than HDF5 has.
    let mut file = Hdf5::new();
    let filters = [vec![1, 255, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0].repeat(255)].concat();
    let dataset = file.dataset(&[1, 1], &BYTES, &chunked(u64::MAX, [1, 1], 1), &filters);
    let root = file.group(&[hard("w", dataset)], &[]);
    assert!(refusal(&file.finish(root)).contains("filters"));
}

/// What is kept for one variable has many names.
#[test]
fn slots_take_time_in_proportion() {
    let mut file = Hdf5::new();
    let byte = file.byte();
    let slot = file.group(&[hard("x", byte)], &[]);
    let optimizer = file.group(&[hard("m", slot)], &[]);
    let all = file.group(&many(40_000, optimizer), &[]);
    let root = file.group(&[hard("optimizer_weights", all)], &[]);
    assert!(!read(&file.finish(root)).unwrap().slots().is_empty());
}

/// Weights that an archive has deflated expand no more than tensors do.
#[test]
fn deflated_weights_expand_within_bounds() {
    let mut file = Hdf5::new();
    let group = file.group(&[], &[]);
    file.put(&vec![0; 80 << 20]);
    let weights = file.finish(group);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&weights).unwrap();
    let packed = encoder.finish().unwrap();
    let name = b"model.weights.h5";
    let lengths = [packed.len() as u32, weights.len() as u32].map(u32::to_le_bytes).concat();
    let entry = [
        &[20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0][..],
        &crc32fast::hash(&weights).to_le_bytes(),
        &lengths,
        &[name.len() as u8, 0, 0, 0],
    ]
    .concat();
    let local = [&b"PK\x03\x04"[..], &entry, name, &packed].concat();
    let central = [&b"PK\x01\x02\x14\0"[..], &entry, &[0; 14], name].concat();
    let end = [central.len() as u32, local.len() as u32].map(u32::to_le_bytes).concat();
    let end = [&b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..], &end, &[0, 0]].concat();
    assert!(refusal(&[local, central, end].concat()).contains("max_expansion"));
}

/// One tensor of many names is compared once.
#[test]
fn tensors_of_many_names_are_compared_once() {
    use tch_checkpoint::inspect::{Target, diff};
    let root = tempfile::tempdir().unwrap();
    let open = |byte: u8| {
        let mut file = Hdf5::new();
        let address = file.put(&vec![byte; 4 << 20]);
        let dataset = file.dataset(&[4 << 20], &BYTES, &contiguous(address, 4 << 20), &[]);
        let group = file.group(&many(20_000, dataset), &[]);
        let path = root.path().join(format!("{byte}.h5"));
        fs::write(&path, file.finish(group)).unwrap();
        Target::open(path).unwrap()
    };
    let (a, b) = (open(1), open(2));
    let begun = std::time::Instant::now();
    let found = diff(&a, &b).unwrap();
    assert_eq!(found.differences.len(), 20_000);
    assert!(found.differences.iter().all(|entry| entry.elements.is_some_and(|elements| elements.differing == 4 << 20)));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

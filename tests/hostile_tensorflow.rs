//! Bundles that no TensorFlow writes, made by hand, with right checksums: refused or read, within bounds.
#![cfg(feature = "tensorflow")]

#[path = "common/memory.rs"]
mod memory;

use memory::measured;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tch_checkpoint::interop::tensorflow::Bundle;
use tch_checkpoint::{Error, TensorSource};

/// The memory that a hostile bundle may need in addition to the lengths of its files.
const MEMORY: u64 = 64 << 20;

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field of a message: a number, or bytes.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, payload: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(payload.len() as u64), payload.to_vec()].concat()
}

fn header(shards: u64) -> Vec<u8> {
    [number(1, shards), bytes(3, &number(1, 1))].concat()
}

/// A tensor of `FLOAT`.
struct Tensor<'a> {
    shape: &'a [u64],
    shard: u64,
    offset: u64,
    size: u64,
}

impl Tensor<'_> {
    /// Its entry, with the checksum of its bytes in `data`.
    fn entry(&self, data: &[u8]) -> Vec<u8> {
        let range = self.offset as usize..self.offset.saturating_add(self.size) as usize;
        let crc = masked(data.get(range).unwrap_or_default());
        let shape: Vec<u8> = self.shape.iter().flat_map(|length| bytes(2, &number(1, *length))).collect();
        [
            number(1, 1),
            bytes(2, &shape),
            number(3, self.shard),
            number(4, self.offset),
            number(5, self.size),
            [vec![6 << 3 | 5], crc.to_le_bytes().to_vec()].concat(),
        ]
        .concat()
    }
}

fn tensor(shape: &[u64], offset: u64, size: u64) -> Tensor<'_> {
    Tensor { shape, shard: 0, offset, size }
}

/// A block of a table and its trailer.
fn block(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (key, value) in entries {
        block.extend(
            [vec![0], varint(key.len() as u64), varint(value.len() as u64), key.clone(), value.clone()].concat(),
        );
    }
    block.extend([0, 0, 0, 0, 1, 0, 0, 0, 0]);
    let crc = masked(&block);
    block.extend(crc.to_le_bytes());
    block
}

fn table(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let handle = |offset: usize, block: &[u8]| [varint(offset as u64), varint(block.len() as u64 - 5)].concat();
    let data = block(entries);
    let meta = block(&[]);
    let index = block(&[(vec![0xff], handle(0, &data))]);
    let mut footer = [handle(data.len(), &meta), handle(data.len() + meta.len(), &index)].concat();
    footer.resize(40, 0);
    footer.extend([0x57, 0xfb, 0x80, 0x8b, 0x24, 0x75, 0x47, 0xdb]);
    [data, meta, index, footer].concat()
}

/// The edges of an object, and the key of its variable.
type Object<'a> = (Vec<(u64, &'a str)>, Option<&'a str>);

/// An object graph.
fn graph(objects: &[Object<'_>]) -> Vec<u8> {
    let object = |(edges, variable): &Object<'_>| {
        let edge = |(to, name): &(u64, &str)| bytes(1, &[number(1, *to), bytes(2, name.as_bytes())].concat());
        let attribute =
            |key: &str| bytes(2, &[bytes(1, b"VARIABLE_VALUE"), bytes(2, b"w"), bytes(3, key.as_bytes())].concat());
        [edges.iter().flat_map(edge).collect::<Vec<u8>>(), variable.map(attribute).unwrap_or_default()].concat()
    };
    objects.iter().flat_map(|objects| bytes(1, &object(objects))).collect()
}

/// A string as a data file has it, and its entry at `offset`.
fn text(content: &[u8], claimed: u64, offset: u64) -> (Vec<u8>, Vec<u8>) {
    let length = match u32::try_from(claimed) {
        Ok(length) => length.to_le_bytes().to_vec(),
        Err(_) => claimed.to_le_bytes().to_vec(),
    };
    let stored = [length.clone(), masked(&length).to_le_bytes().to_vec(), content.to_vec()].concat();
    let data = [varint(claimed), stored[length.len()..].to_vec()].concat();
    let size = number(5, data.len() as u64);
    let crc = [vec![6 << 3 | 5], masked(&stored).to_le_bytes().to_vec()].concat();
    (data, [number(1, 7), bytes(2, &[]), number(4, offset), size, crc].concat())
}

/// Writes a bundle, and opens and reads all of it within bounds.
fn read(entries: &[(&str, Vec<u8>)], data: &[u8]) -> Result<Vec<String>, Error> {
    let root = tempfile::tempdir().unwrap();
    let entries: Vec<(Vec<u8>, Vec<u8>)> =
        entries.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.clone())).collect();
    read_files(root.path(), &table(&entries), data)
}

fn read_files(root: &Path, index: &[u8], data: &[u8]) -> Result<Vec<String>, Error> {
    fs::write(root.join("x.index"), index).unwrap();
    fs::write(root.join("x.data-00000-of-00001"), data).unwrap();
    let (result, time, memory) = measured(|| {
        let bundle = Bundle::open(root.join("x"))?;
        bundle.verify()?;
        let mut buffer = [0; 4];
        for (key, spec) in bundle.tensors() {
            let count = spec.bytes().unwrap_or(u64::MAX) / 4;
            (0..count).try_for_each(|at| bundle.read_range(key, at..at + 1, &mut buffer))?;
        }
        Ok(bundle.tensors().keys().cloned().collect())
    });
    assert!(memory as u64 <= MEMORY + (index.len() + data.len()) as u64, "{memory} bytes of memory");
    assert!(time < Duration::from_secs(10), "{time:?}");
    if let Err(error) = &result {
        assert!(matches!(error, Error::Damaged { .. } | Error::Unsupported { .. }), "{error:?}");
    }
    result
}

const DATA: [u8; 16] = [1; 16];

#[test]
fn what_is_right_is_read() {
    let entries = [("", header(1)), ("a", tensor(&[2], 0, 8).entry(&DATA)), ("b", tensor(&[1, 2], 8, 8).entry(&DATA))];
    assert_eq!(read(&entries, &DATA).unwrap(), ["a", "b"]);
}

#[test]
fn places_and_shapes_that_cannot_be_are_refused() {
    const HUGE: u64 = 1 << 40;
    for (what, tensors) in [
        ("the same bytes", vec![tensor(&[2], 0, 8), tensor(&[2], 0, 8)]),
        ("overlapping bytes", vec![tensor(&[2], 0, 8), tensor(&[2], 4, 8)]),
        ("a huge shape over few bytes", vec![tensor(&[HUGE], 0, 8)]),
        ("a huge shape and size", vec![tensor(&[HUGE], 0, 4 * HUGE)]),
        ("a product that overflows", vec![tensor(&[1 << 32, 1 << 32], 0, 8)]),
        ("a product that overflows to the size", vec![tensor(&[1 << 62, 4, 2], 0, 0)]),
        ("a negative dimension", vec![tensor(&[u64::MAX], 0, 8)]),
        ("fewer bytes than elements", vec![tensor(&[3], 0, 8)]),
        ("more bytes than elements", vec![tensor(&[1], 0, 8)]),
        ("bytes behind the end", vec![tensor(&[2], 12, 8)]),
        ("an end that overflows", vec![tensor(&[2], u64::MAX - 3, 8)]),
        ("an offset that is negative", vec![tensor(&[2], 1 << 63, 8)]),
        ("another data file", vec![Tensor { shard: 7, ..tensor(&[2], 0, 8) }]),
        ("a data file beyond all numbers", vec![Tensor { shard: u64::MAX, ..tensor(&[2], 0, 8) }]),
    ] {
        let names = ["a", "b"].into_iter().zip(tensors.iter().map(|tensor| tensor.entry(&DATA)));
        let entries: Vec<(&str, Vec<u8>)> = [("", header(1))].into_iter().chain(names).collect();
        assert!(read(&entries, &DATA).is_err(), "{what} was read");
    }
    for shards in [0, 1 << 31, u64::MAX] {
        let entries = [("", header(shards)), ("a", tensor(&[2], 0, 8).entry(&DATA))];
        assert!(read(&entries, &DATA).is_err(), "{shards} data files");
    }
    let wrong = [("", header(1)), ("a", tensor(&[2], 0, 8).entry(&[2; 16]))];
    assert!(read(&wrong, &DATA).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let entry = tensor(&[2], 0, 8).entry(&DATA);
    let header = header(1);
    for (what, entries) in [
        ("no header", vec![("a", entry.clone())]),
        ("one key twice", vec![("", header.clone()), ("a", entry.clone()), ("a", entry.clone())]),
        ("keys out of order", vec![("", header.clone()), ("b", entry.clone()), ("a", tensor(&[2], 8, 8).entry(&DATA))]),
        ("nothing", Vec::new()),
        ("an entry that is cut off", vec![("", header.clone()), ("a", entry[..entry.len() - 1].to_vec())]),
    ] {
        assert!(read(&entries, &DATA).is_err(), "{what} was read");
    }
    // A key that leads out of the directory is a name like any other: nothing is written by names.
    let names = read(&[("", header.clone()), ("../../etc/passwd", entry.clone())], &DATA).unwrap();
    assert_eq!(names, ["../../etc/passwd"]);
    // Each byte of the index changed, and the index cut at each length.
    let root = tempfile::tempdir().unwrap();
    let whole = table(&[(Vec::new(), header), (b"a".to_vec(), entry)]);
    assert!(read_files(root.path(), &whole, &DATA).is_ok());
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        assert!(read_files(root.path(), &damaged, &DATA).is_err(), "byte {at}");
        assert!(read_files(root.path(), &whole[..at], &DATA).is_err(), "cut at {at}");
    }
}

const KEY: &str = "w/.ATTRIBUTES/VARIABLE_VALUE";

/// A bundle of one variable, below a graph.
fn with_graph(objects: &[Object<'_>]) -> Result<Vec<String>, Error> {
    with_graph_of(graph(objects))
}

fn with_graph_of(graph: Vec<u8>) -> Result<Vec<String>, Error> {
    let (stored, entry) = text(&graph, graph.len() as u64, 8);
    let data = [&DATA[..8], &stored].concat();
    read(&[("", header(1)), ("_CHECKPOINTABLE_OBJECT_GRAPH", entry), (KEY, tensor(&[2], 0, 8).entry(&data))], &data)
}

#[test]
fn graphs_with_cycles_and_more_ways_than_atoms_end() {
    let key = Some(KEY);
    let cycle = [
        (vec![(1, "a"), (0, "self")], None),
        (vec![(0, "root"), (1, "self"), (2, "w")], None),
        (vec![(1, "back")], key),
    ];
    assert_eq!(with_graph(&cycle).unwrap(), ["a/w", "w"]);
    // Each of 300 objects has an edge to every other.
    let all: Vec<(u64, &str)> = (0..300).map(|to| (to, "x")).collect();
    let mut objects = vec![(all, None); 300];
    objects[299].1 = key;
    assert!(with_graph(&objects).unwrap().len() > 1);
    // A graph with two edges from each node to the next, and a path longer than any stack.
    let ladder: Vec<_> =
        (1..90).map(|to| (vec![(to, "left"), (to, "right")], None)).chain([(Vec::new(), key)]).collect();
    assert!(with_graph(&ladder).unwrap().len() <= 65);
    let line: Vec<_> = (1..100_000).map(|to| (vec![(to, "x")], None)).chain([(Vec::new(), key)]).collect();
    assert_eq!(with_graph(&line).unwrap(), ["w"]);
    // Objects that are not there.
    for to in [7, u64::from(u32::MAX), u64::MAX] {
        assert!(with_graph(&[(vec![(to, "w")], None)]).is_err(), "an edge to {to}");
    }
}

/// Edges may lead to one list many times, also from many optimizers.
#[test]
fn lists_that_optimizers_share_are_read_once() {
    const MANY: usize = 20_000;
    let start = [(2, "_variables"), (3, "_iterations"), (4, "_trainable_variables")];
    let lists = [
        (Vec::new(), None),
        (Vec::new(), None),
        (vec![(6, "0")], None),
        (vec![(6, "0"); MANY], None),
        (Vec::new(), Some(KEY)),
    ];
    let long = "m".repeat(1 << 20);
    for name in ["m", &long] {
        let count = if name.len() == 1 { MANY } else { 1 };
        let optimizer = (start.iter().copied().chain(vec![(5, name); count]).collect(), None);
        let objects: Vec<Object<'_>> =
            [(vec![(1, "optimizer"), (6, "w")], None), optimizer].into_iter().chain(lists.clone()).collect();
        assert!(with_graph(&objects).unwrap().contains(&"w".to_string()));
    }
    let optimizer: Object<'_> = (start.iter().copied().chain([(5, "m")]).collect(), None);
    let root = (7..7 + MANY as u64).map(|id| (id, "optimizer")).chain([(6, "w")]).collect();
    let objects: Vec<Object<'_>> =
        [(root, None), (Vec::new(), None)].into_iter().chain(lists).chain(vec![optimizer; MANY]).collect();
    assert!(with_graph(&objects).unwrap().contains(&"w".to_string()));
}

/// A path is written again for each attribute of its object.
#[test]
fn names_take_memory_in_proportion() {
    let name = "x".repeat(1 << 10);
    let mut graph: Vec<u8> = Vec::new();
    for to in 1..=127 {
        graph.extend(bytes(1, &bytes(1, &[number(1, to), bytes(2, name.as_bytes())].concat())));
    }
    let attribute = |i: usize| bytes(2, &[bytes(1, format!("{i}").as_bytes()), bytes(3, KEY.as_bytes())].concat());
    let last: Vec<u8> = (0..20_000).flat_map(attribute).collect();
    graph.extend(bytes(1, &last));
    assert!(with_graph_of(graph).unwrap().contains(&"w".to_string()));
}

/// The JSON form of strings has a list for each element in each dimension.
#[test]
fn strings_in_many_dimensions_take_memory_in_proportion() {
    const COUNT: usize = 100_000;
    let lengths = vec![0; 4 * COUNT];
    let crc = masked(&lengths).to_le_bytes();
    let data = [vec![0; COUNT], crc.to_vec()].concat();
    let whole = masked(&[lengths, crc.to_vec()].concat()).to_le_bytes();
    let shape: Vec<u8> = (0..254).flat_map(|d| bytes(2, &number(1, if d == 0 { COUNT as u64 } else { 1 }))).collect();
    let entry =
        [number(1, 7), bytes(2, &shape), number(5, data.len() as u64), vec![6 << 3 | 5], whole.to_vec()].concat();
    assert!(read(&[("", header(1)), ("a", entry)], &data).unwrap().is_empty());
}

#[test]
fn a_graph_that_is_no_graph_is_refused() {
    let refuse = |stored: Vec<u8>, entry: Vec<u8>| {
        read(&[("", header(1)), ("_CHECKPOINTABLE_OBJECT_GRAPH", entry)], &stored).unwrap_err().to_string()
    };
    let (stored, entry) = text(b"\xff\xff\xff", 3, 0);
    assert!(refuse(stored, entry).contains("object graph"));
    // A length that the text does not have.
    for claimed in [4, 1 << 31, 1 << 40, u64::MAX] {
        let (stored, entry) = text(b"abc", claimed, 0);
        assert!(refuse(stored, entry).contains("tensor of strings"), "{claimed}");
    }
    let numbers = tensor(&[2], 0, 8).entry(&DATA);
    assert!(refuse(DATA.to_vec(), numbers).contains("not text"));
}

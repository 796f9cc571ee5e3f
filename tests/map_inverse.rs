//! Maps applied backwards: layers that were imported from another tool are returned to it, bit for bit.
#![cfg(all(feature = "tensorflow", feature = "keras"))]

mod common;

use common::Memory;
use common::sources::{fixture, keras_layers, read};
use common::table::Table;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tch_checkpoint::convert::{Format, convert};
use tch_checkpoint::interop::{self, keras, tensorflow};
use tch_checkpoint::map::{NameMap, Preset};
use tch_checkpoint::{Checkpoint, Dtype, Location, Result, TensorSource, TensorSpec, VerifiedBy};

/// Every preset of Keras.
fn presets(prefix: &str) -> NameMap {
    keras_layers("ours", prefix).only(["ours"])
}

/// Those of PyTorch, of which one splits a tensor into three.
fn torch_presets() -> NameMap {
    let layers = ["linear", "embedding", "conv1d", "conv2d", "batch_norm", "layer_norm", "gru", "lstm"];
    let map = NameMap::new().layer("ours/attention", Preset::TorchMultiheadAttention, "attention");
    let module = |map: NameMap, layer: &str| map.layer(&format!("ours/{layer}"), Preset::TorchModule, layer);
    layers.into_iter().fold(map, module).only(["ours"])
}

#[test]
fn every_preset_goes_back() {
    let root = tempfile::tempdir().unwrap();
    let bundle = tensorflow::Bundle::open(fixture("layers/keras_layers")).unwrap();
    let hdf5 = keras::Weights::open(fixture("layers/keras_layers.weights.h5")).unwrap();
    let torch = interop::open(fixture("layers/torch_layers.pt")).unwrap();
    for (name, theirs, map) in [
        ("bundle", &bundle as &dyn TensorSource, presets("model/")),
        ("hdf5", &hdf5, presets("")),
        ("torch", &*torch, torch_presets()),
    ] {
        let path = root.path().join(name);
        convert(&map.apply(theirs).unwrap(), path.as_path(), Format::Checkpoint).unwrap();
        let ours = interop::open(&path).unwrap();
        let back = map.apply_inverse(theirs, &*ours).unwrap_or_else(|e| panic!("{name}: {e}"));
        // At least two variables of most layers, and four or eight of the attention.
        assert!(back.tensors().len() > 30, "{name}: {:?}", back.tensors().keys());
        for (key, spec) in back.tensors() {
            assert_eq!(spec, &theirs.tensors()[key], "{name}: {key}");
            let whole = read(theirs, key);
            assert!(read(&back, key) == whole, "{name}: {key}");
            let elements = whole.len() as u64 / 4;
            let mut part = vec![0; 4 * (elements - elements / 2) as usize];
            back.read_range(key, elements / 2..elements, &mut part).unwrap();
            assert!(part == whole[whole.len() - part.len()..], "{name}: {key}");
        }
        assert!(back.left_out().iter().all(|key| !back.tensors().contains_key(key)));
        // And it is a source like any other.
        let file = root.path().join(format!("{name}.pt"));
        convert(&back, file.as_path(), Format::PyTorch).unwrap();
        let again = interop::open(&file).unwrap();
        assert!(back.tensors().keys().all(|key| read(&*again, key) == read(theirs, key)));
    }
}

/// Two tensors of theirs, `[2, 3]` and `[3]`.
fn theirs(root: &Path) -> Box<dyn TensorSource> {
    let path = root.join("theirs");
    let (w, b) = (Memory::f32(&[2, 3], (0..6).map(|i| i as f32)), Memory::f32(&[3], [7.0, 8.0, 9.0]));
    Checkpoint::new().track("w", &w).unwrap().track("b", &b).unwrap().write(&path).unwrap();
    interop::open(path).unwrap()
}

#[test]
fn what_cannot_go_back_is_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let theirs = theirs(root.path());
    let refused = |map: &str, ours: &[(&str, Memory)]| {
        let map: NameMap = map.parse().unwrap();
        let path = tempfile::tempdir_in(root.path()).unwrap().keep().join("ours");
        let mut checkpoint = Checkpoint::new();
        for (name, memory) in ours {
            checkpoint.track_mut(name, memory).unwrap();
        }
        checkpoint.write(&path).unwrap();
        let ours = interop::open(path).unwrap();
        match map.apply_inverse(&*theirs, &*ours) {
            Ok(back) => format!("{:?}", back.tensors().keys()),
            Err(error) => error.to_string(),
        }
    };
    let (six, three) = (Memory::seeded(6, 1), Memory::seeded(3, 2));
    for (map, ours, wanted) in [
        ("map 1\nx = reshape(w, [6])\nonly x\n", vec![("x", six.clone())], "[\"w\"]"),
        ("map 1\nx = slice(b, 0, 0..2)\nonly x\n", vec![("x", Memory::seeded(2, 1))], "drops its element 2"),
        ("map 1\nx = add(b, b)\nonly x\n", vec![("x", three.clone())], "by adding"),
        ("map 1\nx = cast(b, F16)\nonly x\n", vec![("x", three.clone())], "by converting"),
        // A cast to the same type converts nothing.
        ("map 1\nx = cast(b, F32)\nonly x\n", vec![("x", three.clone())], "[\"b\"]"),
        (
            "map 1\nx = transpose(cast(w, F32))\nonly x\n",
            vec![("x", Memory::seeded(6, 1))],
            "the map makes it F32 [3, 2]",
        ),
        // What is computed on the way and left out in the end does not matter.
        ("map 1\nx = b\ny = add(b, b)\nz = pad(b, 0, 4, 0.5)\nonly x\n", vec![("x", three.clone())], "[\"b\"]"),
        ("map 1\nx = repeat(b, [2])\nonly x\n", vec![("x", six.clone())], "by repeating"),
        ("map 1\nx = reshape(w, [6])\nonly x\n", vec![("y", six.clone())], "has no such tensor"),
        ("map 1\nx = reshape(w, [6])\nonly x\n", vec![("x", three.clone())], "the map makes it F32 [6]"),
        ("map 1\nx = b\nz = zeros(b)\nonly x z\n", vec![("x", three.clone()), ("z", three.clone())], "it is not zero"),
        ("map 1\nx = b\nz = zeros(b)\nonly x z\n", vec![("x", three.clone())], "[\"b\"]"),
        // Padding is not returned, and what the map does not name is left out unless ours has it.
        ("map 1\nx = pad(b, 0, 6)\n", vec![("x", six.clone())], "[\"b\"]"),
        ("map 1\nx = concat(0, b, b)\nonly x\n", vec![("x", six)], "takes its element 0 more than once"),
        ("map 1\nx = b\ny = b\nonly x y\n", vec![("x", three.clone()), ("y", three.clone())], "[\"b\"]"),
        ("map 1\nx = b\ny = b\nonly x y\n", vec![("x", three.clone()), ("y", Memory::seeded(3, 3))], "more than once"),
    ] {
        let found = refused(map, &ours);
        assert!(found.contains(wanted), "{map}: {found}");
    }
    let wrong = Memory::new(Dtype::I32, &[3], vec![0; 12]);
    assert!(refused("map 1\nx = b\nonly x\n", &[("x", wrong)]).contains("it is I32 [3] in ours"));
}

/// Tied tensors of ours have the same elements, and the map may want others.
#[test]
fn tied_tensors_go_back_unless_the_map_makes_them_differently() {
    let bytes = |elements: std::ops::Range<u8>| elements.flat_map(|i| [i, 0, 0, 0]).collect::<Vec<u8>>();
    let theirs = Table::default().with("k", Dtype::F32, &[2, 2], bytes(0..4));
    let back = |map: &str, shape: &[u64], elements: std::ops::Range<u8>| {
        let table = Table::default().with("a", Dtype::F32, shape, bytes(elements.clone()));
        let table = table.with("b", Dtype::F32, shape, bytes(elements));
        let ours = Counted { table, is_tied: true, ..Counted::default() };
        let map: NameMap = map.parse().unwrap();
        map.apply_inverse(&theirs, &ours).map(|back| read(&back, "k")).map_err(|error| error.to_string())
    };
    for map in ["map 1\na = k\nb = k\nonly a b\n", "map 1\na = transpose(k)\nb = transpose(k)\nonly a b\n"] {
        assert!(back(map, &[2, 2], 4..8).is_ok(), "{map}");
    }
    // One of the two would not be what the map makes of the result.
    for map in ["map 1\na = k\nb = transpose(k)\nonly a b\n", "map 1\na = transpose(k)\nb = k\nonly a b\n"] {
        let error = back(map, &[2, 2], 4..8).unwrap_err();
        assert!(error.contains("more than once"), "{map}: {error}");
    }
    // The halves of a tensor may be equal.
    let map = "map 1\na = slice(k, 0, 0..1)\nb = slice(k, 0, 1..2)\nonly a b\n";
    assert_eq!(back(map, &[1, 2], 4..6).unwrap(), [bytes(4..6), bytes(4..6)].concat());
}

/// A table that counts the bytes that are read of it, after a pause. If `is_tied`, `b` is another name of `a`.
#[derive(Debug, Default)]
struct Counted {
    table: Table,
    is_tied: bool,
    pause: Duration,
    bytes: AtomicU64,
}

impl TensorSource for Counted {
    fn format(&self) -> &'static str {
        self.table.format()
    }
    fn path(&self) -> &Location {
        self.table.path()
    }
    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        self.table.tensors()
    }
    fn values(&self) -> &BTreeMap<String, Value> {
        self.table.values()
    }
    fn first_alias<'k>(&'k self, key: &'k str) -> &'k str {
        if self.is_tied && key == "b" { "a" } else { key }
    }
    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.table.verified_by(key)
    }
    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        std::thread::sleep(self.pause);
        self.bytes.fetch_add(target.len() as u64, Relaxed);
        self.table.read(key, target)
    }
    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        self.bytes.fetch_add(target.len() as u64, Relaxed);
        self.table.read_range(key, range, target)
    }
    fn verify(&self) -> Result<()> {
        self.table.verify()
    }
}

/// Reads a tensor in pieces of some elements.
fn in_pieces(source: &dyn TensorSource, key: &str, elements: u64) -> Vec<u8> {
    let spec = &source.tensors()[key];
    let size = spec.dtype.size() as u64;
    let mut bytes = vec![0; spec.bytes().unwrap() as usize];
    let mut at = 0;
    for piece in bytes.chunks_mut((elements * size) as usize) {
        let end = at + piece.len() as u64 / size;
        source.read_range(key, at..end, piece).unwrap();
        at = end;
    }
    bytes
}

#[test]
fn what_is_read_in_pieces_is_computed_once() {
    let bytes: Vec<u8> = (0..60u8).flat_map(|i| [i, 0, 0, 0]).collect();
    let weights = Table::default().with("w", Dtype::F32, &[6, 10], bytes.clone());
    let map: NameMap = "map 1\nmodel/x = transpose(w)\n".parse().unwrap();
    // Backwards.
    let table = Table::default().with("model/x", Dtype::F32, &[10, 6], read(&map.apply(&weights).unwrap(), "model/x"));
    let ours = Counted { table, ..Counted::default() };
    let back = map.apply_inverse(&weights, &ours).unwrap();
    assert_eq!(in_pieces(&back, "w", 7), bytes);
    assert_eq!(ours.bytes.load(Relaxed), 240);
    // The state of an optimizer.
    let mut table = Table::default().with("optimizer/state/w/exp_avg", Dtype::F32, &[6, 10], bytes.clone());
    for value in ["algorithm", "param_groups", "steps"] {
        table.values.insert(format!("optimizer/{value}"), json!(0));
    }
    let state = Counted { table, ..Counted::default() };
    let moved = map.apply_to_optimizer(&weights, &state, "model").unwrap();
    let key = "optimizer/state/x/exp_avg";
    assert_eq!(in_pieces(&moved, key, 7), read(&map.apply(&weights).unwrap(), "model/x"));
    assert_eq!(state.bytes.load(Relaxed), 240);
    // What is only renamed is not read completely.
    let map: NameMap = "map 1\nx = w\n".parse().unwrap();
    let ours = Counted { table: Table::default().with("x", Dtype::F32, &[6, 10], bytes.clone()), ..Counted::default() };
    let back = map.apply_inverse(&weights, &ours).unwrap();
    let mut piece = [0; 8];
    back.read_range("w", 30..32, &mut piece).unwrap();
    assert_eq!((piece.as_slice(), ours.bytes.load(Relaxed)), (&bytes[120..128], 8));
}

/// Each thread has every fourth piece, the last one first.
#[test]
fn what_several_threads_read_is_computed_once() {
    let bytes: Vec<u8> = (0..60u8).flat_map(|i| [i, 0, 0, 0]).collect();
    let weights = Table::default().with("w", Dtype::F32, &[6, 10], bytes.clone());
    let map: NameMap = "map 1\nx = transpose(w)\n".parse().unwrap();
    let moved = read(&map.apply(&weights).unwrap(), "x");
    for (threads, pause) in [(1, 0), (4, 50)] {
        let table = Table::default().with("x", Dtype::F32, &[10, 6], moved.clone());
        let ours = Counted { table, pause: Duration::from_millis(pause), ..Counted::default() };
        let back = map.apply_inverse(&weights, &ours).unwrap();
        let begin = Barrier::new(threads as usize);
        let read_some = &|thread: u64| {
            begin.wait();
            for at in (0..12).rev().filter(|at| at % threads == thread) {
                let mut piece = [0; 20];
                back.read_range("w", 5 * at..5 * at + 5, &mut piece).unwrap();
                assert_eq!(piece, bytes[20 * at as usize..][..20]);
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|thread| drop(scope.spawn(move || read_some(thread)))));
        assert_eq!(ours.bytes.load(Relaxed), 240, "{threads} threads");
    }
}

/// Lengths beside a zero can be any numbers, also such as no memory holds of the places.
#[test]
fn places_without_memory_are_refused() {
    let long = [1 << 61, 0, 1 << 40, 1 << 40];
    let theirs = Table::default().with("t", Dtype::F32, &long, Vec::new());
    let map: NameMap = "map 1\nx = slice(t, 1, 0..0)\n".parse().unwrap();
    let ours = map.apply(&theirs).unwrap();
    let error = map.apply_inverse(&theirs, &ours).unwrap_err().to_string();
    assert!(error.contains("the places"), "{error}");
}

/// Small tensors of theirs, all of whose bytes differ.
fn small(is_tied: bool) -> Counted {
    let mut next = 0;
    let mut table = Table::default();
    for (key, dtype, shape) in [
        ("a", Dtype::F32, &[2, 3][..]),
        ("b", Dtype::F32, &[2, 3]),
        ("c", Dtype::F32, &[6]),
        ("d", Dtype::BF16, &[2, 3]),
        ("e", Dtype::I64, &[4]),
        ("f", Dtype::F32, &[0, 3]),
    ] {
        if !(is_tied && key == "b") {
            next += 32;
        }
        let count = shape.iter().product::<u64>() as usize * dtype.size();
        table = table.with(key, dtype, shape, (0..count).map(|i| (next + i) as u8).collect());
    }
    Counted { table, is_tied, ..Counted::default() }
}

/// An expression of the text form.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(["a", "b", "c", "d", "e", "f", "x"].as_slice()).prop_map(str::to_string);
    leaf.prop_recursive(4, 12, 2, |inner| {
        let (x, y) = (inner.clone(), inner.clone());
        let dtype = prop::sample::select(["F32", "F32", "BF16", "I64", "F64"].as_slice());
        let two = (inner.clone(), inner.clone(), 0..2, prop::sample::select(["concat", "stack"].as_slice()));
        prop_oneof![
            (x, dtype).prop_map(|(x, dtype)| format!("cast({x}, {dtype})")),
            y.clone().prop_map(|x| format!("transpose({x})")),
            (y.clone(), prop::sample::select(["[_]", "[3, _]", "[_, 1, 2]"].as_slice()))
                .prop_map(|(x, shape)| format!("reshape({x}, {shape})")),
            (y.clone(), 0..2, 0..3, 1..4)
                .prop_map(|(x, dim, from, more)| { format!("slice({x}, {dim}, {from}..{})", from + more) }),
            (y.clone(), -1..2, prop::sample::select(["2, [1, 0]", "3, [2, 0, 1]", "2, [1]", "2, [0, 0]"].as_slice()))
                .prop_map(|(x, dim, order)| format!("blocks({x}, {dim}, {order})")),
            (y.clone(), 0..2, 2..8, prop::sample::select(["", "", ", 0.5"].as_slice()))
                .prop_map(|(x, dim, length, value)| format!("pad({x}, {dim}, {length}{value})")),
            two.prop_map(|(x, y, dim, what)| format!("{what}({dim}, {x}, {y})")),
            (y.clone(), inner).prop_map(|(x, y)| format!("add({x}, {y})")),
            y.prop_map(|x| format!("zeros({x})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Any map is either refused or inverted exactly.
    #[test]
    fn any_map_goes_back_or_is_refused(
        first in expression(),
        second in expression(),
        end in prop::sample::select(["", "only x\n", "only x y\n", "exclude d e f\n", "add_prefix q/\n"].as_slice()),
        is_tied in any::<bool>(),
        piece in 1u64..8,
    ) {
        let theirs = small(is_tied);
        let map: NameMap = format!("map 1\nx = {first}\ny = {second}\n{end}").parse().unwrap();
        let Ok(ours) = map.apply(&theirs) else { return Ok(()) };
        let Ok(back) = map.apply_inverse(&theirs, &ours) else { return Ok(()) };
        for (key, spec) in back.tensors() {
            prop_assert_eq!(spec, &theirs.tensors()[key]);
            prop_assert_eq!(read(&back, key), read(&theirs, key));
            prop_assert_eq!(in_pieces(&back, key, piece), read(&theirs, key));
        }
    }

    /// Transforms that only move elements can be inverted.
    #[test]
    fn moves_of_all_elements_go_back(
        moves in prop::collection::vec(0usize..7, 0..6),
        cut in 0u64..7,
        piece in 1u64..30,
    ) {
        let bytes: Vec<u8> = (0..96).collect();
        let theirs = Table::default().with("t", Dtype::F32, &[4, 6], bytes.clone());
        let mut moved = "t".to_string();
        for step in moves {
            moved = match step {
                0 => format!("transpose({moved})"),
                1 => format!("cast({moved}, F32)"),
                2 => format!("blocks({moved}, 0, 2, [1, 0])"),
                3 => format!("blocks({moved}, -1, 2, [1, 0])"),
                4 => format!("reshape({moved}, [2, _])"),
                5 => format!("concat(0, slice({moved}, 0, 1..), slice({moved}, 0, 0..1))"),
                _ => format!("flatten({moved}, 0, -1)"),
            };
        }
        let map = format!(
            "map 1\nfirst = slice(flatten({moved}, 0, -1), 0, 0..{cut})\n\
             second = pad(slice(flatten({moved}, 0, -1), 0, {cut}..), 0, 30)\n"
        );
        let map: NameMap = map.parse().unwrap();
        // A tensor of one dimension has no second one, and an odd one no halves.
        let Ok(ours) = map.apply(&theirs) else { return Ok(()) };
        let back = map.apply_inverse(&theirs, &ours).unwrap();
        prop_assert_eq!(read(&back, "t"), bytes.clone());
        prop_assert_eq!(in_pieces(&back, "t", piece), bytes);
    }
}

//! Maps applied backwards: what was taken over from another tool is given back, bit for bit.
#![cfg(all(feature = "tensorflow", feature = "keras"))]

mod common;

use common::Memory;
use common::sources::{fixture, keras_layers, read};
use std::path::Path;
use tch_checkpoint::convert::{Format, convert};
use tch_checkpoint::interop::{self, keras, tensorflow};
use tch_checkpoint::map::{NameMap, Preset};
use tch_checkpoint::{Checkpoint, Dtype, TensorSource};

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
        ("map 1\nx = repeat(b, [2])\nonly x\n", vec![("x", six.clone())], "by repeating"),
        ("map 1\nx = reshape(w, [6])\nonly x\n", vec![("y", six.clone())], "has no such tensor"),
        ("map 1\nx = reshape(w, [6])\nonly x\n", vec![("x", three.clone())], "the map makes it F32 [6]"),
        ("map 1\nx = b\nz = zeros(b)\nonly x z\n", vec![("x", three.clone()), ("z", three.clone())], "it is not zero"),
        ("map 1\nx = b\nz = zeros(b)\nonly x z\n", vec![("x", three.clone())], "[\"b\"]"),
        // Padding is not given back, and what the map does not name is left out unless ours has it.
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

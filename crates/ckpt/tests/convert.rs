//! `ckpt convert`, `average`, `map` and `diff` between formats.

#[path = "../../../tests/common/mod.rs"]
mod common;

use common::Memory;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, TensorSource, Trackable, VerifiedBy, interop};

fn ckpt(args: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ckpt")).args(args).current_dir(directory).output().unwrap()
}

fn ok(args: &[&str], directory: &Path) -> String {
    let output = ckpt(args, directory);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path).to_str().unwrap().to_string()
}

fn read(source: &dyn TensorSource, key: &str) -> Vec<u8> {
    let mut bytes = vec![0; source.tensors()[key].bytes().unwrap() as usize];
    source.read(key, &mut bytes).unwrap();
    bytes
}

#[test]
fn there_and_back_is_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let source = fixture("pytorch/a_state_dict/seq2seq.pt");
    for to in ["ours", "x.safetensors", "x.pt"] {
        ok(&["convert", &source, to], dir);
        let map = dir.join("names.map");
        // In a checkpoint of this crate all is below `model`.
        fs::write(&map, if to == "ours" { "map 1\nadd_prefix model/\n" } else { "map 1\n" }).unwrap();
        let output = ckpt(&["diff", &source, to, "--map", "names.map"], dir);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        // A safetensors file says that it is of PyTorch; else there is no difference.
        let differences = if to == "x.safetensors" { "1 difference; equal: 37 tensors" } else { "\nequal: 37 tensors" };
        assert!(shown.contains(differences), "{shown}");
        assert!(ok(&["verify", "ours"], dir).contains("ours"));
    }
    // A directory for Hugging Face, of one file and an index.
    ok(&["convert", &source, "hf", "--to", "safetensors"], dir);
    assert!(ok(&["verify", "hf"], dir).contains("hf") && ok(&["show", "hf"], dir).contains("Hugging Face"));
    ok(&["convert", "hf", "again.pt"], dir);
    let key = interop::open(&source).unwrap().tensors().keys().next().unwrap().clone();
    ok(&["convert", "x.pt", "half.safetensors", "--only", &key, "--dtype", "f16"], dir);
    let half = interop::open(dir.join("half.safetensors")).unwrap();
    assert_eq!(
        half.tensors().iter().map(|(key, spec)| (key.as_str(), spec.dtype.name())).collect::<Vec<_>>(),
        [(key.as_str(), "F16")]
    );
    let output = ckpt(&["diff", "x.pt", "half.safetensors"], dir);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && shown.contains("dtype") && shown.contains("only in A"), "{shown}");
}

#[test]
fn nothing_is_written_when_something_is_wrong() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let source = fixture("pytorch/a_state_dict/seq2seq.pt");
    fs::write(dir.join("bad.map"), "map 1\na = transpos(b)\n").unwrap();
    for (args, wanted) in [
        (&["convert", &source, "to", "--map", "bad.map"][..], "bad.map, line 2, column 5"),
        (&["convert", &source, "to", "--only", "nothing*"], "there is nothing for"),
        (&["convert", &source, "to.h5"], "--to"),
        (&["convert", &source, "to", "--dtype", "I8"], "--dtype is"),
        (&["cast", &source, "to", "F16", "nothing*"], "there is no tensor for \"nothing*\""),
        (&["convert", "missing", "to"], "no checkpoint"),
    ] {
        let output = ckpt(args, dir);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && shown.contains(wanted), "{args:?}: {shown}");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

#[test]
fn a_proposed_map_converts() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let keras = fixture("layers/keras_layers.weights.h5");
    // What is wanted: names and layouts of tch.
    fs::write(dir.join("tch.map"), "map 1\nm/dense = keras.dense(dense)\nm/gru = keras.gru(gru)\nonly m\n").unwrap();
    ok(&["convert", &keras, "wanted", "--map", "tch.map"], dir);
    let shown = ok(&["map", &keras, "wanted", "--output", "found.map"], dir);
    assert!(shown.starts_with("3 lines"), "{shown}");
    let text = fs::read_to_string(dir.join("found.map")).unwrap();
    assert!(text.contains("/m/gru = keras.gru(") && text.contains("# not used: "), "{text}");
    ok(&["convert", &keras, "found", "--map", "found.map"], dir);
    ok(&["diff", "found", "wanted"], dir);
    let document = ok(&["--json", "map", &keras, "wanted"], dir);
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["missing"], serde_json::json!([]));
    // Not over what is there.
    assert_eq!(ckpt(&["map", &keras, "wanted", "--output", "found.map"], dir).status.code(), Some(2));
}

#[test]
fn averages_are_written() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for name in ["a", "b"] {
        ok(&["convert", &fixture("pytorch/a_state_dict/seq2seq.pt"), name], dir);
    }
    ok(&["average", "a", "b", "--out", "mean.safetensors", "--decay", "0.5"], dir);
    let (mean, a) = (interop::open(dir.join("mean.safetensors")).unwrap(), interop::open(dir.join("a")).unwrap());
    let key = a.tensors().keys().next().unwrap();
    let name = key.replace('/', ".");
    // Half of both is the same.
    assert!(read(&*mean, &name) == read(&*a, key));
    let other = Checkpoint::new().track("x", Counter::new(1).node()).unwrap().write(dir.join("other")).unwrap();
    assert_eq!(ckpt(&["average", "a", other.to_str().unwrap(), "--out", "no"], dir).status.code(), Some(2));
}

/// The shell sorts `ckpt-*` by text: `ckpt-10` precedes `ckpt-8`.
#[test]
fn an_average_takes_the_checkpoints_of_a_run_in_the_order_in_which_they_were_saved() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (weight, step) = (Memory::f32(&[1], [0.0]), Counter::new(0));
    let save = |steps: &[u64]| {
        let checkpoint = Checkpoint::new().track("weight", &weight).unwrap().track("step", &step).unwrap();
        let mut manager = CheckpointManager::builder(checkpoint, dir.join("run")).open().unwrap();
        manager.restore_or_initialize().unwrap();
        for number in steps {
            step.set(*number);
            *weight.bytes() = Memory::f32(&[1], [*number as f32]).bytes().clone();
            manager.save_at(*number).unwrap();
        }
        manager.close().unwrap();
    };
    // The last one is that of another run of the program, which goes on from the second.
    save(&[8, 9]);
    save(&[10]);
    let average = |sources: &[&str], more: &[&str], to: &str| {
        let output = ckpt(&[&["average"], sources, more, &["--out", to]].concat(), dir);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (saved, sorted) = (["run/ckpt-8", "run/ckpt-9", "run/ckpt-10"], ["run/ckpt-10", "./run/ckpt-8", "run/ckpt-9"]);
    for (more, mean) in [(&["--decay", "0.5"][..], 9.25f32), (&[], 9.0)] {
        for (sources, to) in [(&saved, "saved"), (&sorted, "sorted")] {
            let (code, err) = average(sources, more, to);
            assert_eq!(code, Some(0), "{err}");
            let note = "averaged in the order in which they were saved: ./run/ckpt-8, run/ckpt-9, run/ckpt-10\n";
            assert!(if to == "sorted" { err.ends_with(note) } else { err.is_empty() }, "{err}");
            let found = interop::open(dir.join(to)).unwrap();
            assert_eq!((read(&*found, "weight"), found.value("step")), (mean.to_le_bytes().to_vec(), Some(10.into())));
            fs::remove_dir_all(dir.join(to)).unwrap();
        }
    }
    // Which weight is meant for which of them is not known.
    let (code, err) = average(&sorted, &["--weights", "1,2,3"], "no");
    assert!(code == Some(2) && err.contains("oldest first: ./run/ckpt-8, run/ckpt-9, run/ckpt-10\n"), "{err}");
    assert!(!dir.join("no").exists());
    assert_eq!(average(&saved, &["--weights", "1,2,3"], "weighted"), (Some(0), String::new()));
    // Those of no common run stay in the order that was given.
    for number in [9, 10] {
        fs::rename(dir.join(format!("run/ckpt-{number}")), dir.join(format!("of-{number}-epochs"))).unwrap();
    }
    assert_eq!(average(&["of-10-epochs", "of-9-epochs"], &[], "last"), (Some(0), String::new()));
    assert_eq!(interop::open(dir.join("last")).unwrap().value("step"), Some(9.into()));
}

#[test]
fn a_seal_finds_what_no_checksum_does() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    ok(&["convert", &fixture("pytorch/a_state_dict/seq2seq.pt"), "x.safetensors"], dir);
    let file = dir.join("x.safetensors");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    // The format has no checksum.
    fs::write(&file, &bad).unwrap();
    ok(&["verify", "x.safetensors"], dir);
    fs::write(&file, &good).unwrap();
    ok(&["seal", "x.safetensors"], dir);
    ok(&["verify", "x.safetensors"], dir);
    assert_eq!(ckpt(&["seal", "x.safetensors"], dir).status.code(), Some(2));
    let key = interop::open(&file).unwrap().tensors().keys().next().unwrap().clone();
    assert_eq!(interop::open(&file).unwrap().verified_by(&key), VerifiedBy::Digest);
    fs::write(&file, &bad).unwrap();
    let output = ckpt(&["verify", "x.safetensors"], dir);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && shown.contains("is not what was sealed"), "{shown}");
    // Neither is it converted.
    assert_eq!(ckpt(&["convert", "x.safetensors", "to"], dir).status.code(), Some(2));
    assert!(!dir.join("to").exists());
    // Another file under the same name, and a broken seal.
    ok(&["convert", &fixture("pytorch/i_tch/seq2seq.npz"), "y.safetensors", "--only", "*bias*"], dir);
    fs::copy(dir.join("y.safetensors"), &file).unwrap();
    assert_eq!(ckpt(&["verify", "x.safetensors"], dir).status.code(), Some(1));
    fs::write(dir.join("x.safetensors.seal.json"), "{").unwrap();
    assert_eq!(ckpt(&["verify", "x.safetensors"], dir).status.code(), Some(1));
    let own = ckpt(&["convert", "y.safetensors", "own"], dir);
    assert!(own.status.success());
    assert_eq!(ckpt(&["seal", "own"], dir).status.code(), Some(2));
}

/// What PyTorch's optimizer loads, and what tch's `VarStore::load` does.
#[test]
fn an_optimizer_gets_its_state_dict() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    // The state of an optimizer of two variables, as a checkpoint of this crate has it.
    let tensor = |name: &str| format!("{name} = encoder.embedding.weight\n");
    let source = fixture("pytorch/a_state_dict/seq2seq.pt");
    let slots = ["a.weight", "b.weight"]
        .map(|variable| tensor(&format!("model/{variable}")) + &tensor(&format!("optimizer/state/{variable}/exp_avg")));
    fs::write(dir.join("names.map"), format!("map 1\n{}only model optimizer\n", slots.concat())).unwrap();
    ok(&["convert", &source, "tensors", "--map", "names.map"], dir);
    let groups = serde_json::json!([{ "lr": 0.1 }, { "lr": 0.2 }]);
    let values = Checkpoint::new()
        .track(
            "optimizer",
            std::collections::BTreeMap::from([
                ("param_groups", tch_checkpoint::Value::new(groups)),
                ("algorithm", tch_checkpoint::Value::new("Adam".into())),
            ]),
        )
        .unwrap()
        .write(dir.join("values"))
        .unwrap();
    ok(&["merge", "tensors", values.to_str().unwrap(), "--out", "trained"], dir);
    // PyTorch's order is another one than that of the names.
    fs::write(dir.join("order.txt"), "b.weight\n\na.weight\n").unwrap();
    ok(&["convert", "trained", "resume.pt", "--optimizer", "optimizer", "--parameters", "order.txt"], dir);
    let written = interop::open(dir.join("resume.pt")).unwrap();
    let keys: Vec<&str> = written.tensors().keys().map(String::as_str).collect();
    let wanted = ["model/a.weight", "model/b.weight", "optimizer/state/0/exp_avg", "optimizer/state/1/exp_avg"];
    assert_eq!(keys, wanted);
    let value = written.value("optimizer/param_groups").unwrap();
    let lr = |at: usize| (value[at]["lr"].clone(), value[at]["params"].clone());
    assert_eq!((lr(0), lr(1)), ((0.1.into(), serde_json::json!([0])), (0.2.into(), serde_json::json!([1]))), "{value}");
    // Its variables must all be there.
    fs::write(dir.join("order.txt"), "b.weight\n\nc.weight\n").unwrap();
    let output = ckpt(&["convert", "trained", "no.pt", "--optimizer", "optimizer", "--parameters", "order.txt"], dir);
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && shown.contains("\"a.weight\"") && !dir.join("no.pt").exists(),
        "{shown}"
    );
    // A flat file has the names that the model's own variables have.
    ok(&["convert", "trained", "weights.pt", "--root", "model", "--flat"], dir);
    let keys: Vec<String> = interop::open(dir.join("weights.pt")).unwrap().tensors().keys().cloned().collect();
    assert_eq!(keys, ["a.weight", "b.weight"]);
}

/// The limits for files of other tools are options of every command, which the errors name.
#[test]
fn unknown_objects_and_expansion_are_allowed_by_options() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let objects = fixture("pytorch/f_refused/datetime.pt");
    fs::copy(&objects, dir.join("objects.pt")).unwrap();
    let bomb = fixture("keras/hostile/shape_bomb.h5");
    let error = |args: &[&str]| {
        let output = ckpt(args, dir);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), shown.lines().count()), (Some(2), 1), "{args:?}: {shown}");
        shown
    };
    for args in [
        &["show", "objects.pt"][..],
        &["verify", "objects.pt"],
        &["convert", "objects.pt", "no"],
        &["seal", "objects.pt"],
    ] {
        if args[0] == "verify" {
            // It lists what it could not read on standard output.
            assert_eq!(ckpt(args, dir).status.code(), Some(2));
        } else {
            let shown = error(args);
            assert!(shown.contains("--unknown-objects") && shown.contains("ReadOptions::unknown_objects"), "{shown}");
        }
        let output = ckpt(&[args, &["--unknown-objects"]].concat(), dir);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // What is left out of the conversion is said.
    let output = ckpt(&["convert", "objects.pt", "x.safetensors", "--unknown-objects"], dir);
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && shown.contains("datetime"), "{shown}");
    let shown = error(&["show", &bomb]);
    assert!(shown.contains("--max-expansion") && shown.contains("ReadOptions::max_expansion"), "{shown}");
    ok(&["show", "--max-expansion", &u64::MAX.to_string(), &bomb], dir);
}

/// A directory that a manager writes to is locked for everything that would write a checkpoint into it.
#[test]
fn no_checkpoint_is_written_beside_a_running_manager() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let step = Counter::new(7);
    let checkpoint = Checkpoint::new().track("step", &step).unwrap().track("other", Counter::new(1)).unwrap();
    let mut manager = CheckpointManager::builder(checkpoint, dir.join("run")).open().unwrap();
    manager.save_at(7).unwrap();
    let file = fixture("pytorch/a_state_dict/seq2seq.pt");
    ok(&["convert", &file, "damaged/ckpt-1"], dir);
    // One of its components is damaged, another one is intact.
    ok(&["rename", "damaged/ckpt-1", "broken/ckpt-1", "model/encoder*=encoder/e*", "model/*=rest/*"], dir);
    let damaged = dir.join("broken/ckpt-1/rest.safetensors");
    let mut bytes = fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let commands: [&[&str]; 7] = [
        &["convert", &file, "run/ckpt-8"],
        &["extract", "damaged/ckpt-1", "run/ckpt-8", "*"],
        &["rename", "damaged/ckpt-1", "run/ckpt-8", "model/*=m/*"],
        &["cast", "damaged/ckpt-1", "run/ckpt-8", "F16"],
        &["merge", "damaged/ckpt-1", "--out", "run/ckpt-8"],
        &["average", "damaged/ckpt-1", "--out", "run/ckpt-8"],
        &["repair", "--salvage", "run", "broken"],
    ];
    for command in commands {
        let output = ckpt(command, dir);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && shown.contains("in use by another writer"), "{command:?}: {shown}");
    }
    assert_eq!(
        fs::read_dir(dir.join("run")).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(),
        1
    );
    // The run reads and writes on.
    step.set(8);
    manager.save_at(8).unwrap();
    manager.close().unwrap();
    // Without it they are written; the number 8 is taken.
    ok(&["convert", &file, "run/ckpt-9"], dir);
    let output = ckpt(&["repair", "--salvage", "run", "broken"], dir);
    assert!(output.status.code() == Some(1) && dir.join("run/ckpt-1").exists(), "{output:?}");
}

/// Nothing is replaced unless it is asked for, and then only files.
#[test]
fn an_existing_file_is_replaced_only_by_force() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let source = fixture("pytorch/a_state_dict/seq2seq.pt");
    for (to, format) in
        [("x.pt", "pytorch"), ("x.safetensors", "safetensors"), ("own", "checkpoint"), ("tf", "tensorflow")]
    {
        ok(&["convert", &source, to, "--to", format], dir);
        let before = fs::read(dir.join(to)).ok();
        let output = ckpt(&["convert", &source, to, "--to", format, "--dtype", "F16"], dir);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && shown.contains("exists already"), "{to}: {shown}");
        assert_eq!(fs::read(dir.join(to)).ok(), before);
        let code = ckpt(&["convert", &source, to, "--to", format, "--dtype", "F16", "--force"], dir).status.code();
        assert_eq!(code, Some(if before.is_some() { 0 } else { 2 }), "{to}");
        assert!(before.is_none() || fs::read(dir.join(to)).ok() != before);
    }
    fs::create_dir(dir.join("empty")).unwrap();
    assert_eq!(ckpt(&["convert", &source, "empty", "--to", "safetensors", "--force"], dir).status.code(), Some(2));
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(".tmp-")), "{left:?}");
}

/// Every command that reads takes checkpoints of other tools.
#[test]
fn files_of_other_tools_are_shown_verified_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = fixture("pytorch/a_state_dict/seq2seq.pt");
    let shown = ok(&["show", &file], dir);
    for part in ["format       PyTorch (zip)", "verified by  checksums of the format", "encoder.gru.weight_ih_l0 "] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let shown = ok(&["show", "--json", &fixture("tensorflow/b_dtypes/dtypes")], dir);
    let document: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&document["step"], &document["verified_by"]), (&serde_json::Value::Null, &"container".into()));
    assert_eq!(document["files"].as_array().unwrap().len(), 2, "{document}");

    ok(&["convert", &file, "x.safetensors"], dir);
    assert!(ok(&["verify", "x.safetensors"], dir).contains("(structure only: the format has no checksums)"));
    // Only the metadata of safetensors are no part of the other file.
    let output = ckpt(&["diff", &file, "x.safetensors"], dir);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("__metadata__/format") && text.ends_with("1 difference; equal: 37 tensors and 0 values\n"),
        "{text}"
    );
    ok(&["convert", &file, "half.safetensors", "--dtype", "F16"], dir);
    let output = ckpt(&["diff", "x.safetensors", "half.safetensors"], dir);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("in A, F16"), "{text}");
    // It is no directory of checkpoints.
    assert_eq!(ckpt(&["ls", "x.safetensors"], dir).status.code(), Some(2));
}

//! Runs to report on.

use crate::common::Memory;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch_checkpoint::{
    Checkpoint, CheckpointDirectory, CheckpointManager, Counter, Durability, Provenance, SaveOptions,
};

type Tensors = BTreeMap<String, Memory>;

fn manager(checkpoint: Checkpoint, dir: &Path, max_to_keep: Option<usize>) -> CheckpointManager {
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(checkpoint, dir).save_options(options);
    builder.max_to_keep(max_to_keep).open().unwrap()
}

fn set(tensor: &Memory, value: f32) {
    let count = tensor.bytes().len() / 4;
    *tensor.bytes() = value.to_le_bytes().repeat(count);
}

/// A run in which everything happens: tensors that explode, vanish and become NaN, a damaged checkpoint and one whose
/// damage only reading finds, pins, notes, a metric that is NaN, removed checkpoints, an unfinished save.
pub fn eventful(dir: &Path) {
    let tensors = |names: &[&str]| -> Tensors {
        names.iter().map(|name| (name.to_string(), Memory::f32(&[8], (0..8).map(|at| at as f32)))).collect()
    };
    let (encoder, decoder) = (tensors(&["weight"]), tensors(&["broken", "exploding", "vanishing"]));
    let git = tempfile::tempdir().unwrap();
    fs::create_dir(git.path().join(".git")).unwrap();
    fs::write(git.path().join(".git/HEAD"), "0123456789abcdef0123456789abcdef01234567\n").unwrap();
    let checkpoint = Checkpoint::new()
        .track("encoder", encoder.clone())
        .and_then(|checkpoint| checkpoint.track("decoder", decoder.clone()))
        .and_then(|checkpoint| checkpoint.track("step", Counter::new(0)))
        .and_then(|checkpoint| checkpoint.provenance(&Provenance::new().git(git.path())))
        .and_then(|checkpoint| checkpoint.metadata("hyperparameters", &serde_json::json!({"rate": 0.1})))
        .unwrap();
    let mut manager = manager(checkpoint, dir, None);
    for step in 1..=8u64 {
        set(&encoder["weight"], 1.0 + step as f32 / 100.0);
        set(&decoder["exploding"], if step < 6 { 1.0 } else { 10f32.powi(step as i32) });
        set(&decoder["vanishing"], if step < 6 { 1.0 } else { 1e-3 });
        set(&decoder["broken"], if step == 6 { f32::NAN } else { 0.5 });
        let loss = if step == 6 { f64::NAN } else { 1.0 / step as f64 };
        manager.save_with_metrics(10 * step, [("loss", loss), ("accuracy", step as f64 / 8.0)]).unwrap();
    }
    manager.close().unwrap();
    let directory = CheckpointDirectory::new(dir);
    directory.pin("ckpt-30", "paper", "table 2").unwrap();
    directory.annotate("ckpt-50", "remark", "looked at").unwrap();
    directory.delete("ckpt-10").unwrap();
    let file = dir.join("ckpt-20/encoder.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::write(dir.join("ckpt-40/encoder.safetensors"), "short").unwrap();
}

/// A run of so many checkpoints of so many tensors of 16 elements that change a little.
pub fn steady(dir: &Path, checkpoints: u64, tensors: usize) {
    let name = |at: usize| format!("layer{:03}.{}", at / 2, if at.is_multiple_of(2) { "weight" } else { "bias" });
    let model: Tensors = (0..tensors).map(|at| (name(at), Memory::seeded(16, at as u64))).collect();
    let checkpoint = Checkpoint::new().track("model", model.clone()).unwrap();
    let mut manager = manager(checkpoint, dir, None);
    for step in 1..=checkpoints {
        for (at, tensor) in model.values().enumerate() {
            let value = |n: usize| ((n + at) as f32 * 0.7 + step as f32 * 0.1).sin() + step as f32 * 0.01;
            *tensor.bytes() = (0..16).flat_map(|n| value(n).to_le_bytes()).collect();
        }
        manager.save_with_metrics(10 * step, [("loss", 3.0 / (step as f64).sqrt())]).unwrap();
    }
    manager.close().unwrap();
}

/// A run whose names, metrics, pins and notes try to become markup, script and control characters.
pub fn hostile(dir: &Path) {
    let names = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=hacked=1>",
        "'-hacked-'</title></style></script><b>",
        "\u{202e}reversed\u{1b}[2J",
        "&lt;&amp;\u{fdd0}\u{ffff}",
        "]]><!--",
    ];
    let long = "long".repeat(60);
    let model: Tensors =
        names.into_iter().chain([long.as_str()]).map(|name| (name.to_string(), Memory::seeded(8, 1))).collect();
    let mut checkpoint = Checkpoint::new();
    for (at, name) in names.into_iter().enumerate() {
        checkpoint = checkpoint.track(&format!("{at}{name}"), model.clone()).unwrap();
        checkpoint = checkpoint.metadata(name, &names).unwrap();
    }
    let mut manager = manager(checkpoint, dir, None);
    for step in 1..=4 {
        for tensor in model.values() {
            set(tensor, step as f32);
        }
        manager.save_with_metrics(step, names.map(|name| (name, 0.5))).unwrap();
    }
    manager.close().unwrap();
    for name in names {
        CheckpointDirectory::new(dir).pin("ckpt-1", name, name.repeat(1000)).unwrap();
        CheckpointDirectory::new(dir).annotate("ckpt-1", name, name).unwrap();
    }
}

/// The run that saved the newest checkpoint of `run` in a directory.
pub fn run_of(dir: &Path) -> String {
    tch_checkpoint::inspect::list(dir.join("run")).unwrap().checkpoints.pop().unwrap().run
}

//! `ckpt repair --yes` on a directory in which much is wrong, and what a run makes of it afterwards.

use serde_json::Value as Json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Durability, SaveOptions, Value, checkpoints};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn ckpt(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    let output = command.args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn manager(dir: &Path, step: &Counter) -> Result<CheckpointManager, tch_checkpoint::Error> {
    let checkpoint = Checkpoint::new().track("step", step)?.track("name", Value::new("x".to_string()))?;
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    CheckpointManager::builder(checkpoint, dir.join("run")).save_options(options).max_to_keep(None).open()
}

#[test]
fn a_repaired_directory_is_sound_and_a_run_continues_in_it() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let step = Counter::new(0);
    let mut writer = manager(dir, &step)?;
    for number in 1..=4 {
        step.set(number);
        writer.save_at(number)?;
    }
    // Beside a run it only looks.
    let (code, _, err) = ckpt(dir, &["repair", "--yes", "run"]);
    assert!(code == Some(2) && err.contains("in use by another writer"), "{err}");
    assert_eq!(ckpt(dir, &["repair", "run"]).1, "nothing to do in run\n");
    writer.close()?;
    let run = dir.join("run");
    fs::write(run.join("ckpt-4/manifest.json"), "{}")?;
    fs::create_dir(run.join(".tmp-ckpt-5-5f2c9d01c0a94e7b8d3e6a1f4b7c2d90"))?;
    std::os::unix::fs::symlink("ckpt-9", run.join("latest"))?;
    std::os::unix::fs::symlink("ckpt-1", run.join("first"))?;
    fs::create_dir(run.join("plots"))?;
    fs::write(run.join("checkpoint.json"), "garbage")?;

    let (code, out, err) = ckpt(dir, &["repair", "run"]);
    assert!(code == Some(1) && err.contains("--yes"), "{out}{err}");
    assert!(run.join("ckpt-4").exists() && fs::read(run.join("checkpoint.json"))? == b"garbage", "only shown");
    let (code, out, err) = ckpt(dir, &["repair", "--json", "--yes", "run"]);
    let document: Json = serde_json::from_str(&out)?;
    let actions = document["actions"].as_array().ok_or("no actions")?;
    let done: Vec<(&str, &str)> = actions
        .iter()
        .filter(|action| action["done"] == true)
        .map(|action| (action["kind"].as_str().unwrap_or(""), action["path"].as_str().unwrap_or("")))
        .collect();
    let expected = [
        ("sweep", "run/.tmp-ckpt-5-5f2c9d01c0a94e7b8d3e6a1f4b7c2d90"),
        ("set_aside", "run/ckpt-4"),
        ("drop_link", "run/latest"),
        ("rebuild_index", "run/checkpoint.json"),
    ];
    assert_eq!((code, &done[..]), (Some(0), &expected[..]), "{out}{err}");
    let aside = actions[1]["moved_to"].as_str().ok_or("not moved")?;
    assert!(aside.starts_with("run/damaged-ckpt-4-") && dir.join(aside).join("manifest.json").exists(), "{aside}");
    assert!(run.join("plots").exists() && fs::symlink_metadata(run.join("first")).is_ok());
    assert!(fs::symlink_metadata(run.join("latest")).is_err());
    // Nothing is left to do, and a run takes the newest that is whole.
    assert_eq!(ckpt(dir, &["repair", "run"]).1, "nothing to do in run\n");
    assert_eq!(checkpoints(&run)?.len(), 3);
    let mut writer = manager(dir, &step)?;
    writer.restore_or_initialize()?;
    assert_eq!(step.get(), 3);
    writer.save_at(5)?;
    writer.close()?;
    assert_eq!(ckpt(dir, &["repair", "run"]).0, Some(0));
    Ok(())
}

#[test]
fn what_is_intact_is_salvaged_even_without_a_file() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let data: Vec<u8> = (0..8u8).map(f32::from).flat_map(f32::to_le_bytes).collect();
    let view = |data| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8], data);
    let tensors = [("a.w", view(&data)?), ("b.w", view(&data)?), ("c.w", view(&data)?)];
    safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors"))?;
    fs::create_dir(dir.join("run"))?;
    let (code, _, err) = ckpt(dir, &["rename", "model.safetensors", "run/ckpt-1", "*.w=*/w"]);
    assert_eq!(code, Some(0), "{err}");
    fs::remove_file(dir.join("run/ckpt-1/b.safetensors"))?;
    let file = dir.join("run/ckpt-1/c.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    let (code, out, err) = ckpt(dir, &["repair", "--salvage", "intact", "run"]);
    assert!(code == Some(1) && out.contains("salvaged a of run/ckpt-1 to intact/ckpt-1"), "{out}{err}");
    assert!(out.contains("b is lost: b.safetensors: the file is missing"), "{out}");
    assert!(out.contains("c is lost: c.safetensors: the tensor"), "{out}");
    assert_eq!(ckpt(dir, &["cat", "intact/ckpt-1", "a/w"]).1, "0 1 2 3 4 5 6 7\n");
    assert_eq!(ckpt(dir, &["verify", "intact/ckpt-1"]).0, Some(0));
    // Nothing of it is intact.
    fs::write(dir.join("run/ckpt-1/manifest.json"), "{}")?;
    let (code, _, err) = ckpt(dir, &["repair", "--salvage", "none", "run"]);
    assert!(code == Some(2) && err.contains("not salvaged"), "{err}");
    Ok(())
}

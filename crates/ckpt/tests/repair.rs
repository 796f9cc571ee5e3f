//! `ckpt repair --yes` on a directory with many problems, and how a run continues from it afterwards.

#[path = "../../../tests/common/mod.rs"]
mod common;
mod tool;

use common::Memory;
use serde_json::Value as Json;
use std::fs;
use std::path::Path;
use tch_checkpoint::inspect::{self, RepairKind};
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Durability, Error, SaveOptions, Value, checkpoints};
use tool::ckpt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn manager(dir: &Path, step: &Counter) -> Result<CheckpointManager, tch_checkpoint::Error> {
    let checkpoint = Checkpoint::new().track("step", step)?.track("name", Value::new("x".to_string()))?;
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    CheckpointManager::builder(checkpoint, dir.join("run")).save_options(options).max_to_keep(None).open()
}

/// Saves these steps in `run` below the directory.
fn save(dir: &Path, steps: &[u64]) -> Outcome {
    let step = Counter::new(0);
    let mut writer = manager(dir, &step)?;
    for number in steps {
        step.set(*number);
        writer.save_at(*number)?;
    }
    Ok(writer.close()?)
}

/// What a run that is started again continues from.
fn resumed(dir: &Path) -> Result<u64, Error> {
    let step = Counter::new(0);
    manager(dir, &step)?.restore_or_initialize()?;
    Ok(step.get())
}

fn copy(from: &Path, to: &Path) -> Outcome {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
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
    // While a run holds the lock it only looks.
    let (code, _, err) = ckpt(&["repair", "--yes", "run"], dir);
    assert!(code == Some(2) && err.contains("in use by another writer"), "{err}");
    assert_eq!(ckpt(&["repair", "run"], dir).1, "nothing to do in run\n");
    writer.close()?;
    let run = dir.join("run");
    fs::write(run.join("ckpt-4/manifest.json"), "{}")?;
    fs::create_dir(run.join(".tmp-ckpt-5-5f2c9d01c0a94e7b8d3e6a1f4b7c2d90"))?;
    std::os::unix::fs::symlink("ckpt-9", run.join("latest"))?;
    std::os::unix::fs::symlink("ckpt-1", run.join("first"))?;
    fs::create_dir(run.join("plots"))?;
    fs::write(run.join("checkpoint.json"), "garbage")?;

    let (code, out, err) = ckpt(&["repair", "run"], dir);
    assert!(code == Some(1) && err.contains("--yes"), "{out}{err}");
    assert!(run.join("ckpt-4").exists() && fs::read(run.join("checkpoint.json"))? == b"garbage", "only shown");
    let (code, out, err) = ckpt(&["repair", "--json", "--yes", "run"], dir);
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
    // Nothing is left to do, and a run takes the newest valid one.
    assert_eq!(ckpt(&["repair", "run"], dir).1, "nothing to do in run\n");
    assert_eq!(checkpoints(&run)?.len(), 3);
    let mut writer = manager(dir, &step)?;
    writer.restore_or_initialize()?;
    assert_eq!(step.get(), 3);
    writer.save_at(5)?;
    writer.close()?;
    assert_eq!(ckpt(&["repair", "run"], dir).0, Some(0));
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
    let (code, _, err) = ckpt(&["rename", "model.safetensors", "run/ckpt-1", "*.w=*/w"], dir);
    assert_eq!(code, Some(0), "{err}");
    fs::remove_file(dir.join("run/ckpt-1/b.safetensors"))?;
    let file = dir.join("run/ckpt-1/c.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    let (code, out, err) = ckpt(&["repair", "--salvage", "intact", "run"], dir);
    assert!(code == Some(1) && out.contains("salvaged a of run/ckpt-1 to intact/ckpt-1"), "{out}{err}");
    assert!(out.contains("b is lost: b.safetensors: the file is missing"), "{out}");
    assert!(out.contains("c is lost: c.safetensors: the tensor"), "{out}");
    assert_eq!(ckpt(&["cat", "intact/ckpt-1", "a/w"], dir).1, "0 1 2 3 4 5 6 7\n");
    assert_eq!(ckpt(&["verify", "intact/ckpt-1"], dir).0, Some(0));
    // Nothing of it is intact.
    fs::write(dir.join("run/ckpt-1/manifest.json"), "{}")?;
    let (code, _, err) = ckpt(&["repair", "--salvage", "none", "run"], dir);
    assert!(code == Some(2) && err.contains("not salvaged"), "{err}");
    Ok(())
}

#[test]
fn a_checkpoint_of_another_run_stays_one() -> Outcome {
    let temp = tempfile::tempdir()?;
    let (mine, other) = (temp.path().join("mine"), temp.path().join("other"));
    save(&mine, &[1, 2, 3])?;
    save(&other, &[7, 8, 9])?;
    let run = mine.join("run");
    copy(&other.join("run/ckpt-9"), &run.join("ckpt-9"))?;
    assert_eq!(resumed(&mine)?, 3);
    let plan = inspect::repair_plan(&run)?;
    assert!(plan.is_sound(), "{plan:?}");
    // An index that lists what is gone.
    fs::remove_dir_all(run.join("ckpt-1"))?;
    let report = inspect::repair(&run)?;
    let kinds: Vec<RepairKind> = report.actions.iter().map(|action| action.kind).collect();
    assert!(report.is_done() && kinds == [RepairKind::RebuildIndex], "{report:?}");
    assert!(inspect::repair_plan(&run)?.is_sound());
    assert_eq!(resumed(&mine)?, 3);
    // Without an index nothing decides, and a repair does not decide either.
    fs::remove_file(run.join("checkpoint.json"))?;
    assert!(matches!(resumed(&mine), Err(Error::Undecided { .. })));
    let (code, _, err) = ckpt(&["repair", "--yes", "run"], &mine);
    assert!(code == Some(2) && err.contains("left as it is") && err.contains("ckpt-9"), "{err}");
    assert!(matches!(resumed(&mine), Err(Error::Undecided { .. })));
    Ok(())
}

#[test]
fn only_links_to_checkpoints_that_are_gone_are_removed() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    save(dir, &[1, 2, 3])?;
    let run = dir.join("run");
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, run.join(name));
    link("/unmounted/archive/ckpt-500", "ckpt-500")?;
    link("../gone.txt", "notes")?;
    link("ckpt-3", "latest")?;
    link("ckpt-2", "best")?;
    fs::write(run.join("ckpt-3/manifest.json"), "{}")?;
    assert!(matches!(resumed(dir), Err(Error::Link { .. })));
    let (code, out, err) = ckpt(&["repair", "--yes", "run"], dir);
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(out.contains("remove link    latest"), "{out}");
    assert!(err.contains("ckpt-500: it is a symbolic link to /unmounted/archive/ckpt-500"), "{err}");
    assert!(err.contains("notes: it is a symbolic link to ../gone.txt"), "{err}");
    let is_there = |name: &str| fs::symlink_metadata(run.join(name)).is_ok();
    assert_eq!(["ckpt-500", "notes", "best", "latest"].map(is_there), [true, true, true, false]);
    assert!(matches!(resumed(dir), Err(Error::Link { .. })), "not an older one, silently");
    // What the links stand for is the user's decision. The rest is done.
    fs::remove_file(run.join("ckpt-500"))?;
    fs::remove_file(run.join("notes"))?;
    assert_eq!(ckpt(&["repair", "run"], dir).1, "nothing to do in run\n");
    assert_eq!(resumed(dir)?, 2);
    Ok(())
}

#[test]
fn exports_are_no_damaged_checkpoints() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    save(dir, &[1, 2])?;
    let run = dir.join("run");
    let put = |path: &str| {
        let path = run.join(path);
        path.parent().map(fs::create_dir_all).transpose()?;
        fs::write(path, "content")
    };
    let theirs = [
        "weights/model.safetensors",
        "bert/config.json",
        "bert/model.safetensors",
        "weights-2/a.safetensors",
        "ckpt-3/a.safetensors",
    ];
    for path in theirs.into_iter().chain(["named/manifest.json"]) {
        put(path)?;
    }
    let report = inspect::repair(&run)?;
    let aside = report.actions.iter().filter(|action| action.kind == RepairKind::SetAside);
    let mut aside: Vec<_> = aside.filter_map(|action| action.path.file_name()).collect();
    aside.sort();
    assert_eq!(aside, ["named"], "{report:?}");
    assert!(theirs.iter().all(|path| run.join(path).exists()));
    assert!(inspect::repair_plan(&run)?.is_sound());
    // Without the index, it may be one that lost its manifest.
    fs::remove_file(run.join("checkpoint.json"))?;
    let report = inspect::repair(&run)?;
    assert_eq!(
        report.left.iter().map(|problem| problem.path.clone()).collect::<Vec<_>>(),
        [Some(run.join("ckpt-3").into())]
    );
    assert!(theirs.iter().all(|path| run.join(path).exists()));
    Ok(())
}

#[test]
fn what_a_manager_set_aside_is_salvaged_too() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let open = || -> Result<CheckpointManager, Error> {
        let checkpoint = Checkpoint::new().track("model", Memory::seeded(4, 1))?;
        let checkpoint = checkpoint.track("optimizer", Memory::seeded(8, 2))?;
        CheckpointManager::builder(checkpoint, dir.join("run")).open()
    };
    let damage = || -> Outcome {
        let file = dir.join("run/ckpt-2/model.safetensors");
        let mut bytes = fs::read(&file)?;
        *bytes.last_mut().ok_or("empty")? ^= 1;
        Ok(fs::write(&file, bytes)?)
    };
    let mut writer = open()?;
    writer.save_at(1)?;
    writer.save_at(2)?;
    writer.close()?;
    // Restarted, which sets it aside; saved again, and the same again.
    damage()?;
    let mut writer = open()?;
    writer.restore_or_initialize()?;
    writer.save_at(2)?;
    writer.close()?;
    damage()?;
    let document: Json = serde_json::from_str(&ckpt(&["repair", "--json", "run"], dir).1)?;
    let aside = document["moved_aside"][0].as_str().ok_or("not set aside")?;
    assert!(aside.starts_with("run/damaged-ckpt-2-"), "{aside}");
    let (code, out, err) = ckpt(&["repair", "--salvage", "intact", "run"], dir);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("salvaged optimizer of run/ckpt-2 to intact/ckpt-2\n"), "{out}");
    assert!(out.contains(&format!("salvaged optimizer of {aside} to intact/ckpt-2.2\n")), "{out}");
    assert_eq!(ckpt(&["verify", "intact/ckpt-2", "intact/ckpt-2.2"], dir).0, Some(0));
    // A single one, wherever it is.
    let (code, out, err) = ckpt(&["repair", "--salvage", "one", aside], dir);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("to one/ckpt-2\n") && out.contains("model is lost: model.safetensors"), "{out}");
    let (code, _, err) = ckpt(&["repair", "run/ckpt-1"], dir);
    assert!(code == Some(2) && err.contains("--salvage"), "{err}");
    Ok(())
}

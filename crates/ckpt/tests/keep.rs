//! `ckpt latest`, `best`, `why`, `prune`, `pin` and `unpin`, run as a user runs them.

#[path = "../../../tests/common/mod.rs"]
mod common;
mod tool;

use common::Memory;
use serde_json::Value as Json;
use std::path::Path;
use tch_checkpoint::{
    Checkpoint, CheckpointDirectory, CheckpointManager, Counter, Durability, SaveOptions, checkpoints,
};
use tool::ckpt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn json(args: &[&str], dir: &Path) -> Json {
    let (_, out, err) = ckpt(&[args, &["--json"]].concat(), dir);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"))
}

/// Six checkpoints with losses, in `run` below the directory.
fn run(dir: &Path) -> Result<CheckpointManager, tch_checkpoint::Error> {
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("step", &step)?;
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(checkpoint, dir.join("run")).save_options(options);
    let mut manager = builder.max_to_keep(None).open()?;
    for (number, loss) in [(1, 0.5), (2, 0.2), (3, 0.9), (4, f64::NAN), (5, 0.3), (6, 0.4)] {
        step.set(number);
        manager.save_with_metrics(number, [("val:loss", loss)])?;
    }
    Ok(manager)
}

fn names(dir: &Path) -> Vec<String> {
    let paths = checkpoints(dir.join("run")).unwrap();
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn latest_and_best_print_a_path() -> Outcome {
    let dir = tempfile::tempdir()?;
    run(dir.path())?.close()?;
    assert_eq!(ckpt(&["latest", "run"], dir.path()).1, "run/ckpt-6\n");
    assert_eq!(ckpt(&["best", "--metric", "val:loss", "run"], dir.path()).1, "run/ckpt-2\n");
    assert_eq!(ckpt(&["best", "--max", "--metric", "val:loss", "run"], dir.path()).1, "run/ckpt-3\n");
    assert_eq!(ckpt(&["best", "run", "val:loss"], dir.path()).1, "run/ckpt-2\n");
    for wrong in [&["best", "run"][..], &["best", "run", "val:loss", "--metric", "val:loss"]] {
        assert_eq!(ckpt(wrong, dir.path()).0, Some(2), "{wrong:?}");
    }
    let document = json(&["best", "--metric", "val:loss", "run"], dir.path());
    assert_eq!((&document["name"], &document["step"], &document["value"]), (&"ckpt-2".into(), &2.into(), &0.2.into()));
    let (code, out, err) = ckpt(&["best", "--metric", "accuracy", "run"], dir.path());
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("no healthy checkpoint has a finite value of the metric \"accuracy\""), "{err}");
    assert_eq!(ckpt(&["latest", "nowhere"], dir.path()).0, Some(2));
    Ok(())
}

#[test]
fn prune_says_what_it_would_remove_and_removes_it_when_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    let manager = run(dir.path())?;
    let policies = ["--latest", "1", "--best", "val:loss:min:1", "--steps", "1,3"];
    let prune = |more: &[&'static str]| ckpt(&[&["prune"], &policies[..], more, &["run"]].concat(), dir.path());
    let (code, out, err) = prune(&[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("ckpt-4 is removed: no policy keeps it\n"), "{out}");
    assert!(out.contains("ckpt-2 stays: the 1 with the lowest"), "{out}");
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(names(dir.path()).len(), 6);
    // While a manager has the directory open.
    let (code, _, err) = prune(&["--yes"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("in use by another writer"), "{err}");
    manager.close()?;
    assert_eq!(ckpt(&["pin", "run/ckpt-5", "paper", "table 2"], dir.path()).0, Some(0));
    let document = json(&[&["why"], &policies[..], &["run"]].concat(), dir.path());
    let kept: Vec<bool> = document["checkpoints"].as_array().unwrap().iter().map(|row| row["kept"] == true).collect();
    assert_eq!(kept, [true, true, true, false, true, true]);
    assert!(document["checkpoints"][4]["kept_by"][0].as_str().unwrap().contains("pinned as \"paper\" (table 2)"));
    let (code, out, err) = prune(&["--yes"]);
    assert_eq!((code, out.as_str()), (Some(0), "removed run/ckpt-4\n"), "{err}");
    assert_eq!(names(dir.path()), ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-5", "ckpt-6"]);
    Ok(())
}

#[test]
fn a_pin_is_taken_away_once() -> Outcome {
    let dir = tempfile::tempdir()?;
    run(dir.path())?.close()?;
    let document = json(&["pin", "run/ckpt-1", "p"], dir.path());
    assert_eq!((&document["pin"], &document["pinned"]), (&"p".into(), &true.into()));
    assert_eq!(ckpt(&["unpin", "ckpt-1", "p"], &dir.path().join("run")).0, Some(0));
    assert_eq!(ckpt(&["unpin", "run/ckpt-1", "p"], dir.path()).0, Some(1));
    assert_eq!(ckpt(&["pin", "run/ckpt-9", "p"], dir.path()).0, Some(2));
    Ok(())
}

#[test]
fn policies_that_make_no_sense_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    for policy in [
        &["--latest", "0"][..],
        &["--keep-component", "optimizer"],
        &["--keep-component", "optimizer=0"],
        &["--keep-component", "=1"],
        &["--best", "loss"],
        &["--best", "loss:best:1"],
        &["--best", "loss:min:0"],
        &["--best", ":min:1"],
        &["--every", "6"],
        &["--every", "0h"],
        &["--every", "ü"],
        &["--younger-than", "99999999999999999999d"],
        &["--steps", "one"],
    ] {
        let (code, _, err) = ckpt(&[&["why"], policy, &["."]].concat(), dir.path());
        assert_eq!(code, Some(2), "{policy:?}: {err}");
    }
    assert_eq!(ckpt(&["why", "--every", "36h", "--younger-than", "2d", "."], dir.path()).0, Some(0));
    // What is removed must be said; what keeps a checkpoint whatever the policies can be asked.
    assert_eq!(ckpt(&["prune", "."], dir.path()).0, Some(2));
    assert_eq!(ckpt(&["why", "."], dir.path()).0, Some(0));
    Ok(())
}

#[test]
fn without_policies_why_says_what_holds_whatever_they_are() -> Outcome {
    let dir = tempfile::tempdir()?;
    run(dir.path())?.close()?;
    assert_eq!(ckpt(&["pin", "run/ckpt-2", "paper"], dir.path()).0, Some(0));
    let (code, out, err) = ckpt(&["why", "run"], dir.path());
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "ckpt-1 stays only if a policy keeps it");
    assert_eq!(lines[1], "ckpt-2 stays: it is pinned as \"paper\", until the pin is removed");
    assert_eq!(lines[5], "ckpt-6 stays: it is the newest, until another one is saved");
    assert_eq!(lines.len(), 6);
    // One of them, by number, name, or what it is.
    for one in ["2", "ckpt-2", "pin:paper", "best:val:loss:min"] {
        assert_eq!(ckpt(&["why", "run", one], dir.path()).1, format!("{}\n", lines[1]), "{one}");
    }
    let document = json(&["why", "run", "2"], dir.path());
    assert_eq!(
        (&document["policies"], document["checkpoints"].as_array().map(Vec::len)),
        (&Json::Array(vec![]), Some(1))
    );
    let (code, _, err) = ckpt(&["why", "run", "9"], dir.path());
    assert!(code == Some(2) && err.contains('9'), "{err}");
    let (_, out, _) = ckpt(&["why", "--latest", "1", "run", "1"], dir.path());
    assert_eq!(out, "ckpt-1 is removed: no policy keeps it\n");
    // The same in a listing.
    let document = json(&["ls", "--best", "val:loss", "run"], dir.path());
    assert_eq!((&document["best"], &document["kept_by"]["ckpt-1"]), (&"ckpt-2".into(), &Json::Array(vec![])));
    assert!(document["kept_by"]["ckpt-2"][0].as_str().is_some_and(|by| by.contains("pinned")), "{document}");
    Ok(())
}

#[test]
fn a_component_is_removed_from_all_but_the_newest() -> Outcome {
    let dir = tempfile::tempdir()?;
    let checkpoint = Checkpoint::new().track("model", Memory::seeded(4, 1))?;
    let checkpoint = checkpoint.track("optimizer", Memory::seeded(8, 2))?;
    let builder = CheckpointManager::builder(checkpoint, dir.path().join("run")).max_to_keep(None);
    let mut manager = builder.open()?;
    (1..=5).try_for_each(|step| manager.save_at(step).map(drop))?;
    manager.close()?;
    assert_eq!(ckpt(&["pin", "run/ckpt-2", "paper"], dir.path()).0, Some(0));
    let has = |step: u64| dir.path().join(format!("run/ckpt-{step}/optimizer.safetensors")).exists();
    let all = || (1..=5).map(has).collect::<Vec<bool>>();
    let policies = ["--latest", "4", "--keep-component", "optimizer=2", "run"];
    let (_, out, _) = ckpt(&[&["why"], &policies[..]].concat(), dir.path());
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("ckpt-1 is removed") && lines[1].starts_with("ckpt-2 stays: "), "{out}");
    assert!(lines[2].starts_with("ckpt-3 stays and loses optimizer: the newest 4"), "{out}");
    assert!(lines[3].starts_with("ckpt-4 stays: "), "{out}");
    assert_eq!(
        (all(), json(&[&["why"], &policies[..]].concat(), dir.path())["checkpoints"][2]["loses"][0].as_str()),
        (vec![true; 5], Some("optimizer"))
    );
    // A name that no checkpoint has.
    let (code, _, err) = ckpt(&["prune", "--latest", "4", "--keep-component", "optimiser=2", "run"], dir.path());
    assert!(code == Some(2) && err.contains("the nearest is \"optimizer\""), "{err}");
    let (code, out, err) = ckpt(&[&["prune", "--yes"], &policies[..]].concat(), dir.path());
    assert_eq!((code, out.as_str()), (Some(0), "removed run/ckpt-1\nremoved optimizer from run/ckpt-3\n"), "{err}");
    assert_eq!(all(), [false, true, false, true, true]);
    let (code, out, _) = ckpt(&["verify", "run"], dir.path());
    assert!(code == Some(0) && out.contains("run/ckpt-3 (without optimizer)"), "{out}");
    // Once more there is nothing to do, but for what is left by a process that died.
    let document = json(&[&["prune", "--yes"], &policies[..]].concat(), dir.path());
    assert_eq!((&document["removed"], &document["thinned"]), (&Json::Array(vec![]), &Json::Array(vec![])));
    Ok(())
}

#[test]
fn a_run_that_cannot_be_listed_does_not_hide_the_others() -> Outcome {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir()?;
    run(dir.path())?.close()?;
    // A model of another tool, and below it what looks like a checkpoint and has a name that is no text.
    let odd = dir.path().join("odd");
    let inside = odd.join(std::ffi::OsStr::from_bytes(b"\xff"));
    std::fs::create_dir_all(&inside)?;
    std::fs::write(inside.join("manifest.json"), "{}")?;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/huggingface/single");
    std::fs::copy(fixture.join("model.safetensors"), odd.join("model.safetensors"))?;
    std::fs::write(odd.join("config.json"), "{}")?;
    let (code, out, err) = ckpt(&["ls", "-r", "."], dir.path());
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(out.contains("./run:\n") && out.contains("ckpt-6"), "{out}");
    assert!(err.contains("not listed: ./odd is a checkpoint, not a directory of checkpoints"), "{err}");
    let document = json(&["ls", "-r", "."], dir.path());
    assert_eq!(document["directories"].as_array().map(Vec::len), Some(1), "{document}");
    assert_eq!(document["failed"][0]["kind"], "other");
    Ok(())
}

#[test]
fn every_command_says_which_component_was_removed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let checkpoint = Checkpoint::new().track("model", Memory::seeded(4, 1))?;
    let checkpoint = checkpoint.track("optimizer", Memory::seeded(8, 2))?;
    let builder = CheckpointManager::builder(checkpoint, dir.path().join("run"));
    let mut manager = builder.keep_component("optimizer", 1).open()?;
    manager.save_at(1)?;
    manager.save_at(2)?;
    manager.close()?;
    let (code, out, _) = ckpt(&["ls", "run"], dir.path());
    assert!(code == Some(0) && out.contains("without optimizer"), "{out}");
    let (code, out, _) = ckpt(&["show", "run/ckpt-1"], dir.path());
    assert!(code == Some(0) && out.contains("without") && !out.contains("optimizer.safetensors"), "{out}");
    let (code, out, _) = ckpt(&["verify", "run"], dir.path());
    assert!(out.contains("intact      run/ckpt-1 (without optimizer)\nintact      run/ckpt-2\n"), "{out}");
    assert_eq!(code, Some(0));
    assert_eq!(json(&["verify", "run"], dir.path())["checkpoints"][0]["without"][0], "optimizer");
    let (_, out, _) = ckpt(&["why", "--latest", "2", "run"], dir.path());
    assert!(out.starts_with("ckpt-1 stays without optimizer: the newest 2"), "{out}");
    assert_eq!(json(&["why", "--latest", "2", "run"], dir.path())["checkpoints"][0]["without"][0], "optimizer");
    let (_, out, _) = ckpt(&["diff", "run/ckpt-1", "run/ckpt-2"], dir.path());
    assert!(out.contains("optimizer"), "{out}");
    Ok(())
}

/// What is no directory of checkpoints was given by mistake, and nothing is written there.
#[test]
fn nothing_but_a_directory_of_checkpoints_is_pruned() -> Outcome {
    let dir = tempfile::tempdir()?;
    run(dir.path())?.close()?;
    let names = |path: &str| -> Result<Vec<_>, std::io::Error> {
        let mut names = std::fs::read_dir(dir.path().join(path))?
            .map(|e| Ok(e?.file_name()))
            .collect::<Result<Vec<_>, std::io::Error>>()?;
        names.sort();
        Ok(names)
    };
    let before = (names(".")?, names("run/ckpt-1")?);
    for (path, reason) in [("nowhere", "nothing is there"), ("run/ckpt-1", "not a directory of checkpoints")] {
        for command in
            [&["why"][..], &["why", "--latest", "1"], &["prune", "--latest", "1"], &["prune", "--latest", "1", "--yes"]]
        {
            let (code, out, err) = ckpt(&[command, &[path]].concat(), dir.path());
            assert!(code == Some(2) && out.is_empty() && err.contains(reason), "{command:?} {path}: {out}{err}");
        }
    }
    // That of the runs may get some of its own.
    let (code, out, err) = ckpt(&["prune", "--latest", "1", "--yes", "."], dir.path());
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), "", "ckpt: . has no checkpoint whose name has a number\n")
    );
    assert_eq!((names(".")?, names("run/ckpt-1")?), before);
    // An index that was removed is not written for nothing.
    std::fs::remove_file(dir.path().join("run/checkpoint.json"))?;
    assert_eq!(ckpt(&["prune", "--latest", "9", "--yes", "run"], dir.path()).0, Some(0));
    assert!(!dir.path().join("run/checkpoint.json").exists());
    Ok(())
}

/// What was added to a checkpoint later belongs to it in every command.
#[test]
fn show_has_the_metrics_pins_and_notes_of_the_listing() -> Outcome {
    let dir = tempfile::tempdir()?;
    run(dir.path())?.close()?;
    CheckpointDirectory::new(dir.path().join("run")).add_metrics("ckpt-2", [("val:loss", 0.1), ("accuracy", 0.9)])?;
    assert_eq!(ckpt(&["pin", "run/ckpt-2", "paper", "table 2"], dir.path()).0, Some(0));
    assert_eq!(ckpt(&["annotate", "run/ckpt-2", "reviewed", "sounds right"], dir.path()).0, Some(0));
    let (code, out, err) = ckpt(&["show", "run/best:accuracy:max"], dir.path());
    assert!(code == Some(0) && err.is_empty(), "{err}");
    let row = |name: &str| out.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert_eq!(row("metrics "), Some("accuracy=0.9 val:loss=0.1"));
    assert_eq!((row("pins "), row("notes ")), (Some("paper (table 2)"), Some("reviewed (sounds right)")));
    let (shown, listed) = (json(&["show", "run/ckpt-2"], dir.path()), json(&["ls", "run"], dir.path()));
    for name in ["metrics", "pins", "notes"] {
        assert_eq!(shown[name], listed["checkpoints"][1][name], "{name}");
    }
    assert_eq!(shown["metrics"], serde_json::json!({ "accuracy": 0.9, "val:loss": 0.1 }));
    Ok(())
}

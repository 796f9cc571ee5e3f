//! Nothing outside a checkpoint's directory is read or written, and nothing in it except regular files.

mod common;

use common::run::Run;
use std::fs;
use std::path::Path;
use std::process::Command;
use tch_checkpoint::format::{Digest, Index, Manifest};
use tch_checkpoint::{CheckpointManager, CheckpointReader, Error, checkpoints, latest_checkpoint, list_checkpoints};

type Outcome = Result<(), Box<dyn std::error::Error>>;

impl Run {
    fn new() -> Run {
        Run::of(1000)
    }

    fn open(&self, dir: &Path) -> Result<CheckpointManager, Error> {
        CheckpointManager::builder(self.checkpoint(), dir).max_to_keep(2).open()
    }

    fn save(&self, dir: &Path, step: u64) -> Outcome {
        let mut manager = self.open(dir)?;
        manager.restore_or_initialize()?;
        self.step.set(step);
        manager.save_at(step)?;
        Ok(manager.close()?)
    }
}

/// Restoring, reading and verifying refuse the checkpoint, and no object changes.
fn is_refused(path: &Path, why: &str) {
    let run = Run::new();
    let before = run.weights.bytes().clone();
    let error = run.checkpoint().restore(path).unwrap_err();
    // A link is reported as a link, not as damage.
    let is_link = why == "symbolic link";
    let right = if is_link { matches!(error, Error::Link { .. }) } else { matches!(error, Error::Damaged { .. }) };
    assert!(right && error.to_string().contains(why), "{error}");
    assert_eq!((run.step.get(), &before), (0, &*run.weights.bytes()));
    assert!(CheckpointReader::open(path).is_err());
    assert!(!tch_checkpoint::verify_checkpoint(path).is_intact());
}

#[test]
fn links_pipes_and_directories_in_the_place_of_files_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(dir.path(), 1)?;
    let path = dir.path().join("ckpt-1");
    let outside = tempfile::tempdir()?;
    for name in ["weights.safetensors", "manifest.json"] {
        let (file, aside) = (path.join(name), outside.path().join(name));
        // What the link leads to is exactly what was written.
        fs::rename(&file, &aside)?;
        std::os::unix::fs::symlink(&aside, &file)?;
        is_refused(&path, "symbolic link");
        fs::remove_file(&file)?;
        std::os::unix::fs::symlink("/dev/zero", &file)?;
        is_refused(&path, "symbolic link");
        fs::remove_file(&file)?;
        fs::create_dir(&file)?;
        is_refused(&path, "not a regular file");
        fs::remove_dir(&file)?;
        assert!(Command::new("mkfifo").arg(&file).status()?.success());
        // Without waiting for the pipe's other end.
        is_refused(&path, "not a regular file");
        fs::remove_file(&file)?;
        let socket = std::os::unix::net::UnixListener::bind(&file)?;
        is_refused(&path, "not a regular file");
        drop(socket);
        fs::remove_file(&file)?;
        fs::rename(&aside, &file)?;
    }
    run.checkpoint().restore(&path)?;
    Ok(())
}

#[test]
fn names_in_a_manifest_that_lead_elsewhere_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    Run::new().save(dir.path(), 1)?;
    let path = dir.path().join("ckpt-1");
    let text = fs::read_to_string(path.join("manifest.json"))?;
    let body = text.rsplit_once("\"xxh3_128\":").unwrap().0;
    // It exists and is complete.
    fs::copy(path.join("weights.safetensors"), dir.path().join("weights.safetensors"))?;
    fs::create_dir(path.join("sub"))?;
    fs::copy(path.join("weights.safetensors"), path.join("sub/weights.safetensors"))?;
    let absolute = format!("{}/weights.safetensors", dir.path().display());
    let names = ["../weights.safetensors", "sub/weights.safetensors", "./weights.safetensors", "..", &absolute];
    for name in names {
        let body = body.replace("weights.safetensors", name);
        let forged = format!("{body}\"xxh3_128\":\"{}\"}}\n", Digest::of(body.as_bytes()));
        assert!(Manifest::from_bytes(forged.as_bytes()).is_err(), "{name}");
        fs::write(path.join("manifest.json"), forged)?;
        is_refused(&path, "file");
    }
    // The forgery itself is valid: under its original name it is read.
    let same = format!("{body}\"xxh3_128\":\"{}\"}}\n", Digest::of(body.as_bytes()));
    fs::write(path.join("manifest.json"), same)?;
    Run::new().checkpoint().restore(&path)?;
    Ok(())
}

#[test]
fn a_link_in_the_place_of_a_checkpoint_is_named_and_leads_nobody_out() -> Outcome {
    let (dir, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let run = Run::new();
    run.save(outside.path(), 9)?;
    run.save(dir.path(), 1)?;
    let link = dir.path().join("ckpt-9");
    std::os::unix::fs::symlink(outside.path().join("ckpt-9"), &link)?;
    // Also with an index that names it as the latest.
    let mut index = Index::from_bytes(&fs::read(dir.path().join("checkpoint.json"))?)?;
    index.latest = Some("ckpt-9".into());
    index.checkpoints[0].name = "ckpt-9".into();
    fs::write(dir.path().join("checkpoint.json"), index.to_bytes()?)?;
    // It could lead to the newest one: no run starts from an older one silently.
    for error in [checkpoints(dir.path()).unwrap_err(), latest_checkpoint(dir.path()).unwrap_err()] {
        assert!(matches!(&error, Error::Link { path, .. } if *path == link), "{error}");
    }
    assert_eq!(list_checkpoints(dir.path())?.links, std::slice::from_ref(&link));
    let again = Run::new();
    let mut manager = again.open(dir.path())?;
    let error = manager.restore_or_initialize().unwrap_err();
    assert!(matches!(&error, Error::Link { path, .. } if *path == link), "{error}");
    assert_eq!(again.step.get(), 0);
    // Either of them, if the caller chooses.
    Run::new().checkpoint().restore(&link)?;
    manager.restore(dir.path().join("ckpt-1"))?;
    assert_eq!(again.step.get(), 1);
    for step in 2..=4 {
        manager.save_at(step)?;
    }
    // Its number is taken, and what it leads to is left alone.
    assert!(matches!(manager.save_at(9), Err(Error::AlreadyExists { .. })));
    manager.close()?;
    assert!(fs::symlink_metadata(&link)?.is_symlink());
    assert!(tch_checkpoint::verify_checkpoint(outside.path().join("ckpt-9")).is_intact());
    Ok(())
}

/// The index, the lock and what is left of a dead writer may be anything.
#[test]
fn pipes_among_the_small_files_do_not_make_anyone_wait() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.save(dir.path(), 1)?;
    let index = dir.path().join("checkpoint.json");
    fs::remove_file(&index)?;
    let leftover = dir.path().join(".tmp-ckpt-2-0123456789abcdef0123456789abcdef");
    for pipe in [&index, &leftover] {
        assert!(Command::new("mkfifo").arg(pipe).status()?.success());
    }
    assert_eq!(checkpoints(dir.path())?.len(), 1);
    run.save(dir.path(), 2)?;
    assert!(!leftover.exists() && fs::metadata(&index)?.is_file());
    let lock = dir.path().join(".lock");
    fs::remove_file(&lock)?;
    assert!(Command::new("mkfifo").arg(&lock).status()?.success());
    assert!(matches!(run.open(dir.path()).unwrap_err(), Error::Io { .. }));
    Ok(())
}

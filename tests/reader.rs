//! Reading a checkpoint while a writer removes it, and the results of verification.

mod common;

use common::Memory;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch_checkpoint::format::Manifest;
use tch_checkpoint::{
    AssetStream, Checkpoint, CheckpointManager, CheckpointReader, Counter, Durability, Error, Node, SaveOptions,
    Trackable, latest_checkpoint, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A manager that keeps one checkpoint removes the others while they are being opened: each open succeeds, or says that
/// the checkpoint is gone. None is called damaged.
#[test]
fn what_is_removed_while_it_is_opened_is_not_called_damaged() -> Outcome {
    let dir = tempfile::tempdir()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        let writer = scope.spawn(|| {
            let mut checkpoint = Checkpoint::new();
            for n in 0..20 {
                checkpoint = checkpoint.track(&format!("part{n}"), Memory::seeded(8, n)).unwrap();
            }
            let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(1).recycle(false);
            let options = SaveOptions::new().durability(Durability::ProcessCrash);
            let mut manager = builder.save_options(options).open().unwrap();
            let started = Instant::now();
            for step in 0.. {
                manager.save_at(step).unwrap();
                if started.elapsed() > Duration::from_secs(2) {
                    break;
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        let (mut opened, mut gone) = (0, 0);
        while !done.load(Ordering::SeqCst) {
            let Some(path) = latest_checkpoint(dir.path())? else { continue };
            match CheckpointReader::open(&path) {
                Ok(_) => opened += 1,
                Err(Error::NotFound { .. }) => gone += 1,
                Err(other) => panic!("{other}"),
            }
        }
        writer.join().map_err(|_| "the writer failed")?;
        assert!(opened > 0, "{gone} gone");
        Ok(())
    })
}

/// Two tensors of one type and shape whose names a writer exchanged in the header: every digest is right, and a program
/// that reads the file by its header gets the wrong one.
#[test]
fn headers_that_disagree_with_the_manifest_are_found() -> Outcome {
    let dir = tempfile::tempdir()?;
    let parts = Node::group([("a", Memory::seeded(100, 1).node()), ("b", Memory::seeded(100, 2).node())]);
    let mut checkpoint = Checkpoint::new().track("model", &parts)?.track("step", Counter::new(7))?;
    let path = checkpoint.write(dir.path().join("one"))?;
    assert!(verify_checkpoint(&path).is_intact());
    let file = path.join("manifest.json");
    let sound = Manifest::from_bytes(&std::fs::read(&file)?).map_err(|e| e.to_string())?;
    let name = |manifest: &mut Manifest, key: &str, name: &str| {
        manifest.tensors.get_mut(key).unwrap().pieces[0].name = name.to_string();
    };
    let changes: [&dyn Fn(&mut Manifest); 3] = [
        &|manifest| {
            name(manifest, "model/a", "b");
            name(manifest, "model/b", "a");
        },
        &|manifest| name(manifest, "model/a", "c"),
        &|manifest| manifest.tensors.get_mut("model/a").unwrap().spec.shape = vec![10, 10],
    ];
    for change in changes {
        let mut manifest = sound.clone();
        change(&mut manifest);
        std::fs::write(&file, manifest.to_bytes()?)?;
        for found in [verify_checkpoint(&path), CheckpointReader::open(&path)?.verify()] {
            assert_eq!(found.problems.len(), 1, "{found:?}");
            assert!(found.problems[0].to_string().contains("header"), "{found:?}");
        }
    }
    Ok(())
}

#[test]
fn parts_of_a_tensor_are_read_and_checked_at_the_end() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tensor = Memory::seeded(1000, 3);
    // A tensor in several pieces.
    let path = Checkpoint::new()
        .track("t", &tensor)?
        .write_with(dir.path().join("one"), &SaveOptions::new().max_file_bytes(8192))?;
    let reader = CheckpointReader::open(&path)?;
    let whole = reader.tensor("t")?;
    for (offset, length) in [(0, 4000), (0, 1), (3999, 1), (1000, 2500), (4000, 0)] {
        let mut part = vec![0; length];
        reader.read_at("t", offset, &mut part)?;
        assert_eq!(part, whole[offset as usize..offset as usize + length]);
    }
    assert!(matches!(reader.read_at("t", 3999, &mut [0; 2]), Err(Error::Object { .. })));
    assert!(matches!(reader.read_at("t", u64::MAX, &mut [0; 1]), Err(Error::Object { .. })));
    assert!(matches!(reader.read_at("none", 0, &mut []), Err(Error::Object { .. })));
    reader.check_digest("t", tch_checkpoint::format::Digest::of(&whole))?;
    assert!(matches!(reader.check_digest("t", tch_checkpoint::format::Digest::of(b"")), Err(Error::Damaged { .. })));
    Ok(())
}

#[test]
fn tensors_and_values_are_listed() -> Outcome {
    let dir = tempfile::tempdir()?;
    let checkpoint = Checkpoint::new().track("b", Memory::seeded(3, 1))?.track("a", Memory::seeded(5, 2))?;
    let path = checkpoint.track("step", Counter::new(7))?.write(dir.path().join("one"))?;
    let reader = CheckpointReader::open(&path)?;
    assert_eq!(reader.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(reader.tensors().len(), 2);
    assert!(reader.tensors().eq(&reader));
    for (key, spec) in &reader {
        assert_eq!((reader.spec(key), spec.bytes()), (Some(spec), Some(reader.tensor(key)?.len() as u64)));
    }
    assert_eq!(reader.values().collect::<Vec<_>>(), [("step", &serde_json::json!(7))]);
    Ok(())
}

#[test]
fn a_copy_is_verified_while_it_is_made_and_a_taken_name_is_known_before() -> Outcome {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let (large, small) = (Memory::seeded(3_000_000, 1), Memory::seeded(100, 2));
    let empty = Memory::f32(&[0], []);
    let mut checkpoint = Checkpoint::new();
    for (name, tensor) in [("large", &large), ("small", &small), ("tied", &small), ("empty", &empty)] {
        checkpoint = checkpoint.track(name, tensor)?;
    }
    let options = SaveOptions::new();
    let path = checkpoint.write(at("first"))?;
    let reader = CheckpointReader::open(&path)?;
    let copy = reader.copy_to(at("copy"), &options, [])?;
    let copied = CheckpointReader::open(copy)?;
    assert!(copied.verify().is_intact() && copied.tensor("large")? == *large.bytes());
    assert_eq!(copied.manifest().tensors, reader.manifest().tensors);

    let asset = AssetStream::new("asset", 1, |_| panic!("nothing is written"));
    assert!(matches!(reader.copy_to(at("copy"), &options, [asset]), Err(Error::AlreadyExists { .. })));
    let files = reader.manifest().files.clone();
    for (file, entry) in &files {
        for place in [10, entry.header.bytes + 8, entry.bytes - 4] {
            if place >= entry.bytes || entry.bytes == entry.header.bytes {
                continue;
            }
            let path = path.join(file);
            let mut bytes = fs::read(&path)?;
            bytes[place as usize] ^= 1;
            fs::write(&path, &bytes)?;
            let damaged =
                CheckpointReader::open(at("first")).and_then(|reader| reader.copy_to(at("bad"), &options, []));
            assert!(matches!(damaged, Err(Error::Damaged { .. })), "{file} at {place}: {damaged:?}");
            assert!(!at("bad").exists());
            bytes[place as usize] ^= 1;
            fs::write(&path, &bytes)?;
        }
    }
    Ok(())
}

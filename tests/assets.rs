//! Files of the user in addition to the components: saved, linked when unchanged, copied back verified.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tch_checkpoint::{
    Asset, AssetStream, Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointReader, Counter,
    Error, SaveOptions, Value,
};

fn inode(checkpoint: &Path, name: &str) -> u64 {
    fs::metadata(checkpoint.join(name)).unwrap().ino()
}

/// Older than the granularity of a file's times, so that these tell whether it has changed.
fn age(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
}

/// A log grows after the last save of a step, which is then saved again.
#[test]
fn a_state_that_is_saved_again_for_its_files_keeps_what_is_known_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let lines = Counter::new(1);
    let written = lines.clone();
    let log = Asset::writer("log", move |out| write!(out, "{}", written.get()));
    let checkpoint = Checkpoint::new().track("step", Counter::new(1)).unwrap().asset(log).unwrap();
    let mut manager = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(1).open().unwrap();
    let path = manager.save_with_metrics(1, [("loss", 0.5)]).unwrap();
    manager.pin(&path, "paper", "").unwrap();
    for lines_now in [2, 2, 3] {
        lines.set(lines_now);
        manager.save_at(1).unwrap();
        let found = CheckpointDirectory::new(dir.path()).checkpoints().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].metrics["loss"], found[0].pins.len()), (0.5, 1));
        let reader = CheckpointReader::open(&path).unwrap();
        assert_eq!(reader.asset("log").unwrap(), lines_now.to_string().as_bytes());
    }
}

#[test]
fn they_are_saved_with_the_state_and_copied_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(at("shard.bin"), &large).unwrap();
    fs::write(at("empty"), "").unwrap();
    let (step, words) = (Counter::new(1), Value::new(vec!["a".to_string()]));
    let lines = words.clone();
    let mut checkpoint = Checkpoint::new()
        .track("step", &step)
        .and_then(|all| all.asset(Asset::file(at("shard.bin")).named("replay.bin"))?.asset(Asset::file(at("empty"))))
        .and_then(|all| {
            all.asset(Asset::writer("words.txt", move |out| out.write_all(lines.get().join("\n").as_bytes())))
        })
        .unwrap();
    let first = checkpoint.write(at("first")).unwrap();
    words.update(|words| words.push("b".to_string()));
    fs::write(at("shard.bin"), "other").unwrap();
    let second = checkpoint.save(at("ckpt")).unwrap();

    for (path, shard, text) in [(&first, large.as_slice(), "a"), (&second, b"other", "a\nb")] {
        let reader = CheckpointReader::open(path).unwrap();
        assert!(reader.verify().is_intact());
        assert_eq!(reader.manifest().assets.keys().collect::<Vec<_>>(), ["empty", "replay.bin", "words.txt"]);
        assert_eq!(reader.asset("words.txt").unwrap(), text.as_bytes());
        assert_eq!(fs::read(path.join("replay.bin")).unwrap(), shard);
        reader.copy_asset("replay.bin", at("copied")).unwrap();
        assert_eq!(fs::read(at("copied")).unwrap(), shard);
        checkpoint.restore(path).unwrap().assert_consumed().unwrap();
        // A wrong name is no damage.
        let unknown = [
            reader.asset("word.txt").map(drop),
            reader.verify_asset("word.txt"),
            reader.copy_asset("word.txt", at("copied")),
            reader.read_asset_at("word.txt", 0, &mut [0]),
        ];
        for refusal in unknown.map(Result::unwrap_err) {
            assert!(!refusal.is_damaged() && refusal.to_string().contains("words.txt"), "{refusal}");
        }
        assert_eq!(fs::read(at("copied")).unwrap(), shard);
    }

    // A damaged one is not copied, and the previous file stays.
    let mut file = fs::File::options().write(true).open(first.join("replay.bin")).unwrap();
    file.write_all(&[large[0] ^ 1]).unwrap();
    let reader = CheckpointReader::open(&first).unwrap();
    let refusal = reader.copy_asset("replay.bin", at("copied")).unwrap_err().to_string();
    assert!(refusal.contains("damaged") && fs::read(at("copied")).unwrap() == b"other", "{refusal}");
    assert!(!reader.verify().is_intact());
    assert!(reader.copy_asset("no-such", at("copied")).is_err());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("tmp")), "{left:?}");
}

#[test]
fn a_manager_links_what_has_not_changed() {
    for background in [None, Some(Background::new())] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.json");
        fs::write(&file, "{}").unwrap();
        let step = Counter::new(0);
        let checkpoint = Checkpoint::new()
            .track("step", &step)
            .and_then(|all| all.asset(Asset::file(&file))?.asset(Asset::writer("fixed", |out| out.write_all(b"same"))))
            .unwrap();
        let mut builder = CheckpointManager::builder(checkpoint, dir.path().join("run")).max_to_keep(8);
        if let Some(background) = background {
            builder = builder.background(background);
        }
        let mut manager = builder.open().unwrap();
        let mut save = |step: u64| {
            let path = manager.save_at(step).unwrap();
            manager.wait().unwrap();
            assert!(CheckpointReader::open(&path).unwrap().verify().is_intact());
            path
        };
        let (one, two, three) = (save(1), save(2), save(3));
        // The content decides, however often the file is written. The checkpoints never all share one file.
        fs::write(&file, "{}").unwrap();
        let four = save(4);
        for name in ["tokenizer.json", "fixed"] {
            assert_eq!([inode(&two, name); 2], [inode(&three, name), inode(&four, name)]);
            assert_ne!(inode(&one, name), inode(&two, name));
        }
        // Of the same length, and with an old time.
        fs::write(&file, "[]").unwrap();
        age(&file);
        let five = save(5);
        assert_eq!(fs::read(five.join("tokenizer.json")).unwrap(), b"[]");
        assert_eq!(fs::read(four.join("tokenizer.json")).unwrap(), b"{}");
        // A state that is saved already is not saved again; with another file it is.
        assert_eq!(save(5), five);
        fs::write(&file, "[1]").unwrap();
        assert_eq!(fs::read(save(5).join("tokenizer.json")).unwrap(), b"[1]");
        manager.close().unwrap();
    }
}

#[test]
fn where_one_is_kept_a_file_that_has_not_changed_is_copied_from_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vocabulary");
    fs::write(&file, "never odd or even").unwrap();
    age(&file);
    // The times of the file decide only when they are old enough.
    std::thread::sleep(Duration::from_secs(4));
    let checkpoint = Checkpoint::new().track("step", Counter::new(0)).unwrap().asset(Asset::file(&file)).unwrap();
    let mut manager = CheckpointManager::builder(checkpoint, dir.path().join("run")).max_to_keep(1).open().unwrap();
    for step in 1..=3 {
        let path = manager.save_at(step).unwrap();
        assert_eq!(fs::read(path.join("vocabulary")).unwrap(), b"never odd or even");
        assert_eq!(fs::metadata(path.join("vocabulary")).unwrap().nlink(), 1);
    }
    manager.close().unwrap();
}

/// A manager of a vocabulary that is not changed, with one checkpoint.
fn with_vocabulary(dir: &Path, background: bool) -> (CheckpointManager, std::path::PathBuf) {
    let file = dir.join("vocabulary");
    fs::write(&file, "never odd or even").unwrap();
    age(&file);
    // The times of the file decide only when they are old enough.
    std::thread::sleep(Duration::from_secs(4));
    let checkpoint = Checkpoint::new().track("step", Counter::new(0)).unwrap().asset(Asset::file(&file)).unwrap();
    let builder = CheckpointManager::builder(checkpoint, dir.join("run")).max_to_keep(3);
    let mut manager = if background { builder.background(Background::new()) } else { builder }.open().unwrap();
    manager.save_at(1).unwrap();
    manager.wait().unwrap();
    (manager, file)
}

#[test]
fn where_the_last_checkpoint_is_gone_or_damaged_the_users_file_is_read_again() {
    for background in [false, true] {
        for damage in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (mut manager, _) = with_vocabulary(dir.path(), background);
            let first = dir.path().join("run/ckpt-1");
            match damage {
                true => fs::write(first.join("vocabulary"), "never odd or evil").unwrap(),
                false => fs::remove_dir_all(&first).unwrap(),
            }
            for step in 2..=4 {
                let path = manager.save_at(step).unwrap();
                manager.wait().unwrap();
                assert_eq!(CheckpointReader::open(&path).unwrap().asset("vocabulary").unwrap(), b"never odd or even");
            }
        }
    }
}

/// Runs in a process of its own, because the working directory is that of a process.
#[test]
fn a_relative_path_is_that_of_the_moment_it_was_given() {
    const TEST: &str = "a_relative_path_is_that_of_the_moment_it_was_given";
    const CHILD: &str = "ASSETS_CHILD";
    let Some(dir) = std::env::var_os(CHILD) else {
        let dir = tempfile::tempdir().unwrap();
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        let output = this.args(["--exact", TEST]).env(CHILD, dir.path()).output().unwrap();
        return assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    let dir = Path::new(&dir);
    for name in ["one", "two"] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("words"), name).unwrap();
    }
    std::env::set_current_dir(dir.join("one")).unwrap();
    let mut checkpoint = Checkpoint::new().asset(Asset::file("words")).unwrap();
    std::env::set_current_dir(dir.join("two")).unwrap();
    let path = checkpoint.write(dir.join("ckpt")).unwrap();
    assert_eq!(CheckpointReader::open(path).unwrap().asset("words").unwrap(), b"one");
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let asset = |name: &str| Checkpoint::new().asset(Asset::writer(name, |_| Ok(())));
    for name in ["", ".hidden", "a/b", "model.safetensors", "manifest.json", "Saved_Model.json", "mark-1.json", "ä"] {
        assert!(asset(name).unwrap_err().to_string().contains("Asset::named"), "{name}");
    }
    let twice = asset("Words").unwrap().asset(Asset::writer("words", |_| Ok(()))).unwrap_err().to_string();
    assert!(twice.contains("\"Words\""), "{twice}");

    let missing = Checkpoint::new().asset(Asset::file(dir.path().join("missing"))).unwrap().write(dir.path().join("a"));
    let missing = missing.unwrap_err().to_string();
    assert!(missing.contains("missing") && !missing.contains("pass_over"), "{missing}");
    fs::create_dir(dir.path().join("directory")).unwrap();
    let directory =
        Checkpoint::new().asset(Asset::file(dir.path().join("directory"))).unwrap().write(dir.path().join("a"));
    assert!(directory.unwrap_err().to_string().contains("not a file"));
    let fails = |_: &mut dyn Write| Err(std::io::Error::other("no words today"));
    let fails = Checkpoint::new().asset(Asset::writer("words", fails)).unwrap().write(dir.path().join("a"));
    assert!(fails.unwrap_err().to_string().contains("no words today"));
    assert!(!dir.path().join("a").exists());
}

/// A tokenizer is saved with the program.
#[cfg(feature = "torch")]
#[test]
fn a_saved_model_has_them_too() {
    use tch::{Device, Kind, Tensor, nn};
    use tch_checkpoint::{SavedModel, SignatureDef, Variables};

    let dir = tempfile::tempdir().unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let layer = nn::linear(vs.root(), 4, 2, Default::default());
    let mut checkpoint = Checkpoint::new()
        .track("model", Variables::of(&vs))
        .and_then(|all| all.asset(Asset::writer("tokenizer.json", |out| out.write_all(b"{}"))))
        .unwrap();
    let example = |rows: i64| [Tensor::ones([rows, 4], (Kind::Float, Device::Cpu))];
    let signature = SignatureDef::new("forward", |x| vec![x[0].apply(&layer)]).example(example(2)).example(example(3));
    let export = SavedModel::export(dir.path().join("model"), &vs).checkpoint(&mut checkpoint);
    let path = export.signature(signature).write().unwrap();
    let reader = CheckpointReader::open(&path).unwrap();
    assert!(reader.verify().is_intact());
    assert_eq!(reader.asset("tokenizer.json").unwrap(), b"{}");
    SavedModel::load(&path, Device::Cpu).unwrap();
}

/// Assets of one save: they are streamed, all are refused when the writer fails, and none has the name of an asset of
/// every save.
#[test]
fn a_save_can_have_files_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let options = SaveOptions::new();
    let mut checkpoint = Checkpoint::new().track("step", Counter::new(3)).unwrap();
    checkpoint = checkpoint.asset(Asset::writer("words.txt", |out| out.write_all(b"a b"))).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let write_large = |out: &mut dyn Write| large.chunks(1000).try_for_each(|chunk| out.write_all(chunk));
    let stream = || AssetStream::new("replay.bin", 3_000_000, write_large);
    let path = checkpoint.write_with_assets(at("with"), &options, [stream()]).unwrap();
    let reader = CheckpointReader::open(&path).unwrap();
    assert!(reader.verify().is_intact());
    assert_eq!(reader.manifest().assets.keys().collect::<Vec<_>>(), ["replay.bin", "words.txt"]);
    assert_eq!(reader.asset("replay.bin").unwrap(), large);
    let next = checkpoint.write(at("next")).unwrap();
    assert_eq!(CheckpointReader::open(&next).unwrap().manifest().assets.len(), 1);

    for names in [&["words.TXT"][..], &["a", "A"], &["manifest.json"], &["x/y"], &["step.safetensors"]] {
        let streams = names.iter().map(|name| AssetStream::new(*name, 0, |_| Ok(())));
        let refusal = checkpoint.write_with_assets(at("refused"), &options, streams).unwrap_err();
        assert!(matches!(refusal, Error::InvalidName { .. }), "{names:?}: {refusal}");
    }
    let fails = |error: fn() -> std::io::Error| {
        AssetStream::new("half", 0, move |out| {
            out.write_all(b"half of it")?;
            Err(error())
        })
    };
    let failed = |stream| checkpoint.write_with_assets(at("failed"), &options, [stream]).unwrap_err().to_string();
    assert!(
        [fails(|| std::io::Error::other("no tokens"))].map(failed)[0].contains("half: its writer failed: no tokens")
    );
    assert!(!at("failed").exists() && !at("refused").exists());

    // A copy has the other files too, verified.
    let other = AssetStream::new("words.txt", 1, |out| out.write_all(b"c"));
    let copy = reader.copy_to(at("copy"), &options, [other]).unwrap();
    let copied = CheckpointReader::open(&copy).unwrap();
    assert!(copied.verify().is_intact() && copied.manifest().follows.is_none());
    assert_eq!(
        (copied.asset("words.txt").unwrap(), copied.asset("replay.bin").unwrap()),
        (b"c".to_vec(), large.clone())
    );
    assert_eq!(copied.manifest().values["step"], 3);
    let mut file = fs::File::options().write(true).open(path.join("replay.bin")).unwrap();
    file.write_all(&[large[0] ^ 1]).unwrap();
    assert!(matches!(reader.copy_to(at("bad"), &options, []), Err(Error::Damaged { .. })));
    assert!(!at("bad").exists());
}

//! Exports of weights, and links to checkpoints.

mod common;

use common::Memory;
use std::fs;
use std::path::Path;
use tch_checkpoint::save_policy::{AtSteps, EverySteps};
use tch_checkpoint::{
    Checkpoint, CheckpointManager, Counter, Dtype, Error, Goal, OnSaveError, OnUnhealthy, TensorSource, WeightsExport,
    interop,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A model with nested names and tied tensors, an average of one tensor, and objects that are not weights.
struct Model {
    layers: Vec<Memory>,
    average: Memory,
    counts: Memory,
    step: Counter,
}

impl Model {
    fn new() -> Model {
        let values = [1.0f32, -0.1, 2.718_282_8e-2, 65519.9, 65520.0, 1e-8, f32::INFINITY, f32::NAN, 1e-40, 0.0];
        let layers = vec![Memory::f32(&[2, 5], values), Memory::seeded(3000, 7)];
        let counts = Memory::new(Dtype::I64, &[2], [3i64, -1].iter().flat_map(|x| x.to_le_bytes()).collect());
        Model { layers, average: Memory::seeded(3, 9), counts, step: Counter::new(0) }
    }

    fn checkpoint(&self) -> Result<Checkpoint, Error> {
        let tied = [self.layers[0].clone()];
        let checkpoint = Checkpoint::new().track("model", &self.layers)?.track("tied", &tied)?;
        let checkpoint = checkpoint.track("average", &self.average)?.track("counts", [self.counts.clone()])?;
        checkpoint.track("step", &self.step)
    }
}

fn read(source: &dyn TensorSource, key: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; source.tensors()[key].bytes().unwrap_or_default() as usize];
    source.read(key, &mut bytes)?;
    Ok(bytes)
}

#[test]
fn one_file_has_the_names_of_its_components() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let checkpoint = model.checkpoint()?;
    let one = dir.path().join("model.safetensors");
    let written = checkpoint.export_weights(&one, &WeightsExport::of(["model"]))?;
    assert_eq!(written, std::slice::from_ref(&one));
    let source = interop::open(&one)?;
    assert_eq!(source.tensors().keys().collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(read(&*source, "1")?, *model.layers[1].bytes());
    // Of several components, and in place of an earlier file.
    let both = WeightsExport::of(["model", "tied", "average"]);
    checkpoint.export_weights(&one, &both)?;
    let source = interop::open(&one)?;
    assert_eq!(source.tensors().keys().collect::<Vec<_>>(), ["average", "model.0", "model.1", "tied.0"]);
    assert_eq!(read(&*source, "tied.0")?, *model.layers[0].bytes());
    assert_eq!(read(&*source, "average")?, *model.average.bytes());
    // The `safetensors` crate reads it.
    let bytes = fs::read(&one)?;
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes)?.names().len(), 4);
    assert_eq!(fs::read_dir(dir.path())?.count(), 1, "nothing else is left");
    Ok(())
}

#[test]
fn a_file_per_component_in_another_type_with_the_rounding_of_others() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let checkpoint = model.checkpoint()?;
    for (dtype, name) in [(Dtype::F16, "half"), (Dtype::BF16, "bfloat")] {
        let export = WeightsExport::of(["model", "average", "counts"]).dtype(dtype)?.file_per_component();
        let paths = checkpoint.export_weights(dir.path().join(name), &export)?;
        assert_eq!(paths.len(), 3);
        let source = interop::open(dir.path().join(name).join("model.safetensors"))?;
        assert_eq!(source.tensors()["0"].dtype, dtype);
        let wide = model.layers[0].bytes().clone();
        let wide = wide.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        let expected: Vec<u8> = match dtype {
            Dtype::F16 => wide.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            _ => wide.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        };
        assert_eq!(read(&*source, "0")?, expected);
        // Integers stay as they are.
        let counts = interop::open(dir.path().join(name).join("counts.safetensors"))?;
        assert_eq!(read(&*counts, "0")?, *model.counts.bytes());
        let average = interop::open(dir.path().join(name).join("average.safetensors"))?;
        assert_eq!(average.tensors()["average"].dtype, dtype);
    }
    Ok(())
}

#[test]
fn what_cannot_be_exported_is_an_error_and_leaves_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let checkpoint = Model::new().checkpoint()?;
    let at = |name: &str| dir.path().join(name);
    let refusal =
        |path: &Path, export: WeightsExport| checkpoint.export_weights(path, &export).unwrap_err().to_string();
    assert!(refusal(&at("a.safetensors"), WeightsExport::of(["encoder"])).contains("encoder"));
    assert!(refusal(&at("a.safetensors"), WeightsExport::of(["model", "step"])).contains("step"));
    assert!(refusal(&at("a.bin"), WeightsExport::of(["model"])).contains(".safetensors"));
    assert!(refusal(&at("a.safetensors"), WeightsExport::of([] as [&str; 0])).contains("no component"));
    let missing = refusal(&at("missing/a.safetensors"), WeightsExport::of(["model"]));
    assert!(missing.ends_with("/missing"), "{missing}");
    assert!(WeightsExport::of(["model"]).dtype(Dtype::I64).is_err());
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    Ok(())
}

/// They would have the names of their files in common.
#[test]
fn two_exports_need_two_directories() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let open = |directories: [&str; 2]| {
        let [one, other] = directories.map(|name| dir.path().join(name));
        CheckpointManager::builder(model.checkpoint()?, dir.path().join("run"))
            .export_weights_when(EverySteps(1), WeightsExport::of(["model"]), one)
            .export_weights_when(EverySteps(2), WeightsExport::of(["average"]), other)
            .open()
    };
    let refusal = open(["weights", "weights"]).unwrap_err();
    assert!(matches!(&refusal, Error::InvalidArgument(text) if text.contains("weights")), "{refusal}");
    assert!(!dir.path().join("run").exists(), "nothing is made");
    let mut manager = open(["weights", "averages"])?;
    manager.save_if_due(2)?;
    for (name, key) in [("weights", "0"), ("averages", "average")] {
        assert!(interop::open(dir.path().join(name).join("weights-2.safetensors"))?.tensors().contains_key(key));
    }
    drop(manager);
    // By another path.
    std::os::unix::fs::symlink("weights", dir.path().join("link"))?;
    assert!(matches!(open(["weights", "link"]), Err(Error::InvalidArgument(_))));
    Ok(())
}

#[test]
fn exports_and_saves_fail_on_their_own() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (run, exports, beside) = (dir.path().join("run"), dir.path().join("exports"), dir.path().join("beside"));
    let model = Model::new();
    let mut manager = CheckpointManager::builder(model.checkpoint()?, &run)
        .save_every(3)
        .on_save_error(OnSaveError::Continue { give_up_after: 2 })
        .export_weights_when(EverySteps(3), WeightsExport::of(["model"]), &exports)
        .export_weights_when(AtSteps::new([9]), WeightsExport::of(["model"]), &beside)
        .open()?;
    fs::write(run.join("ckpt-3"), "mine")?;
    assert_eq!(manager.save_if_due(3)?, None);
    assert!(exports.join("weights-3.safetensors").exists());
    fs::remove_dir_all(&exports)?;
    fs::write(&exports, "mine")?;
    assert!(manager.save_if_due(4)?.is_some());
    for step in [7, 8, 9] {
        assert_eq!(manager.save_if_due(step)?.is_some(), step == 7, "an export is no save");
    }
    // Others are made meanwhile, and it is due until it succeeds.
    assert!(beside.join("weights-9.safetensors").exists());
    fs::remove_file(&exports)?;
    assert!(manager.save_if_due(10)?.is_some() && exports.join("weights-10.safetensors").exists());
    Ok(())
}

/// A run that restored nothing replaces neither the checkpoints nor the exports of another.
#[test]
fn a_run_that_may_not_begin_exports_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (run, exports) = (dir.path().join("run"), dir.path().join("exports"));
    let open = |model: &Model| {
        let export = WeightsExport::of(["model"]).keep(2);
        let builder = CheckpointManager::builder(model.checkpoint()?, &run).save_every(3);
        builder.export_weights_when(EverySteps(3), export, &exports).open()
    };
    let mut manager = open(&Model::new())?;
    for step in [3, 6] {
        manager.save_if_due(step)?;
    }
    manager.close()?;
    let file = exports.join("weights-3.safetensors");
    let before = fs::metadata(&file)?.modified()?;
    for step in [1, 3] {
        let error = open(&Model::new())?.save_if_due(step).unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    }
    assert_eq!(fs::metadata(&file)?.modified()?, before);
    assert!(exports.join("weights-6.safetensors").exists());
    Ok(())
}

#[test]
fn weights_are_exported_on_a_cadence_of_their_own() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (run, exports) = (dir.path().join("run"), dir.path().join("exports"));
    for steps in [1..=7u64, 8..=10] {
        let model = Model::new();
        let export = WeightsExport::of(["model"]).dtype(Dtype::BF16)?;
        let mut manager = CheckpointManager::builder(model.checkpoint()?, &run)
            .save_every(100)
            .export_weights_when(EverySteps(3), export, &exports)
            .open()?;
        for step in steps {
            assert_eq!(manager.save_if_due(step)?, None);
        }
    }
    let mut names: Vec<_> = fs::read_dir(&exports)?.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["weights-3.safetensors", "weights-6.safetensors", "weights-9.safetensors"]);
    Ok(())
}

#[test]
fn of_the_exports_the_newest_stay_and_nothing_of_others_is_removed() -> Outcome {
    for per_component in [false, true] {
        let dir = tempfile::tempdir()?;
        let exports = dir.path().join("exports");
        fs::create_dir(&exports)?;
        let model = Model::new();
        let manager = |step: u64| {
            let export = WeightsExport::of(["model", "average"]).keep(2);
            let export = if per_component { export.file_per_component() } else { export };
            model.step.set(step);
            CheckpointManager::builder(model.checkpoint()?, dir.path().join(format!("run-{step}")))
                .save_every(100)
                .export_weights_when(EverySteps(1), export, &exports)
                .open()
        };
        let name = |step: &str| format!("weights-{step}{}", if per_component { "" } else { ".safetensors" });
        // Of another model, of another program, a note, a link, and an export to which something was added.
        let other = exports.join(name("1"));
        let another = WeightsExport::of(["counts"]);
        let another = if per_component { another.file_per_component() } else { another };
        model.checkpoint()?.export_weights(&other, &another)?;
        fs::write(exports.join(name("002")), "a name that no export has")?;
        fs::write(exports.join("weights-2"), "notes")?;
        let mut first = manager(0)?;
        first.save_if_due(3)?;
        std::os::unix::fs::symlink(exports.join(name("3")), exports.join(name("4")))?;
        if per_component {
            fs::write(exports.join(name("3")).join("card.md"), "mine")?;
        }
        let names = || -> Result<Vec<String>, std::io::Error> {
            let names = fs::read_dir(&exports)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names: Vec<String> = names.collect::<Result<_, std::io::Error>>()?;
            names.sort();
            Ok(names)
        };
        let foreign = names()?;
        for step in 5..=9 {
            first.save_if_due(step)?;
        }
        let mut left: Vec<String> = foreign.into_iter().chain([name("8"), name("9")]).collect();
        if !per_component {
            left.retain(|left| *left != name("3"));
        }
        left.sort();
        assert_eq!(names()?, left);
        // Another run begins at an earlier step: what is later is older.
        let mut second = manager(1)?;
        second.save_if_due(6)?;
        left.retain(|left| *left != name("8"));
        left.push(name("6"));
        left.sort();
        assert_eq!(names()?, left);
    }
    Ok(())
}

/// What a writer that was killed left goes with the next export into the same place; what one is writing stays.
#[test]
fn what_a_killed_export_left_is_removed_by_the_next() -> Outcome {
    for per_component in [false, true] {
        let dir = tempfile::tempdir()?;
        let exports = dir.path().join("exports");
        let model = Model::new();
        let export = WeightsExport::of(["model"]);
        let export = if per_component { export.file_per_component() } else { export };
        let left = |step: &str, nonce: &str| match per_component {
            true => exports.join(format!("weights-{step}/.model.safetensors.tch-checkpoint-{nonce}")),
            false => exports.join(format!(".weights-{step}.safetensors.tch-checkpoint-{nonce}")),
        };
        let make = |path: &Path| -> Result<fs::File, std::io::Error> {
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, "half")?;
            fs::File::open(path)
        };
        let (zeros, ones) = ("0".repeat(32), "1".repeat(32));
        let dead = [left("3", &zeros), left("5", &zeros), left("5", &ones)];
        let others = [
            left("3", &"2".repeat(31)),
            left("03", &zeros),
            exports.join(format!(".notes.tch-checkpoint-{zeros}")),
            exports.join(format!(".weights-3.safetensors.tmp-{zeros}")),
        ];
        dead.iter().chain(&others).try_for_each(|path| make(path).map(drop))?;
        let link = left("3", &"3".repeat(32));
        std::os::unix::fs::symlink(&others[0], &link)?;
        let alive = left("3", &ones);
        let writer = make(&alive)?;
        writer.lock()?;
        let (run, model) = (dir.path().join("run"), model.checkpoint()?);
        let builder = CheckpointManager::builder(model, run).save_every(100);
        let mut manager = builder.export_weights_when(EverySteps(1), export, &exports).open()?;
        manager.save_if_due(4)?;
        assert!(others.iter().all(|path| path.exists()) && link.exists() && alive.exists());
        assert!(dead.iter().all(|path| !path.exists()), "{dead:?}");
        // A directory that has nothing else goes, too.
        assert!(!exports.join("weights-5").exists());
        assert!(
            interop::open(exports.join(if per_component {
                "weights-4/model.safetensors"
            } else {
                "weights-4.safetensors"
            }))
            .is_ok()
        );
    }
    Ok(())
}

/// The same for files and directories that are written once.
#[test]
fn what_a_killed_conversion_left_is_removed_by_the_next_to_the_same_path() -> Outcome {
    let dir = tempfile::tempdir()?;
    let source = Model::new().checkpoint()?.write(dir.path().join("source"))?;
    let source = interop::open(source)?;
    let at = |name: &str| dir.path().join(name);
    let left = |name: &str, digit: &str| at(&format!(".{name}.tch-checkpoint-{}", digit.repeat(32)));
    for name in ["out", "out.safetensors"] {
        fs::create_dir(left(name, "0"))?;
        fs::write(left(name, "0").join("model.safetensors"), "half")?;
        fs::write(left(name, "1"), "half")?;
        fs::create_dir(left(name, "2"))?;
        let writer = fs::File::open(left(name, "2"))?;
        writer.lock()?;
        fs::write(left("other", "0"), "half")?;
        interop::huggingface::write(&*source, at(name), &interop::huggingface::WriteOptions::default())?;
        assert!(at(name).exists() && left(name, "2").exists() && left("other", "0").exists());
        assert!(!left(name, "0").exists() && !left(name, "1").exists(), "{name}");
    }
    Ok(())
}

/// The exports of the path that the run left are written anew, and do not count.
#[test]
fn a_run_that_goes_back_exports_as_one_that_did_not() -> Outcome {
    for (every, restart) in [(1, false), (1, true), (3, false), (3, true)] {
        let dir = tempfile::tempdir()?;
        let (run, exports) = (dir.path().join("run"), dir.path().join("exports"));
        let weights = Memory::f32(&[1], [0.0]);
        let open = || -> Result<CheckpointManager, Error> {
            let checkpoint = Checkpoint::new().track("model", &weights)?;
            let builder = CheckpointManager::builder(checkpoint, &run).save_every(3).max_to_keep(None);
            builder.export_weights_when(EverySteps(every), WeightsExport::of(["model"]), &exports).open()
        };
        let mut manager = open()?;
        for step in 1..=7 {
            *weights.bytes() = (step as f32).to_le_bytes().to_vec();
            manager.save_if_due(step)?;
        }
        if restart {
            manager.close()?;
            manager = open()?;
        }
        manager.restore(run.join("ckpt-3"))?;
        for step in 4..=7 {
            *weights.bytes() = (-(step as f32)).to_le_bytes().to_vec();
            manager.save_if_due(step)?;
            let export = exports.join(format!("weights-{step}.safetensors"));
            assert_eq!(export.exists(), step % every == 0);
            if export.exists() {
                let now = read(&*interop::open(&export)?, "model")?;
                assert_eq!(now, *weights.bytes(), "step {step} of {every}, restart: {restart}");
            }
        }
        // A second call at the same step exports nothing.
        *weights.bytes() = 99f32.to_le_bytes().to_vec();
        manager.save_if_due(7)?;
        let latest = exports.join(format!("weights-{}.safetensors", 7 / every * every));
        assert_eq!(read(&*interop::open(latest)?, "model")?, (-((7 / every * every) as f32)).to_le_bytes());
    }
    Ok(())
}

/// The save of a step is durable before its export is written.
#[test]
fn an_export_that_a_restart_has_prevented_is_made_at_the_next_call() -> Outcome {
    for every in [None, Some(3)] {
        let dir = tempfile::tempdir()?;
        let (run, exports) = (dir.path().join("run"), dir.path().join("exports"));
        let model = Model::new();
        let open = || -> Result<CheckpointManager, Error> {
            let builder = CheckpointManager::builder(model.checkpoint()?, &run).restore_unhealthy();
            let export = WeightsExport::of(["model"]);
            match every {
                Some(every) => builder.export_weights_when(EverySteps(every), export, &exports).open(),
                None => builder.export_weights_when(AtSteps::new([3]), export, &exports).open(),
            }
        };
        fs::write(&exports, "in the way")?;
        let mut manager = open()?;
        for step in 1..=3 {
            assert_eq!(manager.save_if_due(step).is_ok(), step < 3);
        }
        manager.close()?;
        fs::remove_file(&exports)?;
        let mut manager = open()?;
        assert_eq!(manager.restore_or_initialize()?.restored.and_then(|status| status.step()), Some(3));
        for step in 4..=6 {
            manager.save_if_due(step)?;
        }
        let names: Vec<_> = fs::read_dir(&exports)?.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["weights-4.safetensors"], "{every:?}");
    }
    Ok(())
}

#[test]
fn a_state_that_is_refused_is_not_exported_either() -> Outcome {
    for on_unhealthy in [OnUnhealthy::Skip, OnUnhealthy::Fail] {
        let dir = tempfile::tempdir()?;
        let exports = dir.path().join("exports");
        let model = Memory::f32(&[1], [f32::NAN]);
        let mut manager = CheckpointManager::builder(Checkpoint::new().track("model", &model)?, dir.path().join("run"))
            .on_unhealthy(on_unhealthy)
            .export_weights_when(EverySteps(1), WeightsExport::of(["model"]), &exports)
            .open()?;
        assert_eq!(manager.save_if_due(1).is_ok(), on_unhealthy == OnUnhealthy::Skip);
        assert!(!exports.exists());
        *model.bytes() = 1f32.to_le_bytes().to_vec();
        assert!(manager.save_if_due(2)?.is_some() && exports.join("weights-2.safetensors").exists());
    }
    Ok(())
}

/// A process may end between the files of an export.
#[test]
fn an_export_that_lacks_files_is_none() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (run, exports) = (dir.path().join("run"), dir.path().join("exports"));
    let (model, average) = (Memory::seeded(3000, 7), Memory::seeded(3, 9));
    let open = || -> Result<CheckpointManager, Error> {
        let export = WeightsExport::of(["model", "average"]).file_per_component().keep(2);
        let checkpoint = Checkpoint::new().track("model", &model)?.track("average", &average)?;
        let builder = CheckpointManager::builder(checkpoint, &run).save_every(3);
        builder.export_weights_when(EverySteps(3), export, &exports).open()
    };
    let is_whole = |step: u64| {
        ["model", "average"].map(|name| exports.join(format!("weights-{step}/{name}.safetensors")).exists())
            == [true; 2]
    };
    let mut manager = open()?;
    (1..=6).try_for_each(|step| manager.save_if_due(step).map(drop))?;
    manager.close()?;
    assert!(is_whole(3) && is_whole(6));
    fs::remove_file(exports.join("weights-6/model.safetensors"))?;
    let mut manager = open()?;
    manager.restore_or_initialize()?;
    manager.save_if_due(7)?;
    // It is due again, and what lacks a file takes no other's place.
    assert!(is_whole(7) && is_whole(3));
    (8..=10).try_for_each(|step| manager.save_if_due(step).map(drop))?;
    assert!(is_whole(10) && is_whole(7));
    assert!(!exports.join("weights-6").exists() && !exports.join("weights-3").exists());
    manager.close()?;
    // One that takes the place of an earlier one, and fails between its files.
    let (first, earlier) = (exports.join("weights-9/average.safetensors"), exports.join("earlier"));
    fs::create_dir_all(first.join("in the way"))?;
    fs::write(exports.join("weights-9/model.safetensors"), "of another path")?;
    let mut manager = open()?;
    manager.restore(run.join("ckpt-6"))?;
    assert!(manager.save_if_due(9).is_err());
    manager.close()?;
    fs::rename(&first, earlier)?;
    fs::write(first, "of another path")?;
    let mut manager = open()?;
    manager.restore_or_initialize()?;
    manager.save_if_due(10)?;
    assert!(is_whole(10) && !is_whole(9));
    Ok(())
}

// ------------------------------------------------------------------------------------------ links

#[test]
fn links_lead_to_the_latest_and_the_best_and_never_dangle() -> Outcome {
    let dir = tempfile::tempdir()?;
    let link =
        |name: &str| fs::read_link(dir.path().join(name)).ok().map(|target| target.to_string_lossy().into_owned());
    let weights = Memory::f32(&[1], [0.0]);
    let open = || {
        let builder = CheckpointManager::builder(Checkpoint::new().track("weights", &weights)?, dir.path());
        builder.max_to_keep(2).link_latest().link_best("loss", Goal::Minimize).open()
    };
    let mut manager = open()?;
    assert_eq!((link("latest"), link("best")), (None, None));
    for (step, loss) in [(1, 0.5), (2, 0.3), (3, 0.4), (4, f64::NAN)] {
        *weights.bytes() = (step as f32).to_le_bytes().to_vec();
        manager.save_with_metrics(step, [("loss", loss)])?;
        assert_eq!(link("latest"), Some(format!("ckpt-{step}")));
        assert!(fs::metadata(dir.path().join("best"))?.is_dir(), "it never dangles");
    }
    // ckpt-2 was the best, and no policy kept it.
    assert_eq!(link("best").as_deref(), Some("ckpt-3"));
    // A metric that comes late, and a checkpoint full of NaN.
    manager.add_metrics("ckpt-4", [("loss", 0.1)])?;
    assert_eq!(link("best").as_deref(), Some("ckpt-4"));
    *weights.bytes() = f32::NAN.to_le_bytes().to_vec();
    manager.save_at(5)?;
    assert_eq!(link("latest").as_deref(), Some("ckpt-4"));
    // A restore follows it, and lists tell it from a checkpoint.
    *weights.bytes() = vec![0; 4];
    manager.restore(dir.path().join("latest"))?;
    assert_eq!(*weights.bytes(), 4f32.to_le_bytes());
    manager.close()?;
    assert_eq!(tch_checkpoint::checkpoints(dir.path())?.len(), 3);
    // A manager creates the lost link again when it is opened.
    fs::remove_file(dir.path().join("latest"))?;
    open()?;
    assert_eq!(link("latest").as_deref(), Some("ckpt-4"));
    Ok(())
}

/// What is found damaged, or is passed over, leaves its name, and the links lead to what is there.
#[test]
fn links_do_not_lead_to_what_was_moved_aside() -> Outcome {
    let weights = Memory::f32(&[1], [0.0]);
    let open = |dir: &Path| {
        let builder = CheckpointManager::builder(Checkpoint::new().track("weights", &weights)?, dir);
        builder.link_latest().link_best("loss", Goal::Minimize).open()
    };
    for is_damaged in [true, false] {
        let dir = tempfile::tempdir()?;
        let mut manager = open(dir.path())?;
        for (step, loss) in [(1, 0.5), (2, 0.3)] {
            *weights.bytes() = (step as f32).to_le_bytes().to_vec();
            manager.save_with_metrics(step, [("loss", loss)])?;
        }
        if is_damaged {
            manager.close()?;
            let file = dir.path().join("ckpt-2/weights.safetensors");
            let mut bytes = fs::read(&file)?;
            *bytes.last_mut().ok_or("empty")? ^= 1;
            fs::write(&file, bytes)?;
            manager = open(dir.path())?;
            manager.restore_or_initialize()?;
        } else {
            manager.pass_over(dir.path().join("ckpt-2"))?;
        }
        for link in ["latest", "best"] {
            assert_eq!(fs::read_link(dir.path().join(link))?.to_str(), Some("ckpt-1"), "{link}, damaged: {is_damaged}");
        }
        // Nothing that they could lead to is left.
        manager.pass_over(dir.path().join("ckpt-1"))?;
        for link in ["latest", "best"] {
            assert!(fs::symlink_metadata(dir.path().join(link)).is_err(), "{link}, damaged: {is_damaged}");
        }
    }
    Ok(())
}

/// Two runs, between which nothing decides until one of them is restored.
#[test]
fn links_are_there_again_once_a_restore_has_decided() -> Outcome {
    let temp = tempfile::tempdir()?;
    let weights = Memory::f32(&[1], [0.0]);
    let checkpoint = || Checkpoint::new().track("weights", &weights);
    let [one, two] = ["one", "two"].map(|name| temp.path().join(name));
    for (dir, steps) in [(&one, [1, 2]), (&two, [3, 4])] {
        let mut manager = CheckpointManager::builder(checkpoint()?, dir).open()?;
        for step in steps {
            manager.save_at(step)?;
        }
        manager.close()?;
    }
    for step in ["ckpt-3", "ckpt-4"] {
        fs::rename(two.join(step), one.join(step))?;
    }
    fs::remove_file(one.join("checkpoint.json"))?;
    let mut manager = CheckpointManager::builder(checkpoint()?, &one).link_latest().open()?;
    assert!(matches!(manager.restore_or_initialize(), Err(Error::Undecided { .. })));
    manager.restore(one.join("ckpt-1"))?;
    assert_eq!(fs::read_link(one.join("latest"))?.to_str(), Some("ckpt-2"));
    Ok(())
}

#[test]
fn what_is_not_a_link_of_ours_is_never_replaced() -> Outcome {
    let dir = tempfile::tempdir()?;
    let other = tempfile::tempdir()?;
    fs::write(other.path().join("data"), "precious")?;
    std::os::unix::fs::symlink(other.path(), dir.path().join("latest"))?;
    fs::write(dir.path().join("best"), "my notes")?;
    let checkpoint = Checkpoint::new().track("step", Counter::new(0))?;
    let builder = CheckpointManager::builder(checkpoint, dir.path());
    let mut manager = builder.link_latest().link_best("loss", Goal::Minimize).open()?;
    manager.save_with_metrics(1, [("loss", 0.5)])?;
    manager.close()?;
    assert_eq!(fs::read_link(dir.path().join("latest"))?, other.path());
    assert_eq!(fs::read_to_string(dir.path().join("best"))?, "my notes");
    assert_eq!(fs::read_to_string(other.path().join("data"))?, "precious");
    assert!(fs::read_dir(dir.path())?.all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with(".tmp-")));
    Ok(())
}

//! Checkpoints with values that are not finite: recorded, distinguished from healthy ones, and not used by restarts.

mod common;

use common::Memory;
use common::run::steps_in;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tch_checkpoint::inspect::{self, ProblemKind, Search};
use tch_checkpoint::retention::{Best, CheckpointInfo, Goal, KeptBy};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointManagerBuilder, CheckpointReader, Dtype,
    Error, Health, Location, OnUnhealthy, RestoreOptions, SaveOptions, StartOutcome, latest_checkpoint,
    list_checkpoints,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// How many values are not finite, the norm, and the range.
type Figures = (u64, f64, Option<(f64, f64)>);

/// A model that diverges.
struct Run {
    weights: Memory,
    frozen: Memory,
}

impl Run {
    fn new() -> Run {
        Run { weights: Memory::seeded(3000, 1), frozen: Memory::seeded(100, 2) }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::new().track("weights", &self.weights).unwrap().track("frozen", &self.frozen).unwrap()
    }

    fn builder(&self, dir: &Path) -> CheckpointManagerBuilder {
        CheckpointManager::builder(self.checkpoint(), dir)
    }

    fn set(&self, at: usize, value: f32) {
        self.weights.bytes()[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[test]
fn the_healthy_ones_stay_and_are_what_a_run_restarts_from() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let open = |run: &Run| {
            let builder = run.builder(dir.path()).max_to_keep(3);
            if background { builder.background(Background::new()).open() } else { builder.open() }
        };
        let mut manager = open(&run)?;
        for step in 1..=5 {
            run.set(7, step as f32);
            manager.save_at(step)?;
        }
        // From here on it diverges.
        for step in 6..=9 {
            run.set(2999, if step % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY });
            manager.save_at(step)?;
        }
        manager.close()?;
        assert_eq!(steps_in(dir.path())?, [3, 4, 5, 9]);
        let found = CheckpointDirectory::new(dir.path()).checkpoints()?;
        assert_eq!(found[3].non_finite, ["weights"]);
        assert!(found[..3].iter().all(|info| info.is_healthy()));

        let again = Run::new();
        let mut manager = open(&again)?;
        let started = manager.restore_or_initialize()?;
        assert_eq!(started.restored.as_ref().and_then(|status| status.step()), Some(5));
        assert_eq!(started.passed_over.len(), 1);
        assert!(started.passed_over[0].reason.contains("not finite in weights"), "{}", started.passed_over[0].reason);
        assert_eq!(again.weights.bytes()[28..32], 5f32.to_le_bytes());
        manager.save_at(6)?;
        manager.wait()?;
        assert_eq!(steps_in(dir.path())?, [4, 5, 6]);
    }
    Ok(())
}

#[test]
fn a_superseded_healthy_one_stays_until_healthy_ones_stand_in_for_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let superseded = || list_checkpoints(dir.path()).map(|listing| listing.superseded.len());
    let mut manager = run.builder(dir.path()).max_to_keep(1).open()?;
    manager.save_at(1)?;
    run.set(0, f32::NAN);
    manager.save_at(1)?;
    assert_eq!(superseded()?, 1, "the only one from which a run can be restarted");
    run.set(0, 1.0);
    manager.save_at(2)?;
    assert_eq!(superseded()?, 0);
    Ok(())
}

/// One that no restart uses is no second copy of a file.
#[test]
fn healthy_ones_do_not_all_share_a_file_beside_an_unhealthy_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(2).open()?;
    for step in 1..=12 {
        run.set(0, if step == 3 { f32::NAN } else { step as f32 });
        manager.save_at(step)?;
        let found = CheckpointDirectory::new(dir.path()).checkpoints()?;
        let healthy = found.iter().filter(|info| info.is_healthy());
        let inode = |info: &CheckpointInfo| fs::metadata(dir.path().join(&info.name).join("frozen.safetensors"));
        let inodes = healthy.map(|info| Ok(inode(info)?.ino())).collect::<std::io::Result<Vec<u64>>>()?;
        assert!(inodes.len() < 2 || inodes[0] != inodes[1], "step {step}: {inodes:?}");
    }
    Ok(())
}

#[test]
fn an_unhealthy_one_is_restored_when_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    run.set(0, f32::NAN);
    run.builder(dir.path()).open()?.save_at(1)?;
    let error = run.builder(dir.path()).open()?.restore_or_initialize().unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("restore_unhealthy"), "{error}");
    let again = Run::new();
    let mut manager = again.builder(dir.path()).restore_unhealthy().open()?;
    assert!(manager.restore_or_initialize()?.restored.is_some());
    assert_eq!(*again.weights.bytes(), *run.weights.bytes());
    assert!(again.builder(dir.path().join("other").as_path()).open()?.restore_or_initialize()?.restored.is_none());
    Ok(())
}

/// One is found damaged when the manager opens, and one when it is restored.
#[test]
fn what_is_passed_over_is_in_the_order_of_its_numbers() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).open()?;
    for step in 1..=5 {
        run.set(7, if step == 5 { f32::NAN } else { step as f32 });
        manager.save_at(step)?;
    }
    manager.close()?;
    fs::remove_file(dir.path().join("ckpt-3/weights.safetensors"))?;
    let path = dir.path().join("ckpt-4/weights.safetensors");
    let mut bytes = fs::read(&path)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&path, bytes)?;
    let mut manager = Run::new().builder(dir.path()).open()?;
    let started = manager.restore_or_initialize()?;
    assert_eq!(started.restored.as_ref().and_then(|status| status.step()), Some(2));
    let passed_over =
        |started: &StartOutcome| started.passed_over.iter().map(|passed| passed.path.to_string()).collect();
    let names: Vec<String> = passed_over(&started);
    assert_eq!(names.len(), 3);
    assert!(names.iter().zip(["ckpt-5", "ckpt-4", "ckpt-3"]).all(|(path, name)| path.contains(name)), "{names:?}");
    manager.close()?;
    // A run that starts anew beside it is told, too.
    for step in [1, 2] {
        fs::remove_dir_all(dir.path().join(format!("ckpt-{step}")))?;
    }
    let started = Run::new().builder(dir.path()).fresh_start().open()?.restore_or_initialize()?;
    let names: Vec<String> = passed_over(&started);
    assert!(started.restored.is_none() && names.len() == 1 && names[0].ends_with("ckpt-5"), "{names:?}");
    Ok(())
}

#[test]
fn refused_values_are_an_error_and_nothing_is_committed() -> Outcome {
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let builder = run.builder(dir.path()).on_unhealthy(OnUnhealthy::Fail);
        let mut manager = if background { builder.background(Background::new()).open()? } else { builder.open()? };
        manager.save_at(1)?;
        run.set(5, f32::INFINITY);
        let error = manager.save_at(2).and_then(|_| manager.wait()).unwrap_err();
        assert!(matches!(&error, Error::Unhealthy { tensors, .. } if *tensors == ["weights"]), "{error}");
        run.set(5, 1.0);
        manager.save_at(2)?;
        manager.close()?;
        assert_eq!(steps_in(dir.path())?, [1, 2]);
    }
    Ok(())
}

#[test]
fn an_unhealthy_one_counts_for_no_policy() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager =
        run.builder(dir.path()).max_to_keep(1).keep(Best::new("loss", Goal::Minimize, 1)).keep_unhealthy(2).open()?;
    for (step, value, loss) in [(1, 1.0, 0.5), (2, f32::NAN, 0.1), (3, f32::NAN, 0.2), (4, f32::NAN, 0.3)] {
        run.set(0, value);
        manager.save_with_metrics(step, [("loss", loss)])?;
    }
    assert_eq!(steps_in(dir.path())?, [1, 3, 4]);
    let explained = manager.explain();
    assert!(explained[0].kept_by.contains(&KeptBy::NewestHealthy), "{}", explained[0]);
    assert_eq!(explained[1].kept_by, [KeptBy::Unhealthy { keep: 2 }]);
    run.set(0, 2.0);
    manager.save_with_metrics(5, [("loss", 0.9)])?;
    assert_eq!(steps_in(dir.path())?, [1, 3, 4, 5]);
    Ok(())
}

/// The figures of a tensor do not depend on the way in which its bytes were digested.
#[test]
fn statistics_are_those_of_the_values() -> Outcome {
    let dir = tempfile::tempdir()?;
    let floats: Vec<f32> = (0..700_001).map(|i| ((i % 1000) as f32 - 300.0) / 8.0).collect();
    let large = Memory::f32(&[floats.len() as u64], floats.iter().copied());
    // Of several blocks, with an infinity and a value whose square is infinite in different ones.
    let mut spoilt = floats.clone();
    (spoilt[5_000], spoilt[300_000]) = (f32::INFINITY, 3e38);
    let wide: Vec<u8> = spoilt.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect();
    let top: Vec<u8> = spoilt.iter().flat_map(|value| [value.to_le_bytes()[2], value.to_le_bytes()[3]]).collect();
    let spoilt_bf16: Vec<f32> = spoilt.iter().map(|value| f32::from_bits(value.to_bits() & 0xffff_0000)).collect();
    let half = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let doubles: Vec<u8> = [1e200, -3e200, f64::NAN, 0.5].into_iter().flat_map(f64::to_le_bytes).collect();
    let tensors = [
        ("large", large),
        ("zeros", Memory::f32(&[3_000], [0.0; 3_000])),
        ("spoilt", Memory::f32(&[spoilt.len() as u64], spoilt.iter().copied())),
        ("spoilt_f64", Memory::new(Dtype::F64, &[spoilt.len() as u64], wide)),
        ("spoilt_bf16", Memory::new(Dtype::BF16, &[spoilt.len() as u64], top)),
        ("spoilt_f16", Memory::new(Dtype::F16, &[6_000], half(&[[0x3c00; 5_999].as_slice(), &[0x7c00]].concat()))),
        // 1, -2, infinity, NaN, and the least value above 0.
        ("f16", Memory::new(Dtype::F16, &[5], half(&[0x3c00, 0xc000, 0x7c00, 0x7e00, 0x0001]))),
        ("bf16", Memory::new(Dtype::BF16, &[3], half(&[0x3f80, 0xc000, 0xff80]))),
        ("f64", Memory::new(Dtype::F64, &[4], doubles)),
        // 1, -1.5, 448, NaN.
        ("e4m3", Memory::new(Dtype::F8E4m3, &[4], vec![0x38, 0xbc, 0x7e, 0x7f])),
        // 1, -1.5, infinity, NaN.
        ("e5m2", Memory::new(Dtype::F8E5m2, &[4], vec![0x3c, 0xbe, 0x7c, 0x7f])),
        ("empty", Memory::f32(&[0], [])),
        ("integers", Memory::new(Dtype::I64, &[1], vec![0xff; 8])),
        ("small", Memory::f32(&[2], [1e-30, -1e-30])),
        ("huge", Memory::f32(&[2], [3e38, -3e38])),
    ];
    let mut manifests = Vec::new();
    let ways = [(1, 4096, false), (2, 1 << 20, false), (2, 1 << 16, true)];
    let ways = [Health::Statistics, Health::Finite].into_iter().flat_map(|health| ways.map(|way| (health, way)));
    for (number, (health, (threads, chunk, background))) in ways.enumerate() {
        let mut checkpoint = Checkpoint::new();
        let options = SaveOptions::new().health(health).threads(threads).chunk_bytes(chunk);
        for (name, tensor) in &tensors {
            checkpoint.track_mut(name, tensor)?;
        }
        let builder =
            CheckpointManager::builder(checkpoint, dir.path()).fresh_start().checkpoint_name(format!("c{number}"));
        let builder = if background { builder.background(Background::new()) } else { builder };
        let mut manager = builder.save_options(options).open()?;
        let path = manager.save_at(1)?;
        manager.close()?;
        manifests.push((health, CheckpointReader::open(path)?.manifest().clone()));
    }
    let expected = |key: &str| -> Option<Figures> {
        let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let finite = |values: &[f32]| -> Vec<f64> {
            values.iter().map(|value| f64::from(*value)).filter(|value| value.is_finite()).collect()
        };
        let figures = |values: &[f32]| Some((1, norm(&finite(values)), Some((-37.5, values[300_000].into()))));
        match key {
            "large" => Some((0, norm(&finite(&floats)), Some((-37.5, 87.375)))),
            "zeros" => Some((0, 0.0, Some((0.0, 0.0)))),
            "spoilt" | "spoilt_f64" => figures(&spoilt),
            "spoilt_bf16" => figures(&spoilt_bf16),
            "spoilt_f16" => Some((1, f64::from(5_999).sqrt(), Some((1.0, 1.0)))),
            "f16" => Some((2, norm(&[1.0, 2.0, 2f64.powi(-24)]), Some((-2.0, 1.0)))),
            "bf16" => Some((1, norm(&[1.0, 2.0]), Some((-2.0, 1.0)))),
            "f64" => Some((1, f64::MAX, Some((-3e200, 1e200)))),
            "e4m3" => Some((1, norm(&[1.0, 1.5, 448.0]), Some((-1.5, 448.0)))),
            "e5m2" => Some((2, norm(&[1.0, 1.5]), Some((-1.5, 1.0)))),
            "small" => Some((0, norm(&[f64::from(1e-30f32); 2]), Some((f64::from(-1e-30f32), f64::from(1e-30f32))))),
            "huge" => Some((0, norm(&[f64::from(3e38f32); 2]), Some((f64::from(-3e38f32), f64::from(3e38f32))))),
            _ => None,
        }
    };
    for (health, manifest) in &manifests {
        for (key, record) in &manifest.tensors {
            let is_recorded = |(non_finite, ..): &Figures| *health == Health::Statistics || *non_finite > 0;
            let Some((non_finite, norm, range)) = expected(key).filter(is_recorded) else {
                assert_eq!(record.statistics, None, "{key}");
                continue;
            };
            let range = range.filter(|_| *health == Health::Statistics);
            let statistics = record.statistics.ok_or(key.clone())?;
            assert_eq!((statistics.non_finite, statistics.range), (non_finite, range), "{key}");
            assert!((statistics.norm - norm).abs() <= 1e-5 * norm, "{key}: {} instead of {norm}", statistics.norm);
        }
        // They do not depend on how the bytes arrived.
        let figures = |m: &tch_checkpoint::format::Manifest| -> Vec<_> {
            m.tensors.values().map(|record| record.statistics).collect()
        };
        let first = manifests.iter().find(|(of, _)| of == health).ok_or("none")?;
        assert_eq!(figures(manifest), figures(&first.1));
    }
    Ok(())
}

#[test]
fn only_what_is_not_finite_is_noted_unless_more_is_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let text = |path: &Path| std::fs::read_to_string(path.join("manifest.json"));
    let healthy = run.checkpoint().save(dir.path().join("a"))?;
    let mut manifest = CheckpointReader::open(&healthy)?.manifest().clone();
    // Only they need a later version.
    manifest.figures = None;
    assert!(manifest.to_bytes()?.starts_with(b"{\"format\":\"tch-checkpoint\",\"version\":1,"));
    run.set(0, f32::NAN);
    let unhealthy = run.checkpoint().save(dir.path().join("b"))?;
    assert_eq!(text(&unhealthy)?.matches("statistics").count(), 1);
    let off = run.checkpoint().save_with(dir.path().join("c"), &SaveOptions::new().health(Health::Off))?;
    assert!(!text(&off)?.contains("statistics"));
    Ok(())
}

/// A mask is infinite on purpose.
#[test]
fn a_constant_that_is_excepted_makes_no_checkpoint_unhealthy() -> Outcome {
    for (background, health) in [(false, Health::Finite), (true, Health::Finite), (false, Health::Statistics)] {
        let dir = tempfile::tempdir()?;
        let run = Run::new();
        let mask = Memory::f32(&[2, 2], [0.0, f32::NEG_INFINITY, 0.0, 0.0]);
        let open = |options: SaveOptions, name: &str| -> Result<CheckpointManager, Error> {
            // It has two names, one of which is exempt.
            let checkpoint = run.checkpoint().track("a", [mask.clone()])?.track("mask", [mask.clone()])?;
            let builder = CheckpointManager::builder(checkpoint, dir.path()).checkpoint_name(name).fresh_start();
            let builder = builder.save_options(options.health(health));
            if background { builder.background(Background::new()).open() } else { builder.open() }
        };
        let mut manager = open(SaveOptions::new(), "all")?;
        manager.save_at(1)?;
        manager.close()?;
        let mut manager = open(SaveOptions::new().health_except("mask/*"), "some")?;
        for step in 1..=3 {
            run.set(0, step as f32);
            manager.save_at(step)?;
        }
        run.set(0, f32::NAN);
        manager.save_at(4)?;
        manager.close()?;
        let found = CheckpointDirectory::new(dir.path()).checkpoints()?;
        let non_finite: Vec<_> = found.iter().map(|info| (info.name.as_str(), info.non_finite.clone())).collect();
        let none = Vec::new;
        let expected = [
            ("all-1", vec!["a/0".to_string(), "mask/0".to_string()]),
            ("some-1", none()),
            ("some-2", none()),
            ("some-3", none()),
            ("some-4", vec!["weights".to_string()]),
        ];
        assert_eq!(non_finite, expected, "background: {background}, {health:?}");
        let reader = CheckpointReader::open(dir.path().join("some-2"))?;
        let recorded = |key: &str| reader.manifest().tensors[key].statistics.is_some();
        assert_eq!((recorded("mask/0"), recorded("weights")), (false, health == Health::Statistics));
        let mut again = open(SaveOptions::new(), "some")?;
        assert_eq!(again.restore_or_initialize()?.restored.and_then(|status| status.step()), Some(3));
    }
    Ok(())
}

/// However good its metric is: a restart would not use it.
#[test]
fn the_best_is_healthy_and_the_latest_is_the_newest() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tensor = Memory::f32(&[2], [1.0, 2.0]);
    let checkpoint = Checkpoint::new().track("tensor", &tensor)?;
    let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(None).unclean_on_failure();
    let mut manager = builder.link_best("loss", Goal::Minimize).open()?;
    manager.save_with_metrics(1, [("loss", 0.5)])?;
    manager.save_with_metrics(2, [("loss", 0.6)])?;
    tensor.bytes()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    manager.save_with_metrics(3, [("loss", 0.1)])?;
    tensor.bytes()[..4].copy_from_slice(&1f32.to_le_bytes());
    let directory = CheckpointDirectory::new(dir.path());
    let found = directory.best("loss", Goal::Minimize)?.ok_or("none")?;
    assert_eq!(found.name, "ckpt-1");
    assert_eq!(directory.best("loss", Goal::Maximize)?.ok_or("none")?.name, "ckpt-2");
    assert_eq!(tch_checkpoint::inspect::best(dir.path(), "loss", Goal::Minimize)?.name, "ckpt-1");
    assert_eq!(std::fs::read_link(dir.path().join("best"))?, std::path::Path::new("ckpt-1"));
    let latest = directory.latest()?.ok_or("none")?;
    assert_eq!((latest.name.as_str(), latest.is_healthy()), ("ckpt-3", false));
    assert!(latest_checkpoint(dir.path())?.ok_or("none")?.ends_with("ckpt-3"));
    drop(manager);

    // The same applies to one that was saved after an error.
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).unclean_on_failure().open()?;
    manager.save()?;
    assert!(manager.guard(|_| Err::<(), _>("at once")).is_err());
    let directory = CheckpointDirectory::new(dir.path());
    for (name, loss) in [("ckpt-1", 0.5), ("ckpt-2", 0.1)] {
        directory.add_metrics(name, [("loss", loss)])?;
    }
    assert!(directory.get("ckpt-2")?.unclean);
    assert_eq!(directory.best("loss", Goal::Minimize)?.ok_or("none")?.name, "ckpt-1");
    Ok(())
}

/// What only later checkpoints have is not missing, whether their values are read or recorded as not finite.
#[test]
fn a_search_knows_what_is_recorded_as_not_finite() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let earlier = Checkpoint::new().track("frozen", &run.frozen)?;
    CheckpointManager::builder(earlier, dir.path()).open()?.save_at(1)?;
    let mut manager = run.builder(dir.path()).open()?;
    manager.restore_or_initialize_with(&RestoreOptions::new().allow_missing("weights"))?;
    run.set(0, f32::NAN);
    manager.save_at(2)?;
    let search = |condition: &str| -> Result<_, Box<dyn std::error::Error>> {
        Ok(inspect::bisect(dir.path(), &condition.parse()?, Search::Forward, |_| {})?)
    };
    let report = search("nonfinite(\"weights\")")?;
    assert_eq!((report.first, report.missing), (Some(dir.path().join("ckpt-2").into()), vec![]));
    let report = search("nonfinite(\"wieghts\")")?;
    assert_eq!((report.first, report.missing), (None, vec!["nonfinite(\"wieghts\")".to_string()]));
    Ok(())
}

/// What the listing tells is damaged, by a manifest or by a length, has no place in the order.
#[test]
fn a_search_reports_what_is_known_as_damaged() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = Run::new();
    let mut manager = run.builder(dir.path()).max_to_keep(None).open()?;
    for step in 1..=3 {
        run.set(step, if step == 1 { 1.0 } else { f32::NAN });
        manager.save_at(step as u64)?;
    }
    manager.close()?;
    let path = |step: u64| Location::from(dir.path().join(format!("ckpt-{step}")));
    let file = path(2).join("weights.safetensors");
    fs::File::options().write(true).open(&file)?.set_len(fs::metadata(&file)?.len() - 1)?;
    // What cannot be a checkpoint of this run is not among them.
    fs::create_dir_all(dir.path().join("exports"))?;
    fs::write(dir.path().join("exports/weights-3.safetensors"), "of another tool")?;
    std::os::unix::fs::symlink("ckpt-3", dir.path().join("epoch-9"))?;
    assert_eq!(list_checkpoints(dir.path())?.damaged.len(), 3);
    for (condition, first, before) in [("nonfinite", Some(path(3)), path(1)), ("step > 3", None, path(3))] {
        for search in [Search::Forward, Search::Halving] {
            let mut seen = Vec::new();
            let report = inspect::bisect(dir.path(), &condition.parse()?, search, |one| seen.push(one.clone()))?;
            assert_eq!((&report.first, &report.before), (&first, &Some(before.clone())), "{search:?}");
            assert_eq!(report.examined, seen);
            assert!(seen.iter().rev().skip(1).all(|one| one.holds.is_some()), "{seen:?}");
            let last = seen.last().ok_or("none")?;
            assert_eq!((&last.path, last.step, last.holds), (&path(2), None, None));
            let problem = last.problem.as_ref().ok_or("it was read")?;
            assert_eq!((problem.kind, &problem.path), (ProblemKind::Damaged, &Some(Location::from(&file))));
        }
    }
    Ok(())
}

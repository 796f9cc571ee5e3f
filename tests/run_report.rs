//! `inspect::report`: a whole run as data.

mod common;

use common::Memory;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch_checkpoint::inspect::{self, OtherState, ProblemKind, ReportOptions, RunReport, Trend};
use tch_checkpoint::retention::Latest;
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Dtype, Durability, SaveOptions};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A model with an encoder that changes, and an embedding that does not.
struct Model {
    weight: Memory,
    checkpoint: Option<Checkpoint>,
}

impl Model {
    fn new() -> Result<Model, tch_checkpoint::Error> {
        let weight = Memory::f32(&[4], [1.0; 4]);
        let encoder = BTreeMap::from([("weight".to_string(), weight.clone())]);
        let embedding = BTreeMap::from([("table".to_string(), Memory::seeded(64, 1))]);
        let checkpoint = Checkpoint::new().track("encoder", encoder)?.track("embedding", embedding)?;
        Ok(Model { weight, checkpoint: Some(checkpoint.track("step", Counter::new(0))?) })
    }

    /// Saves the values of the weight, one per checkpoint.
    fn train(mut self, dir: &Path, max_to_keep: Option<usize>, values: &[f32]) -> Outcome {
        let options = SaveOptions::new().durability(Durability::ProcessCrash);
        let checkpoint = self.checkpoint.take().ok_or("used once")?;
        let builder = CheckpointManager::builder(checkpoint, dir).save_options(options).max_to_keep(max_to_keep);
        let mut manager = builder.open()?;
        for (step, value) in (1..).zip(values) {
            *self.weight.bytes() = value.to_le_bytes().repeat(4);
            manager.save_with_metrics(10 * step, [("loss", 1.0 / step as f64)])?;
        }
        manager.close()?;
        Ok(())
    }
}

fn report(dir: &Path) -> Result<RunReport, tch_checkpoint::Error> {
    inspect::report(dir, &ReportOptions::default())
}

#[test]
fn a_tensor_is_described_over_time() -> Outcome {
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), None, &[1.0, 2.0, 2.0, 3.0])?;
    let report = report(dir.path())?;
    assert_eq!(report.sampled, [0, 1, 2, 3]);
    let keys: Vec<&str> = report.tensors.iter().map(|tensor| tensor.key.as_str()).collect();
    assert_eq!(keys, ["embedding/table", "encoder/weight"]);
    let weight = &report.tensors[1];
    assert_eq!((weight.dtype, &weight.shape[..], weight.bytes), (Dtype::F32, &[4][..], 16));
    let norms: Vec<f64> = weight.points.iter().flatten().filter_map(|point| point.stats.norm).collect();
    assert_eq!(norms, [2.0, 4.0, 4.0, 6.0]);
    let updates: Vec<Option<f64>> = weight.points.iter().flatten().map(|point| point.update).collect();
    assert_eq!(updates, [None, Some(1.0), Some(0.0), Some(0.5)]);
    assert_eq!((weight.trend, weight.growth), (Trend::Steady, Some(1.5)));
    let table = &report.tensors[0];
    assert_eq!(
        table.points.iter().flatten().map(|point| point.update).collect::<Vec<_>>(),
        [None, Some(0.0), Some(0.0), Some(0.0)]
    );
    let histograms = table.points.iter().flatten().filter_map(|point| point.stats.histogram.as_ref());
    assert!(histograms.clone().all(|histogram| histogram.counts.iter().sum::<u64>() == 64));
    assert_eq!(histograms.count(), 4);
    Ok(())
}

#[test]
fn an_exploding_and_a_broken_tensor_are_called_so() -> Outcome {
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), None, &[1.0, 1.5, 2.0, 1e3, 1e7])?;
    let weight = &report(dir.path())?.tensors[1];
    assert_eq!((weight.trend, weight.growth), (Trend::Exploding, Some(1e7 / 1.5)));
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), None, &[1.0, f32::NAN, 2.0])?;
    let report = report(dir.path())?;
    let weight = &report.tensors[1];
    assert_eq!(weight.trend, Trend::NonFinite);
    assert_eq!(weight.points[1].as_ref().map(|point| point.stats.nan), Some(4));
    // Neither the step to NaN nor the one from it has a ratio.
    assert!(weight.points.iter().flatten().all(|point| point.update.is_none()));
    assert_eq!(report.checkpoints[1].entry.non_finite, ["encoder/weight"]);
    Ok(())
}

#[test]
fn links_and_gaps_are_counted() -> Outcome {
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), Some(4), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    // As a manager does where tensors have versions.
    let [from, to] = ["ckpt-40", "ckpt-50"].map(|name| dir.path().join(name).join("embedding.safetensors"));
    fs::remove_file(&to)?;
    fs::hard_link(&from, &to)?;
    let report = report(dir.path())?;
    assert_eq!(report.checkpoints.len(), 4);
    assert_eq!(report.gaps.len(), 1);
    let gap = &report.gaps[0];
    assert_eq!((&gap.after, gap.before.as_str(), gap.missing), (&None, "ckpt-30", 2));
    let linked: Vec<u64> = report.checkpoints.iter().map(|one| one.linked_bytes).collect();
    assert_eq!(linked, [0, 0, fs::metadata(from)?.len(), 0]);
    for one in &report.checkpoints {
        assert_eq!(one.written_bytes + one.linked_bytes, one.entry.bytes);
        assert_eq!(one.components, BTreeMap::from([("embedding".to_string(), 256), ("encoder".to_string(), 16)]));
    }
    assert_eq!(report.runs.len(), 1);
    assert_eq!((report.runs[0].first.as_str(), report.runs[0].last.as_str()), ("ckpt-30", "ckpt-60"));
    Ok(())
}

#[test]
fn policies_and_pins_keep() -> Outcome {
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), None, &[1.0, 2.0, 3.0, 4.0])?;
    tch_checkpoint::CheckpointDirectory::new(dir.path()).pin("ckpt-10", "paper", "table 2")?;
    let report = inspect::report(dir.path(), &ReportOptions::new().policy(Latest(2)))?;
    let kept: Vec<usize> = report.checkpoints.iter().filter_map(|one| Some(one.kept_by.as_ref()?.len())).collect();
    assert_eq!(kept, [1, 0, 1, 2]);
    assert_eq!(report.checkpoints[0].entry.pins, BTreeMap::from([("paper".to_string(), "table 2".to_string())]));
    assert_eq!(report.policies, ["the newest 2"]);
    Ok(())
}

#[test]
fn damage_is_shown_and_hides_nothing_else() -> Outcome {
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), None, &[1.0, 2.0, 3.0, 4.0])?;
    // A changed byte, which only reading finds, and a file that ends early, which its length shows.
    let file = dir.path().join("ckpt-20/encoder.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    fs::write(dir.path().join("ckpt-30/encoder.safetensors"), "short")?;
    let report = report(dir.path())?;
    let names: Vec<&str> = report.checkpoints.iter().map(|one| one.entry.name.as_str()).collect();
    assert_eq!(names, ["ckpt-10", "ckpt-20", "ckpt-40"]);
    let problem = report.checkpoints[1].problem.as_ref().ok_or("the changed byte was not found")?;
    assert_eq!(problem.kind, ProblemKind::Damaged);
    assert!(problem.reason.contains("encoder/weight"), "{problem:?}");
    assert_eq!((report.others[0].name.as_str(), report.others[0].state), ("ckpt-30", OtherState::Damaged));
    let [table, weight] = &report.tensors[..] else { return Err("two tensors".into()) };
    assert!(table.points.iter().all(Option::is_some));
    assert_eq!(weight.points.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    // The damaged checkpoint lies between: there is nothing to compare with.
    assert_eq!(weight.points[2].as_ref().and_then(|point| point.update), None);
    // The manifest of the cut one is whole: nothing is missing.
    assert_eq!(report.gaps, []);
    Ok(())
}

#[test]
fn as_many_samples_and_tensors_as_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    Model::new()?.train(dir.path(), None, &[1.0, 2.0, 3.0, 4.0, 5.0])?;
    let options = ReportOptions::new().samples(3).tensors("encoder/*");
    let report = inspect::report(dir.path(), &options)?;
    assert_eq!(report.sampled, [0, 2, 4]);
    assert_eq!(report.tensors.len(), 1);
    let updates: Vec<Option<f64>> = report.tensors[0].points.iter().flatten().map(|point| point.update).collect();
    assert_eq!(updates, [None, Some(2.0), Some(2.0 / 3.0)]);
    let report = inspect::report(dir.path(), &options.samples(0))?;
    assert!(report.sampled.is_empty() && report.tensors.is_empty());
    assert_eq!(report.checkpoints.len(), 5);
    Ok(())
}

#[test]
fn an_empty_directory_has_an_empty_report() -> Outcome {
    let dir = tempfile::tempdir()?;
    let report = report(dir.path())?;
    assert!(report.checkpoints.is_empty() && report.tensors.is_empty() && report.latest.is_none());
    assert!(inspect::report(dir.path().join("nowhere"), &ReportOptions::default()).is_err());
    Ok(())
}

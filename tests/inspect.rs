//! `inspect` from the user's side: what it returns for checkpoints of this crate, of other tools, and for directories.

mod common;

use common::Memory;
use common::table::Table;
use std::fs;
use std::path::Path;
use tch_checkpoint::inspect::{
    self, DiffKind, DiffSide, OtherState, ProblemKind, Target, VerifyItem, VerifyState, diff, diff_as,
};
use tch_checkpoint::interop::huggingface;
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{
    Checkpoint, CheckpointDirectory, Counter, Dtype, Error, Location, VerifiedBy, checkpoints, interop,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A checkpoint of a matrix, a tensor that shares its memory, and a counter.
fn write(dir: &Path, name: &str, seed: u64) -> Result<Location, Error> {
    let weight = Memory::seeded(600_000, seed);
    let checkpoint = Checkpoint::new().track("encoder", &weight)?.track("tied", &weight)?;
    checkpoint.track("decoder", Memory::seeded(3, 9))?.track("step", Counter::new(seed as _))?.write(dir.join(name))
}

/// A safetensors file of two tensors.
fn safetensors(path: &Path, bias: [f32; 2]) -> Outcome {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (weight, bias) = (bytes(&[1.0; 6]), bytes(&bias));
    let view = |shape: Vec<usize>, data| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data);
    let tensors = [("weight", view(vec![2, 3], &weight)?), ("bias", view(vec![2], &bias)?)];
    Ok(safetensors::serialize_to_file(tensors, None, path)?)
}

/// The process that removed it has died before it saw the pin.
#[test]
fn a_repair_says_that_a_pinned_checkpoint_came_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut checkpoint = Checkpoint::new().track("step", Counter::new(0))?;
    (0..3).try_for_each(|_| checkpoint.save(dir.path().join("ckpt")).map(drop))?;
    let nonce = "0123456789abcdef0123456789abcdef";
    let trash = |name: &str| dir.path().join(format!(".trash-{name}-{nonce}"));
    CheckpointDirectory::new(dir.path()).pin("ckpt-2", "paper", "")?;
    for name in ["ckpt-1", "ckpt-2"] {
        fs::rename(dir.path().join(name), trash(name))?;
    }
    let plan = inspect::repair_plan(dir.path())?;
    assert!(plan.actions[..2].iter().all(|action| action.reason.contains("pinned") && !action.done), "{plan:?}");
    let report = inspect::repair(dir.path())?;
    let [first, second] = [&report.actions[0], &report.actions[1]];
    assert_eq!((first.path.clone(), first.moved_to.clone()), (trash("ckpt-1").into(), None));
    assert_eq!(
        (second.path.clone(), second.moved_to.clone()),
        (trash("ckpt-2").into(), Some(dir.path().join("ckpt-2").into()))
    );
    assert!(first.done && second.done && second.reason.contains("pinned") && !first.reason.contains("pinned"));
    let names: Vec<_> = checkpoints(dir.path())?;
    assert_eq!(names, ["ckpt-2", "ckpt-3"].map(|name| dir.path().join(name)));
    Ok(())
}

#[test]
fn a_summary_has_everything_but_the_elements() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "a", 1)?;
    let target = Target::open(&path)?;
    let summary = target.summary(None)?;
    assert_eq!((&summary.overview.path, summary.overview.format), (&path, "tch-checkpoint"));
    assert_eq!((summary.overview.latest_of.clone(), summary.verified_by), (None, VerifiedBy::Digest));
    let keys: Vec<&str> = summary.tensors.iter().map(|tensor| tensor.key).collect();
    assert_eq!(keys, ["decoder", "encoder", "tied"]);
    assert_eq!(summary.tensors[2].same_as.as_deref(), Some("encoder"));
    assert_eq!((summary.tensors[0].shape, summary.tensors[0].bytes), (&[3][..], 12));
    // Tensors that share memory count once.
    assert_eq!((summary.totals.tensor_bytes, summary.totals.components), (2_400_012, 4));
    let on_disk: u64 = fs::read_dir(&path)?.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    assert_eq!(summary.totals.bytes, on_disk);
    // A filter selects tensors and values. The totals stay.
    let filtered = target.summary(Some("*coder"))?;
    assert_eq!((filtered.tensors.len(), filtered.values.len(), filtered.totals), (2, 0, summary.totals));
    Ok(())
}

#[test]
fn a_file_of_another_tool_is_summarized_like_a_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    safetensors(&path, [0.5, 0.5])?;
    let target = Target::open(&path)?;
    let summary = target.summary(None)?;
    assert_eq!((summary.overview.format, summary.verified_by), ("safetensors", VerifiedBy::Nothing));
    assert_eq!((summary.overview.saved_at, summary.overview.sequence, summary.overview.step), (None, None, None));
    let tensors: Vec<_> = summary.tensors.iter().map(|t| (t.key, t.shape, t.bytes, t.xxh3_128)).collect();
    assert_eq!(tensors, [("bias", &[2][..], 8, None), ("weight", &[2, 3], 24, None)]);
    assert_eq!((summary.files.len(), summary.totals.bytes), (1, fs::metadata(&path)?.len()));
    Ok(())
}

#[test]
fn a_source_of_ones_own_is_inspected_like_a_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut table = Table::default().with("encoder/w", Dtype::F32, &[2], vec![0; 8]);
    table.values.insert("step".into(), 7.into());
    table.unreadable.insert("odd".into(), "a date".into());
    let target = Target::of(Box::new(table));
    let summary = target.summary(None)?;
    assert_eq!(
        (summary.overview.format, summary.overview.step, summary.verified_by),
        ("table", None, VerifiedBy::Nothing)
    );
    assert_eq!((summary.totals.tensors, summary.totals.values, summary.totals.tensor_bytes), (1, 1, 8));
    assert_eq!((summary.unreadable["odd"].as_str(), target.skipped().len()), ("a date", 0));
    // Against a checkpoint with another step and without the tensor.
    let other = Target::open(Checkpoint::new().track("step", Counter::new(8))?.write(dir.path().join("eight"))?)?;
    let report = diff(&target, &other)?;
    let differing: Vec<&str> = report.differences.iter().map(|difference| difference.key).collect();
    assert_eq!((report.equal, differing), (false, vec!["encoder/w", "step"]));
    Ok(())
}

/// A URL is refused, and no file is looked for.
#[test]
fn a_url_is_not_served() {
    let url = "s3://bucket/run";
    let refused = |error: &Error| {
        let text = error.to_string();
        assert!(matches!(error, Error::InvalidArgument(_)) && text.contains("s3://bucket/run is not served"), "{text}");
        assert!(text.contains("`CheckpointReader::open_in`"), "{text}");
    };
    refused(&Target::open(url).unwrap_err());
    refused(&inspect::list(url).unwrap_err());
    refused(&interop::open(url).unwrap_err());
    let report = inspect::verify([url]);
    let VerifyState::Unreadable = report.checkpoints[0].state else { panic!("{report:?}") };
    assert!(report.checkpoints[0].problems[0].reason.contains("is not served"), "{report:?}");
}

#[test]
fn a_directory_of_no_known_format_is_told_from_one_without_a_checkpoint() -> Outcome {
    let dir = tempfile::tempdir()?;
    let text = |path: &Path| Target::open(path).unwrap_err().to_string();
    let verified = |path: &Path| inspect::verify([path]).checkpoints[0].problems[0].reason.clone();
    let no_format = "this directory holds no valid checkpoint; the directory holds no checkpoint of a format";
    for told in [text(dir.path()), verified(dir.path())] {
        assert!(told.contains("holds no valid checkpoint") && !told.contains("format"), "{told}");
    }
    fs::write(dir.path().join("weights.own"), "own")?;
    for told in [text(dir.path()), verified(dir.path())] {
        assert!(told.contains(no_format) && told.contains("`inspect::Target::of`"), "{told}");
    }
    // What an interrupted save left is not taken for another format.
    fs::create_dir(dir.path().join(".tmp-ckpt-1-0123456789abcdef0123456789abcdef"))?;
    assert!(!text(dir.path()).contains("format"), "{}", text(dir.path()));
    Ok(())
}

/// A checkpoint without its manifest must not pass for a directory of safetensors files, which has no digests.
#[test]
fn a_lost_manifest_is_damage_and_a_directory_of_hugging_face_is_none() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "a", 1)?;
    fs::remove_file(path.join("manifest.json"))?;
    assert!(matches!(Target::open(&path), Err(Error::Damaged { .. })));
    assert_eq!(inspect::verify([&path]).checkpoints[0].state, VerifyState::Damaged);

    let model = dir.path().join("model");
    fs::create_dir(&model)?;
    safetensors(&model.join("model.safetensors"), [0.0, 1.0])?;
    fs::write(model.join("config.json"), "{}")?;
    let target = Target::open(&model)?;
    assert!(target.overview().format.starts_with("Hugging Face"), "{target:?}");
    assert_eq!(target.summary(None)?.files.len(), 2);
    let report = inspect::verify([&model]);
    assert_eq!((report.intact, report.checkpoints[0].verified_by), (true, Some(VerifiedBy::Nothing)));
    // What is written for Hugging Face is read, whatever its size.
    let written = dir.path().join("written");
    huggingface::write(target.source(), &written, &huggingface::WriteOptions::default())?;
    assert!(Target::open(&written)?.overview().format.starts_with("Hugging Face"));
    assert!(inspect::verify([&written]).intact);
    // Exported weights next to checkpoints do not turn a directory of checkpoints into a model.
    let run = dir.path().join("run");
    Checkpoint::new().track("step", Counter::new(1))?.save(run.join("ckpt"))?;
    safetensors(&run.join("model.safetensors"), [0.0, 1.0])?;
    fs::write(run.join("config.json"), "{}")?;
    assert_eq!(Target::open(&run)?.overview().format, "tch-checkpoint");
    Ok(())
}

#[test]
fn a_diff_names_what_differs_and_by_how_much() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (write(dir.path(), "a", 1)?, write(dir.path(), "b", 2)?);
    let (a, b) = (Target::open(a)?, Target::open(b)?);
    let same = diff(&a, &a)?;
    assert!(same.equal && same.differences.is_empty());
    assert_eq!((same.equal_tensors, same.equal_values), (3, 1));
    let diff = diff(&a, &b)?;
    let found: Vec<_> = diff.differences.iter().map(|entry| (entry.key, entry.kind)).collect();
    assert_eq!(found, [("encoder", DiffKind::Content), ("step", DiffKind::Value), ("tied", DiffKind::Content)]);
    let elements = diff.differences[0].elements.ok_or("the elements were not read")?;
    assert!(elements.total == 600_000 && elements.differing > 599_000 && elements.largest_difference > Some(1e6));
    assert!(matches!(diff.differences[1].b, Some(DiffSide::Value { value }) if *value == 2));
    assert_eq!((diff.equal_tensors, diff.equal_values), (1, 0));
    Ok(())
}

/// A flipped bit that the digests of two manifests do not show is found when the elements are read.
#[test]
fn a_diff_verifies_the_elements_that_it_reads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (write(dir.path(), "a", 1)?, write(dir.path(), "b", 2)?);
    let file = b.join("encoder.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    let (a, b) = (Target::open(a)?, Target::open(b)?);
    let error = diff(&a, &b).expect_err("the elements are not what was written");
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("encoder"), "{error}");
    Ok(())
}

#[test]
fn formats_are_compared_with_one_another_and_under_other_names() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (file, other) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    safetensors(&file, [0.5, 0.25])?;
    safetensors(&other, [0.5, 0.75])?;
    let (a, b) = (Target::open(&file)?, Target::open(&other)?);
    let found = diff(&a, &b)?;
    assert_eq!((found.differences.len(), found.differences[0].key, found.equal_tensors), (1, "bias", 1));
    assert_eq!(found.differences[0].elements.and_then(|elements| elements.largest_difference), Some(0.5));

    let own = Checkpoint::new().track("weight", Memory::f32(&[2, 3], [1.0; 6]))?;
    let own = own.track("offset", Memory::f32(&[2], [0.5, 0.25]))?.write(dir.path().join("own"))?;
    let own = Target::open(own)?;
    let found = diff(&a, &own)?;
    let kinds: Vec<_> = found.differences.iter().map(|entry| (entry.key, entry.kind)).collect();
    assert_eq!(kinds, [("bias", DiffKind::OnlyInA), ("offset", DiffKind::OnlyInB)]);
    let named = NameMap::new().rename("bias", "offset").apply(a.source())?;
    let found = diff_as(&a, &named, &own)?;
    assert!(found.equal && found.equal_tensors == 2, "{found:?}");
    Ok(())
}

#[test]
fn verification_reports_each_checkpoint_as_soon_as_it_is_done() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut checkpoint = Checkpoint::new().track("step", Counter::new(1))?.track("x", Memory::seeded(100, 1))?;
    for _ in 0..3 {
        checkpoint.save(dir.path().join("ckpt"))?;
    }
    let file = dir.path().join("ckpt-2/x.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    fs::write(dir.path().join("ckpt-3/notes.txt"), "")?;
    let mut seen = Vec::new();
    let report = inspect::verify_with([dir.path(), &dir.path().join("nowhere")], |item| {
        if let VerifyItem::Checkpoint(checkpoint) = item {
            seen.push(checkpoint.clone());
        }
    });
    assert_eq!(seen, report.checkpoints);
    let states: Vec<VerifyState> = seen.iter().map(|checkpoint| checkpoint.state).collect();
    assert_eq!(states, [VerifyState::Intact, VerifyState::Damaged, VerifyState::Intact, VerifyState::Unreadable]);
    assert!(!report.intact);
    assert_eq!(seen[1].problems[0].kind, ProblemKind::Damaged);
    assert_eq!(seen[1].problems[0].path.as_deref(), Some(&*file));
    assert_eq!(seen[2].unexpected, [dir.path().join("ckpt-3/notes.txt")]);
    assert_eq!(seen[3].problems[0].kind, ProblemKind::NotFound);
    Ok(())
}

#[test]
fn a_listing_has_all_states_and_agrees_with_the_library() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path();
    let mut checkpoint = Checkpoint::new().track("step", Counter::new(1))?;
    for _ in 0..3 {
        checkpoint.save(path.join("ckpt"))?;
    }
    fs::write(path.join("ckpt-1/manifest.json"), "not a manifest")?;
    std::os::unix::fs::symlink("ckpt-2", path.join("best"))?;
    let listing = inspect::list(path)?;
    let paths: Vec<&Path> = listing.checkpoints.iter().map(|entry| &*entry.path).collect();
    assert_eq!(paths, checkpoints(path)?);
    assert_eq!(listing.latest.as_deref(), Some("ckpt-3"));
    let others: Vec<_> = listing.others.iter().map(|other| (other.name.as_str(), other.state)).collect();
    assert_eq!(others, [("ckpt-1", OtherState::Damaged), ("best", OtherState::Link)]);
    // A directory that has only directories of checkpoints names these.
    let above = tempfile::tempdir()?;
    checkpoint.save(above.path().join("run/ckpt"))?;
    assert_eq!(inspect::list(above.path())?.below, [above.path().join("run")]);
    assert!(matches!(inspect::list(path.join("ckpt-2")), Err(Error::InvalidArgument(_))));
    Ok(())
}

/// If two runs saved the same number, no checkpoint is shown as the latest.
#[test]
fn two_latest_checkpoints_are_both_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    for name in ["one", "two"] {
        let mut checkpoint = Checkpoint::new().track("step", Counter::new(1))?;
        checkpoint.save(dir.path().join(name).join("ckpt"))?;
    }
    fs::rename(dir.path().join("two/ckpt-1"), dir.path().join("one/ckpt-2"))?;
    fs::remove_file(dir.path().join("one/checkpoint.json"))?;
    let listing = inspect::list(dir.path().join("one"))?;
    let (first, second) = listing.undecided.ok_or("one of them was chosen")?;
    let mut names = [first, second];
    names.sort();
    assert_eq!((names, listing.latest), (["ckpt-1".to_string(), "ckpt-2".to_string()], None));
    assert!(listing.checkpoints.iter().all(|entry| !entry.latest));
    assert!(matches!(Target::open(dir.path().join("one")), Err(Error::Undecided { .. })));
    Ok(())
}

/// docs/ckpt.md: keys may be added, and existing ones keep their names.
#[test]
fn documents_keep_their_keys() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "a", 1)?;
    let target = Target::open(&path)?;
    let check = |document: &serde_json::Value, keys: &str| {
        let missing: Vec<&str> = keys.split(' ').filter(|key| document.get(key).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?} are not in {document}");
    };
    let checkpoint = "path format latest_of step saved_at sequence run save_counter";
    let summary = serde_json::to_value(target.summary(None)?)?;
    check(&summary, checkpoint);
    check(&summary, "verified_by metrics components files tensors values unreadable saved_model totals");
    check(&summary["tensors"][0], "key dtype shape bytes xxh3_128 files same_as");
    check(&summary["components"][0], "name tensors values bytes files");
    let compared = serde_json::to_value(diff(&target, &target)?)?;
    check(&compared, "a b differences equal equal_tensors equal_values");
    check(&compared["a"], checkpoint);
    let verified = serde_json::to_value(inspect::verify([&path]))?;
    check(&verified["checkpoints"][0], "path state verified_by problems unexpected");
    assert_eq!(verified["checkpoints"][0]["state"], "intact");
    assert_eq!(verified["checkpoints"][0]["verified_by"], "digest");
    Ok(())
}

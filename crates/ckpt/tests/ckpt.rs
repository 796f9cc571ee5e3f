//! The tool `ckpt`, run as a user runs it, on checkpoints of tensors in plain memory; and that verifying finds every
//! change to a checkpoint's files.

#[path = "../../../tests/common/mod.rs"]
mod common;

use common::Memory;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use tch_checkpoint::format::{AssetEntry, Digest, Index, Manifest};
use tch_checkpoint::{
    Checkpoint, CheckpointManager, CheckpointReader, Counter, Dtype, Durability, Error, SaveOptions, Value,
    list_checkpoints, verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The year 2100, in seconds.
const NOW: i64 = 4_102_444_800;

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    // Ages do not change from one command to the next.
    command.env("TZ", "UTC").env("SOURCE_DATE_EPOCH", NOW.to_string()).stdin(Stdio::null());
    command
}

/// What a run of the tool gave.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Json {
        assert_eq!(self.out.lines().count(), 1, "one document on one line: {self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    /// The words of the line that starts with `start`.
    fn row(&self, start: &str) -> Vec<&str> {
        let line = self.out.lines().find(|line| line.split_whitespace().next() == Some(start));
        line.unwrap_or_else(|| panic!("no {start} in {self:?}")).split_whitespace().collect()
    }
}

fn ckpt<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    let output = command().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a command on some paths.
fn on(command: &str, paths: &[&Path]) -> Ran {
    ckpt([OsStr::new(command)].into_iter().chain(paths.iter().map(|path| path.as_os_str())))
}

/// As [`on`], for the JSON document.
fn json_on(command: &str, paths: &[&Path]) -> (Option<i32>, Json) {
    let args = [OsStr::new(command), OsStr::new("--json")];
    let ran = ckpt(args.into_iter().chain(paths.iter().map(|path| path.as_os_str())));
    (ran.code, ran.json())
}

/// A model of two components that share a tensor, a counter and a value.
struct Model {
    embedding: Memory,
    weight: Memory,
    bias: Memory,
    step: Counter,
    best: Value<f64>,
}

impl Model {
    fn new() -> Model {
        Model {
            embedding: Memory::seeded(64, 1),
            weight: Memory::f32(&[4, 3], (0..12).map(|i| i as f32)),
            bias: Memory::f32(&[3], [0.5, -0.5, 0.25]),
            step: Counter::new(0),
            best: Value::new(0.5),
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        let encoder = BTreeMap::from([("embedding", self.embedding.clone()), ("weight", self.weight.clone())]);
        let decoder = BTreeMap::from([("embedding", self.embedding.clone()), ("bias", self.bias.clone())]);
        let named = |tensors: BTreeMap<&str, Memory>| {
            tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect::<BTreeMap<String, Memory>>()
        };
        let checkpoint = Checkpoint::new().track("encoder", named(encoder)).unwrap();
        let checkpoint = checkpoint.track("decoder", named(decoder)).unwrap();
        checkpoint.track("step", &self.step).unwrap().track("best", &self.best).unwrap()
    }

    fn manager(&self, dir: &Path) -> CheckpointManager {
        CheckpointManager::builder(self.checkpoint(), dir).open().unwrap()
    }

    /// Saves at these steps; the counter, a bias and a metric depend on the step.
    fn train(&self, dir: &Path, steps: &[u64]) {
        let mut manager = self.manager(dir);
        manager.restore_or_initialize().unwrap();
        for &step in steps {
            self.step.set(step);
            *self.bias.bytes() = Memory::f32(&[3], [0.5, -0.5, step as f32 / 8.0]).bytes().clone();
            manager.save_with_metrics(step, [("loss", 1.0 / step as f64)]).unwrap();
        }
    }
}

/// A directory with one checkpoint of a model.
fn one_checkpoint() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    Model::new().train(dir.path(), &[8]);
    let path = dir.path().join("ckpt-8");
    (dir, path)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % limit
    }
}

fn files_of(checkpoint: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// A name as the crate gives it to what is no checkpoint yet, or no more.
fn marked(name: &str) -> String {
    format!("{name}-0123456789abcdef0123456789abcdef")
}

fn flipped(bytes: &[u8], bit: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    bytes
}

/// Asserts that verifying says that `file` is damaged, and nothing else.
fn assert_found(checkpoint: &Path, file: &Path, what: &str) {
    let is_it = |error: &Error| match error {
        Error::Damaged { path, .. } => path == file,
        Error::Link { path, .. } => path == file && what.contains("link"),
        _ => false,
    };
    let problems = verify_checkpoint(checkpoint).problems;
    assert!(!problems.is_empty() && problems.iter().all(is_it), "{what}: {problems:?}");
    match CheckpointReader::open(checkpoint) {
        Ok(reader) => assert!(!reader.verify().is_intact(), "{what}"),
        Err(error) => assert!(is_it(&error), "{what}: {error:?}"),
    }
}

#[test]
fn every_one_of_1000_flipped_bits_is_found() {
    let (_dir, checkpoint) = one_checkpoint();
    let files = files_of(&checkpoint);
    assert_eq!(files.len(), 3, "two components and the manifest");
    let total: u64 = files.iter().map(|(_, bytes)| 8 * bytes.len() as u64).sum();
    let mut random = Random(2026);
    let flip_and_check = |(file, bytes): &(PathBuf, Vec<u8>), bit: u64| {
        fs::write(file, flipped(bytes, bit)).unwrap();
        assert_found(&checkpoint, file, &format!("bit {bit} of {}", file.display()));
        fs::write(file, bytes).unwrap();
    };
    // Over all bits there are.
    for _ in 0..1000 {
        let mut bit = random.below(total);
        let hit = files.iter().find(|(_, bytes)| match bit.checked_sub(8 * bytes.len() as u64) {
            Some(rest) => {
                bit = rest;
                false
            }
            None => true,
        });
        flip_and_check(hit.unwrap(), bit);
    }
    // And as many in each file: the manifest is the shortest.
    for i in 0..999 {
        let file = &files[i % 3];
        flip_and_check(file, random.below(8 * file.1.len() as u64));
    }
    assert!(verify_checkpoint(&checkpoint).is_intact());
}

#[test]
fn the_tool_finds_flipped_bits_and_names_the_file() {
    let (_dir, checkpoint) = one_checkpoint();
    let files = files_of(&checkpoint);
    let mut random = Random(7);
    for i in 0..36 {
        let (file, bytes) = &files[i % 3];
        fs::write(file, flipped(bytes, random.below(8 * bytes.len() as u64))).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        if i % 2 == 0 {
            let ran = on("verify", &[&checkpoint]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            assert!(ran.out.starts_with("DAMAGED") && ran.out.contains(name), "{ran:?}");
        } else {
            let (code, document) = json_on("verify", &[&checkpoint]);
            assert_eq!((code, &document["intact"]), (Some(1), &json!(false)));
            let checked = &document["checkpoints"][0];
            assert_eq!((&checked["state"], &checked["path"]), (&json!("damaged"), &json!(checkpoint.to_str())));
            let problem = &checked["problems"][0];
            assert_eq!((&problem["kind"], &problem["path"]), (&json!("damaged"), &json!(file.to_str())));
            assert!(!problem["reason"].as_str().unwrap().is_empty());
        }
        fs::write(file, bytes).unwrap();
    }
    assert_eq!(on("verify", &[&checkpoint]).code, Some(0));
}

#[test]
fn truncated_extended_and_missing_files_are_found_and_added_ones_are_shown() {
    let (_dir, checkpoint) = one_checkpoint();
    for (file, bytes) in files_of(&checkpoint) {
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&file, &bytes[..length]).unwrap();
            assert_found(&checkpoint, &file, "truncated");
        }
        for more in [&b"\0"[..], b"\n", b" ", &[0; 4096]] {
            fs::write(&file, [&bytes, more].concat()).unwrap();
            assert_found(&checkpoint, &file, "extended");
        }
        fs::remove_file(&file).unwrap();
        let ran = on("verify", &[&checkpoint]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.out.contains("the file is missing"), "{ran:?}");
        fs::write(&file, bytes).unwrap();
    }
    let strange = OsString::from_vec(b"not unicode \xff".to_vec());
    for added in [OsStr::new("notes.txt"), OsStr::new(".hidden"), OsStr::new("x.safetensors"), &strange] {
        fs::write(checkpoint.join(added), "").unwrap();
        let ran = on("verify", &[&checkpoint]);
        assert!(ran.code == Some(0) && ran.out.starts_with("intact") && ran.out.contains("unexpected"), "{ran:?}");
        fs::remove_file(checkpoint.join(added)).unwrap();
    }
    fs::create_dir(checkpoint.join("dir")).unwrap();
    assert!(on("verify", &[&checkpoint]).out.contains("dir: unexpected"));
    fs::remove_dir(checkpoint.join("dir")).unwrap();
    // What a manager writes next to the manifest is expected.
    fs::write(checkpoint.join("mark-0123.json"), "{}").unwrap();
    let ran = on("verify", &[&checkpoint]);
    assert!(ran.code == Some(0) && !ran.out.contains("unexpected"), "{ran:?}");
}

#[test]
fn swapped_files_are_found() {
    // Two checkpoints of the same shapes: only the digests tell their files apart.
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new();
    model.train(dir.path(), &[1, 2]);
    let other = dir.path().join("ckpt-1");
    let checkpoint = dir.path().join("ckpt-2");
    let (decoder, encoder) = (checkpoint.join("decoder.safetensors"), checkpoint.join("encoder.safetensors"));
    let saved = files_of(&checkpoint);
    let restore = || saved.iter().for_each(|(file, bytes)| fs::write(file, bytes).unwrap());

    fs::copy(other.join("decoder.safetensors"), &decoder).unwrap();
    assert_found(&checkpoint, &decoder, "an older file of the same component");
    restore();

    fs::copy(other.join("manifest.json"), checkpoint.join("manifest.json")).unwrap();
    assert_found(&checkpoint, &decoder, "an older manifest");
    restore();

    fs::copy(&saved[0].0, dir.path().join("aside")).unwrap();
    fs::copy(&encoder, &decoder).unwrap();
    fs::rename(dir.path().join("aside"), &encoder).unwrap();
    let ran = on("verify", &[&checkpoint]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("decoder.safetensors: ") && ran.out.contains("encoder.safetensors: "), "both: {ran:?}");
    restore();
    assert_eq!(on("verify", &[&checkpoint]).code, Some(0));
}

#[test]
fn all_that_is_wrong_is_reported_at_once() {
    let (_dir, checkpoint) = one_checkpoint();
    fs::remove_file(checkpoint.join("decoder.safetensors")).unwrap();
    let encoder = checkpoint.join("encoder.safetensors");
    let bytes = fs::read(&encoder).unwrap();
    // The first byte is the header's, the last one that of the last tensor.
    fs::write(&encoder, flipped(&flipped(&bytes, 0), 8 * bytes.len() as u64 - 1)).unwrap();
    fs::write(checkpoint.join("notes.txt"), "").unwrap();
    let (code, document) = json_on("verify", &[&checkpoint]);
    assert_eq!(code, Some(1));
    let problems = document["checkpoints"][0]["problems"].as_array().unwrap();
    let path = |problem: &Json| Path::new(problem["path"].as_str().unwrap()).file_name().unwrap().to_owned();
    let paths: Vec<_> = problems.iter().map(path).collect();
    assert_eq!(paths, ["decoder.safetensors", "encoder.safetensors", "encoder.safetensors"]);
    let notes = checkpoint.join("notes.txt");
    assert_eq!(document["checkpoints"][0]["unexpected"], json!([notes.to_str()]));
}

#[test]
fn what_stands_in_the_place_of_a_file_is_damage() {
    let (dir, checkpoint) = one_checkpoint();
    for (file, _) in files_of(&checkpoint) {
        let aside = dir.path().join("aside");
        fs::rename(&file, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &file).unwrap();
        assert_found(&checkpoint, &file, "a link to the very file");
        assert_eq!(on("verify", &[&checkpoint]).code, Some(2), "it is not damaged, but is not read");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_found(&checkpoint, &file, "a directory");
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
    }
    assert!(verify_checkpoint(&checkpoint).is_intact());
}

#[test]
fn verify_takes_directories_and_tells_damage_from_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    Model::new().train(&root.join("a"), &[1, 2]);
    Model::new().train(&root.join("b"), &[3]);
    let ran = on("verify", &[&root.join("a"), &root.join("b")]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.out.lines().filter(|line| line.starts_with("intact")).count(), 3, "{ran:?}");
    assert!(ran.out.ends_with("\n3 checkpoints: 3 intact, 0 damaged\n"), "{ran:?}");

    // What was moved aside is no concern of the directory any more, until it is named.
    let aside = root.join(marked("a/damaged-ckpt-1"));
    fs::rename(root.join("a/ckpt-1"), &aside).unwrap();
    fs::write(aside.join("manifest.json"), "{}").unwrap();
    fs::create_dir(root.join(marked("a/.tmp-ckpt-3"))).unwrap();
    fs::create_dir(root.join(marked("a/.trash-ckpt-0"))).unwrap();
    fs::create_dir(root.join("a/plots")).unwrap();
    let (code, document) = json_on("verify", &[&root.join("a")]);
    assert_eq!((code, document["checkpoints"].as_array().unwrap().len()), (Some(0), 1));
    assert_eq!(document["skipped"].as_array().unwrap().len(), 3, "{document}");
    assert_eq!(on("verify", &[&aside]).code, Some(1));

    // A lost manifest is damage, whether there are components left or the index is all that remembers.
    fs::remove_file(root.join("b/ckpt-3/manifest.json")).unwrap();
    for path in [root.join("b"), root.join("b/ckpt-3")] {
        let ran = on("verify", &[&path]);
        assert!(ran.code == Some(1) && ran.out.contains("manifest.json: the file is missing"), "{ran:?}");
    }
    for (file, _) in files_of(&root.join("b/ckpt-3")) {
        fs::remove_file(file).unwrap();
    }
    for path in [root.join("b"), root.join("b/ckpt-3")] {
        assert_eq!(on("verify", &[&path]).code, Some(1));
    }

    // Not to have looked is worse than to have found damage.
    let empty = root.join("empty");
    fs::create_dir(&empty).unwrap();
    for nothing in [&empty, &root.join("nowhere"), &root.join("a/ckpt-2/manifest.json"), &root.join("a/plots"), root] {
        let ran = on("verify", &[&root.join("b"), nothing, &root.join("a")]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.out.contains("UNREADABLE") && ran.out.contains("3 checkpoints: 1 intact, 1 damaged, 1 unreadable"));
    }
    assert!(on("verify", &[root]).out.contains("/a and 1 more in it may"), "the hint where to look");
    assert_eq!(ckpt(["verify"]).code, Some(2));

    let newer =
        fs::read_to_string(root.join("a/ckpt-2/manifest.json")).unwrap().replace("\"version\":6", "\"version\":999");
    let body = newer.rsplit_once("\"xxh3_128\"").unwrap().0;
    let digest = tch_checkpoint::format::Digest::of(body.as_bytes());
    fs::write(root.join("a/ckpt-2/manifest.json"), format!("{body}\"xxh3_128\":\"{digest}\"}}\n")).unwrap();
    let (code, document) = json_on("verify", &[&root.join("a/ckpt-2")]);
    assert_eq!(code, Some(2));
    assert_eq!(document["checkpoints"][0]["problems"][0]["kind"], "unsupported", "{document}");
}

#[test]
fn ls_lists_by_commit_sequence_with_all_there_is_to_know() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    // By step or name the order would be another.
    Model::new().train(path, &[100, 20, 3]);
    let ran = on("ls", &[path]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let names: Vec<&str> = ran.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["NAME", "ckpt-100", "ckpt-20", "ckpt-3"]);
    let manifest = Manifest::from_bytes(&fs::read(path.join("ckpt-3/manifest.json")).unwrap()).unwrap();
    let days = (NOW - manifest.saved_at.timestamp() - 1) / 86_400;
    let size: u64 = files_of(&path.join("ckpt-3")).iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let text = |bytes: u64| format!("{:.1} KiB", bytes as f64 / 1024.0);
    let new = json_on("ls", &[path]).1["checkpoints"][2]["new_bytes"].as_u64().unwrap();
    let expected = format!("ckpt-3 3 {days}d {} {} loss=0.333333 latest", text(size), text(new));
    assert_eq!(ran.row("ckpt-3").join(" "), expected);
    assert_eq!(ran.row("ckpt-20").last(), Some(&"loss=0.05"));

    let (code, document) = json_on("ls", &[path]);
    assert_eq!(code, Some(0));
    assert_eq!((&document["latest"], &document["directory"]), (&json!("ckpt-3"), &json!(path.to_str())));
    assert_eq!(document["others"], json!([]));
    let expected = json!({
        "name": "ckpt-3", "path": path.join("ckpt-3").to_str(), "latest": true, "permanent": false, "step": 3,
        "sequence": 3, "run": manifest.run, "saved_at": manifest.saved_at, "bytes": size, "new_bytes": document["checkpoints"][2]["new_bytes"],
        "tensors": 4, "values": 2, "metrics": {"loss": 1.0 / 3.0}, "metadata": [], "provenance": null,
        "figures": manifest.figures, "non_finite": [], "unclean": false,
        "without": [], "pins": {}, "notes": {},
    });
    assert_eq!(document["checkpoints"][2], expected);
    assert_eq!(document["checkpoints"][0]["latest"], false);

    // A directory that is the current one.
    let output = command().arg("ls").current_dir(path).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), ran.out);
}

#[test]
fn ls_says_which_are_kept_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    Model::new().train(path, &[1, 2]);
    let index = path.join("checkpoint.json");
    let mut hints = Index::from_bytes(&fs::read(&index).unwrap()).unwrap();
    hints.checkpoints[0].permanent = true;
    fs::write(&index, hints.to_bytes().unwrap()).unwrap();
    assert!(on("ls", &[path]).out.contains("permanent"));
    // The index is a hint: without it all is there but that.
    fs::write(&index, "nonsense").unwrap();
    let ran = on("ls", &[path]);
    assert!(ran.out.contains("ckpt-1") && ran.out.contains("latest") && !ran.out.contains("kept"), "{ran:?}");
}

#[test]
fn ls_hides_nothing_that_is_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    Model::new().train(path, &[1, 2, 3, 4, 5]);
    let file = |name: &str| path.join(name);
    let [tmp, trash] = [".tmp-ckpt-9", ".trash-ckpt-0"].map(marked);
    let [aside_4, aside_5] = ["damaged-ckpt-4", "damaged-ckpt-5"].map(marked);
    fs::write(file("ckpt-2/encoder.safetensors"), "short").unwrap();
    fs::remove_file(file("ckpt-3/manifest.json")).unwrap();
    fs::rename(file("ckpt-4"), file(&aside_4)).unwrap();
    fs::rename(file("ckpt-5"), file(&aside_5)).unwrap();
    fs::remove_file(file(&aside_5).join("decoder.safetensors")).unwrap();
    for directory in [&tmp, &trash, "plots", ".git", ".tmp-mine", "damaged-plots"] {
        fs::create_dir(file(directory)).unwrap();
    }
    fs::write(file("notes.txt"), "").unwrap();

    let ran = on("ls", &[path]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(ran.row("ckpt-1").last(), Some(&"latest"), "{ran:?}");
    let reason = |name: &str| ran.row(name)[1..].join(" ");
    assert!(reason("ckpt-2").starts_with("damaged encoder.safetensors: it has 5 bytes, "), "{ran:?}");
    assert!(reason("ckpt-3").starts_with("damaged it has no manifest.json"), "{ran:?}");
    assert!(reason(&aside_4).contains("`ckpt verify`"), "{ran:?}");
    assert_eq!(reason(&aside_5), "moved aside decoder.safetensors: the file is missing");
    assert!(reason(&tmp).starts_with("unfinished save"), "{ran:?}");
    assert!(reason(&trash).starts_with("removed the next save"), "{ran:?}");
    for name in ["plots", ".git", ".tmp-mine", "notes.txt", ".lock", "checkpoint.json"] {
        assert!(!ran.out.contains(name), "{name} is none of ours: {ran:?}");
    }

    let (_, document) = json_on("ls", &[path]);
    let others = document["others"].as_array().unwrap();
    let states: Vec<&str> = others.iter().map(|other| other["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["damaged", "damaged", "moved_aside", "moved_aside", "unfinished_save", "removed"]);
    assert_eq!((&document["latest"], document["checkpoints"].as_array().unwrap().len()), (&json!("ckpt-1"), 1));

    let listing = list_checkpoints(path).unwrap();
    let lengths = (listing.checkpoints.len(), listing.damaged.len(), listing.moved_aside.len());
    assert_eq!(lengths, (1, 2, 2));
    assert_eq!((listing.unfinished_saves.len(), listing.removed.len()), (1, 1));
}

#[test]
fn ls_is_clear_about_empty_and_missing_directories() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let ran = on("ls", &[path]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(ran.out, format!("no valid checkpoint in {}\n", path.display()));
    assert_eq!(
        json_on("ls", &[path]).1,
        json!({"directory": path, "latest": null, "undecided": null, "best": null, "kept_by": {}, "checkpoints": [], "others": [], "below": []})
    );

    // One directory too high.
    Model::new().train(&path.join("run"), &[1]);
    assert!(on("ls", &[path]).out.contains(path.join("run").to_str().unwrap()));

    let ran = on("ls", &[&path.join("nowhere")]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.starts_with("ckpt: ") && ran.err.contains("nowhere"), "{ran:?}");
    let (code, document) = json_on("ls", &[&path.join("nowhere")]);
    assert_eq!((code, &document["error"]["kind"]), (Some(2), &json!("not_found")));
    let ran = on("ls", &[&path.join("run/ckpt-1")]);
    assert!(ran.code == Some(2) && ran.err.contains("ckpt show"), "{ran:?}");
    assert_eq!(on("ls", &[&path.join("run/ckpt-1/manifest.json")]).code, Some(2));
}

#[test]
fn show_shows_components_files_tensors_and_values() {
    let (dir, checkpoint) = one_checkpoint();
    let ran = on("show", &[&checkpoint]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(ran.out.lines().next(), checkpoint.to_str());
    let file_sizes: BTreeMap<String, u64> = files_of(&checkpoint)
        .into_iter()
        .map(|(path, bytes)| (path.file_name().unwrap().to_str().unwrap().to_string(), bytes.len() as u64))
        .collect();
    let encoder_size = format!("({:.1} KiB)", file_sizes["encoder.safetensors"] as f64 / 1024.0);
    assert!(ran.row("encoder").join(" ").ends_with(&format!("encoder.safetensors {encoder_size}")), "{ran:?}");
    assert_eq!(ran.row("encoder")[1..5], ["2", "0", "304", "B"]);
    assert_eq!(ran.row("encoder/weight"), ["encoder/weight", "F32", "[4,", "3]", "48"]);
    assert_eq!(ran.row("encoder/embedding")[4..], ["the", "same", "as", "decoder/embedding"]);
    assert_eq!(ran.out.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(), ["step", "8"]);
    assert_eq!(ran.row("sequence"), ["sequence", "1"]);
    assert_eq!(ran.row("metrics"), ["metrics", "loss=0.125"]);

    let (code, document) = json_on("show", &[&checkpoint]);
    assert_eq!(code, Some(0));
    let manifest = Manifest::from_bytes(&fs::read(checkpoint.join("manifest.json")).unwrap()).unwrap();
    for (field, expected) in [
        ("path", json!(checkpoint.to_str())),
        ("latest_of", Json::Null),
        ("step", json!(8)),
        ("save_counter", json!(1)),
        ("sequence", json!(1)),
        ("run", json!(manifest.run)),
        ("saved_at", json!(manifest.saved_at)),
        ("metrics", json!({"loss": 0.125})),
        ("values", json!({"best": 0.5, "step": 8})),
    ] {
        assert_eq!(document[field], expected, "{field}");
    }
    let total: u64 = file_sizes.values().sum();
    let totals = json!({"components": 4, "tensors": 4, "values": 2, "tensor_bytes": 316, "bytes": total});
    assert_eq!(document["totals"], totals);
    let files: BTreeMap<String, u64> = document["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["name"].as_str().unwrap().to_string(), file["bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(files, file_sizes);
    assert_eq!(
        document["tensors"][3],
        json!({
            "key": "encoder/weight", "dtype": "F32", "shape": [4, 3], "bytes": 48,
            "xxh3_128": manifest.tensors["encoder/weight"].digest.to_string(),
            "files": ["encoder.safetensors"], "same_as": null,
        })
    );
    assert_eq!(document["tensors"][2]["same_as"], "decoder/embedding");
    assert_eq!(document["components"][0]["name"], "best");

    // The directory stands for its latest.
    let ran = on("show", &[dir.path()]);
    let first = format!("{} (the latest in {})", checkpoint.display(), dir.path().display());
    assert_eq!((ran.code, ran.out.lines().next()), (Some(0), Some(first.as_str())));
    assert_eq!(json_on("show", &[dir.path()]).1["latest_of"], json!(dir.path().to_str()));
}

#[test]
fn metadata_is_shown_and_compared_and_is_no_state() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let model = Model::new();
    let mut plain = model.checkpoint();
    plain.save(dir.join("ckpt"))?;
    let mut told = model.checkpoint().metadata("hyperparameters", &json!({ "layers": 2 }))?;
    let path = told.write(dir.join("other"))?;
    let first = dir.join("ckpt-1");

    let shown = on("show", &[&path]);
    assert!(shown.out.contains("METADATA") && shown.out.contains("{\"layers\":2}"), "{}", shown.out);
    assert_eq!(json_on("show", &[&path]).1["metadata"], json!({ "hyperparameters": { "layers": 2 } }));
    let listed = on("ls", &[Path::new("--columns"), Path::new("name,metadata"), dir]);
    assert_eq!(listed.row("other"), ["other", "hyperparameters"], "{}", listed.out);
    let document = json_on("ls", &[dir]).1;
    let entries = document["checkpoints"].as_array().ok_or("no list")?;
    let entry = entries.iter().find(|entry| entry["name"] == "other").ok_or("not listed")?;
    assert_eq!(entry["metadata"], json!(["hyperparameters"]));

    let ran = on("diff", &[&first, &path]);
    assert!(ran.code == Some(0) && ran.out.contains("equal") && ran.out.contains("METADATA"), "{}", ran.out);
    let document = json_on("diff", &[&first, &path]).1;
    assert_eq!(document["equal"], json!(true));
    let expected = json!([{ "name": "hyperparameters", "a": null, "b": { "layers": 2 } }]);
    assert_eq!(document["metadata"], expected);
    Ok(())
}

#[test]
fn show_filters_by_name() {
    let (_dir, checkpoint) = one_checkpoint();
    let path = checkpoint.to_str().unwrap();
    let ran = ckpt(["show", "--filter", "*embedding", path]);
    let names: Vec<&str> = ran.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["TENSOR", "decoder/embedding", "encoder/embedding"]);
    let document = ckpt(["show", "--filter", "s*", path, "--json"]).json();
    assert_eq!((&document["values"], &document["tensors"]), (&json!({"step": 8}), &json!([])));
    assert_eq!(document["totals"]["tensors"], 4, "totals are of the whole checkpoint");
    let ran = ckpt(["show", "--filter", "nothing", path]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "no name matches \"nothing\" among 4 tensors and 2 values\n"));
}

#[test]
fn show_says_what_is_damaged() {
    let (dir, checkpoint) = one_checkpoint();
    Model::new().train(dir.path(), &[9]);
    fs::remove_file(dir.path().join("ckpt-9/encoder.safetensors")).unwrap();
    let ran = on("show", &[&dir.path().join("ckpt-9")]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("the file is missing"), "{ran:?}");
    let (code, document) = json_on("show", &[&dir.path().join("ckpt-9")]);
    assert_eq!((code, &document["error"]["kind"]), (Some(2), &json!("damaged")));

    // The latest whole one is not the latest that was saved: that has to be said.
    let ran = on("show", &[dir.path()]);
    assert!(ran.code == Some(0) && ran.out.contains("ckpt-8 (the latest in"), "{ran:?}");
    assert!(ran.err.contains("ckpt-9 was skipped: encoder.safetensors: the file is missing"), "{ran:?}");

    fs::remove_file(checkpoint.join("manifest.json")).unwrap();
    assert_eq!(on("show", &[&checkpoint]).code, Some(2));
    let ran = on("show", &[dir.path()]);
    assert!(ran.code == Some(2) && ran.err.contains("no valid checkpoint"), "{ran:?}");
    assert_eq!(on("show", &[&dir.path().join("nowhere")]).code, Some(2));
    assert_eq!(on("show", &[&dir.path().join("checkpoint.json")]).code, Some(2));
}

#[test]
fn diff_is_silent_about_everything_but_state() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    Model::new().train(&a, &[8]);
    // Another run, another number of saves, another time, other files.
    let model = Model::new();
    model.train(&b, &[1, 2, 8]);
    let ran = on("diff", &[&a, &b]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.ends_with("\nequal: 4 tensors and 2 values\n"), "{ran:?}");
    assert!(ran.out.contains("the latest in"), "{ran:?}");
    let (code, document) = json_on("diff", &[&a.join("ckpt-8"), &b]);
    assert_eq!((code, &document["equal"], &document["differences"]), (Some(0), &json!(true), &json!([])));
    assert_eq!((&document["equal_tensors"], &document["equal_values"]), (&json!(4), &json!(2)));
    assert_eq!((&document["a"]["latest_of"], &document["b"]["sequence"]), (&Json::Null, &json!(3)));

    let split =
        model.checkpoint().write_with(dir.path().join("split"), &SaveOptions::new().max_file_bytes(60)).unwrap();
    assert_eq!(on("diff", &[&a, &split]).code, Some(0));
}

#[test]
fn diff_names_everything_that_differs() -> Outcome {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, tensors: &[(&str, Memory)], values: &[(&str, Value<serde_json::Value>)]| {
        let named: BTreeMap<String, Memory> = tensors.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        let values: BTreeMap<String, Value<Json>> = values.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
        let mut checkpoint = Checkpoint::new().track("t", named)?.track("v", values)?;
        checkpoint.write(dir.path().join(name))
    };
    let value = |json: Json| Value::new(json);
    let long = |middle: &str| json!(format!("{}{middle}{}", "x".repeat(300), "y".repeat(300)));
    let a = write(
        "a",
        &[
            ("same", Memory::seeded(10, 1)),
            ("left", Memory::f32(&[], [1.0])),
            ("shape", Memory::f32(&[2, 3], [0.0; 6])),
            ("dtype", Memory::new(Dtype::I32, &[2], vec![0; 8])),
            ("both", Memory::f32(&[1], [0.0])),
            ("content", Memory::f32(&[5], [1.0, 2.0, f32::NAN, f32::NAN, 0.0])),
            ("int", Memory::new(Dtype::I64, &[2], [1i64, -5].iter().flat_map(|x| x.to_le_bytes()).collect())),
            ("bool", Memory::new(Dtype::Bool, &[3], vec![0, 1, 1])),
        ],
        &[("same", value(json!({"x": [1, 2]}))), ("zero", value(json!(0.0))), ("long", value(long("AAA")))],
    )?;
    let b = write(
        "b",
        &[
            ("same", Memory::seeded(10, 1)),
            ("right", Memory::f32(&[], [1.0])),
            ("shape", Memory::f32(&[3, 2], [0.0; 6])),
            ("dtype", Memory::f32(&[2], [0.0; 2])),
            ("both", Memory::new(Dtype::F64, &[2], vec![0; 16])),
            ("content", Memory::f32(&[5], [1.0, 2.25, f32::NAN, 3.0, -0.0])),
            ("int", Memory::new(Dtype::I64, &[2], [1i64, 5].iter().flat_map(|x| x.to_le_bytes()).collect())),
            ("bool", Memory::new(Dtype::Bool, &[3], vec![1, 1, 0])),
        ],
        &[("same", value(json!({"x": [1, 2]}))), ("zero", value(json!(-0.0))), ("long", value(long("AAB")))],
    )?;
    let (code, document) = json_on("diff", &[&a, &b]);
    assert_eq!((code, &document["equal"]), (Some(1), &json!(false)));
    let found: BTreeMap<&str, &Json> = document["differences"]
        .as_array()
        .ok_or("no differences")?
        .iter()
        .map(|difference| (difference["key"].as_str().unwrap_or_default(), difference))
        .collect();
    let kinds: BTreeMap<&str, &str> =
        found.iter().map(|(key, difference)| (*key, difference["kind"].as_str().unwrap_or_default())).collect();
    let expected = [
        ("t/both", "dtype_and_shape"),
        ("t/bool", "content"),
        ("t/content", "content"),
        ("t/dtype", "dtype"),
        ("t/int", "content"),
        ("t/left", "only_in_a"),
        ("t/right", "only_in_b"),
        ("t/shape", "shape"),
        ("v/long", "value"),
        ("v/zero", "value"),
    ];
    assert_eq!(kinds, BTreeMap::from(expected));
    assert_eq!((&document["equal_tensors"], &document["equal_values"]), (&json!(1), &json!(1)));
    assert_eq!(found["t/shape"]["a"], json!({"dtype": "F32", "shape": [2, 3]}));
    assert_eq!((&found["t/left"]["a"]["dtype"], &found["t/left"]["b"]), (&json!("F32"), &Json::Null));
    assert_eq!(found["v/zero"]["b"], json!({"value": -0.0}));
    assert_eq!(
        found["t/content"]["elements"],
        json!({
            "total": 5, "differing": 3, "largest_difference": 0.25, "not_finite": 1,
            "relative_l2": 0.25 / 5f64.sqrt(), "cosine": 5.5 / 5f64.sqrt() / 6.0625f64.sqrt(),
        })
    );
    assert_eq!(found["t/int"]["elements"]["largest_difference"], 10.0);
    assert_eq!(
        found["t/bool"]["elements"],
        json!({
            "total": 3, "differing": 2, "largest_difference": null, "not_finite": 0, "relative_l2": null, "cosine": null,
        })
    );

    let ran = on("diff", &[&a, &b]);
    assert_eq!(ran.code, Some(1));
    for line in [
        "content          t/content  3 of 5 elements, by at most 0.25, 1 of them NaN or infinite in A or B; relative L2 0.111803, cosine 0.998969",
        "only in A        t/left     F32 []",
        "shape            t/shape    F32 [2, 3] in A, F32 [3, 2] in B",
        "value            v/zero     0.0 in A, -0.0 in B",
        "10 differences; equal: 1 tensor and 1 value",
    ] {
        assert!(ran.out.lines().any(|found| found == line), "{line}\n{}", ran.out);
    }
    let long = ran.out.lines().find(|line| line.contains("v/long")).ok_or("no v/long")?;
    assert!(long.contains("AAA") && long.contains("AAB") && long.len() < 200, "the part that differs: {long}");
    Ok(())
}

#[test]
fn diff_sees_a_value_in_the_place_of_a_tensor() -> Outcome {
    let dir = tempfile::tempdir()?;
    let a = Checkpoint::new().track("x", Memory::f32(&[], [1.0]))?.write(dir.path().join("a"))?;
    let b = Checkpoint::new().track("x", Counter::new(1))?.write(dir.path().join("b"))?;
    let (code, document) = json_on("diff", &[&a, &b]);
    assert_eq!((code, &document["differences"][0]["kind"]), (Some(1), &json!("tensor_or_value")));
    assert!(on("diff", &[&a, &b]).out.contains("F32 [] in A, 1 in B"));
    Ok(())
}

#[test]
fn diff_does_not_compare_what_it_cannot_read() {
    let (dir, checkpoint) = one_checkpoint();
    Model::new().train(dir.path(), &[9]);
    for (a, b) in [(&*checkpoint, Path::new("nowhere")), (Path::new("nowhere"), &checkpoint)] {
        let ran = on("diff", &[a, b]);
        assert!(ran.code == Some(2) && ran.err.contains("nowhere"), "{ran:?}");
    }
    // The tensor that differs has to be read, and is not what was written.
    let file = dir.path().join("ckpt-9/decoder.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, flipped(&bytes, 8 * bytes.len() as u64 - 1)).unwrap();
    let ran = on("diff", &[&checkpoint, &dir.path().join("ckpt-9")]);
    assert!(ran.code == Some(2) && ran.err.contains("decoder.safetensors is damaged"), "{ran:?}");
    assert_eq!(ckpt(["diff", "one"]).code, Some(2));
}

/// Nothing that comes out of a checkpoint may command the terminal.
#[test]
fn hostile_names_are_printed_harmlessly() -> Outcome {
    const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{9b}2J\r\n\u{202e}x";
    let dir = tempfile::tempdir()?;
    let directory = dir.path().join(format!("run{HOSTILE}"));
    let step = Counter::new(1);
    let tensors = BTreeMap::from([(HOSTILE.to_string(), Memory::f32(&[2], [1.0, 2.0]))]);
    let checkpoint = Checkpoint::new().track(HOSTILE, &tensors)?.track("text", Value::new(HOSTILE.to_string()))?;
    let mut manager = CheckpointManager::builder(checkpoint.track("step", &step)?, &directory)
        .checkpoint_name(format!("ckpt{HOSTILE}"))
        .open()?;
    let first = manager.save_with_metrics(1, [(HOSTILE, 1.0)])?;
    step.set(2);
    tensors[HOSTILE].bytes()[0] = 1;
    let second = manager.save_with_metrics(2, [(HOSTILE, 2.0)])?;
    manager.close()?;
    let file = fs::read_dir(&second)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    let file = file.iter().find(|path| path.extension() == Some(OsStr::new("safetensors"))).ok_or("no file")?;
    let damaged = directory.join(format!("ckpt{HOSTILE}-3"));
    fs::create_dir(&damaged)?;
    fs::write(damaged.join("manifest.json"), "{}")?;

    let check = |ran: Ran, code: i32| {
        let harmless = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(ran.out.chars().all(harmless) && ran.err.chars().all(harmless), "{ran:?}");
        assert_eq!(ran.code, Some(code), "{ran:?}");
        ran
    };
    for json in [None, Some("--json")] {
        let run = |command: &str, paths: &[&Path]| {
            let args = [OsStr::new(command)].into_iter().chain(json.map(OsStr::new));
            ckpt(args.chain(paths.iter().map(|path| path.as_os_str())))
        };
        let ls = check(run("ls", &[&directory]), 0);
        if json.is_some() {
            assert_eq!(ls.json()["checkpoints"][0]["metrics"][HOSTILE], 1.0, "escaped, not changed");
        }
        check(run("show", &[&first]), 0);
        check(run("show", &[&directory]), 0);
        check(run("diff", &[&first, &second]), 1);
        check(run("verify", &[&directory]), 1);
        check(run("show", &[&damaged]), 2);
        check(run("show", &[&directory.join(HOSTILE)]), 2);
        let bytes = fs::read(file)?;
        fs::write(file, flipped(&bytes, 8 * bytes.len() as u64 - 1))?;
        check(run("verify", &[&second]), 1);
        fs::write(file, bytes)?;
        fs::write(second.join(HOSTILE), "")?;
        check(run("verify", &[&second]), 0);
        fs::remove_file(second.join(HOSTILE))?;
    }
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() -> Outcome {
    let dir = tempfile::tempdir()?;
    let tensors: BTreeMap<String, Memory> =
        (0..5000).map(|i| (format!("tensor-{i}"), Memory::f32(&[], [i as f32]))).collect();
    let path = Checkpoint::new().track("many", tensors)?.write(dir.path().join("many"))?;
    for args in [&["show"][..], &["show", "--json"]] {
        let mut child = command().args(args).arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut first = [0; 10];
        child.stdout.take().ok_or("no stdout")?.read_exact(&mut first)?;
        let output = child.wait_with_output()?;
        assert_eq!((output.status.code(), String::from_utf8(output.stderr)?), (Some(0), String::new()));
    }
    // A full disk is one.
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    if let Ok(full) = full {
        let output = command().arg("show").arg(&path).stdout(full).output()?;
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr)?.contains("cannot write the result"));
    }
    Ok(())
}

/// While a training keeps one checkpoint, what is being examined disappears all the time.
#[test]
fn it_works_beside_a_running_training() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new();
    // Without syncing, so that there is more to miss.
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(model.checkpoint(), dir.path()).save_options(options);
    let mut manager = builder.max_to_keep(1).open().unwrap();
    manager.save_at(0).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let training = scope.spawn(|| {
            let mut step = 0;
            while !done.load(Ordering::Relaxed) {
                step += 1;
                manager.save_at(step).unwrap();
            }
        });
        let look = || {
            for _ in 0..10 {
                for command in ["verify", "show", "ls"] {
                    let ran = on(command, &[dir.path()]);
                    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{command}: {ran:?}");
                    assert!(!ran.out.contains("no valid checkpoint"), "{command}: {ran:?}");
                }
            }
            for _ in 0..200 {
                let listing = list_checkpoints(dir.path()).unwrap();
                assert!(!listing.checkpoints.is_empty() && listing.damaged.is_empty(), "{listing:?}");
            }
        };
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
        done.store(true, Ordering::Relaxed);
        training.join().unwrap();
        looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn help_says_how_it_ends() {
    for command in ["ls", "show", "verify", "diff"] {
        for flag in ["-h", "--help"] {
            let ran = ckpt([command, flag]);
            assert_eq!(ran.code, Some(0));
            assert!(ran.out.contains("Exit codes:") && ran.out.contains("Examples:"), "{ran:?}");
        }
    }
    assert!(ckpt(["--help"]).out.contains("Exit codes:"));
    assert_eq!(ckpt(["--version"]).out, format!("ckpt {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(ckpt(["frobnicate"]).code, Some(2));
}

#[test]
fn a_saved_model_is_shown_verified_and_compared() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v2/model");
    let temp = tempfile::tempdir().unwrap();
    let model = temp.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(&golden).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let ran = on("show", &[&model]);
    assert_eq!(ran.row("forward"), ["forward", "letters:", "I64", "[?,", "?]", "logits:", "F32", "[?,", "5]"]);
    assert_eq!(ran.row("language"), ["language", "\"en\""]);
    let (code, document) = json_on("show", &[&model]);
    assert_eq!((code, &document["saved_model"]["signatures"]["forward"]["examples"]), (Some(0), &json!(2)));
    assert!(document["files"].as_array().unwrap().iter().any(|file| file["name"] == "program.pt"));
    assert_eq!(on("verify", &[&model]).code, Some(0));
    assert_eq!(on("diff", &[&model, &golden]).code, Some(0));

    // The same state with another program.
    let manifest = Manifest::from_bytes(&fs::read(model.join("manifest.json")).unwrap()).unwrap();
    let mut other = manifest.clone();
    let program = b"another program";
    let entry = AssetEntry::new(program.len() as u64, Digest::of(program));
    other.assets.insert("program.pt".to_string(), entry);
    fs::write(model.join("program.pt"), program).unwrap();
    let ran = on("verify", &[&model]);
    assert!(ran.code == Some(1) && ran.out.contains("program.pt: it has 15 bytes"), "{ran:?}");
    fs::write(model.join("manifest.json"), other.to_bytes().unwrap()).unwrap();
    assert_eq!(on("verify", &[&model]).code, Some(0));
    let ran = on("diff", &[&model, &golden]);
    assert_eq!((ran.code, &ran.row("file")[..2]), (Some(1), &["file", "program.pt"][..]));
    // A checkpoint without a program has the same state.
    let mut plain = manifest;
    plain.assets.clear();
    fs::write(model.join("manifest.json"), plain.to_bytes().unwrap()).unwrap();
    assert_eq!(on("diff", &[&model, &golden]).code, Some(0));
    let ran = on("verify", &[&model]);
    assert!(ran.code == Some(0) && ran.out.contains("program.pt: unexpected"), "{ran:?}");
}

/// Weights that a program exported next to its checkpoints do not make the directory a damaged checkpoint.
#[test]
fn exported_weights_beside_checkpoints_are_none_of_ours() -> Outcome {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    let run = root.join("run");
    Model::new().train(&run, &[1, 2]);
    fs::write(run.join("exported.safetensors"), "weights")?;
    for with_index in [true, false] {
        if !with_index {
            fs::remove_file(run.join("checkpoint.json"))?;
        }
        assert_eq!(on("ls", &[&run]).row("ckpt-2")[0], "ckpt-2");
        assert_eq!(on("verify", &[&run]).code, Some(0));
        assert!(on("show", &[&run]).out.contains("ckpt-2"));
        assert_eq!(on("diff", &[&run, &run]).code, Some(0));
    }
    // With the index alone it is an empty directory of checkpoints.
    let empty = root.join("empty");
    fs::create_dir(&empty)?;
    fs::write(empty.join("exported.safetensors"), "weights")?;
    fs::write(empty.join("checkpoint.json"), Index::default().to_bytes()?)?;
    assert!(on("ls", &[&empty]).out.contains("no valid checkpoint"));
    // Without either it is a checkpoint that lost its manifest.
    fs::remove_file(empty.join("checkpoint.json"))?;
    let ran = on("verify", &[&empty]);
    assert!(ran.code == Some(1) && ran.out.contains("manifest.json: the file is missing"), "{ran:?}");
    assert_eq!(on("show", &[&empty]).code, Some(2));
    Ok(())
}
/// The root of a volume has a directory that only root may read.
#[test]
#[cfg_attr(libtorch, ignore = "the other user may not read libtorch; it runs without libtorch")]
fn a_directory_without_rights_is_no_checkpoint() -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    Model::new().train(dir.path(), &[1, 2]);
    let lost = dir.path().join("lost+found");
    fs::create_dir(&lost)?;
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o000))?;
    if fs::read_dir(&lost).is_ok() {
        // This is root, from whom nothing is kept: then as another user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let tool = dir.path().join("tool");
        fs::copy(env!("CARGO_BIN_EXE_ckpt"), &tool)?;
        for command in ["verify", "ls"] {
            let as_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
            let output = Command::new("setpriv").args(as_nobody).arg(&tool).arg(command).arg(dir.path()).output();
            let Ok(output) = output else { return Ok(()) };
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.code() == Some(0) && !text.contains("lost+found"), "{command}: {output:?}");
        }
    } else {
        assert_eq!(on("verify", &[dir.path()]).code, Some(0));
        assert!(!on("ls", &[dir.path()]).out.contains("lost+found"));
    }
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A checkpoint that the listing tells is damaged may be the first one in which the condition holds.
#[test]
fn bisect_fails_if_a_file_has_lost_its_end() -> Outcome {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    Model::new().train(root, &[1, 2, 3]);
    let file = root.join("ckpt-2/decoder.safetensors");
    fs::File::options().write(true).open(&file)?.set_len(fs::metadata(&file)?.len() - 1)?;
    let ran = on("bisect", &[root, Path::new("metric(\"loss\") < 0.4")]);
    assert!(ran.code == Some(2) && ran.out.contains("the first: ") && ran.out.ends_with("/ckpt-3\n"), "{ran:?}");
    let path = root.join("ckpt-2");
    assert_eq!(ran.row(path.to_str().ok_or("a name")?)[1..5], ["-", "not", "read:", "decoder.safetensors:"]);
    let ran = on("bisect", &[root, Path::new("step > 3")]);
    assert!(ran.code == Some(2) && ran.out.contains("in none of 2 checkpoints; 1 could not be read"), "{ran:?}");
    Ok(())
}

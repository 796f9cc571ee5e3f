//! Sessions with the tool: the commands and what they print are in `sessions/NAME.console`, in text and in JSON.
//!
//! A line `$ ckpt …` is a command, and what follows is its standard output, then its standard error with `! ` before
//! each line, then `[exit N]` unless that is 0. JSON is printed over several lines. `UPDATE_SESSIONS=1` writes what the
//! commands print into the files: look at the difference before committing it. Every document is compared with
//! `docs/ckpt.schema.json`.

#[path = "../../../tests/common/mod.rs"]
mod common;
#[path = "sessions/pages.rs"]
mod pages;
#[path = "sessions/schema.rs"]
mod schema;
#[path = "sessions/transcript.rs"]
mod transcript;

use chrono::{DateTime, TimeDelta, Utc};
use common::Memory;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tch_checkpoint::convert::{Format, convert};
use tch_checkpoint::format::Manifest;
use tch_checkpoint::{
    Checkpoint, CheckpointManager, Counter, Durability, Provenance, SaveFigures, SaveOptions, Value, interop,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The moment at which the first checkpoint of a run was saved, as far as its manifest tells.
const START: &str = "2026-11-22T10:59:09.123456Z";

/// The moment from which ages are counted, in seconds: 2026-11-22T12:03:00Z.
const NOW: &str = "1795348980";

/// Saves a run of three checkpoints, one per second, into `dir`. Every byte is the same in every run of the tests.
fn run(dir: &Path, run: &str, shift: f32) -> Outcome {
    let named = |tensors: &[(&str, &Memory)]| -> BTreeMap<String, Memory> {
        tensors.iter().map(|(name, tensor)| (name.to_string(), (*tensor).clone())).collect()
    };
    let embedding = Memory::f32(&[8, 2], (0..16).map(|i| (i as f32 - 8.0) / 4.0));
    let weight = Memory::f32(&[4, 3], (0..12).map(|i| i as f32 + shift));
    let bias = Memory::f32(&[3], [0.0, 0.5, -0.5]);
    let count = Memory::new(tch_checkpoint::Dtype::I64, &[], 7i64.to_le_bytes().to_vec());
    let (step, rate) = (Counter::new(0), Value::new(0.5));
    let checkpoint = Checkpoint::new()
        .track("encoder", named(&[("embedding", &embedding), ("weight", &weight), ("count", &count)]))?
        .track("decoder", named(&[("embedding", &embedding), ("bias", &bias)]))?
        .track("step", &step)?
        .track("learning_rate", &rate)?
        .metadata("layers", &2)?;
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(checkpoint, dir).save_options(options).max_to_keep(None);
    let mut manager = builder.open()?;
    for (number, loss) in [(100, 0.5), (200, 0.25), (300, 0.75)] {
        step.set(number);
        let last = if number == 300 { f32::NAN } else { number as f32 / 1000.0 };
        *bias.bytes() = Memory::f32(&[3], [0.0, 0.5, last]).bytes().clone();
        manager.save_with_metrics(number, [("loss", loss)])?;
    }
    manager.close()?;
    // Times and the number of the run are those of this moment: they are replaced.
    for (second, path) in tch_checkpoint::checkpoints(dir)?.iter().enumerate() {
        let file = path.join("manifest.json");
        let mut manifest = Manifest::from_bytes(&fs::read(&file)?).map_err(|e| e.to_string())?;
        let id = run.repeat(32 / run.len());
        manifest.saved_at = START.parse::<DateTime<Utc>>()? + TimeDelta::seconds(second as i64);
        manifest.counted_from = manifest.counted_from.map(|_| manifest.saved_at);
        manifest.follows.iter_mut().for_each(|follows| follows.run = id.clone());
        manifest.run = id;
        // Of no use in most sessions; see `with_figures`.
        manifest.figures = None;
        fs::write(&file, manifest.to_bytes()?)?;
    }
    // The index is a cache of what was replaced.
    fs::remove_file(dir.join("checkpoint.json"))?;
    Ok(())
}

/// Saves two checkpoints that record where their run came from, and what the saves cost.
fn with_figures(dir: &Path) -> Outcome {
    run(dir, "00112233445566778899aabbccddeeff", 0.0)?;
    fs::remove_dir_all(dir.join("ckpt-300"))?;
    let millis = Duration::from_millis;
    let first = (millis(12), millis(480), millis(0), 8324, 0);
    let second = (millis(350), millis(815), millis(338), 4108, 4216);
    let commits = ["0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"];
    for (number, commit, (stall, total, waited, written, linked)) in
        [(100, commits[0], first), (200, commits[1], second)]
    {
        let file = dir.join(format!("ckpt-{number}/manifest.json"));
        let mut manifest = Manifest::from_bytes(&fs::read(&file)?).map_err(|e| e.to_string())?;
        let mut provenance = Provenance::new().dirty(number == 200);
        provenance.started_at = START.parse()?;
        provenance.crate_version = "0.1.0".to_string();
        (provenance.tch_version, provenance.libtorch_version) = (Some("0.26".to_string()), Some("2.13.0".to_string()));
        provenance.git_commit = Some(commit.to_string());
        manifest.metadata.insert("provenance".to_string(), serde_json::to_value(&provenance)?);
        let mut figures = SaveFigures::default();
        (figures.stall, figures.total, figures.waited) = (stall, total, waited);
        (figures.bytes_written, figures.bytes_linked) = (written, linked);
        manifest.figures = Some(figures);
        fs::write(&file, manifest.to_bytes()?)?;
    }
    Ok(())
}

/// What the sessions are about.
fn scene(dir: &Path) -> Outcome {
    run(&dir.join("run"), "0123456789abcdef", 0.0)?;
    run(&dir.join("other"), "fedcba9876543210", 0.25)?;
    with_figures(&dir.join("traced"))?;
    // As a save links what did not change.
    let encoder = |number: u32| dir.join(format!("run/ckpt-{number}/encoder.safetensors"));
    fs::remove_file(encoder(200))?;
    fs::hard_link(encoder(100), encoder(200))?;
    let newest = interop::open(dir.join("run/ckpt-200"))?;
    convert(&*newest, dir.join("model.safetensors"), Format::Safetensors)?;
    // A damaged one, half of a file, a save in progress, and what is none of ours.
    fs::create_dir(dir.join("broken"))?;
    for number in [100, 200] {
        let name = format!("ckpt-{number}");
        fs::create_dir(dir.join("broken").join(&name))?;
        for entry in fs::read_dir(dir.join("run").join(&name))? {
            let entry = entry?;
            fs::copy(entry.path(), dir.join("broken").join(&name).join(entry.file_name()))?;
        }
    }
    let file = dir.join("broken/ckpt-200/decoder.safetensors");
    let mut bytes = fs::read(&file)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes)?;
    fs::create_dir(dir.join("broken/.tmp-ckpt-300-5f2c9d01c0a94e7b8d3e6a1f4b7c2d90"))?;
    let whole = fs::read(dir.join("model.safetensors"))?;
    fs::write(dir.join("half.safetensors"), &whole[..whole.len() / 2])?;
    fs::write(dir.join("notes.txt"), "not a checkpoint\n")?;
    Ok(())
}

/// A run of the example: `pronounce --hidden 8 --steps 2000 --save-every 500 --max-to-keep 4`.
fn example(dir: &Path) -> Outcome {
    let run = dir.join("checkpoints/pronounce");
    for checkpoint in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pronounce"))? {
        let checkpoint = checkpoint?;
        fs::create_dir_all(run.join(checkpoint.file_name()))?;
        for file in fs::read_dir(checkpoint.path())? {
            let file = file?;
            fs::copy(file.path(), run.join(checkpoint.file_name()).join(file.file_name()))?;
        }
    }
    Ok(())
}

/// Splits a command line at spaces outside of single quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted, mut word) = (Vec::new(), false, None::<String>);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Runs a command, and returns what a session shows of it.
fn shown(dir: &Path, line: &str) -> String {
    let arguments = words(line.strip_prefix("ckpt ").unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    command.args(&arguments).current_dir(dir).env("TZ", "UTC").env("SOURCE_DATE_EPOCH", NOW).stdin(Stdio::null());
    let output = command.output().unwrap();
    let (mut out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if arguments.iter().any(|argument| argument == "--json") && !out.is_empty() {
        let command = arguments.iter().find(|argument| *argument != "--json").unwrap();
        out = serde_json::to_string_pretty(&schema::document(command, &out)).unwrap() + "\n";
    }
    let out: String = out.lines().map(|line| format!("{}\n", steady(line))).collect();
    let err: String = err.lines().map(|line| format!("! {line}\n")).collect();
    let end = match output.status.code() {
        Some(0) => String::new(),
        code => format!("[exit {}]\n", code.map_or("by a signal".to_string(), |code| code.to_string())),
    };
    format!("{out}{err}{end}")
}

/// Returns a line of output, with the time and the run of a checkpoint that the session itself has saved replaced.
fn steady(line: &str) -> String {
    let (name, value) = line.split_once("  ").unwrap_or((line, ""));
    let is_of_scene = ["2026-11-22", "0123456789abcdef", "fedcba9876543210", "0011223344556677"]
        .iter()
        .any(|known| value.contains(known));
    match name {
        "saved" if !is_of_scene => "saved         (now)".to_string(),
        "run" if !is_of_scene => "run           (another one)".to_string(),
        _ => line.to_string(),
    }
}

fn play(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    match name {
        "pronounce" => example(dir.path()).unwrap(),
        _ => scene(dir.path()).unwrap(),
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions").join(name).with_extension("console");
    let written = fs::read_to_string(&path).unwrap();
    let mut now = String::new();
    for line in written.lines() {
        if let Some(line) = line.strip_prefix("$ ") {
            now.push_str(&format!("$ {line}\n{}", shown(dir.path(), line)));
        }
    }
    if std::env::var_os("UPDATE_SESSIONS").is_some() {
        fs::write(&path, now).unwrap();
    } else if now != written {
        let (line, (now, written)) = (now.lines().zip(written.lines()).enumerate())
            .find(|(_, (now, written))| now != written)
            .unwrap_or((now.lines().count().min(written.lines().count()), ("", "the end")));
        panic!("sessions/{name}.console, line {}:\n  written: {written}\n  now:     {now}", line + 1);
    }
}

macro_rules! sessions {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                play(stringify!($name));
            }
        )*

        #[test]
        fn every_session_is_played() {
            let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
            let files: Vec<String> = transcript::sessions().into_iter().map(stem).collect();
            assert_eq!(files, [$(stringify!($name)),*]);
        }
    };
}

sessions! { bisect cat diff du keep ls marks pronounce repair report rewrite shell show traced verify }

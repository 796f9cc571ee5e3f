//! Compares exporting and loading a saved model with Python's `torch.jit.trace` and `save`, and `torch.jit.load`, for
//! the same model: `cargo bench --bench saved_model`. Python is `python3` or the one that `TCH_CHECKPOINT_PYTHON`
//! names; if it has no torch, only our half is measured. Every measurement is a separate process, and they take turns.
//!
//! The model: an embedding, a GRU and a linear layer, 35.5 million float32 parameters (142 MB), input
//! `[batch, length]`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tch::nn::{self, Module, RNN, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{Checkpoint, Durability, SaveOptions, SavedModel, SignatureDef, Variables};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;
const WORDS: i64 = 20_000;
const WIDTH: i64 = 512;
const HIDDEN: i64 = 1024;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.as_slice() {
        [measure, dir] => measure_one(measure, Path::new(dir)),
        _ => compare(),
    }
}

/// Runs everything in turns, and prints medians.
fn compare() -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("saved-model-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let python = std::env::var("TCH_CHECKPOINT_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_torch = Command::new(&python).env_remove("LD_LIBRARY_PATH").args(["-c", "import torch"]).output();
    let has_torch = has_torch.is_ok_and(|output| output.status.success());
    if !has_torch {
        eprintln!("{python} has no torch (TCH_CHECKPOINT_PYTHON names another): only our half is measured");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/saved_model.py");
    let ours = ["export", "export_unsynced", "load"].map(|measure| ("ours", measure));
    let theirs = ["export", "load"].map(|measure| ("python", measure));
    let all: Vec<_> = ours.into_iter().chain(theirs.into_iter().filter(|_| has_torch)).collect();
    let mut figures = vec![(vec![], vec![]); all.len()];
    for _ in 0..ROUNDS {
        for (&(who, measure), (seconds, bytes)) in all.iter().zip(&mut figures) {
            let mut command = match who {
                "ours" => Command::new(std::env::current_exe()?),
                _ => Command::new(&python),
            };
            if who == "python" {
                command.env_remove("LD_LIBRARY_PATH").arg(script);
            }
            let output = command.arg(measure).arg(&dir).output()?;
            let text = String::from_utf8(output.stdout)?;
            let (time, memory) =
                text.trim().split_once(' ').ok_or(String::from_utf8_lossy(&output.stderr).into_owned())?;
            seconds.push(time.parse::<f64>()?);
            bytes.push(memory.parse::<f64>()?);
        }
    }
    println!("{:<8}{:<18}{:>10}{:>16}", "", "", "ms", "peak extra MB");
    for ((who, measure), (seconds, bytes)) in all.iter().zip(figures) {
        println!("{who:<8}{measure:<18}{:>10.0}{:>16.0}", 1e3 * median(seconds), median(bytes) / 1e6);
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints the seconds, and the peak of resident memory above what was there before.
fn measure_one(measure: &str, dir: &Path) -> Outcome<()> {
    let (path, batch) = (dir.join("ours"), |n, length| Tensor::randint(WORDS, [n, length], (Kind::Int64, Device::Cpu)));
    let (before, took) = match measure {
        "load" => {
            // libtorch itself is loaded, and has allocated what it does at first.
            let _ = batch(4, 8) + 1;
            let (before, start) = (resident("VmRSS:")?, Instant::now());
            let model = SavedModel::load(&path, Device::Cpu)?;
            let end = start.elapsed();
            let _ = tch::no_grad(|| model.run("forward", &[&batch(3, 5)]))?;
            (before, end)
        }
        "export" | "export_unsynced" => {
            let _ = std::fs::remove_dir_all(&path);
            let vs = VarStore::new(Device::Cpu);
            let embedding = nn::embedding(vs.root() / "embedding", WORDS, WIDTH, Default::default());
            let gru = nn::gru(&(vs.root() / "gru"), WIDTH, HIDDEN, Default::default());
            let out = nn::linear(vs.root() / "out", HIDDEN, WORDS, Default::default());
            let forward = SignatureDef::new("forward", |x| vec![gru.seq(&embedding.forward(&x[0])).0.apply(&out)]);
            let forward = forward.example([batch(2, 10)]).example([batch(3, 7)]);
            let durability = if measure == "export" { Durability::PowerLoss } else { Durability::ProcessCrash };
            let mut checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?;
            let options = SaveOptions::new().durability(durability);
            let (before, start) = (resident("VmRSS:")?, Instant::now());
            let export = SavedModel::export(&path, &vs).checkpoint(&mut checkpoint).save_options(options);
            export.signature(forward).write()?;
            (before, start.elapsed())
        }
        other => return Err(format!("there is no measure {other:?}").into()),
    };
    println!("{} {}", took.as_secs_f64(), resident("VmHWM:")?.saturating_sub(before));
    Ok(())
}

/// Returns a figure of `/proc/self/status`, in bytes.
fn resident(name: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string(PathBuf::from("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such figure")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

//! One measurement of this crate on a model state of a given size, for a benchmark that compares checkpoint
//! libraries: `bench --measure save --size medium --dir DIR` prints a line of JSON with `seconds`, `bytes` and
//! `rss_extra` (the peak of resident memory above the state, in bytes).
//!
//! Measures: `save` (without sync), `save_durable`, `async_stall` (until the call returns), `async_step` (the call and
//! an update of every tensor right after it, less such an update alone), `async_total` (until it is durable),
//! `restore_warm`, `restore_cold`; all with digests. Saves are those of a manager that keeps one checkpoint and has
//! saved a few times before. Sizes: `small` 4 MB, `many` 41 MB in 10,000 tensors, `medium` 402 MB, `large` 1.6 GB.

mod state;

use state::State;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tch_checkpoint::{Background, CheckpointManager, Durability, RestoreOptions};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: bench --measure MEASURE --size small|many|medium|large --dir DIR [--threads N]
       bench --print-shapes SIZE";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let (mut measure, mut size, mut dir, mut threads) = (None, None, None, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--measure" => measure = Some(value),
            "--size" => size = Some(value),
            "--dir" => dir = Some(PathBuf::from(value)),
            "--threads" => threads = Some(value.parse()?),
            "--print-shapes" => return state::print_shapes(&value),
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let (Some(measure), Some(size), Some(dir)) = (measure, size, dir) else {
        return Err("--measure, --size and --dir are needed".into());
    };
    let folder = dir.join(&measure);
    let _ = fs::remove_dir_all(&folder);
    let state = State::new(&size)?;
    let before = resident("VmRSS:");
    let bench = Bench { state, folder, threads };
    let seconds = bench.measure(&measure)?.as_secs_f64();
    let extra = resident("VmHWM:").saturating_sub(before);
    println!(
        "{{\"measure\":{measure:?},\"seconds\":{seconds},\"bytes\":{},\"rss_extra\":{extra}}}",
        bench.state.bytes()
    );
    let _ = fs::remove_dir_all(&bench.folder);
    Ok(())
}

struct Bench {
    state: State,
    folder: PathBuf,
    threads: Option<usize>,
}

impl Bench {
    fn measure(&self, measure: &str) -> Outcome<Duration> {
        match measure {
            "save" => self.save(Durability::ProcessCrash),
            "save_durable" => self.save(Durability::PowerLoss),
            "async_stall" | "async_step" | "async_total" => self.background(measure),
            "restore_warm" => self.restore(true, true),
            "restore_cold" => self.restore(false, true),
            "restore_warm_unverified" => self.restore(true, false),
            _ => Err(format!("unknown measure {measure}").into()),
        }
    }

    fn manager(&self, durability: Durability, background: bool) -> Outcome<CheckpointManager> {
        let mut checkpoint = self.state.checkpoint()?.durability(durability);
        if let Some(threads) = self.threads {
            checkpoint = checkpoint.threads(threads);
        }
        let builder = CheckpointManager::builder(checkpoint, &self.folder).max_to_keep(1);
        Ok(if background { builder.background(Background::new()).open()? } else { builder.open()? })
    }

    fn save(&self, durability: Durability) -> Outcome<Duration> {
        let mut manager = self.manager(durability, false)?;
        for step in 1..=3 {
            self.state.update();
            manager.save_at(step)?;
        }
        self.get_ready()?;
        let began = Instant::now();
        manager.save_at(4)?;
        Ok(began.elapsed())
    }

    fn background(&self, measure: &str) -> Outcome<Duration> {
        let mut manager = self.manager(Durability::PowerLoss, true)?;
        for step in 1..=3 {
            self.state.update();
            manager.save_at(step)?;
            manager.wait()?;
        }
        let alone = (0..3).map(|_| timed(|| self.state.update())).min().unwrap_or_default();
        self.get_ready()?;
        let began = Instant::now();
        manager.save_at(4)?;
        let stall = began.elapsed();
        match measure {
            "async_stall" => return Ok(stall),
            "async_step" => {
                self.state.update();
                let both = began.elapsed();
                manager.wait()?;
                return Ok(both.saturating_sub(alone));
            }
            _ => {}
        }
        manager.wait()?;
        Ok(began.elapsed())
    }

    fn restore(&self, warm: bool, verify: bool) -> Outcome<Duration> {
        let path = self.state.checkpoint()?.write(self.folder.join("saved"))?;
        let mut checkpoint = self.state.checkpoint()?;
        let options = if verify { RestoreOptions::new() } else { RestoreOptions::new().without_verification() };
        checkpoint.restore_with(&path, &options)?.assert_consumed()?;
        if warm {
            files(&path)?
                .iter()
                .try_for_each(|file| std::io::copy(&mut fs::File::open(file)?, &mut std::io::sink()).map(drop))?;
        } else {
            files(&path)?.iter().try_for_each(|file| drop_from_cache(file))?;
        }
        self.get_ready()?;
        let began = Instant::now();
        checkpoint.restore_with(&path, &options)?;
        Ok(began.elapsed())
    }

    /// Everything written is on the device, memory that the benchmark held back is free, and the state is another one.
    fn get_ready(&self) -> Outcome<()> {
        rustix::fs::sync();
        if let Some(path) = std::env::var_os("PEERS_BALLAST") {
            let mut socket = UnixStream::connect(path)?;
            socket.write_all(b"r")?;
            socket.read_exact(&mut [0])?;
        }
        self.state.update();
        Ok(())
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn files(path: &Path) -> Outcome<Vec<PathBuf>> {
    Ok(fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

fn drop_from_cache(file: &Path) -> Outcome<()> {
    let file = fs::File::open(file)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// A figure of this process's memory, in bytes.
fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or_default() * 1024
}

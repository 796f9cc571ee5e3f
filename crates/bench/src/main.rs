//! One measurement of this crate on a model state of a given size, for a benchmark that compares checkpoint
//! libraries: `bench --measure save --size medium --dir DIR` prints a line of JSON with `seconds`, `bytes` and
//! `rss_extra` (the peak of resident memory above the state, in bytes).
//!
//! Measures: `save` (without sync), `save_durable`, `async_stall` (until the call returns), `async_step` (the call and
//! an update of every tensor right after it, less such an update alone), `async_total` (until it is durable),
//! `restore_warm`, `restore_cold`; all with digests. Saves are those of a manager that keeps one checkpoint and has
//! saved a few times before. Sizes: `small` 4 MB, `many` 41 MB in 10,000 tensors, `medium` 402 MB, `large` 1.6 GB, or
//! `TENSORSxBYTES` such as `1000x4096`.
//!
//! Beyond that: `restore_warm_one_pass` and `restore_cold_one_pass` (verified while reading, as `restore_or_initialize`
//! does), `restore_warm_unverified`, `cpu_save`, `cpu_save_durable` and `cpu_restore` (processor time of all threads),
//! `training` (mean step time without saving, saving at every 10th and at every step), `fine_tune` (bytes written by a
//! save after only the decoder has changed), `trained_stall` and `fine_tune_stall` (the time until the call of a
//! background save returns, for a `VarStore` that an Adam of this crate trains: all of it, or only the decoder), `call`
//! and `guarded_call` (of that model, a call of `save_if_due` that does not save, outside and inside of `guard`).
//!
//! `--health off|finite|statistics` sets what saves record about values.
//!
//! `bench --restore PATH` restores a file of another tool several times, for `benches/formats.py`.

mod foreign;
mod state;
mod trained;
mod training;

use state::State;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tch_checkpoint::{Background, CheckpointManager, Durability, Health, RestoreOptions, SaveOptions, Verify};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str =
    "usage: bench --measure MEASURE --size small|many|medium|large|TENSORSxBYTES --dir DIR [--threads N]
             [--health off|finite|statistics]
       bench --restore PATH [--reps N] [--unverified yes] [--threads N]
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
    let (mut foreign, mut reps, mut is_verified, mut health) = (None, 5, true, Health::default());
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--measure" => measure = Some(value),
            "--size" => size = Some(value),
            "--dir" => dir = Some(PathBuf::from(value)),
            "--threads" => threads = Some(value.parse()?),
            "--restore" => foreign = Some(PathBuf::from(value)),
            "--reps" => reps = value.parse()?,
            "--unverified" => is_verified = value != "yes",
            "--health" => health = health_level(&value)?,
            "--print-shapes" => return state::print_shapes(&value),
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    if let Some(path) = foreign {
        return foreign::Restores { path: &path, reps, is_verified, threads }.print();
    }
    let (Some(measure), Some(size), Some(dir)) = (measure, size, dir) else {
        return Err("--measure, --size and --dir are needed".into());
    };
    let directory = dir.join(&measure);
    let _ = fs::remove_dir_all(&directory);
    let trained = match measure.as_str() {
        "trained_stall" | "fine_tune_stall" => Some(trained::stall(&size, measure == "fine_tune_stall", &directory)?),
        "call" | "guarded_call" => Some(trained::call(&size, measure == "guarded_call", &directory)?),
        _ => None,
    };
    if let Some(time) = trained {
        println!("{{\"measure\":{measure:?},\"seconds\":{}}}", time.as_secs_f64());
        let _ = fs::remove_dir_all(&directory);
        return Ok(());
    }
    let state = State::new(&size)?;
    let before = resident("VmRSS:");
    let bench = Bench { state, directory, threads, health };
    let bytes = bench.state.bytes();
    match measure.as_str() {
        "training" => {
            let training::Paid { plain, every_10, every_1 } = training::training(&bench)?;
            println!(
                "{{\"measure\":{measure:?},\"plain\":{plain},\"every_10\":{every_10},\"every_1\":{every_1},\"bytes\":{bytes}}}"
            );
        }
        "fine_tune" => {
            let written = bench.fine_tune()?;
            println!("{{\"measure\":{measure:?},\"written\":{written},\"bytes\":{bytes}}}");
        }
        _ => {
            let seconds = bench.measure(&measure)?.as_secs_f64();
            let extra = resident("VmHWM:").saturating_sub(before);
            println!("{{\"measure\":{measure:?},\"seconds\":{seconds},\"bytes\":{bytes},\"rss_extra\":{extra}}}");
        }
    }
    let _ = fs::remove_dir_all(&bench.directory);
    Ok(())
}

struct Bench {
    state: State,
    directory: PathBuf,
    threads: Option<usize>,
    health: Health,
}

/// What `--health` names.
fn health_level(name: &str) -> Outcome<Health> {
    Ok(match name {
        "off" => Health::Off,
        "finite" => Health::Finite,
        "statistics" => Health::Statistics,
        _ => return Err(format!("unknown health {name}").into()),
    })
}

impl Bench {
    fn measure(&self, measure: &str) -> Outcome<Duration> {
        match measure {
            "save" => self.save(Durability::ProcessCrash, wall),
            "save_durable" => self.save(Durability::PowerLoss, wall),
            "cpu_save" => self.save(Durability::ProcessCrash, processor),
            "cpu_save_durable" => self.save(Durability::PowerLoss, processor),
            "cpu_restore" => self.restore(true, Verify::Before, processor),
            "async_stall" | "async_step" | "async_total" => self.background(measure),
            "restore_warm" => self.restore(true, Verify::Before, wall),
            "restore_cold" => self.restore(false, Verify::Before, wall),
            "restore_warm_one_pass" => self.restore(true, Verify::WhileReading, wall),
            "restore_cold_one_pass" => self.restore(false, Verify::WhileReading, wall),
            "restore_warm_unverified" => self.restore(true, Verify::Never, wall),
            _ => Err(format!("unknown measure {measure}").into()),
        }
    }

    fn manager(&self, durability: Durability, background: bool) -> Outcome<CheckpointManager> {
        let mut options = SaveOptions::new().durability(durability).health(self.health);
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        let builder = CheckpointManager::builder(self.state.checkpoint()?, &self.directory);
        let builder = builder.max_to_keep(1).save_options(options);
        Ok(if background { builder.background(Background::new()).open()? } else { builder.open()? })
    }

    fn save(&self, durability: Durability, clock: fn() -> Duration) -> Outcome<Duration> {
        let mut manager = self.manager(durability, false)?;
        for step in 1..=3 {
            self.state.update();
            manager.save_at(step)?;
        }
        self.get_ready()?;
        let began = clock();
        manager.save_at(4)?;
        Ok(clock().saturating_sub(began))
    }

    /// Returns the bytes that a save writes after only the decoder has changed.
    fn fine_tune(&self) -> Outcome<u64> {
        let mut manager = self.manager(Durability::PowerLoss, false)?;
        manager.save_at(1)?;
        self.state.update_decoder();
        let before = written()?;
        manager.save_at(2)?;
        Ok(written()? - before)
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

    fn restore(&self, warm: bool, verify: Verify, clock: fn() -> Duration) -> Outcome<Duration> {
        let path = self.state.checkpoint()?.write(self.directory.join("saved"))?;
        let mut checkpoint = self.state.checkpoint()?;
        let mut options = RestoreOptions::new().verify(verify);
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        checkpoint.restore_with(&path, &options)?.assert_consumed()?;
        if warm {
            files(&path)?
                .iter()
                .try_for_each(|file| std::io::copy(&mut fs::File::open(file)?, &mut std::io::sink()).map(drop))?;
        } else {
            files(&path)?.iter().try_for_each(|file| drop_from_cache(file))?;
        }
        self.get_ready()?;
        let began = clock();
        checkpoint.restore_with(&path, &options)?;
        Ok(clock().saturating_sub(began))
    }

    /// Waits until everything written is on the device, frees reserved memory, and changes the state.
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

fn wall() -> Duration {
    static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed()
}

/// Returns the CPU time of this process, without that of libtorch's threads, which spin for a while after their work.
fn processor() -> Duration {
    std::thread::sleep(Duration::from_millis(200));
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Returns the bytes that this process has passed to the system for writing.
fn written() -> Outcome<u64> {
    let io = fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).ok_or("no wchar in /proc/self/io")?;
    Ok(line.trim().parse()?)
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

/// Returns a figure of this process's memory, in bytes.
fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or_default() * 1024
}

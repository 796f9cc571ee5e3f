//! The commands of a checkout: `cargo xtask setup`, `cargo xtask demo`, `cargo xtask test`.
//!
//! They put a libtorch where `.cargo/config.toml` says it is and then call plain Cargo, so everything that they do can
//! also be done without them once `setup` has run.

mod fetch;
mod libtorch;
mod python;

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// An error is a text for users: what happened, where, and what to do about it.
type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "\
Usage: cargo xtask <COMMAND> [ARGS]...

  setup        find a libtorch, or fetch one (once: a download of 540 MB, 0.5 GB on disk)
  demo [ARGS]  setup, then train the example `pronounce` in checkpoints/pronounce;
               ARGS go to the example: cargo xtask demo --steps 500
  test [ARGS]  setup, then run all tests, with libtorch and without (`cargo test-core`);
               ARGS go to both runs of `cargo test`: cargo xtask test -- --nocapture
  test --python [ARGS]
               setup, then run the tests in which PyTorch, TensorFlow and Keras read what the library wrote.
               Makes their Python environments in the user's cache (once: a download of 1 GB, 3 GB on disk),
               unless TCH_CHECKPOINT_PYTHON lists interpreters

  torture ARGS the crash and fault tests at full length, without libtorch; docs/reliability.md has the
               commands: cargo xtask torture crash --seed 1 --images 10000000
  torture schedules [--count N]
               N random orders of the threads of saves in the background, for each of four programs

A LIBTORCH or LIBTORCH_USE_PYTORCH set in the environment is used as it is; nothing is fetched then.
";

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("\nerror: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[OsString]) -> Result<ExitCode> {
    let (command, args) = match args.split_first() {
        Some((command, args)) => (command.to_str().unwrap_or_default(), args),
        None => ("", args),
    };
    match command {
        "setup" => libtorch::setup(&checkout()?)?,
        "demo" => {
            libtorch::setup(&checkout()?)?;
            demo(args)?;
        }
        "test" if args.first().is_some_and(|first| first == "--python") => {
            libtorch::setup(&checkout()?)?;
            test_with_python(&args[1..])?;
        }
        "test" => {
            libtorch::setup(&checkout()?)?;
            test(args)?;
        }
        "torture" if args.first().is_some_and(|first| first == "schedules") => schedules(&args[1..])?,
        "torture" => {
            let run = ["run", "--profile", "torture", "--package", "tch-checkpoint-torture"];
            cargo(&[&list(&run), &list(&["--"]), args].concat())?;
        }
        "help" | "--help" | "-h" => print!("{USAGE}"),
        _ => {
            eprint!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// With the example's own defaults, among them `--dir checkpoints/pronounce`.
fn demo(args: &[OsString]) -> Result<()> {
    cargo(&[&list(&["run", "--release", "--example", "pronounce", "--"]), args].concat())
}

fn test(args: &[OsString]) -> Result<()> {
    cargo(&[&list(&["test"]), args].concat())?;
    cargo(&[&list(&["test-core"]), args].concat())?;
    schedules(&[])
}

/// The files of tests that start Python. A tool that is missing fails them.
fn test_with_python(args: &[OsString]) -> Result<()> {
    let pythons = python::environments(&libtorch::cache()?)?;
    eprintln!("TCH_CHECKPOINT_PYTHON={}", pythons.display());
    let tests =
        ["average", "interop_pytorch", "interop_tensorflow", "interop_keras", "saved_model", "schedules", "torch"];
    let tests: Vec<&str> = tests.iter().flat_map(|test| ["--test", test]).collect();
    let environment = [("TCH_CHECKPOINT_PYTHON", pythons), ("TCH_CHECKPOINT_PYTHON_REQUIRED", "1".into())];
    cargo_with(&[&list(&["test"]), &list(&tests), args].concat(), &environment)
}

/// Random orders of the threads of saves in the background: the unit tests of that name, with the threads, locks and
/// atomics of a scheduler.
fn schedules(args: &[OsString]) -> Result<()> {
    let count = match args {
        [] => "1000".to_string(),
        [option, count] if option == "--count" => count.to_string_lossy().into_owned(),
        _ => return Err("usage: cargo xtask torture schedules [--count N]".into()),
    };
    let (environment, profile) = (format!("env.SCHEDULES='{count}'"), "torture");
    let run =
        ["--config", "build.rustflags=['--cfg', 'shuttle']", "--config", &environment, "test", "--profile", profile];
    let tests = ["--package", "tch-checkpoint-torture", "--lib", "schedules", "--", "--nocapture"];
    cargo(&list(&[&run[..], &tests].concat()))
}

/// Runs the Cargo that runs this program, at the root of the checkout.
fn cargo(args: &[OsString]) -> Result<()> {
    cargo_with(args, &[])
}

fn cargo_with(args: &[OsString], environment: &[(&str, OsString)]) -> Result<()> {
    let shown = args.join(OsStr::new(" ")).to_string_lossy().into_owned();
    eprintln!("\n$ cargo {shown}");
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(args)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(checkout()?)
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`cargo {shown}` failed: {status}")) }
}

/// The root of the checkout: the directory above this package.
fn checkout() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .ok_or("start this program as `cargo xtask`, inside a checkout of tch-checkpoint")?;
    let package = PathBuf::from(package);
    Ok(package.parent().unwrap_or(Path::new(".")).to_path_buf())
}

fn list(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}

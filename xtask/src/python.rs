//! Python environments with the tools whose files the library reads and writes, for `cargo xtask test --python`: one
//! per tool, created once, in the user's cache.

use crate::Result;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The tools that do not share an environment.
struct Environment {
    name: &'static str,
    /// Interpreters from which to create it. The first that runs is used.
    pythons: &'static [&'static str],
    /// The arguments of `pip install`. If one list fails, the next is tried.
    installs: &'static [&'static [&'static str]],
    /// A program that succeeds in a complete environment.
    check: &'static str,
    /// Whether it is left out, with a message, if it cannot be created.
    is_optional: bool,
}

const ENVIRONMENTS: [Environment; 3] = [
    Environment {
        name: "torch-2.13",
        pythons: &["python3.12", "python3.11", "python3.13", "python3.10", "python3"],
        // The second brings the packages of CUDA, 4 GB of them: for indexes without the builds for the CPU.
        installs: &[
            &["--extra-index-url", "https://download.pytorch.org/whl/cpu", "torch==2.13.0+cpu", "numpy", "safetensors"],
            &["torch==2.13.0", "numpy", "safetensors"],
        ],
        check: "import torch, safetensors.torch, safetensors.numpy; assert torch.__version__.startswith('2.13.')",
        is_optional: false,
    },
    Environment {
        name: "torch-1.6",
        // It has no wheels for others.
        pythons: &["python3.8", "python3.7", "python3.6"],
        installs: &[
            &["--find-links", "https://download.pytorch.org/whl/torch_stable.html", "torch==1.6.0+cpu", "numpy"],
            &["torch==1.6.0", "numpy"],
        ],
        check: "import torch; assert torch.__version__.startswith('1.6.')",
        is_optional: true,
    },
    Environment {
        name: "tensorflow-2.21",
        pythons: &["python3.12", "python3.11", "python3.13", "python3.10", "python3"],
        installs: &[&["tensorflow-cpu==2.21.0", "keras==3.15.1"]],
        check: "import keras, tensorflow; assert keras.__version__ == '3.15.1'",
        is_optional: false,
    },
];

/// Returns the Pythons of all environments, in the form of `TCH_CHECKPOINT_PYTHON`: those that the variable lists
/// already, or those in the cache, which are made where they are missing.
pub fn environments(cache: &Path) -> Result<OsString> {
    if let Some(given) = env::var_os("TCH_CHECKPOINT_PYTHON") {
        return Ok(given);
    }
    let root = cache.join("python");
    fs::create_dir_all(&root).map_err(|e| format!("cannot create {}: {e}", root.display()))?;
    let lock = root.join("lock");
    let locked = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _locked = locked.map_err(|e| format!("cannot lock {}: {e}", lock.display()))?;
    let mut found = Vec::new();
    for environment in &ENVIRONMENTS {
        match environment.make(&root) {
            Ok(python) => found.push(python),
            Err(reason) if environment.is_optional => eprintln!("SKIPPED: {}: {reason}", environment.name),
            Err(reason) => return Err(format!("{}: {reason}", environment.name)),
        }
    }
    env::join_paths(found).map_err(|e| format!("the cache {} cannot be listed: {e}", root.display()))
}

impl Environment {
    /// Returns its Python.
    fn make(&self, root: &Path) -> Result<PathBuf> {
        let directory = root.join(self.name);
        let python = directory.join("bin/python");
        let ready = directory.join("ready");
        let wanted = format!("{:?}\n", self.installs);
        if fs::read_to_string(&ready).is_ok_and(|made_of| made_of == wanted) {
            return Ok(python);
        }
        let base = self.pythons.iter().find_map(|python| interpreter(python));
        let base = base.ok_or_else(|| format!("it needs one of {}, none of which runs", self.pythons.join(", ")))?;
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|e| format!("cannot remove {}: {e}", directory.display()))?;
        }
        eprintln!("making the Python environment {} (once)", directory.display());
        run(Command::new(base).args(["-m", "venv"]).arg(&directory))?;
        let install = |packages: &&[&str]| {
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            run(Command::new(&python).args(pip).args(*packages))
        };
        let mut failures = Vec::new();
        if !self.installs.iter().any(|packages| install(packages).map_err(|reason| failures.push(reason)).is_ok()) {
            return Err(failures.join("\n"));
        }
        run(Command::new(&python).args(["-c", self.check]))?;
        fs::write(&ready, wanted).map_err(|e| format!("cannot write {}: {e}", ready.display()))?;
        Ok(python)
    }
}

/// Returns the interpreter called `name` that runs: the one in `PATH`, or one that pyenv has installed and not
/// selected.
fn interpreter(name: &str) -> Option<PathBuf> {
    let home = env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".pyenv")));
    let versions = home.and_then(|home| fs::read_dir(home.join("versions")).ok()).into_iter().flatten().flatten();
    let installed = versions.map(|version| version.path().join("bin").join(name));
    iter::once(PathBuf::from(name)).chain(installed).find(|python| succeeds(Command::new(python).arg("--version")))
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|e| format!("cannot start {command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = errors.lines().rev().take(5).collect();
    Err(format!("{command:?} failed: {}\n{}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("\n")))
}

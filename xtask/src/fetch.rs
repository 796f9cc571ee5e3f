//! Assembles a libtorch for the CPU from the Python packages that contain one.
//!
//! The package `torch` is a well-known, pinned and verifiable source of libtorch that every machine with Python can
//! reach through its own configuration (mirrors, proxies, certificates), with `pip`. A process on the CPU needs only
//! the headers and three libraries out of it, and two small libraries that `libtorch_cpu.so` names; the 3 GB of CUDA
//! packages that `pip install torch` would download are not needed.
//!
//! All work is done in a temporary directory next to the final one, to which it is renamed when it is complete. An
//! interrupted run leaves only the temporary directory behind, which the next run removes before it starts over.

use crate::Result;
use crate::libtorch::OTHER_WAYS;
use std::path::{Path, PathBuf};

#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
pub fn libtorch(_cache: &Path) -> Result<PathBuf> {
    let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    Err(format!(
        "a libtorch can be fetched for Linux on x86-64 (glibc) only, and this is {system} on {machine}.\n{OTHER_WAYS}"
    ))
}

#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
pub use linux::libtorch;

#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
mod linux {
    use super::{OTHER_WAYS, Path, PathBuf, Result};
    use crate::libtorch::{VERSION, check_directories};
    use std::fs::{self, File, TryLockError};
    use std::io;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    /// One file of the package index, and what is taken from it.
    struct Wheel {
        requirement: &'static str,
        platform: &'static str,
        sha256: &'static str,
        megabytes: u64,
        /// Maps names in the wheel to names in the directory, as `unpack.py` expects them.
        takes: &'static [&'static str],
    }

    const WHEELS: [Wheel; 3] = [
        Wheel {
            requirement: "nvidia-cuda-runtime==13.0.96",
            platform: "manylinux2014_x86_64",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            megabytes: 2,
            takes: &["nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"],
        },
        Wheel {
            requirement: "nvidia-cuda-cupti==13.0.85",
            platform: "manylinux_2_25_x86_64",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            megabytes: 11,
            takes: &["nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13"],
        },
        Wheel {
            requirement: "torch==2.13.0",
            platform: "manylinux_2_28_x86_64",
            sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
            megabytes: 527,
            #[rustfmt::skip]
            takes: &[
                "torch/include/", "include/",
                "torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so",
                "torch/lib/libc10.so", "lib/libc10.so",
                "torch/lib/libgomp.so.1", "lib/libgomp.so.1",
            ],
        },
    ];

    /// The maximum, reached while pip copies the largest wheel from its download directory to the destination.
    const SPACE_NEEDED_MB: u64 = 1150;

    const UNPACK: &str = include_str!("unpack.py");

    /// The libtorch directory in the cache, made if it is not there.
    pub fn libtorch(cache: &Path) -> Result<PathBuf> {
        let dir = cache.join(format!("libtorch-{VERSION}-cpu-x86_64"));
        if is_whole(&dir) {
            return Ok(dir);
        }
        fs::create_dir_all(cache).map_err(|error| {
            format!(
                "cannot create {}: {error}\nSet XDG_CACHE_HOME to a directory that you may write to.",
                cache.display()
            )
        })?;
        let _lock = lock(cache)?;
        if is_whole(&dir) {
            return Ok(dir);
        }
        remove_leftovers(cache, &dir)?;
        check_python()?;
        check_space(cache)?;

        let partial = cache.join(format!("partial-{}", std::process::id()));
        let result = make(&partial, &dir);
        _ = fs::remove_dir_all(&partial);
        result.map(|()| dir)
    }

    fn is_whole(dir: &Path) -> bool {
        dir.join("build-version").is_file() && check_directories(dir, dir).is_ok()
    }

    /// Two processes would fetch the same files twice, so the second waits for the first. The lock ends with its
    /// process.
    fn lock(cache: &Path) -> Result<File> {
        let path = cache.join("lock");
        let error = |error| format!("cannot lock {}: {error}", path.display());
        let file = File::create(&path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("Another `cargo xtask` is fetching libtorch; waiting for it ...");
                file.lock().map_err(error)?;
            }
            Err(TryLockError::Error(cause)) => return Err(error(cause)),
        }
        Ok(file)
    }

    /// Removes the remains of interrupted runs, and a directory from which files were removed.
    fn remove_leftovers(cache: &Path, dir: &Path) -> Result<()> {
        let entries = fs::read_dir(cache).map_err(|error| format!("cannot read {}: {error}", cache.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_partial = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("partial-"));
            if is_partial || path == dir {
                eprintln!("Removing what an earlier run left: {}", path.display());
                fs::remove_dir_all(&path).map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
            }
        }
        Ok(())
    }

    fn check_python() -> Result<()> {
        let output = Command::new("python3").args(["-m", "pip", "--version"]).output().map_err(|error| {
            format!(
                "libtorch is fetched with Python's pip, and `python3` does not start: {error}\n\
                 Install Python 3 with pip (Debian, Ubuntu: apt install python3-pip; Fedora: dnf install \
                 python3-pip) and run this again.\n{OTHER_WAYS}"
            )
        })?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "libtorch is fetched with Python's pip, and `python3 -m pip` does not work: {}\n\
             Install pip (python3 -m ensurepip, or Debian, Ubuntu: apt install python3-pip; Fedora: dnf install \
             python3-pip) and run this again.\n{OTHER_WAYS}",
            reason.trim()
        ))
    }

    fn check_space(cache: &Path) -> Result<()> {
        let code = "import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free // 1000000)";
        let output = Command::new("python3").args(["-c", code]).arg(cache).output();
        let answer = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().parse::<u64>());
        match answer {
            Ok(Ok(free)) if free < SPACE_NEEDED_MB => Err(format!(
                "too little space: {} has {free} MB free, and fetching libtorch needs {SPACE_NEEDED_MB} MB there \
                 (500 MB stay).\nMake room, or set XDG_CACHE_HOME to a directory with more, and run this again.\n\
                 {OTHER_WAYS}",
                cache.display()
            )),
            // If the free space is unknown, the download will show whether it suffices.
            _ => Ok(()),
        }
    }

    /// Makes the directory inside `partial` and gives it its name.
    fn make(partial: &Path, dir: &Path) -> Result<()> {
        let new = partial.join("libtorch");
        let total: u64 = WHEELS.iter().map(|wheel| wheel.megabytes).sum();
        eprintln!("Fetching libtorch {VERSION} for the CPU: a download of {total} MB, once, into {}", dir.display());
        for (number, wheel) in WHEELS.iter().enumerate() {
            let (number, count) = (number + 1, WHEELS.len());
            eprintln!("[{number}/{count}] {} ({} MB)", wheel.requirement, wheel.megabytes);
            let file = download(wheel, partial)?;
            eprintln!("[{number}/{count}] checking its digest and unpacking it");
            unpack(wheel, &file, &new)?;
            fs::remove_file(&file).map_err(|error| format!("cannot remove {}: {error}", file.display()))?;
        }
        // Names that the linker looks for: torch-sys asks for `torch` and `gomp`.
        symlink("libtorch_cpu.so", new.join("lib/libtorch.so"))
            .and_then(|()| symlink("libgomp.so.1", new.join("lib/libgomp.so")))
            .and_then(|()| fs::write(new.join("build-version"), format!("{VERSION}\n")))
            .and_then(|()| fs::rename(&new, dir))
            .map_err(|error| format!("cannot finish {}: {error}", dir.display()))
    }

    /// Lets pip choose only the index, the proxy and the certificates.
    fn download(wheel: &Wheel, partial: &Path) -> Result<PathBuf> {
        let (downloads, temporary) = (partial.join("wheels"), partial.join("tmp"));
        let requirements = partial.join("requirements.txt");
        let line = format!("{} --hash=sha256:{}\n", wheel.requirement, wheel.sha256);
        fs::create_dir_all(&downloads)
            .and_then(|()| fs::create_dir_all(&temporary))
            .and_then(|()| fs::write(&requirements, line))
            .map_err(|error| format!("cannot write to {}: {error}", partial.display()))?;

        let status = Command::new("python3")
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
            .args(["--disable-pip-version-check", "--implementation=cp", "--python-version=3.11", "--abi=cp311"])
            .arg(format!("--platform={}", wheel.platform))
            .arg("--dest")
            .arg(&downloads)
            .arg("--requirement")
            .arg(&requirements)
            // The system's temporary directory may be small, or memory.
            .env("TMPDIR", &temporary)
            // Nothing gets installed, so it does not matter whether there is a virtual environment.
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            // In one stream with the messages of this program, to keep their order.
            .stdout(io::stderr())
            .status()
            .map_err(|error| format!("cannot start python3: {error}"))?;

        let found =
            fs::read_dir(&downloads).ok().and_then(|mut entries| entries.next()?.ok()).map(|entry| entry.path());
        match found {
            Some(file) if status.success() => Ok(file),
            _ => Err(format!(
                "pip could not download {} ({status}); its own message is above.\n\
                 Check the network, and the proxy and index that pip is configured for (python3 -m pip config list); \
                 if pip is from before 2020, upgrade it (python3 -m pip install --upgrade pip). Then run this again; \
                 it starts over.\n{OTHER_WAYS}",
                wheel.requirement
            )),
        }
    }

    fn unpack(wheel: &Wheel, file: &Path, dir: &Path) -> Result<()> {
        let output = Command::new("python3")
            .args(["-c", UNPACK])
            .arg(file)
            .arg(wheel.sha256)
            .arg(dir)
            .args(wheel.takes)
            .output()
            .map_err(|error| format!("cannot start python3: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{} cannot be used: {}\nIf its digest differs, the download was damaged or the package index holds \
             another file: run this again, and if that does not help, look at what pip is configured for \
             (python3 -m pip config list). Nothing was kept.\n{OTHER_WAYS}",
            wheel.requirement,
            reason.trim()
        ))
    }
}

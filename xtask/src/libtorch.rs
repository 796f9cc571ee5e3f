//! Determines which libtorch the build uses: the user's own, or the one that [`fetch`] assembles.
//!
//! `.cargo/config.toml` sets `LIBTORCH` to `.libtorch` in the checkout unless the environment has a `LIBTORCH` already.
//! There are therefore three ways to a libtorch, which `torch-sys` examines in this order: `LIBTORCH_USE_PYTORCH`, a
//! `LIBTORCH` from the environment, and `.libtorch`, a link into the user's cache (or to wherever the user has pointed
//! it).

use crate::{Result, fetch};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version for which `tch` 0.26 is written.
pub const VERSION: &str = "2.13.0";

/// The end of every message about an unavailable libtorch.
pub const OTHER_WAYS: &str = "\
Other ways to a libtorch, on any system that tch supports, CPU or CUDA:
  - unpack libtorch 2.13.0 anywhere and set LIBTORCH to its directory, the one with lib/ and include/;
  - or, in a Python environment with torch 2.13.0 installed, set LIBTORCH_USE_PYTORCH=1.
Where to get it: https://github.com/LaurentMazare/tch-rs/blob/main/README.md
Then run the same command again. `--no-default-features` builds the crate without libtorch.";

/// Finds the libtorch that the build will use, or fetches one.
pub fn setup(checkout: &Path) -> Result<()> {
    check_compiler()?;
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return check_pytorch();
    }
    let own = user_libtorch(checkout)?;
    let headers = env_path("LIBTORCH_INCLUDE").or_else(|| own.clone());
    let libraries = env_path("LIBTORCH_LIB").or_else(|| own.clone());
    match (headers, libraries) {
        (Some(headers), Some(libraries)) => {
            check_directories(&headers, &libraries).map_err(|problem| {
                format!(
                    "LIBTORCH, LIBTORCH_INCLUDE and LIBTORCH_LIB do not lead to a libtorch: {problem}\n\
                     Set LIBTORCH to a directory with the lib/ and include/ of libtorch {VERSION}, or unset all \
                     three, and one will be fetched."
                )
            })?;
            eprintln!("libtorch: the one in {} (set in the environment)", libraries.display());
            Ok(())
        }
        (None, None) => setup_link(checkout),
        _ => Err("one of LIBTORCH_INCLUDE and LIBTORCH_LIB is set without the other. Set both, or LIBTORCH, \
                  or none of them"
            .to_owned()),
    }
}

/// Returns `LIBTORCH`, if the user has set it; `[env]` sets it to `.libtorch` otherwise.
fn user_libtorch(checkout: &Path) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os("LIBTORCH").map(PathBuf::from) else { return Ok(None) };
    if is_link_of_checkout(&path, checkout) {
        return Ok(None);
    }
    if path.is_relative() {
        return Err(format!(
            "LIBTORCH is `{}`, which is not an absolute path, and torch-sys would look for it in a directory of its own.\n\
             Set it to an absolute path, or unset it, and a libtorch will be fetched.",
            path.display()
        ));
    }
    Ok(Some(path))
}

fn is_link_of_checkout(path: &Path, checkout: &Path) -> bool {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    path.file_name() == Some(".libtorch".as_ref()) && parent.is_some() && parent == checkout.canonicalize().ok()
}

/// Points `.libtorch` to a libtorch.
fn setup_link(checkout: &Path) -> Result<()> {
    let link = checkout.join(".libtorch");
    let cache = cache()?;
    let target = fs::read_link(&link).ok();
    let is_ours = target.as_ref().is_some_and(|target| target.starts_with(&cache));
    if link.exists() && !is_ours {
        check_directories(&link, &link)
            .map_err(|problem| format!("{problem}\nRemove {}, and run this again.", link.display()))?;
        let shown = target.unwrap_or(link);
        eprintln!("libtorch: the one in {} (where .libtorch leads)", shown.display());
        return Ok(());
    }
    let dir = fetch::libtorch(&cache)?;
    if target.as_ref() != Some(&dir) {
        make_link(&link, &dir)?;
    }
    eprintln!("libtorch: {VERSION} for the CPU, in {}", dir.display());
    Ok(())
}

/// Creates the link atomically, replacing an older or dangling one.
#[cfg(unix)]
fn make_link(link: &Path, dir: &Path) -> Result<()> {
    let new = link.with_file_name(format!(".libtorch.{}", std::process::id()));
    std::os::unix::fs::symlink(dir, &new).and_then(|()| fs::rename(&new, link)).map_err(|error| {
        _ = fs::remove_file(&new);
        format!("cannot make the link {}: {error}", link.display())
    })
}

#[cfg(not(unix))]
fn make_link(link: &Path, dir: &Path) -> Result<()> {
    Err(format!("make {} lead to {}", link.display(), dir.display()))
}

/// The directory in the user's cache that all checkouts share.
pub fn cache() -> Result<PathBuf> {
    cache_dir(env_path("XDG_CACHE_HOME"), env::home_dir())
}

/// The same, of these variables. The XDG rules say to ignore a relative path.
fn cache_dir(xdg_cache_home: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    xdg_cache_home
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home.filter(|path| path.is_absolute())?.join(".cache")))
        .map(|cache| cache.join("tch-checkpoint"))
        .ok_or_else(|| "no place for downloads: set HOME, or XDG_CACHE_HOME to a directory for caches".to_owned())
}

/// Checks that there are headers of the right libtorch in `headers/include` and libraries in `libraries/lib`.
pub fn check_directories(headers: &Path, libraries: &Path) -> Result<()> {
    let lib = libraries.join("lib");
    let names = ["libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"];
    if !names.iter().any(|name| lib.join(name).is_file()) {
        return Err(format!("there is no libtorch_cpu in {}", lib.display()));
    }
    let include = headers.join("include");
    if !include.join("torch/csrc/api/include/torch/torch.h").is_file() {
        return Err(format!("there is no torch/csrc/api/include/torch/torch.h in {}", include.display()));
    }
    match version(&include) {
        Some(version) if version != VERSION && env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none() => {
            Err(format!("the libtorch of {} is version {version}, not {VERSION}", include.display()))
        }
        _ => Ok(()),
    }
}

/// The version that the headers state.
fn version(include: &Path) -> Option<String> {
    let text = ["torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"]
        .iter()
        .filter_map(|name| fs::read_to_string(include.join(name)).ok())
        .collect::<String>();
    let part = |name: &str| {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines().map(words).find_map(|words| match words.as_slice() {
            [define, what, value] if define == "#define" && what == name => Some(value.clone()),
            _ => None,
        })
    };
    Some(format!("{}.{}.{}", part("TORCH_VERSION_MAJOR")?, part("TORCH_VERSION_MINOR")?, part("TORCH_VERSION_PATCH")?))
}

/// Queries the Python that torch-sys will query.
fn check_pytorch() -> Result<()> {
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let output = Command::new(python)
        .args(["-c", "import torch; print(torch.__version__)"])
        .output()
        .map_err(|error| format!("LIBTORCH_USE_PYTORCH is set, but `{python}` does not start: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let is_right = version.split('+').next() == Some(VERSION) || env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_some();
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        let reason = reason.trim().lines().next_back().unwrap_or("no output").to_owned();
        Err(format!(
            "LIBTORCH_USE_PYTORCH is set, but `{python}` cannot import torch: {reason}\n\
             Install torch {VERSION} there, or unset LIBTORCH_USE_PYTORCH, and a libtorch will be fetched."
        ))
    } else if !is_right {
        Err(format!(
            "LIBTORCH_USE_PYTORCH is set, but the torch of `{python}` is version {version}, not {VERSION}.\n\
             Install torch {VERSION} there, or unset LIBTORCH_USE_PYTORCH, and a libtorch will be fetched."
        ))
    } else {
        eprintln!("libtorch: {version}, of `{python}` (LIBTORCH_USE_PYTORCH is set)");
        Ok(())
    }
}

/// torch-sys compiles C++; without a compiler it fails minutes from now, and less clearly.
fn check_compiler() -> Result<()> {
    let is_choice = |name: &str| name == "CXX" || name.starts_with("CXX_") || name.ends_with("_CXX");
    if cfg!(windows) || env::vars_os().any(|(name, _)| is_choice(&name.to_string_lossy())) {
        return Ok(());
    }
    match Command::new("c++").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("no C++ compiler: `c++` does not start, and CXX is not set.\n\
                  Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: \
                  xcode-select --install), or set CXX."
            .to_owned()),
    }
}

/// An environment variable that is set and not empty.
fn env_path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_xdg_rules_put_it() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(cache_dir(path("/c"), path("/home/u")), Ok(PathBuf::from("/c/tch-checkpoint")));
        let in_home = Ok(PathBuf::from("/home/u/.cache/tch-checkpoint"));
        assert_eq!(cache_dir(None, path("/home/u")), in_home);
        assert_eq!(cache_dir(path("relative"), path("/home/u")), in_home);
        assert!(cache_dir(None, None).unwrap_err().contains("set HOME"));
    }

    #[test]
    fn only_the_link_of_the_checkout_is_the_link_of_the_checkout() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let roundabout = checkout.join("xtask/../.libtorch");
        assert!(is_link_of_checkout(&checkout.join(".libtorch"), checkout));
        assert!(is_link_of_checkout(&roundabout, checkout));
        assert!(!is_link_of_checkout(Path::new("/elsewhere/.libtorch"), checkout));
        assert!(!is_link_of_checkout(&checkout.join("libtorch"), checkout));
    }

    #[test]
    fn a_directory_is_checked_for_libraries_headers_and_version() {
        let dir = env::temp_dir().join(format!("xtask-libtorch-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let problem = || check_directories(&dir, &dir).unwrap_err();
        let header = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 12\n\n#define TORCH_VERSION_PATCH 1";

        assert!(problem().contains("no libtorch_cpu"));
        write("lib/libtorch_cpu.so", "");
        assert!(problem().contains("torch.h"));
        write("include/torch/csrc/api/include/torch/torch.h", "");
        assert_eq!(check_directories(&dir, &dir), Ok(()));
        write("include/torch/csrc/api/include/torch/version.h", header);
        assert!(problem().contains("is version 2.12.1, not 2.13.0"));
        write(
            "include/torch/csrc/api/include/torch/version.h",
            &header.replace("12", "13").replace("PATCH 1", "PATCH 0"),
        );
        assert_eq!(check_directories(&dir, &dir), Ok(()));
        fs::remove_dir_all(dir).unwrap();
    }
}

//! Links this package against libtorch: lets its programs find libtorch's libraries where they are, and compiles
//! the C++ files of `src/torch`. Without the feature `torch`, and for `doc-only`, there is nothing to do.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(all(feature = "torch", not(feature = "doc-only")))]
    if let Err(message) = torch::prepare() {
        println!("cargo::error={message}");
    }
}

#[cfg(all(feature = "torch", not(feature = "doc-only")))]
mod torch {
    use std::env;
    use std::path::{Path, PathBuf};

    const SOURCES: [&str; 12] = [
        "src/torch/tensors.cpp",
        "src/torch/pins.cpp",
        "src/torch/look.cpp",
        "src/torch/generators.cpp",
        "src/torch/gradients.cpp",
        "src/torch/steps.cpp",
        "src/torch/averages.cpp",
        "src/torch/expressions.cpp",
        "src/torch/sizes.cpp",
        "src/torch/trace.cpp",
        "src/torch/storages.cpp",
        "src/torch/program.cpp",
    ];
    const HEADERS: [&str; 4] =
        ["src/torch/expressions.hpp", "src/torch/guard.hpp", "src/torch/program.hpp", "src/torch/tensors.hpp"];

    pub fn prepare() -> Result<(), String> {
        // torch-sys says where it found libtorch, whichever way it was told (on Linux and macOS).
        let libraries = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from).ok_or(
            "torch-sys does not say where libtorch is: the feature `torch` is for Linux and macOS. \
             `--no-default-features` builds without libtorch",
        )?;
        add_rpath(&libraries);
        compile_shim(&libraries);
        tell_version(&libraries);
        Ok(())
    }

    /// torch-sys leaves programs without a path to libtorch. Cargo passes this on to the programs, tests, benches,
    /// examples and doctests of this package. The build scripts of packages that depend on it get the path only.
    fn add_rpath(libraries: &Path) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libraries.display());
        println!("cargo::metadata=LIBTORCH={}", libraries.display());
    }

    /// Where libtorch's headers are.
    fn include(libraries: &Path) -> PathBuf {
        match env::var_os("LIBTORCH_INCLUDE") {
            Some(root) => PathBuf::from(root).join("include"),
            None => libraries.with_file_name("include"),
        }
    }

    /// Tells the crate the version that the headers name.
    fn tell_version(libraries: &Path) {
        const HEADERS: [&str; 2] = ["torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"];
        let number = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name))?;
            line.trim().parse::<u32>().ok()
        };
        let version = HEADERS.iter().find_map(|header| {
            let text = std::fs::read_to_string(include(libraries).join(header)).ok()?;
            let part = |name| number(&text, name);
            let (major, minor, patch) =
                (part("TORCH_VERSION_MAJOR")?, part("TORCH_VERSION_MINOR")?, part("TORCH_VERSION_PATCH")?);
            Some(format!("{major}.{minor}.{patch}"))
        });
        if let Some(version) = version {
            println!("cargo::rustc-env=TCH_CHECKPOINT_LIBTORCH_VERSION={version}");
        }
    }

    /// With the same flags as torch-sys, so that both mean the same classes.
    fn compile_shim(libraries: &Path) {
        for file in SOURCES.iter().chain(&HEADERS) {
            println!("cargo::rerun-if-changed={file}");
        }
        println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
        println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
        let include = include(libraries);
        let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).files(SOURCES);
        build.include(include.join("torch/csrc/api/include")).include(include);
        build.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
        // libtorch's own headers are full of them.
        build.warnings(false);
        build.compile("tch_checkpoint_shim");
    }
}

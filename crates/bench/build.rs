//! Lets the programs of this package find libtorch.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(libraries) = std::env::var_os("DEP_TCH_CHECKPOINT_LIBTORCH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libraries.display());
    }
}

//! Where the whole workspace is built at once, Cargo links the programs of this package against libtorch too, which
//! they never call. This lets them find it, and tells tests that count memory or processes (`cfg(libtorch)`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(libtorch)");
    if let Some(libraries) = std::env::var_os("DEP_TCH_CHECKPOINT_LIBTORCH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libraries.display());
        println!("cargo::rustc-cfg=libtorch");
    }
}

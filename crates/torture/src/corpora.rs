//! The inputs that the fuzzers of `fuzz/` have kept.

use super::hostile::Verdict;
use std::fs;
use std::path::Path;

/// The corpora that tests replay: all of them.
const REPLAYED: [&str; 12] = [
    "archive",
    "bundle",
    "condition",
    "directory",
    "hdf5",
    "header",
    "index",
    "manifest",
    "map",
    "names",
    "pickle",
    "torch_file",
];

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Feeds all of a corpus to its target.
pub(crate) fn replayed(name: &str, mut target: impl FnMut(&[u8]) -> Verdict) {
    assert!(REPLAYED.contains(&name), "{name} is not in the list of what is replayed");
    let corpus = root().join("corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 8, "{name} has {} inputs", paths.len());
    for path in paths {
        assert_eq!(target(&fs::read(&path).unwrap()), Ok(()), "{}", path.display());
    }
}

/// A target without a corpus, and a corpus without a target, would be forgotten.
#[test]
fn every_target_has_a_corpus() {
    let names = |dir: &str| {
        let entries = fs::read_dir(root().join(dir)).unwrap();
        let stem = |entry: fs::DirEntry| entry.path().file_stem().unwrap().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries.map(|entry| stem(entry.unwrap())).collect();
        names.sort();
        names
    };
    assert_eq!(names("fuzz_targets"), REPLAYED);
    assert_eq!(names("corpus"), REPLAYED);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in REPLAYED {
        assert!(manifest.contains(&format!("\npath = \"fuzz_targets/{name}.rs\"\n")), "{name} is not built");
    }
}

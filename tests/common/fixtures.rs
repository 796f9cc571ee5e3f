//! Files that other tools wrote, each beside what is in it: those of the repository, and those in the directory that the
//! environment variable `FIXTURES` names.
#![allow(dead_code, reason = "each test uses a part")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// All files below `tests/fixtures/KIND` and `$FIXTURES/KIND` (or `$FIXTURES` itself) whose name ends in `suffix`.
pub fn find(kind: &str, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind), suffix, &mut found);
    assert!(!found.is_empty(), "the repository has no {suffix} of {kind}");
    if let Some(more) = std::env::var_os("FIXTURES").map(PathBuf::from) {
        let below = more.join(kind);
        walk(if below.is_dir() { &below } else { &more }, suffix, &mut found);
    }
    found
}

fn walk(directory: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, suffix, found);
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The path without `suffix`.
pub fn without(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(path.to_str().unwrap().strip_suffix(suffix).unwrap())
}

pub fn shape(expected: &Value) -> Vec<u64> {
    expected["shape"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap()).collect()
}

#[allow(clippy::many_single_char_names, reason = "the names of FIPS 180-4")]
/// SHA-256 in hexadecimal digits, by which the fixtures say what is in them.
pub fn sha256(bytes: &[u8]) -> String {
    let mut state: [u32; 8] =
        [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
    let primes = (2u64..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    // The fractions of the primes' cube roots, exactly: the cube root of p * 2^96 by bisection.
    let root = |p: u64| {
        let (mut low, mut high) = (0u128, 1u128 << 36);
        while high - low > 1 {
            let middle = u128::midpoint(low, high);
            if middle * middle * middle <= u128::from(p) << 96 { low = middle } else { high = middle }
        }
        low as u32
    };
    let constants: Vec<u32> = primes.take(64).map(root).collect();
    let mut message = bytes.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend((bytes.len() as u64 * 8).to_be_bytes());
    for block in message.chunks(64) {
        let mut w: Vec<u32> = block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
        for i in 16..64 {
            let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
            let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
        for i in 0..64 {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(constants[i]).wrapping_add(w[i]);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *word = word.wrapping_add(add);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

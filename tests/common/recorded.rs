//! Results of PyTorch, recorded by `tests/fixtures/averages/record.py`.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};

/// The largest difference of weights below 4 that another kernel explains, such as one without fused multiplication:
/// some roundings.
pub const LIMIT: f32 = 2e-6;

pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/averages")
}

pub fn table(directory: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(directory.join(format!("{name}.f32"))).unwrap();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// The numbers of record.py.
pub fn values(update: usize, count: usize, first: usize) -> Vec<f32> {
    let number = |i: usize| ((update * 7919 + i * 104_729) % 1000) as f64 / 1000.0 * 4.0 - 2.0;
    (first..first + count).map(|i| number(i) as f32).collect()
}

/// Returns the largest difference, or infinity for tables of other lengths.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest =
        found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0f32, |a, b| if b <= a { a } else { b });
    if found.len() == expected.len() { largest } else { f32::INFINITY }
}

//! The parts of a save and a restore, each alone: `cargo bench --no-default-features --features torture`.

use chrono::Utc;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tch_checkpoint::format::safetensors::{layout, parse_header};
use tch_checkpoint::format::{Digest, FileEntry, HeaderEntry, Manifest, Piece, TensorRecord};
use tch_checkpoint::torture::micro::{Decision, Objects};
use tch_checkpoint::{Dtype, TensorSpec};

const TENSORS: [usize; 4] = [10, 1_000, 10_000, 100_000];

fn main() {
    divan::main();
}

#[divan::bench(args = [64, 4 << 10, 512 << 10, 64 << 20])]
fn digest(bencher: Bencher<'_, '_>, bytes: usize) {
    let data = vec![7_u8; bytes];
    bencher.counter(BytesCount::new(bytes)).bench_local(|| Digest::of(black_box(&data)));
}

#[divan::bench(args = TENSORS)]
fn plan(bencher: Bencher<'_, '_>, tensors: usize) {
    let objects = Objects::new(tensors);
    bencher.counter(ItemsCount::new(tensors)).bench_local(|| objects.plan());
}

fn specs(tensors: usize) -> Vec<(String, TensorSpec)> {
    (0..tensors).map(|i| (format!("layer{i}.weight"), TensorSpec::new(Dtype::F32, [16, 16]))).collect()
}

#[divan::bench(args = TENSORS)]
fn header_write(bencher: Bencher<'_, '_>, tensors: usize) {
    let bencher = bencher.counter(ItemsCount::new(tensors));
    bencher.with_inputs(|| specs(tensors)).bench_local_values(layout);
}

#[divan::bench(args = TENSORS)]
fn header_read(bencher: Bencher<'_, '_>, tensors: usize) {
    let Ok(layout) = layout(specs(tensors)) else { return };
    let bytes = (tensors * 1024 + layout.header.len()) as u64;
    bencher.counter(ItemsCount::new(tensors)).bench_local(|| parse_header(black_box(&layout.header), bytes));
}

fn manifest(tensors: usize) -> Manifest {
    let mut manifest = Manifest::new(1, "0".repeat(32), Utc::now());
    let file = "encoder.safetensors".to_string();
    let digest = Digest::of(b"");
    let header = HeaderEntry { bytes: 4096, digest };
    manifest.files.insert(file.clone(), FileEntry { bytes: 4096 + 1024 * tensors as u64, header });
    for i in 0..tensors {
        let begin = 4096 + 1024 * i as u64;
        let piece =
            Piece { file: file.clone(), name: format!("layer{i}.weight"), begin, end: begin + 1024, slice: None };
        let spec = TensorSpec::new(Dtype::F32, [16, 16]);
        manifest.tensors.insert(
            format!("encoder/layer{i}.weight"),
            TensorRecord { spec, digest, pieces: vec![piece], requires_grad: None },
        );
    }
    manifest
}

#[divan::bench(args = TENSORS)]
fn manifest_write(bencher: Bencher<'_, '_>, tensors: usize) {
    let manifest = manifest(tensors);
    bencher.counter(ItemsCount::new(tensors)).bench_local(|| manifest.to_bytes());
}

#[divan::bench(args = TENSORS)]
fn manifest_read(bencher: Bencher<'_, '_>, tensors: usize) {
    let Ok(bytes) = manifest(tensors).to_bytes() else { return };
    bencher.counter(ItemsCount::new(tensors)).bench_local(|| Manifest::from_bytes(black_box(&bytes)));
}

#[divan::bench(args = [10, 1_000, 100_000])]
fn retention(bencher: Bencher<'_, '_>, checkpoints: i64) {
    let decision = Decision::new(checkpoints);
    bencher.counter(ItemsCount::new(checkpoints as usize)).bench_local(|| decision.decide());
}

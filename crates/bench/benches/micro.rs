//! The parts of a save and a restore, each alone: `cargo bench -p tch-checkpoint-bench`.

use chrono::{DateTime, TimeDelta, Utc};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tch_checkpoint::format::safetensors::{layout, parse_header};
use tch_checkpoint::format::{Digest, FileEntry, HeaderEntry, Manifest, Piece, TensorRecord};
use tch_checkpoint::internal::{planned_bytes, removed};
use tch_checkpoint::{Dtype, Node, TensorBytes, TensorLeaf, TensorSpec, TensorTarget};

const TENSORS: [usize; 4] = [10, 1_000, 10_000, 100_000];

fn main() {
    divan::main();
}

#[divan::bench(args = [64, 4 << 10, 512 << 10, 64 << 20])]
fn digest(bencher: Bencher<'_, '_>, bytes: usize) {
    let data = vec![7_u8; bytes];
    bencher.counter(BytesCount::new(bytes)).bench_local(|| Digest::of(black_box(&data)));
}

/// A tensor that is only planned.
struct Small;

impl TensorLeaf for Small {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        Ok(TensorSpec::new(Dtype::U8, [8]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        Ok(Box::new(vec![0; 8]))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        Err("it is only planned".into())
    }
}

#[divan::bench(args = TENSORS)]
fn plan(bencher: Bencher<'_, '_>, tensors: usize) {
    let tensor = |i: usize| (format!("layer{i}.weight"), Node::tensor(Small));
    let objects = [("encoder".to_string(), Node::group((0..tensors).map(tensor)))];
    bencher.counter(ItemsCount::new(tensors)).bench_local(|| planned_bytes(&objects));
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
    let header = HeaderEntry::new(4096, digest);
    manifest.files.insert(file.clone(), FileEntry::new(4096 + 1024 * tensors as u64, header));
    for i in 0..tensors {
        let begin = 4096 + 1024 * i as u64;
        let piece = Piece::new(file.clone(), format!("layer{i}.weight"), begin..begin + 1024);
        let spec = TensorSpec::new(Dtype::F32, [16, 16]);
        manifest.tensors.insert(format!("encoder/layer{i}.weight"), TensorRecord::new(spec, digest, vec![piece]));
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
    let checkpoint = |i| (format!("ckpt-{i}"), DateTime::UNIX_EPOCH + TimeDelta::minutes(10 * i));
    let all: Vec<_> = (0..checkpoints).map(checkpoint).collect();
    bencher.counter(ItemsCount::new(all.len())).bench_local(|| removed(&all));
}

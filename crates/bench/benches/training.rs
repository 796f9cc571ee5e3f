//! The per-step operations of a training loop besides training: averages of the weights, schedules, the order of the
//! data. `cargo bench -p tch-checkpoint-bench --bench training`.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use tch::nn::{Init, VarStore};
use tch::{Device, Tensor};
use tch_checkpoint::{Batches, Ema, OneCycle, Schedule, Shuffle};

fn main() {
    divan::main();
}

/// 513 variables, 402 MB together, as the state of docs/performance.md.
fn variables() -> (VarStore, Vec<Tensor>) {
    let vs = VarStore::new(Device::Cpu);
    let root = vs.root();
    let variables: Vec<Tensor> =
        (0..513).map(|i| root.var(&format!("w{i}"), &[400, 490], Init::Uniform { lo: -1.0, up: 1.0 })).collect();
    (vs, variables)
}

const BYTES: usize = 513 * 400 * 490 * 4;

#[divan::bench(sample_count = 30, sample_size = 1)]
fn ema_update(bencher: Bencher<'_, '_>) {
    let (vs, _variables) = variables();
    let Ok(mut ema) = Ema::new(&vs, 0.999) else { return };
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| ema.update());
}

/// The limit with which the update is compared.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn add_out_of_place(bencher: Bencher<'_, '_>) {
    let (_vs, variables) = variables();
    let others: Vec<Tensor> = variables.iter().map(Tensor::ones_like).collect();
    let mut out: Vec<Tensor> = variables.iter().map(Tensor::zeros_like).collect();
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        tch::no_grad(|| {
            for ((sum, a), b) in out.iter_mut().zip(&variables).zip(&others) {
                let _ = a.add_out(sum, b);
            }
        });
    });
}

#[divan::bench(sample_count = 30, sample_size = 1)]
fn swap_in_and_out(bencher: Bencher<'_, '_>) {
    let (vs, _variables) = variables();
    let Ok(mut ema) = Ema::new(&vs, 0.999) else { return };
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| ema.with_averaged(|| ()));
}

fn schedules() -> Vec<Schedule> {
    vec![
        Schedule::exponential(0.1, 0.999),
        Schedule::cosine(0.1, 0.0, 100_000).warm_up(1000, 0.0),
        Schedule::cosine_restarts(0.1, 0.0, 10, 2),
        Schedule::multi_step(0.1, 0.5, (0..100).map(|n| n * 1000)),
        OneCycle::new(100_000).rate(),
    ]
}

#[divan::bench(args = [0, 1, 2, 3, 4])]
fn schedule(bencher: Bencher<'_, '_>, which: usize) {
    let schedule = schedules().swap_remove(which);
    let mut step = 0;
    bencher.bench_local(|| {
        step = (step + 7919) % 100_000;
        schedule.at(black_box(step))
    });
}

#[divan::bench(args = [10, 65, 1_000_000, 1_000_000_000])]
fn shuffle(bencher: Bencher<'_, '_>, items: usize) {
    let order = Shuffle::new(items, 7).epoch(3);
    let mut place = 0;
    bencher.bench_local(|| {
        place = (place + 1) % items;
        order.get(black_box(place))
    });
}

/// A batch of 64: what a step pays for the order of the data.
#[divan::bench]
fn batch_of_64(bencher: Bencher<'_, '_>) {
    let Ok(batches) = Batches::new(1_000_000_000, 64) else { return };
    let mut batches = batches.shuffle(7);
    bencher.bench_local(|| batches.next());
}

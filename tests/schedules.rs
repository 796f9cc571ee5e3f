//! Schedules against PyTorch's schedulers: 1,001 learning rates each, recorded by `tests/fixtures/schedules/record.py`.

#[path = "common/python.rs"]
mod python;

use std::path::{Path, PathBuf};
use tch_checkpoint::{Checkpoint, Goal, OneCycle, ReduceOnPlateau, Schedule};

const STEPS: usize = 1001;

/// The largest relative difference that the arithmetic explains: PyTorch multiplies the rate of the step before, which
/// adds up a rounding per step.
const LIMIT: f64 = 1e-13;

fn tables() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedules")
}

fn table(directory: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(directory.join(format!("{name}.f64"))).unwrap();
    let values: Vec<f64> = bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(values.len(), STEPS, "{name}");
    values
}

/// The largest relative difference, and the step it is at.
fn difference(values: &[f64], expected: &[f64]) -> (f64, usize) {
    let relative = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() / a.abs().max(b.abs()) };
    let all = values.iter().zip(expected).map(relative).enumerate();
    all.fold((0.0, 0), |worst, (step, one)| if one > worst.0 || one.is_nan() { (one, step) } else { worst })
}

fn schedules() -> Vec<(&'static str, Schedule)> {
    let cycle = OneCycle { max: 0.4, ..OneCycle::new(1002) };
    vec![
        ("constant", Schedule::constant(0.1)),
        ("linear", Schedule::linear(0.025, 0.075, 600)),
        ("step", Schedule::step(0.1, 0.7, 90)),
        ("multi_step", Schedule::multi_step(0.1, 0.3, [900, 400, 100, 400])),
        ("exponential", Schedule::exponential(0.1, 0.997)),
        ("polynomial", Schedule::polynomial(0.1, 0.0, 1.7, 800)),
        ("cosine", Schedule::cosine(0.1, 0.001, 1000)),
        ("cosine_restarts", Schedule::cosine_restarts(0.1, 0.001, 50, 2)),
        ("cosine_restarts_equal", Schedule::cosine_restarts(0.1, 0.001, 70, 1)),
        ("one_cycle", cycle.rate()),
        ("one_cycle_linear", OneCycle { rise: 0.2, linear: true, three_phases: true, ..cycle }.rate()),
        ("one_cycle_momentum", cycle.momentum(0.85, 0.95)),
        ("noam", Schedule::noam(512, 200)),
        ("warm_up_cosine", Schedule::cosine(0.1, 0.001, 900).warm_up(100, 0.01)),
        (
            "sequence",
            Schedule::constant(0.05)
                .then(200, Schedule::exponential(0.1, 0.99))
                .then(500, Schedule::polynomial(0.1, 0.0, 2.0, 400)),
        ),
    ]
}

/// As in record.py.
fn metric(step: usize) -> f64 {
    1.0 / (1 + step / 100) as f64 + (step * 7919 % 1000) as f64 / 1000.0 * 0.01
}

fn plateaus() -> [(&'static str, ReduceOnPlateau, f64); 2] {
    let lowest = ReduceOnPlateau::new(0.1, Goal::Minimize);
    let highest = ReduceOnPlateau::new(0.1, Goal::Maximize).factor(0.5).patience(20).absolute_threshold(0.02);
    [("plateau", lowest, 1.0), ("plateau_max", highest.cooldown(15).min_lr(0.001), -1.0)]
}

#[test]
fn the_values_are_those_of_pytorch() {
    let mut worst = 0.0f64;
    for (name, schedule) in schedules() {
        let values: Vec<f64> = (0..STEPS as u64).map(|step| schedule.at(step)).collect();
        let (relative, step) = difference(&values, &table(&tables(), name));
        println!("{name}: the largest relative difference is {relative:.1e}, at step {step}");
        assert!(relative < LIMIT, "{name}: {relative:e} at step {step}");
        worst = worst.max(relative);
    }
    println!("of all schedules: {worst:.1e}");
}

#[test]
fn plateaus_are_those_of_pytorch_also_when_resumed() {
    let dir = tempfile::tempdir().unwrap();
    for (name, whole, sign) in plateaus() {
        let expected = table(&tables(), name);
        let mut resumed = whole.clone();
        for (step, expected) in expected.iter().enumerate() {
            // Every 37 steps a new process continues from a checkpoint.
            if step % 37 == 0 {
                let path = dir.path().join(format!("{name}-{step}"));
                Checkpoint::new().track("plateau", &resumed).unwrap().write(&path).unwrap();
                resumed = plateaus().into_iter().find(|one| one.0 == name).unwrap().1;
                let mut checkpoint = Checkpoint::new().track("plateau", &resumed).unwrap();
                checkpoint.restore(path).unwrap().assert_consumed().unwrap();
            }
            // The same multiplications in the same order: the same bits.
            assert_eq!(resumed.lr().to_bits(), expected.to_bits(), "{name} at step {step}");
            resumed.observe(metric(step) * sign);
        }
        assert!(resumed.lr() < 0.01 && (resumed.scale() - resumed.lr() / 0.1).abs() < 1e-12);
    }
}

/// The tables are what PyTorch computes: records them again where PyTorch is installed.
#[test]
fn the_tables_can_be_recorded_again() {
    let Some(python) = python::python("torch.optim") else { return };
    let dir = tempfile::tempdir().unwrap();
    python::output(python::command(python).arg(tables().join("record.py")).arg(dir.path()));
    let names = schedules().into_iter().map(|(name, _)| name).chain(["plateau", "plateau_max"]);
    for name in names {
        let (relative, step) = difference(&table(dir.path(), name), &table(&tables(), name));
        assert!(relative < LIMIT, "{name}: {relative:e} at step {step}");
    }
}

//! The promise of the README: a training that is killed at random moments and started again ends with the same bits as
//! one that is not. The real example, real processes, `kill -9`.

#[path = "common/example.rs"]
mod example;

use example::example;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tch_checkpoint::{CheckpointReader, latest_checkpoint};

const STEPS: u64 = 600;
const KILLS: usize = 20;

fn start(dir: &Path, log: &Path) -> Child {
    let mut command = Command::new(example("pronounce"));
    command.args(["--hidden", "16", "--batch", "8", "--seed", "3", "--save-every", "3", "--max-to-keep", "2"]);
    // Evaluations this close together are noisy, but their count is part of the state.
    command.args(["--patience", "1000"]);
    command.args(["--steps", &STEPS.to_string()]).arg("--dir").arg(dir).arg("--loss-log").arg(log);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Steps and losses as logged; the last line may have been cut off by a kill.
fn losses(log: &Path) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let parse = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((line["step"].as_u64()?, line["loss"].as_f64()?.to_bits()))
    };
    text.lines().filter_map(parse).collect()
}

/// Numbers that look random, the same in every run of this test.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Kills the process once it has logged `steps` more steps and `pause` has passed; false if it ended before.
fn kill_after(child: &mut Child, log: &Path, steps: usize, pause: Duration) -> bool {
    let (before, began) = (losses(log).len(), Instant::now());
    while losses(log).len() < before + steps {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "it ended with {status}: {}", error_text(child));
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "it does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(pause);
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

fn error_text(child: &mut Child) -> String {
    let mut text = String::new();
    let _ = child.stderr.as_mut().map(|stderr| std::io::Read::read_to_string(stderr, &mut text));
    text
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_in_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);

    let mut whole = start(&path("whole"), &path("whole.jsonl"));
    let status = whole.wait().unwrap();
    assert!(status.success(), "{}", error_text(&mut whole));

    let mut random = Random(20_261_122);
    let mut kills = 0;
    loop {
        let mut child = start(&path("killed"), &path("killed.jsonl"));
        if kills == KILLS {
            assert!(child.wait().unwrap().success(), "{}", error_text(&mut child));
            break;
        }
        let (steps, pause) = (4 + random.below(8) as usize, Duration::from_millis(random.below(25)));
        match kill_after(&mut child, &path("killed.jsonl"), steps, pause) {
            true => kills += 1,
            false => break,
        }
    }
    assert!(kills >= KILLS, "only {kills} kills before the end: more steps are needed");

    // Each step has one loss, in both logs and however often it was logged.
    let whole: BTreeMap<u64, u64> = losses(&path("whole.jsonl")).into_iter().collect();
    assert_eq!(whole.len() as u64, STEPS);
    let killed = losses(&path("killed.jsonl"));
    assert!(killed.len() as u64 > STEPS, "no step was repeated: the kills came to nothing");
    for (step, loss) in killed {
        assert_eq!(whole.get(&step), Some(&loss), "the loss of step {step} differs");
    }

    // Every tensor and every value of the last checkpoint is the same.
    let last = |name: &str| CheckpointReader::open(latest_checkpoint(path(name)).unwrap().unwrap()).unwrap();
    let (whole, killed) = (last("whole"), last("killed"));
    assert!(whole.verify().is_intact() && killed.verify().is_intact());
    let (whole, killed) = (whole.manifest(), killed.manifest());
    assert_eq!(whole.step, Some(STEPS));
    assert_eq!(whole.tensors, killed.tensors);
    assert_eq!(whole.values, killed.values);
    assert_eq!((&whole.metrics, whole.metrics.len()), (&killed.metrics, 2));
    for component in ["embedding/", "encoder/", "decoder/", "optimizer/state/", "ema/decoder", "rng/cpu"] {
        assert!(whole.tensors.keys().any(|key| key.starts_with(component)), "{component} was not saved");
    }
    // The test covers averages, patience, a reduced rate, and an epoch that is not over.
    let value = |key: &str| whole.values.get(key).unwrap_or_else(|| panic!("{key} was not saved"));
    assert_eq!(value("ema/averaging")["updates"], STEPS);
    assert_eq!(value("batches")["done"], STEPS * 8);
    assert!(value("plateau")["lr"].as_f64().unwrap() < 1.0, "{}", value("plateau"));
    assert!(value("stopping/state")["bad"].is_u64() && value("stopping/best")["value"].is_f64());
}

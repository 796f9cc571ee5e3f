//! The smaller examples do what they say, even when they are started again.

#[path = "common/example.rs"]
mod example;

use example::example;
use std::path::Path;
use std::process::Command;
use tch_checkpoint::latest_checkpoint;

const EXAMPLES: [&str; 11] = [
    "average",
    "best_and_latest",
    "components",
    "diverging",
    "evaluator",
    "fine_tune",
    "preemption",
    "pretrained",
    "pronounce",
    "saved_model",
    "saved_model_run",
];

fn run(program: &Path, dir: &Path) -> String {
    let output = Command::new(program).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn examples_answer_help_and_refuse_what_they_do_not_know() {
    let dir = tempfile::tempdir().unwrap();
    for name in EXAMPLES {
        let program = example(name);
        let run = |argument: &str| Command::new(&program).arg(argument).current_dir(dir.path()).output().unwrap();
        let help = run("--help");
        assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains(&format!("usage: {name} ")));
        let refused = run("--no-such-option");
        assert_eq!(refused.status.code(), Some(2), "{name}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--no-such-option"), "{name}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name} wrote something");
    }
}

#[test]
fn components_are_put_together_from_their_own_checkpoints() {
    let (program, dir) = (example("components"), tempfile::tempdir().unwrap());
    for last in [600, 1200] {
        let printed = run(&program, dir.path());
        for part in ["embedding", "encoder", "decoder"] {
            let latest = latest_checkpoint(dir.path().join(part)).unwrap().unwrap();
            assert!(latest.ends_with(format!("{part}-{last}")), "{}", latest.display());
            assert!(printed.contains(&format!("{part} from {}", latest.display())), "{printed}");
        }
        let percent = |line: &str| line.split('%').next()?.trim().parse::<f64>().ok();
        let lines: Vec<f64> = printed.lines().filter_map(percent).collect();
        let [before, after, together] = lines[..] else { panic!("{printed}") };
        assert!(after > 90.0 && together > 90.0 && (last > 600 || before < 30.0), "{printed}");
    }
}

#[test]
fn fine_tuning_keeps_the_encoder_and_goes_on() {
    let (program, dir) = (example("fine_tune"), tempfile::tempdir().unwrap());
    let first = run(&program, dir.path());
    assert!(first.contains("from the pre-trained model: encoder/in.bias, encoder/in.weight"), "{first}");
    assert!(first.contains("\"step\" is not in the checkpoint"), "{first}");
    // The frozen layers (512 * 512 weights and more) are written only the first time.
    let bytes = |line: &str, what: &str| -> u64 {
        let before = line.split(&format!(" bytes {what}")).next().unwrap_or_default();
        before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    let saves: Vec<&str> = first.lines().filter(|line| line.contains(" bytes written, ")).collect();
    assert_eq!(saves.len(), 4, "{first}");
    assert_eq!(bytes(saves[0], "linked"), 0, "{first}");
    for save in &saves[1..] {
        let (written, linked) = (bytes(save, "written"), bytes(save, "linked"));
        assert!(linked > 4 * 512 * 512 && written < linked, "{first}");
    }
    let second = run(&program, dir.path());
    assert!(second.contains("goes on from step 1000"), "{second}");
}

#[test]
fn an_encoder_of_pytorch_is_trained_and_given_back() {
    let (program, dir) = (example("pretrained"), tempfile::tempdir().unwrap());
    let first = run(&program, dir.path());
    assert!(first.contains("from PyTorch: model/encoder.embedding.weight, model/encoder.rnn.bias_hh_l0"), "{first}");
    let source = tch_checkpoint::interop::open(dir.path().join("model.pt")).unwrap();
    let shapes: Vec<(String, Vec<u64>)> =
        source.tensors().iter().map(|(key, spec)| (key.clone(), spec.shape.clone())).collect();
    assert_eq!(shapes.len(), 7, "{shapes:?}");
    assert!(shapes.contains(&("encoder.rnn.weight_ih_l0".to_string(), vec![144, 16])), "{shapes:?}");
    assert!(shapes.contains(&("decoder.weight".to_string(), vec![5, 48])), "{shapes:?}");
    let second = run(&program, dir.path());
    assert!(second.contains("goes on from step 200"), "{second}");
}

#[test]
fn a_program_without_the_model_pronounces_as_the_model_does() {
    let (export, load, dir) = (example("saved_model"), example("saved_model_run"), tempfile::tempdir().unwrap());
    let exported = run(&export, dir.path());
    for part in ["whole", "embedding", "encoder", "decoder"] {
        assert!(exported.contains(&dir.path().join(part).display().to_string()), "{exported}");
    }
    let output = Command::new(&load).arg(dir.path()).args(["pronounce", "bat"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("outputs equal to the original's, bit by bit"), "{printed}");
    assert!(printed.contains("21 words pronounced as by the original"), "{printed}");
    assert!(printed.contains("give what the whole gives"), "{printed}");
    let phonemes = |word: &str| {
        let line = printed.lines().find_map(|line| line.strip_prefix(&format!("{word}: ")));
        line.unwrap_or_else(|| panic!("{printed}")).split(' ').filter(|phoneme| !phoneme.is_empty()).count()
    };
    assert!(phonemes("pronounce") > 0 && phonemes("bat") > 0, "{printed}");
}

#[test]
fn the_best_and_the_latest_stay_and_the_run_ends_with_the_best() {
    let (program, dir) = (example("best_and_latest"), tempfile::tempdir().unwrap());
    for _ in 0..2 {
        let printed = run(&program, dir.path());
        let line = printed.lines().find(|line| line.starts_with("loss ")).unwrap_or_else(|| panic!("{printed}"));
        let numbers: Vec<f64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [last, best, step] = numbers[..] else { panic!("{line}") };
        assert!(best <= last, "{line}");
        let link = |name: &str| std::fs::read_link(dir.path().join(name)).unwrap().to_string_lossy().into_owned();
        assert_eq!(link("best"), format!("ckpt-{step}"));
        assert_eq!(latest_checkpoint(dir.path()).unwrap().unwrap(), dir.path().join(link("latest")));
        assert!(printed.contains("lowest"), "{printed}");
        assert!(tch_checkpoint::checkpoints(dir.path()).unwrap().len() <= 3);
    }
}

#[test]
fn an_evaluator_in_another_process_decides_what_is_kept() {
    let (program, dir) = (example("evaluator"), tempfile::tempdir().unwrap());
    let printed = run(&program, dir.path());
    let losses: Vec<f64> = printed
        .lines()
        .filter(|line| line.starts_with("evaluated "))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    assert!(losses.len() >= 2, "{printed}");
    assert!(printed.contains("best: ckpt-"), "{printed}");
    let checkpoints = tch_checkpoint::CheckpointDirectory::new(dir.path()).checkpoints().unwrap();
    assert!(checkpoints.iter().any(|info| info.metrics.contains_key("validation loss")));
}

#[test]
fn a_training_that_is_asked_to_end_goes_on_when_it_is_started_again() {
    let (program, dir) = (example("preemption"), tempfile::tempdir().unwrap());
    let step = |printed: &str, word: &str| -> u64 {
        let line = printed.lines().find(|line| line.starts_with(word)).unwrap_or_else(|| panic!("{printed}"));
        let step = line.split(' ').find_map(|word| word.trim_end_matches(',').parse().ok());
        step.unwrap_or_else(|| panic!("{line}"))
    };
    // First the time is over, then there is a signal.
    let output = Command::new(&program).arg(dir.path()).arg("0.2").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first = step(&String::from_utf8(output.stdout).unwrap(), "ends");
    assert!(first > 0 && latest_checkpoint(dir.path()).unwrap().unwrap().ends_with(format!("ckpt-{first}")));
    let mut child = Command::new(&program).arg(dir.path()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    std::io::BufRead::read_line(&mut out, &mut printed).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    std::io::Read::read_to_string(&mut out, &mut printed).unwrap();
    assert!(child.wait().unwrap().success(), "{printed}");
    assert_eq!(step(&printed, "begins"), first);
    let second = step(&printed, "ends");
    assert!(latest_checkpoint(dir.path()).unwrap().unwrap().ends_with(format!("ckpt-{second}")));
}

#[test]
fn the_average_of_checkpoints_is_better_than_they_are() {
    let (program, dir) = (example("average"), tempfile::tempdir().unwrap());
    let printed = run(&program, dir.path());
    let number = |start: &str| -> f64 {
        let line = printed.lines().find_map(|line| line.strip_prefix(start));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{printed}"))
    };
    assert!(number("loss of their average: ") < number("mean of the last 8 losses: "), "{printed}");
    assert!(dir.path().join("average.safetensors").exists());
}

/// What happens with NaN.
#[test]
fn a_training_that_diverges_restarts_from_what_was_healthy() {
    let (program, dir) = (example("diverging"), tempfile::tempdir().unwrap());
    let printed = run(&program, dir.path());
    assert!(printed.contains("the loss is NaN after the first run"), "{printed}");
    assert_eq!(printed.matches(": healthy").count(), 3, "{printed}");
    assert_eq!(printed.matches(": NaN in ").count(), 1, "{printed}");
    assert!(printed.contains("restarted from") && printed.contains("passed over"), "{printed}");
}

/// SIGTERM at any moment: a verified checkpoint of the step at which it stopped, and in the end the losses of a run
/// that was never stopped, to the last digit. `PRONOUNCE_SIGNALS=200 cargo test --test examples pronounce_stops` is the
/// full form.
#[test]
fn pronounce_stops_on_a_signal_with_what_it_has_done_and_goes_on_exactly() {
    let count = std::env::var("PRONOUNCE_SIGNALS").ok().and_then(|count| count.parse().ok()).unwrap_or(4);
    let (program, dir) = (example("pronounce"), tempfile::tempdir().unwrap());
    let begin = |name: &str, more: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--dir").arg(dir.path().join(name)).arg("--loss-log").arg(dir.path().join(format!("{name}.log")));
        command.args(["--hidden", "8", "--batch", "4", "--save-every", "1000000", "--patience", "1000000"]).args(more);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let stopped_at = |child: std::process::Child| -> u64 {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let step = text.split("stopped at step ").nth(1).and_then(|rest| rest.split(',').next());
        step.and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    let mut reached = 0;
    for number in 0..count {
        let grace = (1 + number % 10).to_string();
        let child = if number % 4 == 3 {
            begin("stopped", &["--steps", "1000000", "--grace", &grace, "--time-limit", "1"])
        } else {
            let child = begin("stopped", &["--steps", "1000000", "--grace", &grace]);
            // After its start, when the handlers are set.
            let log = dir.path().join("stopped.log");
            let before = std::fs::metadata(&log).map_or(0, |found| found.len());
            while std::fs::metadata(&log).map_or(0, |found| found.len()) <= before {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            std::thread::sleep(std::time::Duration::from_micros(7_919 * number % 100_000));
            assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
            child
        };
        let step = stopped_at(child);
        assert!(step > reached, "{step} after {reached}");
        reached = step;
        let latest = dir.path().join(format!("stopped/ckpt-{step}"));
        assert!(tch_checkpoint::verify_checkpoint(&latest).is_intact(), "{}", latest.display());
    }
    let output = begin("whole", &["--steps", &reached.to_string()]).wait_with_output().unwrap();
    assert!(output.status.success());
    let log = |name: &str| std::fs::read_to_string(dir.path().join(format!("{name}.log"))).unwrap();
    assert_eq!(log("stopped"), log("whole"));
}

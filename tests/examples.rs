//! The smaller examples do what they say, also when they are started again.

#[path = "common/example.rs"]
mod example;

use example::example;
use std::path::Path;
use std::process::Command;
use tch_checkpoint::latest_checkpoint;

fn run(program: &Path, dir: &Path) -> String {
    let output = Command::new(program).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn examples_answer_help_and_refuse_what_they_do_not_know() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["components", "fine_tune", "saved_model", "saved_model_run", "pronounce"] {
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
    let second = run(&program, dir.path());
    assert!(second.contains("goes on from step 1000"), "{second}");
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

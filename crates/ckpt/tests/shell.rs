//! What `ckpt` gives to a shell: completions, a manual, files for NumPy, and questions that are answered.

use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Durability, SaveOptions, Value};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn ckpt(dir: &Path, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    command.args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that asks nothing may have ended before.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn completions_are_scripts_that_know_the_commands() -> Outcome {
    let dir = tempfile::tempdir()?;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ckpt(dir.path(), &["completions", shell], "");
        let script = String::from_utf8(output.stdout)?;
        assert!(output.status.success() && script.contains("annotate") && script.contains("histogram"), "{shell}");
        fs::write(dir.path().join(shell), script)?;
    }
    let parsed = Command::new("bash").arg("-n").arg(dir.path().join("bash")).status()?;
    assert!(parsed.success());
    assert_eq!(ckpt(dir.path(), &["completions", "dos"], "").status.code(), Some(2));
    Ok(())
}

#[test]
fn the_manual_has_a_page_per_command() -> Outcome {
    let dir = tempfile::tempdir()?;
    let output = ckpt(dir.path(), &["man", "man/man1"], "");
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(ckpt(dir.path(), &["--help"], "").stdout)?;
    let commands = commands_in(&help);
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.filter(|command| *command != "help").collect();
    assert!(commands.len() > 15, "{help}");
    for command in commands {
        let page = fs::read_to_string(dir.path().join(format!("man/man1/ckpt-{command}.1")))?;
        assert!(page.contains(".SH SYNOPSIS") && page.contains("Exit codes"), "{command}");
    }
    assert!(fs::read_to_string(dir.path().join("man/man1/ckpt.1"))?.contains("Exit codes"));
    fs::write(dir.path().join("file"), "")?;
    assert_eq!(ckpt(dir.path(), &["man", "file"], "").status.code(), Some(2));
    Ok(())
}

/// The lines of the commands, without those that go on with a description.
fn commands_in(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "))
}

#[test]
fn every_command_shows_how_it_is_used_and_how_it_ends() -> Outcome {
    let dir = tempfile::tempdir()?;
    let help = String::from_utf8(ckpt(dir.path(), &["--help"], "").stdout)?;
    let commands = commands_in(&help);
    for command in commands.filter_map(|line| line.split_whitespace().next()).filter(|command| *command != "help") {
        let help = String::from_utf8(ckpt(dir.path(), &[command, "--help"], "").stdout)?;
        let has = |part: &str| help.contains(&format!("\n{part}:\n"));
        assert!(has("Examples") && has("Exit codes"), "{command}: {help}");
        assert!(help.contains(&format!("  ckpt {command}")), "{command}: {help}");
    }
    Ok(())
}

#[test]
fn a_file_for_numpy_is_aligned_and_has_the_elements() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data: Vec<u8> = (0..6u8).map(f32::from).flat_map(f32::to_le_bytes).collect();
    let brain: Vec<u8> = [1.5f32, f32::NAN].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    let view = |dtype, shape: Vec<usize>, data| safetensors::tensor::TensorView::new(dtype, shape, data);
    let tensors = [
        ("weight", view(safetensors::Dtype::F32, vec![2, 3], &data)?),
        ("brain", view(safetensors::Dtype::BF16, vec![2], &brain)?),
    ];
    safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors"))?;
    let npy = |args: &[&str]| {
        let args = [&["cat", "model.safetensors"], args, &["--format", "npy"]].concat();
        let bytes = ckpt(dir.path(), &args, "").stdout;
        let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert!(bytes.starts_with(b"\x93NUMPY\x01\x00") && (10 + length) % 64 == 0, "{bytes:?}");
        let header = String::from_utf8(bytes[10..10 + length].to_vec()).unwrap();
        (header.trim().to_string(), bytes[10 + length..].to_vec())
    };
    let (header, elements) = npy(&["weight"]);
    assert_eq!(header, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3,), }");
    assert_eq!(elements, data);
    let (header, elements) = npy(&["weight", "--slice", "1,1:"]);
    assert_eq!((header.contains("'shape': (2,)"), &elements[..]), (true, &data[16..]));
    let (header, elements) = npy(&["weight", "--slice", "0,0"]);
    assert_eq!((header.contains("'shape': ()"), &elements[..]), (true, &data[..4]));
    let (header, elements) = npy(&["brain"]);
    assert!(header.contains("'<f4'") && elements[..4] == 1.5f32.to_le_bytes(), "{header}: {elements:?}");
    Ok(())
}

/// Any part of tensors of up to four dimensions, against a nest of loops.
#[test]
fn parts_of_tensors_are_those_of_plain_loops() -> Outcome {
    let dir = tempfile::tempdir()?;
    let shape = [3usize, 4, 2, 5];
    let data: Vec<u8> = (0..120u16).flat_map(u16::to_le_bytes).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I16, shape.to_vec(), &data)?;
    let path = dir.path().join("model.safetensors");
    safetensors::serialize_to_file([("x", view)], None, &path)?;
    let target = tch_checkpoint::inspect::Target::open(&path)?;
    let parts = ["0", "-1", ":", "1:", ":-1", "1:2", "2:1", "-2:"];
    let length = parts.len();
    let select = |part: &str, length: usize| -> Vec<usize> {
        let all: Vec<usize> = (0..length).collect();
        let at = |text: &str| {
            let number: i64 = text.parse().unwrap();
            (if number < 0 { number + length as i64 } else { number }).clamp(0, length as i64) as usize
        };
        match part.split_once(':') {
            None => vec![at(part)],
            Some((from, to)) => {
                let from = if from.is_empty() { 0 } else { at(from) };
                let to = if to.is_empty() { length } else { at(to) };
                all.get(from..to).unwrap_or_default().to_vec()
            }
        }
    };
    for n in 0..length.pow(4) {
        let chosen: Vec<&str> = (0..4).map(|d| parts[n / length.pow(d) % length]).collect();
        let [a, b, c, d] = [0, 1, 2, 3].map(|d| select(chosen[d], shape[d]));
        let mut expected = Vec::new();
        for a in &a {
            for b in &b {
                for c in &c {
                    expected.extend(d.iter().map(|d| (((a * 4 + b) * 2 + c) * 5 + d).to_string()));
                }
            }
        }
        let slice = target.slice("x", &chosen.join(",").parse()?)?;
        let mut found = Vec::new();
        slice.for_each(|element| {
            found.push(element.to_string());
            Ok(())
        })?;
        assert_eq!(found, expected, "{chosen:?}");
        assert_eq!(slice.shape().iter().product::<u64>(), expected.len() as u64, "{chosen:?}");
    }
    Ok(())
}

#[test]
fn rm_asks_and_the_lock_of_a_run_is_respected() -> Outcome {
    let dir = tempfile::tempdir()?;
    let step = Counter::new(0);
    let checkpoint = Checkpoint::new().track("step", &step)?.track("name", Value::new("x".to_string()))?;
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(checkpoint, dir.path().join("run")).save_options(options);
    let mut manager = builder.max_to_keep(None).open()?;
    (1..=3).try_for_each(|step| manager.save_at(step).map(drop))?;
    let rm = |input: &str, args: &[&str]| ckpt(dir.path(), &[&["rm"], args].concat(), input);
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();

    // While a run goes on nothing is removed, but marks are set.
    let output = rm("", &["--yes", "run/ckpt-1"]);
    assert!(output.status.code() == Some(2) && told(&output).contains("in use by another writer"), "{output:?}");
    assert!(ckpt(dir.path(), &["annotate", "run/ckpt-1", "beside", "a run"], "").status.success());
    manager.close()?;

    for no in ["", "n\n", "yesterday\n", "\n"] {
        let output = rm(no, &["run/ckpt-1"]);
        assert!(output.status.code() == Some(1) && told(&output).contains("remove run/ckpt-1 ("), "{output:?}");
    }
    assert!(dir.path().join("run/ckpt-1").exists());
    let output = rm("y\nNo\n", &["run/ckpt-1", "run/ckpt-2"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"removed run/ckpt-1\n"[..]));
    let left = [1, 2, 3].map(|n| dir.path().join(format!("run/ckpt-{n}")).exists());
    assert_eq!(left, [false, true, true]);
    Ok(())
}

#[test]
fn ls_watches_until_nobody_looks() -> Outcome {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir()?;
    Checkpoint::new().track("step", Counter::new(1))?.save(dir.path().join("ckpt"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    let mut child =
        command.args(["ls", "--json", "--watch=1"]).current_dir(dir.path()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let count = |line: Option<std::io::Result<String>>| -> Result<usize, Box<dyn std::error::Error>> {
        let document: serde_json::Value = serde_json::from_str(&line.ok_or("it ended")??)?;
        Ok(document["checkpoints"].as_array().ok_or("no list")?.len())
    };
    assert_eq!(count(lines.next())?, 1);
    Checkpoint::new().track("step", Counter::new(2))?.save(dir.path().join("other"))?;
    // Another document may be there from before.
    let mut seen = 1;
    for _ in 0..10 {
        seen = count(lines.next())?;
        if seen == 2 {
            break;
        }
    }
    assert_eq!(seen, 2);
    drop(lines);
    assert!(child.wait()?.success());
    Ok(())
}

/// The other lengths of a shape with a zero can be any numbers.
#[test]
fn tensors_without_elements_take_no_time() -> Outcome {
    let dir = tempfile::tempdir()?;
    let header = json!({
        "long": { "dtype": "F32", "shape": [0, 1u64 << 40, 1u64 << 40], "data_offsets": [0, 0] },
        "wide": { "dtype": "F32", "shape": [1u64 << 40, 0], "data_offsets": [0, 0] },
    });
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(dir.path().join("model.safetensors"), bytes)?;
    for line in [
        "cat model.safetensors long",
        "cat model.safetensors wide",
        "cat model.safetensors long --format npy",
        "show --stats --histogram model.safetensors",
        "verify model.safetensors",
        "diff model.safetensors model.safetensors",
        "convert model.safetensors own",
        "average model.safetensors model.safetensors --out mean.pt",
        "seal model.safetensors",
    ] {
        let output = ckpt(dir.path(), &line.split(' ').collect::<Vec<_>>(), "");
        assert!(output.status.success(), "{line}: {output:?}");
    }
    Ok(())
}

//! The tool stays within bounds of memory, time and output for any input.

#[path = "../../../tests/common/mod.rs"]
mod common;

use common::Memory;
use common::documents::{BESIDE, TIMES, checkpoint_of, checkpoint_with, list, sealed, with_values};
use std::fs;
use std::path::Path;
use tch_checkpoint::Checkpoint;
use tch_checkpoint::Location;
use tch_checkpoint::format::{Digest, Manifest};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs the tool with little memory, and no longer than some seconds.
fn ckpt(arguments: &[&str], megabytes: usize) -> std::process::Output {
    let limited = format!("ulimit -v {}; exec timeout -s KILL 60 \"$0\" \"$@\"", megabytes << 10);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_ckpt")]).args(arguments).stdin(std::process::Stdio::null());
    command.output().unwrap()
}

/// All commands on a path, in both forms.
fn every_command(path: &Path, mut check: impl FnMut(&[&str], std::process::Output)) {
    let path = path.to_str().unwrap();
    for command in [&["ls", path][..], &["show", path], &["verify", path], &["diff", path, path]] {
        for json in [&[][..], &["--json"]] {
            let arguments = [command, json].concat();
            check(&arguments, ckpt(&arguments, 400));
        }
    }
}

/// All commands that read tensors, convert, or write something else, on a path; those of directories only if it may be
/// one.
fn every_writing_command(path: &Path, may_be_directory: bool, mut check: impl FnMut(&[&str], std::process::Output)) {
    let to = tempfile::tempdir().unwrap();
    let (path, to_path) = (path.to_str().unwrap(), to.path().join("to"));
    let (dest, page) = (to_path.to_str().unwrap(), to.path().join("page.html"));
    let commands: [&[&str]; 15] = [
        &["show", "--stats", "--histogram", path],
        &["cat", path, "model"],
        &["convert", path, dest],
        &["convert", path, dest, "--to", "pytorch", "--flat"],
        &["extract", path, dest, "*"],
        &["rename", path, dest, "*=x/*"],
        &["cast", path, dest, "F16"],
        &["merge", path, "--out", dest],
        &["average", path, path, "--out", dest],
        &["map", path, path],
        &["seal", path],
        // Of directories.
        &["du", path],
        &["bisect", path, "nonfinite"],
        &["report", path, "-o", page.to_str().unwrap()],
        &["repair", "--salvage", dest, path],
    ];
    let count = if may_be_directory { commands.len() } else { commands.len() - 4 };
    for arguments in commands.into_iter().take(count) {
        check(arguments, ckpt(arguments, 400));
        let _ = fs::remove_dir_all(&to_path);
        let _ = fs::remove_file(&to_path);
        let _ = fs::remove_file(format!("{path}.seal.json"));
    }
}

#[test]
#[cfg_attr(libtorch, ignore = "linked with libtorch, the tool does not start in so little memory")]
fn the_tool_prints_in_proportion() -> Outcome {
    let dir = tempfile::tempdir()?;
    let long = vec!["x".repeat(255); 60].join("/");
    let values: Vec<String> = (0..8_000).map(|n| format!("\"v{n}\":0")).collect();
    let wide = with_values(&format!("{},\"{long}\":0", values.join(",")));
    let metrics = String::from_utf8(wide.clone())?;
    let metrics = metrics.replace("\"metrics\":{}", &format!("\"metrics\":{{\"{}\":0}}", "m".repeat(100_000)));
    let body: Vec<&str> = metrics.lines().skip(1).filter(|line| !line.starts_with("\"xxh3")).collect();
    for text in [wide, sealed("tch-checkpoint", &body.join("\n"))] {
        let path = checkpoint_of(dir.path(), &text);
        for target in [&path, dir.path()] {
            every_command(target, |arguments, output| {
                let printed = output.stdout.len() + output.stderr.len();
                assert!(printed <= 20 * text.len() + 10_000, "{arguments:?}: {printed} bytes");
                assert_ne!(output.status.code(), None, "{arguments:?}");
            });
        }
    }
    // One long key that many others are the same as.
    let tied = checkpoint_with(&dir.path().join("tied"), |manifest| {
        let record = manifest.tensors["model"].clone();
        manifest.tensors.insert(format!("a/{long}"), record.clone());
        manifest.tensors.extend((0..3000).map(|n| (format!("tied/{n}"), record.clone())));
    })?;
    let input = fs::metadata(tied.join("manifest.json"))?.len() as usize;
    every_command(&tied, |arguments, output| {
        let printed = output.stdout.len() + output.stderr.len();
        assert!(printed <= 10 * input && output.status.code().is_some(), "{arguments:?}: {printed} bytes, {output:?}");
    });
    Ok(())
}

#[test]
#[cfg_attr(libtorch, ignore = "linked with libtorch, the tool does not start in so little memory")]
fn the_tool_never_waits_and_never_takes_what_is_not_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    let one_line = |arguments: &[&str], output: std::process::Output| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|code| code <= 2), "{arguments:?}: {:?}, {errors}", output.status);
        assert!(errors.lines().count() <= 2 && output.stdout.len() < 5_000, "{arguments:?}: {errors}");
    };
    let mkfifo = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    let link = |to: &str, path: &Path| std::os::unix::fs::symlink(to, path).unwrap();
    // As the path itself.
    mkfifo(&root.join("pipe"));
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket"))?;
    link("loop", &root.join("loop"));
    link("/dev/zero", &root.join("zero"));
    link("nowhere", &root.join("nowhere-link"));
    for name in ["pipe", "socket", "loop", "zero", "nowhere-link", "nothing", "pipe/below", "loop/below"] {
        every_command(&root.join(name), one_line);
        every_writing_command(&root.join(name), true, one_line);
    }
    // As a manifest, as an index, as the index of the directory around, as a component, in a checkpoint.
    for (n, file) in ["manifest.json", "checkpoint.json", "model.safetensors", "saved_model.json"].iter().enumerate() {
        for kind in ["pipe", "socket", "loop", "zero", "directory", "hole"] {
            let above = root.join(format!("{n}-{kind}"));
            let inside = above.join("ckpt-1");
            fs::create_dir_all(&inside)?;
            for place in [&above, &inside] {
                let path = place.join(file);
                match kind {
                    "pipe" => mkfifo(&path),
                    "socket" => drop(std::os::unix::net::UnixListener::bind(&path)?),
                    "loop" => link(file, &path),
                    "zero" => link("/dev/zero", &path),
                    "directory" => fs::create_dir(&path)?,
                    _ => fs::File::create(&path)?.set_len(3 << 30)?,
                }
            }
            for path in [&above, &inside] {
                for command in ["ls", "show", "verify"] {
                    let arguments = [command, path.to_str().unwrap()];
                    one_line(&arguments, ckpt(&arguments, 400));
                }
                every_writing_command(path, true, one_line);
            }
        }
    }
    Ok(())
}

/// Tensors and descriptions that are holes: no byte of the disk, any length.
#[test]
#[cfg_attr(libtorch, ignore = "linked with libtorch, the tool does not start in so little memory")]
fn holes_in_files_take_no_memory() -> Outcome {
    let dir = tempfile::tempdir()?;
    let hole = |name: &str, bytes: u64| -> Result<Location, Box<dyn std::error::Error>> {
        let path = Checkpoint::new().track("model", Memory::seeded(4, 7))?.write(dir.path().join(name))?;
        let file = path.join("manifest.json");
        let mut manifest = Manifest::from_bytes(&fs::read(&file)?).map_err(|e| e.to_string())?;
        // A description of 3 GB, of which a reader takes 64 MiB at most.
        let entry = tch_checkpoint::format::AssetEntry::new(bytes, Digest::of(b""));
        manifest.assets.insert("saved_model.json".into(), entry);
        fs::File::create(path.join("saved_model.json"))?.set_len(bytes)?;
        fs::write(&file, manifest.to_bytes()?)?;
        Ok(path)
    };
    let path = hole("described", 3 << 30)?;
    let output = ckpt(&["show", path.to_str().unwrap()], 400);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && errors.contains("saved_model.json"), "{errors}");
    // A tensor of 128 MiB in each of two: compared piece by piece.
    let tensor = |name: &str, digest: &[u8]| -> Result<Location, Box<dyn std::error::Error>> {
        let path = Checkpoint::new().track("model", Memory::seeded(4, 7))?.write(dir.path().join(name))?;
        let file = path.join("manifest.json");
        let mut manifest = Manifest::from_bytes(&fs::read(&file)?).map_err(|e| e.to_string())?;
        let bytes = 1 << 27;
        let record = manifest.tensors.get_mut("model").unwrap();
        record.spec.shape = vec![bytes / 4];
        record.digest = Digest::of(digest);
        record.pieces[0].end = record.pieces[0].begin + bytes;
        let end = record.pieces[0].end;
        manifest.files.get_mut("model.safetensors").unwrap().bytes = end;
        fs::OpenOptions::new().write(true).open(path.join("model.safetensors"))?.set_len(end)?;
        fs::write(&file, manifest.to_bytes()?)?;
        Ok(path)
    };
    let (a, b) = (tensor("a", b"1")?, tensor("b", b"2")?);
    let output = ckpt(&["diff", a.to_str().unwrap(), b.to_str().unwrap()], 150);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && errors.contains("not what was written"), "{errors}");
    Ok(())
}

#[test]
#[cfg_attr(libtorch, ignore = "linked with libtorch, the tool does not start in so little memory")]
fn the_tool_takes_memory_in_proportion() -> Outcome {
    let dir = tempfile::tempdir()?;
    for values in
        [list("0", 200_000), list("{\"id\":1,\"no\":2}", 40_000), list("[0]", 100_000), list("\"\u{1b}\"", 200_000)]
    {
        let text = with_values(&format!("\"v\":[{}]", values.replace('\u{1b}', "\\u001b")));
        let path = checkpoint_of(dir.path(), &text);
        let path = path.to_str().ok_or("no text")?;
        let megabytes = ((TIMES * text.len() + BESIDE) >> 20) + 150;
        for command in [
            &["ls", dir.path().to_str().ok_or("no text")?][..],
            &["show", path],
            &["verify", path],
            &["diff", path, path],
        ] {
            for json in [&[][..], &["--json"]] {
                let arguments = [command, json].concat();
                let output = ckpt(&arguments, megabytes);
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
                assert!(output.stdout.len() < 10 * text.len() + 10_000, "{arguments:?}");
            }
        }
        let (to, file) = (dir.path().join("to/ckpt-1"), dir.path().join("to/file.pt"));
        let (dest, file) = (to.to_str().ok_or("no text")?, file.to_str().ok_or("no text")?);
        for arguments in [
            &["convert", path, dest][..],
            &["convert", path, file],
            &["rename", path, dest, "v=w"],
            &["merge", path, "--out", dest],
            &["average", path, path, "--out", dest],
            &["map", path, path],
            &["du", dir.path().to_str().ok_or("no text")?],
            &["bisect", dir.path().to_str().ok_or("no text")?, "nonfinite"],
        ] {
            fs::create_dir_all(dir.path().join("to"))?;
            let output = ckpt(arguments, megabytes);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            // It holds in none.
            let code = if arguments[0] == "bisect" { Some(1) } else { Some(0) };
            assert_eq!(output.status.code(), code, "{arguments:?}: {errors}");
            fs::remove_dir_all(dir.path().join("to"))?;
        }
    }
    Ok(())
}

/// Tensors that are larger than the memory are converted, cast and averaged, into every format.
#[test]
#[cfg_attr(libtorch, ignore = "linked with libtorch, the tool does not start in so little memory")]
fn conversions_take_memory_that_does_not_depend_on_the_tensors() -> Outcome {
    const BYTES: u64 = 96 << 20;
    const MEGABYTES: usize = 80;
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    // Two tensors, all of the file a hole.
    let count = BYTES / 8;
    let header = format!(
        r#"{{"a.w":{{"dtype":"F64","shape":[{count}],"data_offsets":[0,{BYTES}]}},"b.w":{{"dtype":"F32","shape":[2],"data_offsets":[{BYTES},{}]}}}}"#,
        BYTES + 8
    );
    let header = format!("{header:<256}");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    fs::write(path("big.safetensors"), &file)?;
    fs::OpenOptions::new().write(true).open(path("big.safetensors"))?.set_len(file.len() as u64 + BYTES + 8)?;
    let run = |arguments: &[&str]| {
        let output = ckpt(arguments, MEGABYTES);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    };
    let (big, own) = (path("big.safetensors"), path("own"));
    // From what has no checksums, and from what is verified.
    run(&["convert", &big, &own]);
    run(&["rename", &own, &path("renamed"), "model/*=encoder/*"]);
    fs::remove_dir_all(path("renamed"))?;
    run(&["cast", &own, &path("half"), "F32"]);
    fs::remove_dir_all(path("half"))?;
    run(&["average", &own, &own, "--out", &path("mean")]);
    fs::remove_dir_all(path("mean"))?;
    for to in ["back.safetensors", "back.pt"] {
        run(&["convert", &own, &path(to)]);
        fs::remove_file(path(to))?;
    }
    run(&["convert", &own, &path("tf"), "--to", "tensorflow"]);
    // What a map computes in one piece does not fit, and is refused.
    fs::write(path("turn.map"), "map 1\nmodel/t = transpose(reshape(model/a.w, [2, _]))\n")?;
    let output = ckpt(&["convert", &own, &path("turned"), "--map", &path("turn.map")], MEGABYTES);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && errors.contains("memory") && !dir.join("turned").exists(), "{errors}");
    Ok(())
}

/// Hostile files of other tools, through every command that reads tensors or writes something.
#[test]
#[cfg_attr(libtorch, ignore = "linked with libtorch, the tool does not start in so little memory")]
fn hostile_files_end_every_command_with_a_line() -> Outcome {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let temp = tempfile::tempdir()?;
    let mut files = 0;
    for tool in ["pytorch", "keras"] {
        for entry in fs::read_dir(fixtures.join(tool).join("hostile"))? {
            let path = entry?.path();
            if path.is_dir() || path.extension().is_some_and(|extension| extension == "json" || extension == "md") {
                continue;
            }
            // A seal is next to the file.
            let file = temp.path().join(path.file_name().ok_or("no name")?);
            fs::copy(&path, &file)?;
            every_writing_command(&file, false, |arguments, output| {
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                let code = output.status.code();
                assert!(code.is_some_and(|code| code <= 2), "{arguments:?}: {:?}, {errors}", output.status);
                // Those that are good: what a format cannot hold is listed.
                let most = if code == Some(2) { 2 } else { 12 };
                assert!(errors.lines().count() <= most && errors.len() < 10_000, "{arguments:?}: {errors}");
                assert!(output.stdout.len() < 20_000, "{arguments:?}: {}", output.stdout.len());
            });
            fs::remove_file(&file)?;
            files += 1;
        }
    }
    assert!(files > 50, "{files}");
    Ok(())
}

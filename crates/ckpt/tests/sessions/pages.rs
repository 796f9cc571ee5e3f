//! The pages show what the tool prints: every command of a `console` block, with its output, is in one of the sessions
//! of this directory.

use crate::schema;
use crate::transcript::{Step, blocks, sessions, steps};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn played() -> Vec<Step> {
    sessions().iter().flat_map(|file| steps(fs::read_to_string(file).unwrap().lines())).collect()
}

/// Returns the README and all pages of `docs/`.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let entries = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = entries.filter(|path| path.extension().is_some_and(|end| end == "md"));
    [root.join("README.md")].into_iter().chain(docs).collect()
}

#[test]
fn pages_show_what_the_tool_prints() {
    let played = played();
    let mut shown = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (line, block) in blocks(&text) {
            for step in steps(block) {
                let place = format!("{}, the block at line {line}, `{}`", page.display(), step.command);
                let same: Vec<&Step> = played.iter().filter(|one| one.command == step.command).collect();
                assert!(!same.is_empty(), "{place}: no session has this command");
                let now: Vec<String> = same.iter().map(|one| one.seen().join("\n")).collect();
                assert!(now.contains(&step.lines.join("\n")), "{place} prints now:\n{}", now.join("\nor\n"));
                shown += 1;
            }
        }
    }
    assert!(shown > 20, "{shown}");
}

fn ckpt(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ckpt")).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the commands that `ckpt help` lists.
fn listed() -> BTreeSet<String> {
    let help = ckpt(&["help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_string).collect()
}

#[test]
fn the_schema_has_every_command() {
    let listed = listed();
    assert!(listed.len() > 25, "{listed:?}");
    assert_eq!(schema::commands().map(str::to_string).collect::<BTreeSet<_>>(), listed);
}

/// A script is too long for a session.
#[test]
fn a_session_has_a_document_of_every_command() {
    let played = played();
    let is_document = |step: &&Step| {
        let mut words = step.command.split(' ');
        words.any(|word| word == "--json") && step.lines.get(1).is_some_and(|line| !line.starts_with("  \"error\""))
    };
    let name =
        |step: &Step| step.command.split(' ').find(|word| *word != "ckpt" && *word != "--json").map(str::to_string);
    let documented: BTreeSet<String> = played.iter().filter(is_document).filter_map(name).collect();
    let missing: Vec<String> = listed().into_iter().filter(|name| !documented.contains(name)).collect();
    assert_eq!(missing, ["completions"]);
}

#[test]
fn completions_are_a_document_too() {
    let script = ckpt(&["completions", "bash"]);
    let document = schema::document("completions", &ckpt(&["completions", "--json", "bash"]));
    assert_eq!(document, json!({ "shell": "bash", "script": script }));
}

/// The schema would be of no use if it let anything through.
#[test]
fn what_the_schema_does_not_have_is_refused() {
    let text = r#"{"name":"ckpt-1","path":"run/ckpt-1","step":1,"value":0.5}"#;
    schema::document("latest", text);
    let refused = |text: String| std::panic::catch_unwind(|| schema::document("latest", &text)).is_err();
    assert!(refused(text.replace("0.5}", "0.5,\"more\":1}")), "a field more");
    assert!(refused(text.replace(",\"value\":0.5", "")), "a field less");
    assert!(refused(text.replace("0.5}", "0.5,\"step\":1}")), "a field twice");
    assert!(refused(text.replace("\"step\":1", "\"step\":-1")), "another value");
    assert!(refused(text.replace("0.5}", "\"0.5\"}")), "another type");
}

//! Texts with commands and what they print: sessions, and the blocks of pages that show them.

use std::fs;
use std::path::{Path, PathBuf};

/// A command and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// From `ckpt` on.
    pub command: String,
    /// The lines that follow.
    pub lines: Vec<String>,
}

/// Returns the commands of a text, each with the lines up to the next one.
pub fn steps<'a>(text: impl IntoIterator<Item = &'a str>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_string(), lines: Vec::new() }),
            (None, Some(step)) => step.lines.push(line.to_string()),
            (None, None) => panic!("{line} follows no command"),
        }
    }
    steps
}

impl Step {
    /// What a person sees: the exit code is not printed, and standard error is not marked.
    pub fn seen(&self) -> Vec<&str> {
        let lines = self.lines.iter().filter(|line| !line.starts_with("[exit "));
        lines.map(|line| line.strip_prefix("! ").unwrap_or(line)).collect()
    }
}

/// Returns the files of all sessions.
pub fn sessions() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "console")).collect();
    files.sort();
    files
}

/// Returns the lines of the blocks of a page that show sessions, each with the number of its first line.
pub fn blocks(page: &str) -> Vec<(usize, Vec<&str>)> {
    let mut blocks: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut is_inside = false;
    for (number, line) in page.lines().enumerate() {
        match (is_inside, line) {
            (false, "```console") => {
                is_inside = true;
                blocks.push((number + 2, Vec::new()));
            }
            (true, "```") => is_inside = false,
            (true, line) => blocks.last_mut().unwrap().1.push(line),
            (false, _) => {}
        }
    }
    blocks
}

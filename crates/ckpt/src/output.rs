//! Standard output, standard error and the exit code.

use crate::escape;
use serde::Serialize;
use std::io::{self, BufWriter, ErrorKind, Stdout, Write};
use std::process::ExitCode;
use tch_checkpoint::Error;
use tch_checkpoint::inspect::Problem;
use tch_checkpoint::interop::ReadOptions;

/// Exit codes; higher ones are more serious.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Done, intact, equal.
    Fine,
    /// Damaged, different.
    Finding,
    /// Could not be read.
    Trouble,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        match exit {
            Exit::Fine => ExitCode::from(0),
            Exit::Finding => ExitCode::from(1),
            Exit::Trouble => ExitCode::from(2),
        }
    }
}

/// Prints results as lines of text or as one JSON document.
pub struct Output {
    json: bool,
    reading: ReadOptions,
    stdout: BufWriter<Stdout>,
    /// Whether anything was printed.
    started: bool,
    /// The first write error, after which nothing more is written.
    failed: Option<io::Error>,
}

/// The JSON document of a command that failed.
#[derive(Serialize)]
struct Failure {
    error: Problem,
}

impl Output {
    pub fn new(json: bool, reading: ReadOptions) -> Output {
        Output { json, reading, stdout: BufWriter::new(io::stdout()), started: false, failed: None }
    }

    /// Returns whether JSON is printed instead of text.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns the options for files of other tools, which also apply to all commands.
    pub fn reading(&self) -> &ReadOptions {
        &self.reading
    }

    /// Prints a line of text in text mode.
    pub fn line(&mut self, text: impl AsRef<str>) {
        if !self.json {
            self.write(&escape::line(text.as_ref()));
        }
    }

    /// Writes bytes unchanged, in either mode.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.started = true;
        if self.failed.is_none() {
            self.failed = self.stdout.write_all(bytes).err();
        }
    }

    /// Writes text in either mode, with its unsafe characters escaped as in JSON.
    pub fn raw_text(&mut self, json: &str) {
        self.raw(escape::json(json).as_bytes());
    }

    /// As [`raw_text`](Output::raw_text), with a line feed.
    pub fn raw_line(&mut self, json: &str) {
        self.raw_text(json);
        self.raw(b"\n");
    }

    /// Returns whether a result can no longer be written.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Prints an empty line if something was printed before.
    pub fn separate(&mut self) {
        if self.started {
            self.line("");
        }
    }

    /// Flushes what was printed so far.
    pub fn flush(&mut self) {
        if self.failed.is_none() {
            self.failed = self.stdout.flush().err();
        }
    }

    /// Prints the document in JSON mode.
    pub fn document(&mut self, document: &impl Serialize) {
        if !self.json {
            return;
        }
        match serde_json::to_string(document) {
            Ok(text) => self.write(&escape::json(&text)),
            Err(e) => self.failed = self.failed.take().or(Some(e.into())),
        }
    }

    /// Prints a note on standard error.
    pub fn note(&mut self, text: impl AsRef<str>) {
        self.flush();
        complain(text.as_ref());
    }

    /// Reports the error that ended the command.
    pub fn error(&mut self, error: &Error) {
        self.flush();
        complain(&format!("{error:#}"));
        self.document(&Failure { error: Problem::of(error) });
    }

    fn write(&mut self, line: &str) {
        self.started = true;
        if self.failed.is_none() {
            self.failed = writeln!(self.stdout, "{line}").err();
        }
    }

    /// Ends the output. A closed pipe (`ckpt show … | head`) is not an error; any other failure to write is.
    pub fn finish(mut self, exit: Exit) -> Exit {
        self.flush();
        match self.failed {
            Some(e) if e.kind() != ErrorKind::BrokenPipe => {
                complain(&format!("cannot write the result: {e}"));
                Exit::Trouble
            }
            _ => exit,
        }
    }
}

/// Prints a line on standard error. A failure is ignored.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "ckpt: {}", escape::line(text));
}

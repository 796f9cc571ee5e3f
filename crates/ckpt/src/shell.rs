//! `ckpt completions` and `ckpt man`: shell completions and manual pages.

use crate::cli::Cli;
use crate::output::{Exit, Output};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;
use tch_checkpoint::Error;

/// Prints a script that completes commands, options and paths in a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt completions bash > ~/.local/share/bash-completion/completions/ckpt
  ckpt completions fish > ~/.config/fish/completions/ckpt.fish

Exit codes:
  0  printed")]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Writes the manual: a page for `ckpt`, and one for each command
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt man ~/.local/share/man/man1 && man ckpt-show

Exit codes:
  0  written
  2  a page could not be written")]
pub struct Man {
    /// The directory for the pages, which is created if necessary
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

pub fn completions(args: &Completions, out: &mut Output) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ckpt", &mut script);
    if out.is_json() {
        let script = String::from_utf8_lossy(&script);
        out.document(&serde_json::json!({ "shell": args.shell.to_string(), "script": script }));
    } else {
        out.raw(&script);
    }
    Ok(Exit::Fine)
}

pub fn man(args: &Man, out: &mut Output) -> Result<Exit, Error> {
    let failed = |e| Error::io("write the manual to", &args.directory, e);
    std::fs::create_dir_all(&args.directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(failed)?;
    out.line(format!("the manual is in {}", args.directory.display()));
    out.document(&serde_json::json!({ "directory": crate::human::text(&args.directory) }));
    Ok(Exit::Fine)
}

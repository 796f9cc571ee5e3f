//! `ckpt`: looks into checkpoints from the command line. It reads and never writes, takes no lock, and needs no
//! libtorch.

mod cli;
mod diff;
mod elements;
mod escape;
mod human;
mod ls;
mod output;
mod problem;
mod show;
mod table;
mod target;
mod verify;

use clap::Parser;
use cli::{Cli, Command};
use output::{Exit, Output};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Output::new(cli.json);
    let result = match &cli.command {
        Command::Ls(args) => ls::run(args, &mut out),
        Command::Show(args) => show::run(args, &mut out),
        Command::Verify(args) => verify::run(args, &mut out),
        Command::Diff(args) => diff::run(args, &mut out),
    };
    let exit = result.unwrap_or_else(|error| {
        out.error(&error);
        Exit::Trouble
    });
    out.finish(exit).into()
}

//! `ckpt`: inspects and converts checkpoints from the command line, and reports which of them are kept. Needs no
//! libtorch.

mod ask;
mod bisect;
mod cat;
mod cli;
mod columns;
mod convert;
mod diff;
mod du;
mod escape;
mod human;
mod keep;
mod ls;
mod names;
mod output;
mod policies;
mod repair;
mod report;
mod rewrite;
mod seal;
mod shell;
mod show;
mod stats;
mod table;
mod target;
mod verify;

use clap::Parser;
use cli::{Cli, Command};
use output::{Exit, Output};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Output::new(cli.json, cli.reading.options());
    let result = match &cli.command {
        Command::Ls(args) => ls::run(args, &mut out),
        Command::Show(args) => show::run(args, &mut out),
        Command::Verify(args) => verify::run(args, &mut out),
        Command::Diff(args) => diff::run(args, &mut out),
        Command::Convert(args) => convert::run(args, &mut out),
        Command::Average(args) => convert::average(args, &mut out),
        Command::Map(args) => names::run(args, &mut out),
        Command::Seal(args) => seal::run(args, &mut out),
        Command::Latest(args) => keep::latest(args, &mut out),
        Command::Best(args) => keep::best(args, &mut out),
        Command::Why(args) => keep::why(args, &mut out),
        Command::Prune(args) => keep::prune(args, &mut out),
        Command::Pin(args) => keep::pin(args, &mut out),
        Command::Report(args) => report::run(args, &mut out),
        Command::Unpin(args) => keep::unpin(args, &mut out),
        Command::Annotate(args) => keep::annotate(args, &mut out),
        Command::Rm(args) => keep::rm(args, &mut out),
        Command::Cat(args) => cat::run(args, &mut out),
        Command::Bisect(args) => bisect::run(args, &mut out),
        Command::Du(args) => du::run(args, &mut out),
        Command::Repair(args) => repair::run(args, &mut out),
        Command::Extract(args) => rewrite::extract(args, &mut out),
        Command::Rename(args) => rewrite::rename(args, &mut out),
        Command::Cast(args) => rewrite::cast(args, &mut out),
        Command::Merge(args) => rewrite::merge(args, &mut out),
        Command::Completions(args) => shell::completions(args, &mut out),
        Command::Man(args) => shell::man(args, &mut out),
    };
    let exit = result.unwrap_or_else(|error| {
        out.error(&error);
        Exit::Trouble
    });
    out.finish(exit).into()
}

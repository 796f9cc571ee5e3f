//! The command line of the small examples: `[DIR]`, then further arguments of the example.

use std::path::PathBuf;
use std::process::exit;

/// Returns the directory, and the arguments after it. Prints `usage` and ends the program for `--help`; an unknown
/// option, or more than `most` arguments, is an error.
pub fn directory(usage: &str, default: &str, most: usize) -> (PathBuf, Vec<String>) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{usage}");
        exit(0);
    }
    let unknown = arguments.iter().find(|argument| argument.starts_with('-')).or_else(|| arguments.get(1 + most));
    if let Some(unknown) = unknown {
        eprintln!("unexpected argument {unknown:?}\n\n{usage}");
        exit(2);
    }
    let mut arguments = arguments.into_iter();
    let directory = arguments.next().map_or_else(|| PathBuf::from(default), PathBuf::from);
    (directory, arguments.collect())
}

//! The command line.

use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

const USAGE: &str = "\
Learns how English words are pronounced; started again with the same DIR, it goes on.

usage: pronounce [--dir DIR] [--steps N] [--save-every M] [--max-to-keep K] [--seed S]
                 [--loss-log FILE] [--hidden H] [--batch B] [--patience P]
                 [--grace SECONDS] [--time-limit SECONDS]

  --dir DIR         where the checkpoints are                      [checkpoints/pronounce]
  --steps N         train up to this step                          [4000]
  --save-every M    save a checkpoint every M steps                [400]
  --max-to-keep K   keep the newest K checkpoints                  [3]
  --seed S          seed of weights, order of the data, dropout    [1]
  --loss-log FILE   append a line {\"step\":…,\"loss\":…} every step   [none]
  --hidden H        size of embeddings and states, an even number  [128]
  --batch B         words per step                                 [64]
  --patience P      stop after P saves without an improvement      [8]
  --grace S         seconds until SIGTERM is followed by SIGKILL   [30]
  --time-limit S    save and stop after so many seconds            [none]";

/// Runs the command line. Returns the exit code.
pub fn run(program: impl FnOnce(&Args) -> Result<(), Box<dyn Error>>) -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let args = match Args::parse(arguments) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("pronounce: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match program(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pronounce: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The values from the command line, or the defaults.
pub struct Args {
    pub dir: PathBuf,
    pub steps: u64,
    pub save_every: u64,
    pub max_to_keep: usize,
    pub seed: i64,
    pub loss_log: Option<PathBuf>,
    pub hidden: i64,
    pub batch: usize,
    pub patience: u64,
    pub grace: u64,
    pub time_limit: Option<u64>,
}

impl Args {
    /// Parses the arguments, without the program's name. The error describes what is wrong with them.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            dir: "checkpoints/pronounce".into(),
            steps: 4000,
            save_every: 400,
            max_to_keep: 3,
            seed: 1,
            loss_log: None,
            hidden: 128,
            batch: 64,
            patience: 8,
            grace: 30,
            time_limit: None,
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--dir" => args.dir = value()?.into(),
                "--steps" => args.steps = at_least(1, &name, &value()?)?,
                "--save-every" => args.save_every = at_least(1, &name, &value()?)?,
                "--max-to-keep" => args.max_to_keep = at_least(1, &name, &value()?)?,
                "--seed" => args.seed = at_least(0, &name, &value()?)?,
                "--loss-log" => args.loss_log = Some(value()?.into()),
                "--hidden" => args.hidden = at_least(2, &name, &value()?)?,
                "--patience" => args.patience = at_least(1, &name, &value()?)?,
                "--grace" => args.grace = at_least(1, &name, &value()?)?,
                "--time-limit" => args.time_limit = Some(at_least(1, &name, &value()?)?),
                "--batch" => args.batch = at_least(1, &name, &value()?)?,
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        if args.hidden % 2 != 0 {
            return Err(format!("--hidden {} is odd: each direction gets one half", args.hidden));
        }
        Ok(args)
    }
}

fn at_least<T: FromStr + PartialOrd + Display>(least: T, name: &str, text: &str) -> Result<T, String> {
    match text.parse() {
        Ok(number) if number >= least => Ok(number),
        _ => Err(format!("{name} wants a whole number from {least} up, not \"{text}\"")),
    }
}

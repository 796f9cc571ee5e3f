//! Command-line arguments. Those of newer commands are in the modules of the commands.

use crate::ls::{Column, Sort};
use crate::policies::{Components, Policies};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use tch_checkpoint::interop::ReadOptions;

const EXAMPLES: &str = "\
Examples:
  ckpt ls checkpoints/pronounce
  ckpt show checkpoints/pronounce/ckpt-240
  ckpt show checkpoints/pronounce 'encoder/*'
  ckpt verify checkpoints/*
  ckpt diff checkpoints/one-go checkpoints/resumed && echo identical
  ckpt convert encoder.pt encoder --map encoder.map
  ckpt best checkpoints/pronounce loss
  ckpt prune --latest 3 --best loss:min:2 checkpoints/pronounce

Exit codes:
  0  done
  1  done, and the answer is no: verify: something is damaged; diff: the states differ
  2  not done: invalid arguments, or an input is missing, damaged or unreadable; everything else is printed";

/// Inspects checkpoints of training loops: lists, shows, verifies, compares and converts them, and reports which of
/// them retention policies keep. Commands that remove checkpoints take the writer's lock; all others are safe while a
/// training process writes.
#[derive(Debug, Parser)]
#[command(name = "ckpt", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print one JSON document instead of text; its fields are described in docs/ckpt.md
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub reading: Reading,
}

/// How files of other tools are read
#[derive(Debug, Args)]
pub struct Reading {
    /// Open files of PyTorch that have objects of unknown classes, without these objects, which are never executed
    #[arg(long, global = true)]
    pub unknown_objects: bool,
    /// Allow the tensors of another tool's file to need N times its length in memory
    #[arg(long, global = true, value_name = "N", default_value_t = 100)]
    pub max_expansion: u64,
}

impl Reading {
    /// Returns the options of the library.
    pub fn options(&self) -> ReadOptions {
        ReadOptions::default().unknown_objects(self.unknown_objects).max_expansion(self.max_expansion)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Ls(Ls),
    Show(Show),
    Verify(Verify),
    Diff(Diff),
    Convert(Convert),
    Average(Average),
    Map(Map),
    Seal(Seal),
    Latest(LatestOf),
    Best(BestOf),
    Why(Why),
    Prune(Prune),
    Pin(Pin),
    Unpin(Unpin),
    Report(Report),
    Annotate(Annotate),
    Rm(Rm),
    Cat(crate::cat::Cat),
    Bisect(crate::bisect::Bisect),
    Du(crate::du::Du),
    Repair(crate::repair::Repair),
    Extract(crate::rewrite::Extract),
    Rename(crate::rewrite::Rename),
    Cast(crate::rewrite::Cast),
    Merge(crate::rewrite::Merge),
    Completions(crate::shell::Completions),
    Man(crate::shell::Man),
}

/// Prints the path of the newest checkpoint of a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt latest checkpoints/pronounce
  ckpt cat $(ckpt latest checkpoints/pronounce) step

Exit codes:
  0  printed
  2  there is no checkpoint, or it could not be read")]
pub struct LatestOf {
    /// The directory of checkpoints
    #[arg(value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
}

/// Prints the path of the healthy checkpoint with the best value of a metric
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt best checkpoints/pronounce loss
  ckpt best --max checkpoints/pronounce accuracy
  ckpt best --metric loss                           of the current directory

Exit codes:
  0  printed
  2  no checkpoint has a finite value of it, or one could not be read")]
pub struct BestOf {
    /// The same as METRIC
    #[arg(long, value_name = "METRIC")]
    pub metric: Option<String>,
    /// Higher is better
    #[arg(long)]
    pub max: bool,
    /// The directory of checkpoints
    #[arg(value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
    /// The metric; lower is better
    #[arg(value_name = "METRIC", required_unless_present = "metric", conflicts_with = "metric")]
    pub name: Option<String>,
}

/// Reports what keeps each checkpoint under the given policies, and what would end that
///
/// Without policies, it reports the reasons that do not depend on them: a checkpoint is the newest, pinned, permanent,
/// the one that a run was restored from, or the newest healthy one.
#[derive(Debug, Args)]
#[command(mut_group("Policies", |group| group.required(false)), after_help = "\
Examples:
  ckpt why checkpoints/pronounce                     whatever the policies
  ckpt why checkpoints/pronounce 240                 only the one with this number
  ckpt why --latest 3 --best loss:min:2 checkpoints/pronounce
  ckpt why --latest 10 --keep-component optimizer=2 checkpoints/pronounce

Exit codes:
  0  printed
  2  the directory could not be read, or there is no such checkpoint")]
pub struct Why {
    #[command(flatten)]
    pub policies: Policies,
    #[command(flatten)]
    pub components: Components,
    /// The directory of checkpoints
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only this checkpoint: a number, a name, `latest`, `best:METRIC:min`, `best:METRIC:max` or `pin:NAME`
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: Option<String>,
}

/// Removes the checkpoints that none of the given policies keeps
///
/// Without `--yes`, it only reports what would be removed. The newest checkpoint, the newest healthy one, and pinned
/// and permanent ones are always kept. Nothing is removed if a kept checkpoint cannot be read or
/// loses files meanwhile, or while a manager writes to the directory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt prune --latest 3 checkpoints/pronounce         what would be removed
  ckpt prune --latest 3 --yes checkpoints/pronounce   remove it
  ckpt prune --latest 10 --keep-component optimizer=2 --yes checkpoints/pronounce

Exit codes:
  0  done
  2  something was to be removed and was not, or the directory could not be read or locked")]
pub struct Prune {
    #[command(flatten)]
    pub policies: Policies,
    #[command(flatten)]
    pub components: Components,
    /// Remove instead of only reporting
    #[arg(long)]
    pub yes: bool,
    /// The directory of checkpoints
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Keeps a checkpoint until it is unpinned
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt pin checkpoints/pronounce/ckpt-240 paper 'the numbers of table 2'

Exit codes:
  0  pinned
  2  there is no such checkpoint, it was removed at this moment, or it could not be written")]
pub struct Pin {
    /// The checkpoint itself; a directory of checkpoints does not stand for its latest
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// The name of the pin; replaces one of the same name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Why
    #[arg(value_name = "NOTE")]
    pub note: Option<String>,
}

/// Removes a pin
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt unpin checkpoints/pronounce/ckpt-240 paper

Exit codes:
  0  unpinned
  1  there was no such pin
  2  there is no such checkpoint, or it could not be written")]
pub struct Unpin {
    /// The checkpoint itself; a directory of checkpoints does not stand for its latest
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// The name of the pin
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Adds a note to a checkpoint
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt annotate checkpoints/pronounce/ckpt-240 reviewed 'listened to 50 words'

Exit codes:
  0  noted
  2  there is no such checkpoint, it was removed at this moment, or it could not be written")]
pub struct Annotate {
    /// The checkpoint itself; a directory of checkpoints does not stand for its latest
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// The name of the note; replaces one of the same name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The note
    #[arg(value_name = "TEXT")]
    pub text: String,
}

/// Removes checkpoints, even if they are permanent
///
/// Asks before each one, unless `--yes` is given. Pinned checkpoints are not removed: unpin them first. Takes the
/// writer's lock, so that nothing is removed while a training process writes to the directory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt rm checkpoints/pronounce/ckpt-80
  ckpt rm --yes checkpoints/pronounce/ckpt-80 checkpoints/pronounce/ckpt-160

Exit codes:
  0  removed
  1  one was not removed, because the answer was not yes
  2  one was not removed: it is pinned, a training process writes, it is damaged, or there is none")]
pub struct Rm {
    /// The checkpoints themselves; a directory of checkpoints does not stand for its latest
    #[arg(value_name = "CHECKPOINT", required = true)]
    pub checkpoints: Vec<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// Lists the checkpoints in a directory, oldest first, and everything else that saves and managers left there
///
/// Reads manifests and file sizes, not tensors; use `ckpt verify` for those.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt ls checkpoints/pronounce
  ckpt ls --sort metric:loss --best loss checkpoints/pronounce
  ckpt ls --columns name,age,new,pins,kept checkpoints/pronounce
  ckpt ls --columns name,stall,took,waited,written,linked,rate checkpoints/pronounce
  ckpt ls -r checkpoints
  ckpt ls --json checkpoints/pronounce | jq -r .latest

Exit codes:
  0  listed, even if the directory is empty or has damaged checkpoints
  2  there is no such directory, or it, or with -r one below it, could not be read")]
pub struct Ls {
    /// The directory of checkpoints
    #[arg(value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
    /// The order: sequence (of commits), name, step, saved, size, new, or metric:NAME; ascending
    #[arg(long, value_name = "KEY", default_value = "sequence")]
    pub sort: Sort,
    /// The columns: name, step, saved, age, size, new (bytes that no older checkpoint shares), tensors, values,
    /// metrics, metadata (names), health, pins, notes, stall (time for which the training was stalled), took (time
    /// until everything was written), waited (of these, for the previous save), written and linked (bytes), rate,
    /// provenance, kept (what keeps it regardless of policies), marks
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', default_value = "name,step,age,size,new,metrics,marks")]
    pub columns: Vec<Column>,
    /// Mark the healthy one with the lowest (with `--max`: highest) finite value of a metric as best
    #[arg(long, value_name = "METRIC")]
    pub best: Option<String>,
    /// Higher is better
    #[arg(long, requires = "best")]
    pub max: bool,
    /// List all directories of checkpoints below DIR
    #[arg(long, short)]
    pub recursive: bool,
    /// Print the listing again every SECONDS [default: 2] until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
}

/// Shows the content of a checkpoint of any format: components, files, tensors, values
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt show checkpoints/pronounce/ckpt-240
  ckpt show checkpoints/pronounce                   the latest in that directory
  ckpt show checkpoints/pronounce '*bias'           the tensors and values with such names
  ckpt show --stats --histogram checkpoints/pronounce 'encoder/*'

Exit codes:
  0  shown
  2  there is no checkpoint, it is damaged, or it could not be read")]
pub struct Show {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "CHECKPOINT")]
    pub path: PathBuf,
    /// Only tensors and values whose key matches; `*` matches any text, including `/`
    #[arg(value_name = "PATTERN")]
    pub pattern: Option<String>,
    /// The same as PATTERN
    #[arg(long, value_name = "PATTERN", conflicts_with = "pattern")]
    pub filter: Option<String>,
    /// Show tensors and values as a tree instead of tables
    #[arg(long)]
    pub tree: bool,
    /// Read the tensors, and show the range, mean, standard deviation, norm, zeros and non-finite values of each
    #[arg(long)]
    pub stats: bool,
    /// Read the tensors, and show how the finite values of each are distributed from the smallest to the largest
    #[arg(long)]
    pub histogram: bool,
    /// The number of bins of a histogram
    #[arg(long, value_name = "N", default_value_t = 32, requires = "histogram",
        value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub bins: u16,
}

/// Reads every byte and checks that it is what was written
///
/// In a directory of checkpoints, every checkpoint is verified except unfinished ones and those that a manager moved
/// aside as damaged; name these to verify them. Files that a manifest does not list are reported as unexpected and do
/// not count as damage.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt verify checkpoints/pronounce/ckpt-240
  ckpt verify checkpoints/*
  ckpt verify --quick checkpoints/pronounce

Exit codes:
  0  every checkpoint is intact, or complete with --quick
  1  at least one is damaged: a changed, missing or added byte, or a missing file
  2  at least one could not be read, or a directory has no checkpoint; others may be damaged")]
pub struct Verify {
    /// Checkpoints, directories of checkpoints, or checkpoints of other tools
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Check manifests, headers and lengths of files only; read no tensor. A checkpoint without problems is `complete`,
    /// not `intact`
    #[arg(long)]
    pub quick: bool,
}

/// Compares the state in two checkpoints: tensors and values
///
/// Tensors are compared by their digests; the elements of those that differ are read. The largest changes come first:
/// tensors by the relative L2 norm of their difference, then everything else by name. Step, time, run, metrics, file
/// layout and save counter are not part of the state. Use `ckpt verify` to check whether the files are what was
/// written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt diff checkpoints/one/ckpt-100 checkpoints/two/ckpt-100
  ckpt diff checkpoints/one checkpoints/two         the latest of each
  ckpt diff --tolerance 1e-6 model.pt checkpoints/two --map names.map

Exit codes:
  0  the states are equal, bit for bit or within the tolerance
  1  they differ
  2  one of them could not be read, or is damaged")]
pub struct Diff {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another checkpoint
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Compare A under the names of this map (docs/maps.md)
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Count tensors as equal if no two elements are farther apart
    #[arg(long, value_name = "T")]
    pub tolerance: Option<f64>,
}

/// Converts a checkpoint of any format to another format
///
/// The format of SOURCE is recognized by its content: PyTorch, TorchScript, Hugging Face, TensorFlow, Keras, NumPy,
/// tch, and this crate's own. Elements are verified as far as the format allows. DEST is written atomically. From one
/// checkpoint of this crate to another, step, metrics, metadata and files are copied as well; what is left out is
/// reported.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt convert model.pt checkpoints/pretrained                    to a checkpoint of this crate
  ckpt convert checkpoints/pronounce/ckpt-240 model.safetensors --only 'encoder/*' --dtype F16
  ckpt convert tagger.keras tagger.pt --map tagger.map
  ckpt convert checkpoints/pronounce weights.pt --root model --flat         for VarStore::load
  ckpt convert checkpoints/pronounce resume.pt --optimizer optimizer --parameters names.txt

Exit codes:
  0  written
  2  nothing was written")]
pub struct Convert {
    /// A file, a directory, the prefix of a TensorFlow checkpoint, or a directory of checkpoints for its latest
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// What to write
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    #[command(flatten)]
    pub writing: Writing,
}

/// Writes the average of several checkpoints
///
/// Floats are averaged in 64 bits and rounded once. Everything else is taken from the last checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt average checkpoints/run/ckpt-800 checkpoints/run/ckpt-900 checkpoints/run/ckpt-1000 --out averaged
  ckpt average --weights 1,2 checkpoints/run/ckpt-900 checkpoints/run/ckpt-1000 --out averaged
  ckpt average --decay 0.9 checkpoints/run/ckpt-* --out averaged.safetensors

Exit codes:
  0  written
  2  nothing was written")]
pub struct Average {
    /// Checkpoints of any format, or directories of checkpoints for their latest, with the same names, the oldest first;
    /// numbered checkpoints of one directory, such as `run/ckpt-*`, are sorted
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<PathBuf>,
    /// What to write
    #[arg(long = "out", value_name = "DEST")]
    pub dest: PathBuf,
    /// Exponential instead of uniform: AVERAGE = D * AVERAGE + (1 - D) * NEXT
    #[arg(long, value_name = "D")]
    pub decay: Option<f64>,
    /// A weight per source, separated by commas; they are divided by their sum. The sources are not sorted
    #[arg(long, value_name = "W,W,...", value_delimiter = ',', conflicts_with = "decay")]
    pub weights: Vec<f64>,
    #[command(flatten)]
    pub writing: Writing,
}

/// Writes digests of checkpoints of other tools to PATH.seal.json, with which later reads are compared
///
/// `ckpt verify`, `convert` and `diff`, and restores, then verify every element, even if the format has no checksum.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt seal model.safetensors
  ckpt verify model.safetensors

Exit codes:
  0  all are sealed
  2  one could not be read, is damaged, or already has a seal")]
pub struct Seal {
    /// Files, directories, or prefixes of TensorFlow checkpoints
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// What is written to DEST, and how
#[derive(Debug, Args)]
pub struct Destination {
    /// The format; defaults to that of the suffix of DEST (.safetensors, .pt, .pth, .bin), and to a checkpoint for any
    /// other name
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<To>,
    /// Replace an existing file; directories and TensorFlow checkpoints are never replaced
    #[arg(long)]
    pub force: bool,
    /// Write only what is below KEY, without KEY in its names (PyTorch and safetensors)
    #[arg(long, value_name = "KEY")]
    pub root: Option<String>,
    /// Write one dictionary of tensors, their names joined by dots, as `VarStore::load` of tch reads it (PyTorch)
    #[arg(long)]
    pub flat: bool,
    /// Write the optimizer below KEY as the `state_dict` of PyTorch's (PyTorch)
    #[arg(long, value_name = "KEY", requires = "parameters")]
    pub optimizer: Option<String>,
    /// The variables in the order in which PyTorch's optimizer gets them: a name per line, and an empty line before
    /// each further parameter group
    #[arg(long, value_name = "FILE", requires = "optimizer")]
    pub parameters: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Writing {
    #[command(flatten)]
    pub destination: Destination,
    /// Names and transforms: a map (docs/maps.md)
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Convert all floats to F16, BF16, F32 or F64
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<String>,
    /// Only names that match; `*` matches any text
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum To {
    /// A checkpoint of this crate
    Checkpoint,
    /// A safetensors file, or a Hugging Face directory
    Safetensors,
    /// A file for torch.load
    Pytorch,
    /// A TensorFlow checkpoint
    Tensorflow,
}

/// Proposes a map that gives FROM the names and layouts of TO
///
/// Based on names, shapes and order. Each line has a confidence; review those that are not sure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt map tagger.keras checkpoints/tagger/ckpt-0 --output tagger.map
  ckpt convert tagger.keras pretrained --map tagger.map

Exit codes:
  0  proposed
  1  some tensors of TO have no counterpart
  2  one of them could not be read")]
pub struct Map {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "FROM")]
    pub from: PathBuf,
    /// Another one with the target names, such as one of the untrained model
    #[arg(value_name = "TO")]
    pub to: PathBuf,
    /// Write the map to a new file instead of printing it
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Writes a page that shows a run: timeline, metrics, sizes, and how every tensor changed
///
/// The page is one HTML file that needs no network. Tensors are read and verified, those of at most `--samples`
/// checkpoints. With policies, it also shows what each of them keeps.
#[derive(Debug, Args)]
#[command(mut_group("Policies", |group| group.required(false)), after_help = "\
Examples:
  ckpt report checkpoints/pronounce
  ckpt report checkpoints/pronounce -o run.html --latest 3 --best loss:min:2
  ckpt report checkpoints/one-go checkpoints/resumed     two runs side by side
  ckpt report --tensors 'encoder/*' --samples 20 checkpoints/pronounce

Exit codes:
  0  written, even if checkpoints are damaged: the page shows them
  2  a directory could not be read, or the page could not be written")]
pub struct Report {
    /// A directory of checkpoints, or two
    #[arg(value_name = "DIR", required = true, num_args = 1..=2)]
    pub directories: Vec<PathBuf>,
    /// The file to write; replaces an existing one
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// The maximum number of checkpoints whose tensors are read, evenly spaced; 0 reads none
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub samples: usize,
    /// Only tensors whose key matches; `*` matches any text, including `/`
    #[arg(long, value_name = "PATTERN")]
    pub tensors: Vec<String>,
    #[command(flatten)]
    pub policies: Policies,
}

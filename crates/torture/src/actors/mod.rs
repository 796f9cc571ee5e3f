//! A second process that does random lawful and unlawful things in and around a directory, while a manager saves into
//! it, rotates, and is restarted.
//!
//! What must hold: no checkpoint that was acknowledged, and that the actor did not touch, is lost or wrong; nothing of
//! others is changed; what the actor did destroy is reported, never restored as if it were right.

mod actor;
mod careless;
mod others;
mod trainer;
mod watch;

pub use actor::actor_child;
pub use careless::Careless;

use super::run::Setup;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use trainer::Trainer;

/// The result of [`actors`].
#[derive(Debug, Clone, Default)]
pub struct ActorReport {
    /// What the actor did.
    pub operations: u64,
    /// The number of acknowledged saves.
    pub saved: u64,
    /// The number of saves that failed.
    pub refused: u64,
    /// How often a manager was opened and restored.
    pub restarts: u64,
    /// The number of examined checkpoints that were right.
    pub right: u64,
    /// The number of those that had been superseded.
    pub aside: u64,
    /// The number of those that the actor had destroyed, which was reported.
    pub reported: u64,
    /// What the actor did of each rarer kind: leases taken, directories watched, managers killed, saves by others.
    pub did: BTreeMap<String, u64>,
    /// Archives that share a file with a checkpoint that was written later: the actor gave it a second name between the
    /// examine its names and the first write. No call of the system closes that window (SECURITY.md).
    pub windows: u64,
    /// The violations.
    pub violations: Vec<String>,
}

const KEEP: usize = 3;
/// The number of operations between two examinations.
const BATCH: u64 = 100;

fn setup() -> Setup {
    Setup { components: 3, frozen: 1, bytes: 20_000, keep: Some(KEEP), ..Setup::default() }
}

/// What the actor has said so far.
#[derive(Default)]
struct Said {
    touched: BTreeSet<String>,
    inodes: BTreeSet<u64>,
    /// Its archives: whether they have the files of checkpoints as second names, and of which checkpoint they are.
    kept: BTreeMap<PathBuf, (bool, String)>,
    mine: BTreeSet<PathBuf>,
    /// Managers of other names want to save.
    others_want: bool,
    /// What they saved, by their name.
    others: BTreeMap<String, Vec<u64>>,
}

fn names(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| wanted(name));
    names.sort();
    names
}

/// The checkpoint's name that a name of ours stands for.
fn bare(name: &str) -> &str {
    let marks = [".tmp-", ".trash-.d-", ".trash-.p-", ".trash-.s-", ".trash-"];
    let marked = marks.iter().find_map(|mark| name.strip_prefix(mark));
    marked.and_then(|rest| rest.rsplit_once('-')).map_or(name, |(name, _)| name)
}

impl Said {
    fn take(&mut self, line: &str, report: &mut ActorReport) {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("touch", name) => drop(self.touched.insert(name.to_string())),
            ("inode", number) => self.inodes.extend(number.parse::<u64>()),
            ("keep", rest) => {
                if let [of, name, path] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] {
                    self.kept.insert(path.into(), (of == "links", name.to_string()));
                }
            }
            ("others", _) => self.others_want = true,
            ("thanks", _) => self.others_want = false,
            ("saved", rest) => {
                if let Some((name, Ok(step))) = rest.split_once(' ').map(|(name, step)| (name, step.parse::<u64>())) {
                    *report.did.entry(format!("saves by {name}")).or_default() += 1;
                    let steps = self.others.entry(name.to_string()).or_default();
                    steps.retain(|earlier| *earlier < step);
                    steps.push(step);
                }
            }
            ("did", what) => *report.did.entry(what.to_string()).or_default() += 1,
            ("mine", path) => drop(self.mine.insert(path.into())),
            _ if line.contains("VIOLATION") => report.violations.push(line.to_string()),
            _ => {}
        }
    }

    /// Whether a file that was written into is among those in `path`.
    fn has_damaged(&self, path: &Path) -> bool {
        let inode = |file: &String| fs::metadata(path.join(file)).map(|metadata| metadata.ino());
        names(path, |_| true).iter().any(|file| inode(file).is_ok_and(|inode| self.inodes.contains(&inode)))
    }

    /// Forgets the numbers of files that are not there any more: others get them.
    fn forget(&mut self, root: &Path) {
        let files = |name: String| {
            let directory = root.join(name);
            names(&directory, |_| true).into_iter().map(move |file| directory.join(file))
        };
        let files = names(root, |_| true).into_iter().flat_map(files);
        let there: BTreeSet<u64> = files.filter_map(|file| Some(fs::metadata(file).ok()?.ino())).collect();
        self.inodes.retain(|inode| there.contains(inode));
    }

    /// Returns whether the actor has affected what is at `path`, called `name`.
    fn is_touched(&self, name: &str, path: &Path) -> bool {
        self.touched.contains(name) || self.has_damaged(path)
    }
}

/// The manager that runs at the same time as the actor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside {
    /// What is wrong with it, so that something must be found.
    pub careless: Option<Careless>,
    /// Its process, which has nothing else to do, changes its working directory.
    pub wanders: bool,
}

/// Lets the actor that `command` starts, given directory and seed, do so many things while a manager works.
///
/// # Errors
/// When the actor cannot be started, or ends.
pub fn actors(
    scratch: &Path,
    operations: u64,
    seed: u64,
    beside: Beside,
    command: impl FnOnce(&Path, u64) -> Command,
) -> io::Result<ActorReport> {
    let mut report = ActorReport::default();
    fs::create_dir_all(scratch)?;
    let directory = scratch.canonicalize()?;
    let mut child = command(&directory, seed).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the actor has no input and output"));
    };
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(io::Result::ok).try_for_each(|line| sender.send(line))
    });
    let mut trainer = Trainer::new(&directory.join("run"), !seed, beside);
    let mut said = Said::default();
    while report.operations < operations && report.violations.len() < 20 {
        writeln!(orders, "{BATCH}")?;
        let mut done = false;
        while !done {
            match said.others_want {
                true => trainer.make_room(),
                false => trainer.act(&mut report),
            }
            for line in lines.try_iter() {
                // The test harness prints its own text before the first line.
                done |= line.ends_with("done");
                said.take(&line, &mut report);
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("the actor is gone: {status}")));
            }
        }
        report.operations += BATCH;
        trainer.look(&mut said, &mut report);
    }
    drop(orders);
    child.wait()?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "TORTURE_ACTOR";

    /// Not a test of its own: the second process of [`an_actor_beside_a_manager_costs_nothing_that_was_acknowledged`].
    #[test]
    fn child() {
        let Ok(order) = std::env::var(CHILD) else { return };
        if let Some((seed, directory)) = order.split_once(' ') {
            actor_child(Path::new(directory), seed.parse().unwrap()).unwrap();
        }
    }

    fn beside(scratch: &Path, operations: u64, seed: u64, beside: Beside) -> ActorReport {
        let this = std::env::current_exe().unwrap();
        let report = actors(scratch, operations, seed, beside, |directory, seed| {
            let mut command = Command::new(&this);
            command.args(["--exact", "actors::tests::child", "--nocapture"]);
            command.env(CHILD, format!("{seed} {}", directory.display()));
            command
        });
        report.unwrap()
    }

    /// With one thing wrong in how files are reached, the same actor finds something.
    #[test]
    #[cfg_attr(libtorch, ignore = "the second process would load libtorch; it runs without libtorch")]
    fn an_actor_finds_what_is_careless() {
        for careless in Careless::ALL {
            let found = (1..=20).any(|seed| {
                let scratch = tempfile::tempdir().unwrap();
                let wrong = Beside { careless: Some(careless), wanders: false };
                !beside(scratch.path(), 500, seed, wrong).violations.is_empty()
            });
            assert!(found, "{careless:?} is not noticed");
        }
    }

    /// Runs a few seconds; the long form is `torture actors`.
    #[test]
    #[cfg_attr(libtorch, ignore = "the second process would load libtorch; it runs without libtorch")]
    fn an_actor_beside_a_manager_costs_nothing_that_was_acknowledged() {
        let (mut saved, mut right, mut reported, mut restarts) = (0, 0, 0, 0);
        // How much the two processes get done depends on what else the machine does.
        for seed in 1..=6 {
            let scratch = tempfile::tempdir().unwrap();
            let report = beside(scratch.path(), 2000, seed, Beside::default());
            println!("{report:?}");
            assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
            saved += report.saved;
            right += report.right;
            reported += report.reported;
            restarts += report.restarts;
            if saved > 50 && right > 20 && reported > 0 && restarts > 3 {
                return;
            }
        }
        panic!("too little happened: {saved} saved, {right} right, {reported} reported, {restarts} restarts");
    }
}

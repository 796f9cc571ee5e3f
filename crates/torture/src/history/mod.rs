//! Random histories of a manager's calls, and of changes by others in its directory, compared with an oracle that keeps
//! a list of what should be there.

mod calls;
mod disk;
mod look;
mod others;
mod state;

use super::oracle::{Line, Place, Rules};
use super::random::Random;
use chrono::TimeDelta;
use state::{NAMES, State, foreign_run};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::internal::{Rule, without_rule};
use tch_checkpoint::retention::{Best, EveryNSteps, Goal};
use tch_checkpoint::{CheckpointManager, Snapshot};

/// The result of [`histories`].
#[derive(Debug, Clone, Default)]
pub struct HistoryReport {
    /// The number of histories.
    pub histories: u64,
    /// The number of steps in them.
    pub deeds: u64,
    /// The number of histories with a violation.
    pub violations: u64,
    /// Some of them.
    pub examples: Vec<String>,
}

/// Runs histories in a directory below `scratch`, preferably in memory. `progress` is called after each.
#[must_use]
pub fn histories(scratch: &Path, seed: u64, count: u64, progress: impl Fn(&HistoryReport) + Sync) -> HistoryReport {
    run(scratch, seed, count, None, progress)
}

/// Runs histories with each rule broken until one is violated. Returns the rules, and after how many histories it was.
#[must_use]
pub fn broken_histories(scratch: &Path, seed: u64, most: u64) -> Vec<(String, Option<u64>)> {
    let tried = Rule::ALL.iter().map(|&rule| {
        let report = run(scratch, seed, most, Some(rule), |_| ());
        (format!("{rule:?}"), (report.violations > 0).then_some(report.histories))
    });
    tried.collect()
}

/// Stops at the first violation if a rule is broken.
fn run(
    scratch: &Path,
    seed: u64,
    count: u64,
    rule: Option<Rule>,
    progress: impl Fn(&HistoryReport) + Sync,
) -> HistoryReport {
    let next = AtomicU64::new(0);
    let report = Mutex::new(HistoryReport::default());
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get()).min(4);
    let foreign = scratch.join("foreign");
    if let Err(e) = foreign_run(&foreign) {
        return HistoryReport { violations: 1, examples: vec![e.to_string()], ..HistoryReport::default() };
    }
    let work = |thread: usize| {
        let dir = scratch.join(format!("history-{thread}"));
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let lock = || report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if number >= count || rule.is_some() && lock().violations > 0 {
                break;
            }
            let _ = fs::remove_dir_all(&dir);
            let mut history = History::new(&dir, &foreign, rule, seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let result = history.run();
            drop(history.manager.take());
            let mut report = lock();
            report.histories += 1;
            report.deeds += history.told.len() as u64;
            if let Err(violation) = result {
                report.violations += 1;
                if report.examples.len() < 5 {
                    let (told, there) = (history.told.join("\n  "), history.listing());
                    let text = format!("history {number} of seed {seed}: {violation}\n  {told}\nthere:\n  {there}");
                    report.examples.push(text);
                }
            }
            progress(&report);
        }
        let _ = fs::remove_dir_all(&dir);
    };
    std::thread::scope(|scope| {
        let work = &work;
        for thread in 1..threads {
            scope.spawn(move || work(thread));
        }
        work(0);
    });
    let _ = fs::remove_dir_all(&foreign);
    report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct History {
    dir: PathBuf,
    foreign: PathBuf,
    /// The rule that its managers do not follow.
    broken: Option<Rule>,
    random: Random,
    state: State,
    manager: Option<CheckpointManager>,
    /// The manager's name, as an index into `NAMES`.
    name: usize,
    lines: [Line; 2],
    rules: Rules,
    interval: u64,
    /// Whether a save that was due has failed since the last save or restore.
    owed: bool,
    /// The time in seconds.
    now: i64,
    /// Checkpoints of the foreign run that were copied in.
    copied: Vec<String>,
    /// One of them is permanent: the index must not be lost.
    needs_index: bool,
    /// The index knows the manager's checkpoints.
    indexed: [bool; 2],
    /// The last snapshot of this process.
    snapshot: Option<Taken>,
    /// A value that no save has seen.
    fresh_value: u64,
    /// A value of the state is not finite.
    diverges: bool,
    /// The number of saves into the directory.
    saves: u64,
    told: Vec<String>,
}

/// A snapshot of the state, and what holds for it.
struct Taken {
    snapshot: Snapshot,
    value: u64,
    diverges: bool,
    place: Place,
}

/// An error says what is wrong.
type Verdict = Result<(), String>;

impl History {
    fn new(dir: &Path, foreign: &Path, broken: Option<Rule>, seed: u64) -> History {
        let mut history = History {
            dir: dir.to_path_buf(),
            foreign: foreign.to_path_buf(),
            broken,
            random: Random::new(seed),
            state: State::new(),
            manager: None,
            name: 0,
            lines: Default::default(),
            rules: Rules::default(),
            interval: 1,
            owed: false,
            now: 0,
            copied: Vec::new(),
            needs_index: false,
            indexed: [false; 2],
            snapshot: None,
            fresh_value: 1,
            diverges: false,
            saves: 0,
            told: Vec::new(),
        };
        history.choose_rules();
        history
    }

    /// Chooses policies for this process and the next ones.
    fn choose_rules(&mut self) {
        let random = &mut self.random;
        self.interval = 1 + random.below(3) as u64;
        self.rules = Rules {
            latest: 1 + random.below(4),
            best: random.below(4).saturating_sub(1),
            multiples: [0, 0, 3][random.below(3)],
            restored: random.below(4),
            slots: [0, 0, 1, 2][random.below(4)],
            every: [None, None, Some(1), Some(10), Some(3600)][random.below(5)],
        };
        let (rules, interval) = (&self.rules, self.interval);
        self.told.push(format!("{rules:?}, every {interval}"));
    }

    /// Opens a manager of the present name with the present policies.
    fn open(&mut self, fresh: bool) -> tch_checkpoint::Result<CheckpointManager> {
        let mut builder = CheckpointManager::builder(self.state.checkpoint()?, &self.dir)
            .save_options(State::options())
            .checkpoint_name(NAMES[self.name])
            .max_to_keep(self.rules.latest)
            .protect_restored(self.rules.restored)
            .save_every(self.interval)
            .unclean_on_failure();
        if let Some(rule) = self.broken {
            builder = without_rule(builder, rule);
        }
        if let Some(seconds) = self.rules.every {
            builder = builder.keep_every(std::time::Duration::from_secs(seconds as u64));
        }
        if self.rules.best > 0 {
            builder = builder.keep(Best::new("m0", Goal::Minimize, self.rules.best));
        }
        if self.rules.multiples > 0 {
            builder = builder.keep(EveryNSteps(self.rules.multiples));
        }
        if self.rules.slots > 0 {
            builder = builder.keep_component("slots", self.rules.slots);
        }
        if fresh {
            builder = builder.fresh_start();
        }
        builder.open()
    }

    /// Runs one history. Most are short, because the beginning of a process has the most cases.
    fn run(&mut self) -> Verdict {
        let most = if self.random.one_in(8) { 80 } else { 14 };
        for _ in 0..4 + self.random.below(most) {
            let seconds = self.random.below(5) as i64;
            self.turn_clock(seconds);
            match self.manager {
                None => self.begin()?,
                Some(_) => self.deed()?,
            }
        }
        self.close()?;
        self.begin()
    }

    fn turn_clock(&mut self, seconds: i64) {
        self.now += seconds;
        self.state.system.shift(TimeDelta::seconds(seconds));
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    fn line(&mut self) -> &mut Line {
        &mut self.lines[self.name]
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{}-{number}", NAMES[self.name]))
    }

    fn manager(&mut self) -> Result<&mut CheckpointManager, String> {
        self.manager.as_mut().ok_or_else(|| "no manager".to_string())
    }

    /// Does one step: a call, or a change by others.
    fn deed(&mut self) -> Verdict {
        let last = self.line().last_step.unwrap_or(0);
        match self.random.below(28) {
            0..=5 => self.save_at(last + 1 + self.random.clone().below(3) as u64, true),
            6 | 7 => self.save_if_due(last + 1),
            8 => match last.checked_sub(1 + self.random.clone().below(3) as u64) {
                Some(step) => self.save_if_due(step),
                None => Ok(()),
            },
            9 => self.save_at(last, false),
            10 => self.save_at(last, true),
            11 => self.save_at(last.saturating_sub(self.random.clone().below(6) as u64), true),
            12 => self.save_counted(),
            13 | 14 => self.go_back().map(drop),
            15 => self.remove_by_hand(),
            16 => self.damage(),
            17 => self.copy_in(),
            18 => self.somebody(),
            19 => self.pin(),
            20 | 21 => self.evaluate(),
            22 | 23 => self.fail(),
            24..=26 => self.snapshot(),
            _ => self.close(),
        }
    }

    fn close(&mut self) -> Verdict {
        match self.manager.take() {
            Some(manager) => {
                self.tell("close");
                manager.close().map_err(|e| format!("it does not close: {e}"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
    }

    #[test]
    fn a_history_of_a_directory_goes_as_a_plain_list_says() {
        let report = histories(scratch().path(), 1, 200, |_| ());
        assert_eq!(report.violations, 0, "{}", report.examples.join("\n\n"));
        assert_eq!(report.histories, 200);
    }

    #[test]
    fn every_broken_rule_is_caught() {
        for (rule, after) in broken_histories(scratch().path(), 1, 3000) {
            assert!(after.is_some(), "{rule} is not caught");
        }
    }
}

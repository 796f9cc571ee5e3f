//! Random histories of a manager's calls, and of what others do in its directory meanwhile, against an oracle that
//! keeps a plain list of what should be there.

use super::memory::Memory;
use super::oracle::{Line, Made, Rules, Then};
use super::random::Random;
use super::system::System;
use chrono::TimeDelta;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::Checkpoint;
use tch_checkpoint::CheckpointReader;
use tch_checkpoint::Counter;
use tch_checkpoint::Durability;
use tch_checkpoint::Error;
use tch_checkpoint::internal::{Rule, checkpoint_on, without_rule};
use tch_checkpoint::retention::{Best, EveryNSteps, Goal};
use tch_checkpoint::{CheckpointDirectory, CheckpointManager, Location, SaveOptions, latest_checkpoint};

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct HistoryReport {
    /// Histories that ran to their end.
    pub histories: u64,
    /// Calls and other deeds in them.
    pub deeds: u64,
    /// Histories in which something was not as it should be.
    pub violations: u64,
    /// Some of them, in words.
    pub examples: Vec<String>,
}

/// The names of managers; and of the checkpoints that are copied in, only the first.
const NAMES: [&str; 2] = ["ckpt", "best"];

/// Runs histories in a directory below `scratch`, which is best one in memory.
#[must_use]
pub fn histories(scratch: &Path, seed: u64, count: u64) -> HistoryReport {
    run(scratch, seed, count, None)
}

/// Runs histories with each rule broken until one shows it; returns the rules and after how many histories, if at all.
#[must_use]
pub fn broken_histories(scratch: &Path, seed: u64, most: u64) -> Vec<(String, Option<u64>)> {
    let tried = Rule::ALL.iter().map(|&rule| {
        let report = run(scratch, seed, most, Some(rule));
        (format!("{rule:?}"), (report.violations > 0).then_some(report.histories))
    });
    tried.collect()
}

/// With a broken rule the first violation is enough.
fn run(scratch: &Path, seed: u64, count: u64, rule: Option<Rule>) -> HistoryReport {
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
                    let told = history.told.join("\n  ");
                    report.examples.push(format!("history {number} of seed {seed}: {violation}\n  {told}"));
                }
            }
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

/// A run that saved more often than any history does, of which the last checkpoints are copied elsewhere.
fn foreign_run(dir: &Path) -> tch_checkpoint::Result<()> {
    let _ = fs::remove_dir_all(dir);
    let state = State::new();
    let builder = CheckpointManager::builder(state.checkpoint()?, dir).save_options(State::options());
    let mut manager = builder.max_to_keep(2).open()?;
    for step in 1000..1060 {
        state.set(1_000_000 + step);
        manager.save_at(step)?;
    }
    manager.close()
}

/// What is saved: a number, as a value and as a tensor.
struct State {
    value: Counter,
    tensor: Memory,
    system: System,
}

impl State {
    fn new() -> State {
        State { value: Counter::new(0), tensor: Memory::new(vec![0; 8]), system: System::default() }
    }

    fn checkpoint(&self) -> tch_checkpoint::Result<Checkpoint> {
        let system = Arc::new(self.system.clone());
        checkpoint_on(system).track("value", &self.value)?.track("tensor", self.tensor.clone())
    }

    fn options() -> SaveOptions {
        SaveOptions::new().durability(Durability::ProcessCrash).threads(1)
    }

    fn set(&self, value: u64) {
        self.value.set(value);
        self.tensor.set(value.to_le_bytes().to_vec());
    }

    fn is(&self, value: u64) -> bool {
        self.value.get() == value && ***self.tensor.get() == value.to_le_bytes()
    }
}

struct History {
    dir: PathBuf,
    foreign: PathBuf,
    /// The rule that its managers do not go by.
    broken: Option<Rule>,
    random: Random,
    state: State,
    manager: Option<CheckpointManager>,
    /// Which name the manager has, by place in `NAMES`.
    name: usize,
    lines: [Line; 2],
    rules: Rules,
    interval: u64,
    hours: Option<f64>,
    /// Checkpoints of the foreign run that were copied in.
    copied: Vec<String>,
    /// The index knows the manager's checkpoints.
    indexed: [bool; 2],
    /// A value that no save has seen.
    fresh_value: u64,
    /// How many saves of the directory there were.
    saves: u64,
    told: Vec<String>,
}

type Verdict = Result<(), String>;

impl History {
    fn new(dir: &Path, foreign: &Path, broken: Option<Rule>, seed: u64) -> History {
        let mut random = Random::new(seed);
        let (latest, interval) = (1 + random.below(4), 1 + random.below(3) as u64);
        let (best, multiples) = (random.below(4).saturating_sub(1), [0, 0, 3][random.below(3)]);
        let rules = Rules { latest, best, multiples, restored: random.below(4) };
        let hours = [None, Some(1e-12), Some(1.0)][random.below(3)];
        History {
            dir: dir.to_path_buf(),
            foreign: foreign.to_path_buf(),
            broken,
            random,
            state: State::new(),
            manager: None,
            name: 0,
            lines: Default::default(),
            rules: rules.clone(),
            interval,
            hours,
            copied: Vec::new(),
            indexed: [false; 2],
            fresh_value: 1,
            saves: 0,
            told: vec![format!("{rules:?}, every {interval}, hours {hours:?}")],
        }
    }

    fn run(&mut self) -> Verdict {
        for _ in 0..4 + self.random.below(14) {
            match self.manager {
                None => self.begin()?,
                Some(_) => self.deed()?,
            }
        }
        self.close()?;
        self.begin()
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

    /// A new process.
    fn begin(&mut self) -> Verdict {
        self.name = usize::from(self.random.one_in(5));
        self.state = State { system: self.state.system.clone(), ..State::new() };
        let fresh = self.random.one_in(8);
        let checkpoint = self.state.checkpoint().map_err(|e| e.to_string())?;
        let mut builder = CheckpointManager::builder(checkpoint, &self.dir)
            .save_options(State::options())
            .checkpoint_name(NAMES[self.name])
            .max_to_keep(self.rules.latest)
            .protect_restored(self.rules.restored)
            .save_every(self.interval);
        if let Some(rule) = self.broken {
            builder = without_rule(builder, rule);
        }
        if let Some(hours) = self.hours {
            builder = builder.keep_every(std::time::Duration::from_secs_f64(hours * 3600.0));
        }
        if self.rules.best > 0 {
            builder = builder.keep(Best::new("m0", Goal::Minimize, self.rules.best));
        }
        if self.rules.multiples > 0 {
            builder = builder.keep(EveryNSteps(self.rules.multiples));
        }
        if fresh {
            builder = builder.fresh_start();
        }
        self.tell(format!("open {}{}", NAMES[self.name], if fresh { ", fresh" } else { "" }));
        self.manager = Some(builder.open().map_err(|e| format!("it does not open: {e}"))?);
        self.line().opened();
        match self.random.below(8) {
            0 => self.save_unrestored(fresh),
            1 if self.line().own.iter().any(|made| made.is_whole()) => self.go_back(),
            _ => self.recover(fresh),
        }
    }

    /// The directory must be taken as it is, or the other name's checkpoints be an error.
    fn recover(&mut self, fresh: bool) -> Verdict {
        self.tell("restore_or_initialize");
        let others = self.lines[1 - self.name].own.iter().any(|made| made.there);
        let foreign = self.name == 0 && !self.copied.is_empty();
        let foreign_elsewhere = self.name == 1 && !self.copied.is_empty();
        let known = self.indexed[self.name];
        let expected = self.line().newest();
        let may_begin = self.line().is_empty() && (fresh || !others && !foreign_elsewhere);
        let started = self.manager()?.restore_or_initialize();
        match (started, expected) {
            // Nothing tells whose the directory is, without the index.
            (Err(Error::Undecided { .. }), _) if foreign && !known => self.close(),
            // What is permanent stands alone: the other one is the only one that continues.
            (Ok(_), Some(_))
                if foreign && !known && !self.state.is(expected.unwrap_or(0)) && self.line().is_all_kept() =>
            {
                self.leave()
            }
            (Ok(started), None) if foreign && started.restored.is_some() => self.leave(),
            (Err(_), None) if foreign => self.leave(),
            (Ok(started), Some(value)) => {
                let restored = started.restored.is_some() && self.state.is(value);
                if !restored {
                    return Err(format!("restored {}, expected {value}", self.state.value.get()));
                }
                self.line().restored(value, true);
                Ok(())
            }
            (Ok(started), None) if started.restored.is_none() && (may_begin || fresh) => {
                self.line().begun();
                Ok(())
            }
            (Ok(started), None) => Err(format!("{:?} and not an error", started.restored.map(|_| "restored"))),
            (Err(_), None) if !may_begin => {
                self.line().begun();
                self.close()
            }
            (Err(e), expected) => Err(format!("{e}; expected {expected:?}")),
        }
    }

    /// What follows is not ours to foresee.
    fn leave(&mut self) -> Verdict {
        self.tell("the foreign one is all there is");
        self.manager = None;
        self.lines[self.name] = Line::default();
        let _ = fs::remove_dir_all(&self.dir);
        self.lines = Default::default();
        self.copied.clear();
        Ok(())
    }

    fn save_unrestored(&mut self, fresh: bool) -> Verdict {
        let must_fail = self.line().own.iter().any(|made| made.there) && !fresh;
        if self.name == 0 && !self.copied.is_empty() {
            return self.recover(fresh);
        }
        let step = self.random.below(30) as u64;
        if !must_fail {
            self.line().unrestored();
            return self.save_at(step, false);
        }
        self.tell(format!("save_at({step}) without a restore"));
        match self.manager()?.save_at(step) {
            Err(Error::AlreadyExists { .. }) => self.close(),
            other => Err(format!("a new run beside a finished one: {other:?}")),
        }
    }

    /// Restores any checkpoint of the line, or one that was superseded.
    fn go_back(&mut self) -> Verdict {
        let line = &self.lines[self.name];
        let whole: Vec<Made> = line.own.iter().chain(&line.aside).filter(|made| made.is_whole()).cloned().collect();
        if whole.is_empty() {
            return Ok(());
        }
        let made = whole[self.random.below(whole.len())].clone();
        let Some(path) = self.find(&made) else { return Err(format!("{made:?} is not there")) };
        self.tell(format!("restore {}", path.display()));
        self.manager()?.restore(&path).map_err(|e| format!("{made:?}: {e}"))?;
        if !self.state.is(made.value) {
            return Err(format!("restored {} instead of {}", self.state.value.get(), made.value));
        }
        self.line().restored(made.value, false);
        Ok(())
    }

    /// Where a checkpoint is, by its name and what it holds.
    fn find(&self, made: &Made) -> Option<PathBuf> {
        let name = format!("{}-{}", NAMES[self.name], made.number);
        let aside = format!("superseded-{name}-");
        let names = fs::read_dir(&self.dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let paths = names.filter(|found| *found == name || found.starts_with(&aside)).map(|name| self.dir.join(name));
        paths.into_iter().find(|path| value_in(path) == Some(made.value))
    }

    /// A call, or what someone else does in the directory.
    fn deed(&mut self) -> Verdict {
        let last = self.line().last_step.unwrap_or(0);
        match self.random.below(23) {
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
            13 | 14 => self.go_back(),
            15 => self.remove_by_hand(),
            16 => self.damage(),
            17 => self.copy_in(),
            18 => self.somebody(),
            19 => self.pin(),
            20 | 21 => self.evaluate(),
            _ => self.close(),
        }
    }

    fn change(&mut self) -> u64 {
        self.fresh_value += 1;
        self.state.set(self.fresh_value);
        self.fresh_value
    }

    fn save_if_due(&mut self, step: u64) -> Verdict {
        let last = self.line().last_step;
        let due = last.is_some_and(|last| step < last) || step >= last.unwrap_or(0) + self.interval;
        if due {
            return self.save_at_with(step, true, true);
        }
        self.change();
        self.tell(format!("save_if_due({step}), not due"));
        match self.manager()?.save_if_due(step) {
            Ok(None) => Ok(()),
            other => Err(format!("it is not due, and yet {other:?}")),
        }
    }

    fn save_at(&mut self, step: u64, changed: bool) -> Verdict {
        self.save_at_with(step, changed, false)
    }

    fn save_at_with(&mut self, step: u64, changed: bool, if_due: bool) -> Verdict {
        // No two checkpoints hold the same.
        if changed || !self.line().ends_at(step) {
            self.change();
        }
        let value = self.state.value.get();
        let metrics: BTreeMap<String, f64> = match self.random.one_in(3) && !if_due {
            true => BTreeMap::from([(format!("m{}", self.random.below(2)), self.random.below(9) as f64)]),
            false => BTreeMap::new(),
        };
        self.tell(format!("save_at({step}) of {value} with {metrics:?}{}", if if_due { ", if due" } else { "" }));
        let then = self.line().save(step, value);
        let in_the_way = matches!(then, Then::New { .. }) && self.is_in_the_way(step, &then);
        let saved = match if_due {
            true => self.manager()?.save_if_due(step).map(|path| path.unwrap_or_default()),
            false => self.manager()?.save_with_metrics(step, metrics.clone()),
        };
        self.judge(saved, step, Some(step), value, then, in_the_way, metrics)
    }

    fn save_counted(&mut self) -> Verdict {
        let value = self.change();
        self.tell(format!("save() of {value}"));
        let counter = self.manager()?.checkpoint().save_counter() + 1;
        let superseded = self.line().later();
        let prefix = format!("{}-", NAMES[self.name]);
        let entries = fs::read_dir(&self.dir).map_err(|e| e.to_string())?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let numbers = names.filter_map(|name| name.strip_prefix(&prefix)?.parse::<u64>().ok());
        let taken: Vec<u64> = numbers.filter(|number| !superseded.contains(number)).collect();
        let highest = taken.iter().max().copied().unwrap_or(0);
        let number = if taken.contains(&counter) { highest + 1 } else { counter };
        let then = self.line().save_new(number, value);
        let saved = self.manager()?.save();
        self.judge(saved, number, None, value, then, false, BTreeMap::new())
    }

    /// Whether something that this line did not save has the name.
    fn is_in_the_way(&self, number: u64, then: &Then) -> bool {
        let Then::New { supersedes, .. } = then else { return false };
        fs::symlink_metadata(self.path(number)).is_ok() && !supersedes.contains(&number)
    }

    #[expect(clippy::too_many_arguments, reason = "all that a save consists of")]
    fn judge(
        &mut self,
        saved: tch_checkpoint::Result<Location>,
        number: u64,
        step: Option<u64>,
        value: u64,
        then: Then,
        in_the_way: bool,
        metrics: BTreeMap<String, f64>,
    ) -> Verdict {
        let path = self.path(number);
        match saved {
            // That something was removed by hand is noticed, and no more listed, when something is saved.
            Err(Error::AlreadyExists { .. }) if in_the_way => return self.check_directory(),
            Err(e) => return Err(format!("it is not saved: {e}")),
            Ok(_) if in_the_way => return Err("it is saved over something".to_string()),
            Ok(saved) if saved != path => return Err(format!("it is saved as {}", saved.display())),
            Ok(_) => {}
        }
        let rules = self.rules.clone();
        let is_new = matches!(then, Then::New { .. });
        let preserved: Vec<u64> =
            self.manager()?.permanent_checkpoints().iter().filter_map(|path| value_in(path)).collect();
        let (name, saves) = (self.name, self.saves + 1);
        self.saves = saves;
        self.indexed[name] |= matches!(then, Then::New { .. }) || !metrics.is_empty();
        let line = self.line();
        line.saved(number, step, value, then, saves);
        line.add_metrics(value, metrics);
        // Metrics alone remove nothing.
        if is_new {
            line.rotated(&rules, &preserved);
        }
        self.check()
    }

    /// Looks at everything that must be there, and that nothing more is.
    fn check(&mut self) -> Verdict {
        self.check_directory()?;
        self.check_listed()
    }

    fn check_directory(&self) -> Verdict {
        for (name, line) in self.lines.iter().enumerate() {
            for made in line.own.iter().filter(|made| made.there) {
                let path = self.dir.join(format!("{}-{}", NAMES[name], made.number));
                let Ok(reader) = CheckpointReader::open(&path) else {
                    return Err(format!("{} of {} is not there", path.display(), made.value));
                };
                if value_of(&reader) != Some(made.value) {
                    return Err(format!("{} has {:?}, not {}", path.display(), value_of(&reader), made.value));
                }
                if !made.is_damaged && !reader.verify().is_intact() {
                    return Err(format!("{} is damaged", path.display()));
                }
            }
            for made in &line.aside {
                let prefix = format!("superseded-{}-{}-", NAMES[name], made.number);
                let entries = fs::read_dir(&self.dir).map_err(|e| e.to_string())?.flatten();
                let mut named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
                let there = named.any(|entry| value_in(&entry.path()) == Some(made.value));
                if there != made.there {
                    let not = if there { "still" } else { "not" };
                    return Err(format!("the superseded {} of {} is {not} there", made.number, made.value));
                }
            }
        }
        for name in &self.copied {
            if !self.dir.join(name).join("manifest.json").exists() {
                return Err(format!("the foreign {name} is gone"));
            }
        }
        Ok(())
    }

    fn check_listed(&self) -> Verdict {
        let manager = self.manager.as_ref().ok_or("no manager")?;
        let listed: Vec<Location> = manager.checkpoints();
        let line = &self.lines[self.name];
        let expected: Vec<PathBuf> =
            line.own.iter().filter(|made| made.there && !made.permanent).map(|made| self.path(made.number)).collect();
        if listed.iter().filter(|path| path.is_dir()).ne(&expected) {
            return Err(format!("it lists {listed:?}, not {expected:?}"));
        }
        for made in line.own.iter().filter(|made| made.there) {
            let found = tch_checkpoint::list_checkpoints(&self.dir).map_err(|e| e.to_string())?;
            let path = self.path(made.number);
            let Some(found) = found.checkpoints.iter().find(|listed| listed.path == path) else {
                return Err(format!("{} is not listed", path.display()));
            };
            if found.entry.metrics != made.metrics || found.entry.permanent != made.permanent {
                return Err(format!("{}: {:?} is listed, not {made:?}", path.display(), found.entry));
            }
        }
        self.check_latest()
    }

    fn check_latest(&self) -> Verdict {
        if !self.copied.is_empty() {
            return Ok(());
        }
        let newest = self.lines.iter().enumerate().filter_map(|(name, line)| {
            let made = line.own.iter().rfind(|made| made.there)?;
            Some((made.order, self.dir.join(format!("{}-{}", NAMES[name], made.number))))
        });
        let expected = newest.max().map(|(_, path)| path);
        match latest_checkpoint(&self.dir) {
            Ok(latest) if latest.as_deref() == expected.as_deref() => Ok(()),
            other => Err(format!("the latest is {other:?}, not {expected:?}")),
        }
    }

    fn remove_by_hand(&mut self) -> Verdict {
        let count = self.line().own.len();
        if count == 0 {
            return Ok(());
        }
        let at = self.random.below(count);
        let number = self.line().own[at].number;
        self.tell(format!("{number} is removed by hand"));
        let path = self.path(number);
        let _ = fs::remove_dir_all(path);
        self.line().removed(at);
        Ok(())
    }

    /// One bit of a tensor.
    fn damage(&mut self) -> Verdict {
        let Some(at) = self.line().own.iter().rposition(|made| made.is_whole()) else { return Ok(()) };
        let number = self.line().own[at].number;
        self.tell(format!("{number} is damaged"));
        let file = self.path(number).join("tensor.safetensors");
        let mut bytes = fs::read(&file).map_err(|e| e.to_string())?;
        if let Some(last) = bytes.last_mut() {
            *last ^= 0x80;
        }
        // As a new file: others may share this one.
        fs::remove_file(&file).and_then(|()| fs::write(&file, bytes)).map_err(|e| e.to_string())?;
        self.line().own[at].is_damaged = true;
        self.close()
    }

    fn copy_in(&mut self) -> Verdict {
        let from = 1058 + self.random.below(2);
        let name = format!("{}-{}", NAMES[0], 100 + self.random.below(3));
        if self.lines[0].own.is_empty() || self.dir.join(&name).exists() {
            return Ok(());
        }
        self.tell(format!("{name} is copied in"));
        let (from, to) = (self.foreign.join(format!("ckpt-{from}")), self.dir.join(&name));
        fs::create_dir(&to).map_err(|e| e.to_string())?;
        for entry in fs::read_dir(from).map_err(|e| e.to_string())?.flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(|e| e.to_string())?;
        }
        self.copied.push(name);
        Ok(())
    }

    /// Another process pins a checkpoint, or takes the pin away.
    fn pin(&mut self) -> Verdict {
        let Some(at) = self.any_there() else { return Ok(()) };
        let made = self.line().own[at].clone();
        let name = format!("{}-{}", NAMES[self.name], made.number);
        self.tell(format!("{name} is {}", if made.pinned { "unpinned" } else { "pinned" }));
        let beside = CheckpointDirectory::new(&self.dir);
        let done = match made.pinned {
            true => beside.unpin(&name, "p").map(|was_pinned| was_pinned == made.pinned),
            false => beside.pin(&name, "p", "").map(|()| true),
        };
        self.line().own[at].pinned = !made.pinned;
        match done {
            Ok(true) => Ok(()),
            other => Err(format!("{name} is not pinned or unpinned: {other:?}")),
        }
    }

    /// Another process adds a metric.
    fn evaluate(&mut self) -> Verdict {
        let Some(at) = self.any_there() else { return Ok(()) };
        let (number, value) = (self.line().own[at].number, self.random.below(9) as f64);
        let name = format!("{}-{number}", NAMES[self.name]);
        self.tell(format!("{name} gets the metric {value}"));
        let added = CheckpointDirectory::new(&self.dir).add_metrics(&name, [("m0", value)]);
        self.line().own[at].metrics.insert("m0".to_string(), value);
        added.map_err(|e| format!("{name} gets no metric: {e}"))
    }

    fn any_there(&mut self) -> Option<usize> {
        let there = self.line().own.iter().enumerate().filter(|(_, made)| made.there).map(|(at, _)| at);
        let there: Vec<usize> = there.collect();
        (!there.is_empty()).then(|| there[self.random.below(there.len())])
    }

    /// The index, the clock, leftovers, names that are taken.
    fn somebody(&mut self) -> Verdict {
        match self.random.below(4) {
            0 => {
                self.tell("the index is lost");
                let _ = fs::remove_file(self.dir.join("checkpoint.json"));
                self.indexed = [false; 2];
            }
            1 => {
                let hours = [-1_000_000, -5, 1, 2, 50, 1_000_000][self.random.below(6)];
                self.tell(format!("the clock goes {hours} hours"));
                self.state.system.shift(TimeDelta::hours(hours));
            }
            2 => {
                self.tell("a process died");
                self.manager = None;
                let left = self.dir.join(".tmp-ckpt-9-0123456789abcdef0123456789abcdef");
                let _ = fs::create_dir(&left);
                return fs::write(left.join("manifest.json"), "{").map_err(|e| e.to_string());
            }
            _ => {
                let number = self.line().last_step.unwrap_or(0) + 1;
                let path = self.path(number);
                if !path.exists() {
                    self.tell(format!("{number} is a file"));
                    fs::write(path, "mine").map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(())
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

fn value_of(reader: &CheckpointReader) -> Option<u64> {
    reader.manifest().values.get("value")?.as_u64()
}

fn value_in(path: &Path) -> Option<u64> {
    value_of(&CheckpointReader::open(path).ok()?)
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
        let report = histories(scratch().path(), 1, 400);
        assert_eq!(report.violations, 0, "{}", report.examples.join("\n\n"));
        assert_eq!(report.histories, 400);
    }

    #[test]
    fn every_broken_rule_is_caught() {
        for (rule, after) in broken_histories(scratch().path(), 1, 3000) {
            assert!(after.is_some(), "{rule} is not caught");
        }
    }
}

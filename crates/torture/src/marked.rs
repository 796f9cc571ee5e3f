//! What a program does with its checkpoints after saving them, and what must survive a crash: pins, late metrics of
//! another process, links, removed components, and the save of a state that may be inconsistent.
//!
//! * M1: a pin that was acknowledged is there, with its checkpoint, whole, until its removal begins.
//! * M2: a late metric that was acknowledged is there as long as its checkpoint.
//! * M3: as many of the checkpoints as the component is kept in have it; a manager that opens leaves none that lacks it
//!   in part.
//! * M4: a link leads to a checkpoint that is good, or is not there; a manager that opens makes it lead to the right
//!   one.
//! * M5: what was saved after an error is marked, and is not restored.
//! * M6: a note that was accepted while its checkpoint was written is there if that is.
//! * M7: a pin that the checkpoint of the same state has taken over keeps no superseded one after a manager has opened.

use super::check::ROOT;
use super::run::{METRIC, Run, Setup, THINNED, begin, save};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::internal::{Directory, Disk, OpenOptions, Posix, Source};
use tch_checkpoint::{CheckpointDirectory, CheckpointManager, Error};

/// An acknowledgement other than that of a save, with the step of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    Pinned(u64),
    /// The removal of the pin began.
    Unpinning(u64),
    LateMetric(u64),
    /// A note for a checkpoint that may still be written.
    Early(u64),
}

/// A checkpoint, without its state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Marked {
    name: String,
    pinned: bool,
    late: Option<f64>,
    /// It has the note of [`Noted::Early`].
    early: bool,
    metric: Option<f64>,
    /// It has all components.
    whole: bool,
    /// A file of a component that it lacks is still there.
    leftover: bool,
}

/// The clean checkpoints of a directory by step, and the targets of its links.
#[derive(Debug, Clone, Default)]
pub(super) struct Beside {
    pub all: BTreeMap<u64, Marked>,
    pub links: BTreeMap<&'static str, String>,
    pub unclean: BTreeSet<String>,
    /// The superseded ones that are pinned.
    pub pinned_aside: Vec<String>,
}

const LINKS: [&str; 2] = ["latest", "best"];

/// After a save: every other checkpoint is pinned until the next one, and each gets a metric from another process.
pub(super) fn mark(
    manager: &mut CheckpointManager,
    disk: &Arc<dyn Disk>,
    step: u64,
    note: impl Fn(Noted),
) -> Result<(), Error> {
    let name = |step: u64| format!("ckpt-{step}");
    if step % 2 == 1 {
        manager.pin(name(step), "p", "for a step")?;
        note(Noted::Pinned(step));
    } else if manager.checkpoints().iter().any(|path| path.ends_with(name(step - 1))) {
        note(Noted::Unpinning(step - 1));
        manager.unpin(name(step - 1), "p")?;
    }
    let beside = CheckpointDirectory::in_storage(Arc::new(Posix::new(disk.clone())), ROOT);
    beside.add_metrics(name(step), [("late", step as f64)])?;
    note(Noted::LateMetric(step));
    Ok(())
}

/// Saves, and gives the checkpoint a note at once.
pub(super) fn save_noted(
    manager: &mut CheckpointManager,
    setup: &Setup,
    step: u64,
    note: impl Fn(Noted),
) -> Result<(), Error> {
    let path = begin(manager, setup, step)?;
    manager.annotate(path, "early", "while it is written")?;
    note(Noted::Early(step));
    manager.wait()
}

/// Saves again, for the metadata.
pub(super) fn save_again(manager: &mut CheckpointManager, setup: &Setup, step: u64) -> Result<(), Error> {
    manager.set_next_metadata("again", &step)?;
    save(manager, setup, step)
}

/// The training fails between two calls of the manager.
pub(super) fn fail(run: &Run, manager: &mut CheckpointManager, step: u64) {
    let _: Result<(), &str> = manager.guard(|_| {
        run.set(step);
        Err("the loss is NaN")
    });
}

/// Examines the checkpoints of a disk without changing anything.
pub(super) fn look(disk: &Arc<dyn Disk>) -> Beside {
    let storage = Posix::new(disk.clone());
    let mut beside = Beside::default();
    let directory = Directory::new(&storage, ROOT, &OpenOptions::default());
    let Ok(scan) = directory.and_then(|directory| directory.scan()) else { return beside };
    let checkpoints = CheckpointDirectory::in_storage(Arc::new(Posix::new(disk.clone())), ROOT);
    for name in scan.checkpoints.iter().filter(|name| name.starts_with("ckpt-")) {
        let (Ok(info), Ok(source)) = (checkpoints.get(&**name), Source::open(&storage, Path::new(ROOT).join(name)))
        else {
            continue;
        };
        if info.unclean {
            beside.unclean.insert(name.clone());
            continue;
        }
        let file = format!("{THINNED}.safetensors");
        let path = Path::new(ROOT).join(name);
        let has_file = disk.open_dir(&path).and_then(|dir| dir.stat_of(file.as_ref())).is_ok_and(|stat| stat.is_some());
        let whole = source.manifest.without.is_empty();
        let metric = |name: &str| info.metrics.get(name).copied();
        let marked = Marked {
            name: name.clone(),
            pinned: info.pins.contains_key("p"),
            late: metric("late"),
            early: info.notes.contains_key("early"),
            metric: metric(METRIC),
            whole,
            leftover: !whole && has_file,
        };
        beside.all.insert(info.step.unwrap_or(u64::MAX), marked);
    }
    for (_, name) in scan.aside {
        if checkpoints.get(&*name).is_ok_and(|info| !info.pins.is_empty()) {
            beside.pinned_aside.push(name);
        }
    }
    let root = disk.open_dir(Path::new(ROOT));
    for link in LINKS {
        let leads_to = root.as_ref().ok().and_then(|root| root.read_link(link.as_ref()).ok());
        beside.links.extend(leads_to.map(|to| (link, to.to_string_lossy().into_owned())));
    }
    beside
}

impl Beside {
    /// Returns the violations that do not depend on what was acknowledged. `opened`: a manager has opened the disk and
    /// saved.
    pub(super) fn judge(&self, setup: &Setup, opened: bool) -> Vec<String> {
        let mut broken = Vec::new();
        let names: BTreeSet<&String> = self.all.values().map(|marked| &marked.name).collect();
        for (link, to) in &self.links {
            if !names.contains(to) {
                broken.push(format!("M4: {link} leads to {to}, which is no good checkpoint"));
            }
        }
        if opened && setup.links {
            let newest = self.all.values().next_back();
            let lowest = |a: &&Marked, b: &&Marked| a.metric.unwrap_or(9.0).total_cmp(&b.metric.unwrap_or(9.0));
            // The last of equal ones: `min_by` takes the first.
            let best = self.all.values().rev().filter(|marked| marked.metric.is_some()).min_by(lowest);
            for (link, right) in [("latest", newest), ("best", best)] {
                let right = right.map(|marked| &marked.name);
                if self.links.get(link) != right {
                    broken.push(format!("M4: {link} leads to {:?}, not to {right:?}", self.links.get(link)));
                }
            }
        }
        if opened && setup.noted {
            let pinned = self.pinned_aside.iter();
            broken.extend(pinned.map(|name| format!("M7: {name} is pinned, as is what took its place")));
        }
        for (step, marked) in self.all.iter().filter(|_| opened) {
            if marked.leftover {
                broken.push(format!("M3: a file of {THINNED} is left in the checkpoint of step {step}"));
            }
        }
        broken
    }

    /// Returns the checkpoints that lack a note that was accepted while they were written.
    pub(super) fn without_note(&self, noted: &[Noted]) -> Vec<String> {
        let lacks = |note: &Noted| match note {
            Noted::Early(step) if self.all.get(step).is_some_and(|marked| !marked.early) => {
                Some(format!("M6: step {step} is there without its note"))
            }
            _ => None,
        };
        noted.iter().filter_map(lacks).collect()
    }

    /// Returns what was acknowledged and is lost. At least `least` checkpoints must be there.
    pub(super) fn lost(&self, noted: &[Noted], least: usize, setup: &Setup) -> Vec<String> {
        let mut broken = Vec::new();
        let mut pinned = BTreeSet::new();
        for note in noted {
            match note {
                Noted::Pinned(step) => drop(pinned.insert(step)),
                Noted::Unpinning(step) => drop(pinned.remove(step)),
                Noted::Early(_) => {}
                Noted::LateMetric(step) => {
                    let late = self.all.get(step).map(|marked| marked.late);
                    if late.is_some_and(|late| late != Some(*step as f64)) {
                        broken.push(format!("M2: the late metric of step {step} is {late:?}"));
                    }
                }
            }
        }
        for step in pinned {
            match self.all.get(step) {
                Some(marked) if marked.pinned && marked.whole => {}
                marked => broken.push(format!("M1: step {step} was pinned; what is there: {marked:?}")),
            }
        }
        let whole = self.all.values().filter(|marked| marked.whole).count();
        let least = least.min(setup.thin.unwrap_or(usize::MAX));
        if whole < least {
            broken.push(format!("M3: {least} checkpoints should have {THINNED}, {whole} have"));
        }
        broken
    }
}

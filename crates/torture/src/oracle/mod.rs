//! The oracle: lists of what a directory should contain. It knows nothing of manifests, sequences, chains or indexes,
//! and shares no code with the library.

mod intervals;
mod keep;

use std::collections::BTreeMap;

/// A checkpoint that was saved.
#[derive(Debug, Clone, Default)]
pub(super) struct Made {
    pub number: u64,
    pub step: Option<u64>,
    /// Its value, which is unique.
    pub value: u64,
    /// Its place among all saves into the directory. No other one has it, so it stands for this one.
    pub order: u64,
    /// The one it continues from.
    pub before: Option<u64>,
    /// The one of an earlier process that its own process had restored.
    pub came_from: Option<u64>,
    pub permanent: bool,
    pub pinned: bool,
    pub metrics: BTreeMap<String, f64>,
    /// Nobody removed it.
    pub there: bool,
    pub is_damaged: bool,
    /// It has values that are not finite.
    pub is_unhealthy: bool,
    /// It was saved after an error.
    pub is_unclean: bool,
    /// Its slots were removed.
    pub is_thinned: bool,
    /// The time of the save in seconds.
    pub time: i64,
    /// The time from which intervals are counted. Two of the same time differ in the second number.
    pub counted_from: Option<(i64, i64)>,
}

impl Made {
    pub(super) fn is_whole(&self) -> bool {
        self.there && !self.is_damaged
    }

    /// Returns `true` if policies count it.
    pub(super) fn is_healthy(&self) -> bool {
        !self.is_unhealthy && !self.is_unclean
    }

    /// Returns `true` if a run resumes from it, unless it is damaged.
    pub(super) fn is_taken(&self) -> bool {
        self.there && self.is_healthy() && !self.is_thinned
    }
}

/// The policies of a manager.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// How many of the newest.
    pub latest: usize,
    /// How many with the lowest `m0`.
    pub best: usize,
    /// Those at multiples of this step; 0 for none.
    pub multiples: u64,
    /// How many newer ones protect what was restored.
    pub restored: usize,
    /// How many keep their slots; 0 for all.
    pub slots: usize,
    /// The interval in seconds of which one is permanent.
    pub every: Option<i64>,
}

/// What is saved.
#[derive(Debug, Clone, Default)]
pub(super) struct Saved {
    pub number: u64,
    pub step: Option<u64>,
    pub value: u64,
    pub metrics: BTreeMap<String, f64>,
    pub is_unhealthy: bool,
    pub is_unclean: bool,
    /// When.
    pub time: i64,
}

/// The expected result of a save.
#[derive(Debug)]
pub(super) enum Then {
    /// It is saved already.
    Already,
    /// A new checkpoint, which supersedes those with these numbers.
    New { supersedes: Vec<u64>, before: Option<u64> },
}

/// The checkpoints of one name.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Those of the run, oldest first.
    pub own: Vec<Made>,
    /// Those that were superseded.
    pub aside: Vec<Made>,
    /// The one restored or saved last in this process.
    head: Option<u64>,
    pub last_step: Option<u64>,
    /// A snapshot was restored since the last save or restore.
    is_rolled_back: bool,
    process: u64,
    /// The one restored last in this process.
    restored: Option<u64>,
    /// The one of an earlier process that this one goes back to.
    came_from: Option<u64>,
    /// Which process saved each one, and what that went back to.
    origins: BTreeMap<u64, (u64, Option<u64>)>,
    /// A damaged one was moved aside, so that the directory does not count as empty.
    lost: bool,
    /// When the process began, in seconds.
    opened: i64,
    /// Something was saved that continues from nothing, beside what was there.
    pub is_parted: bool,
}

/// Where a process is among the saves: the one that it restored or saved last, and the one of an earlier process that it
/// goes back to.
#[derive(Clone, Copy)]
pub(super) struct Place {
    head: Option<u64>,
    came_from: Option<u64>,
}

impl Line {
    /// A new process knows nothing.
    pub(super) fn opened(&mut self, time: i64) {
        self.opened = time;
        self.own.retain(|made| made.there);
        self.aside.retain(|made| made.there);
        (self.head, self.last_step, self.restored, self.came_from) = (None, None, None, None);
        self.is_rolled_back = false;
        self.process += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.own.iter().all(|made| !made.there) && self.aside.iter().all(|made| !made.there) && !self.lost
    }

    /// Whether the last one was saved or restored last, and is that of `step`.
    pub(super) fn ends_at(&self, step: u64) -> bool {
        self.own.last().is_some_and(|made| self.is_that_of(made, step))
    }

    fn is_that_of(&self, made: &Made, step: u64) -> bool {
        Some(made.order) == self.head && made.step == Some(step) && made.number == step
    }

    /// The newest one that a run resumes from.
    pub(super) fn newest(&self) -> Option<&Made> {
        self.own.iter().rfind(|made| made.is_taken() && !made.is_damaged)
    }

    /// Where a snapshot is taken now.
    pub(super) fn place(&self) -> Place {
        Place { head: self.head, came_from: self.came_from }
    }

    /// Whether a save at this step is due, if one is every `interval` steps.
    pub(super) fn is_due(&self, step: u64, interval: u64) -> bool {
        let Some(last) = self.last_step else { return step >= interval };
        // What was saved at the last step is of a path that a rollback left, unless it leads to that very one.
        let is_head = |made: &Made| Some(made.order) == self.head && made.number == step;
        let is_left = self.is_rolled_back && step == last && !self.own.iter().any(is_head);
        step < last || is_left || step >= last + interval
    }

    /// What is damaged was noticed, and moved aside, down to the one at `at`.
    fn tried(&mut self, at: usize) {
        let mut place = 0..;
        self.own.retain(|made| {
            let is_tried = place.next() >= Some(at) && made.is_taken() && made.is_damaged;
            self.lost |= is_tried;
            !is_tried
        });
    }

    /// This one was restored. What is damaged and newer was moved aside if the newest was asked for.
    pub(super) fn restored(&mut self, order: u64, newest: bool) {
        if newest {
            self.tried(self.own.iter().position(|made| made.order == order).unwrap_or(0));
        }
        let aside = self.aside.iter().find(|made| made.order == order).and_then(|made| made.step);
        // Of one without a step, that of the last one before it that is there.
        let at = self.own.iter().position(|made| made.order == order);
        let up_to = at.map_or(&[][..], |at| &self.own[..=at]);
        self.last_step = aside.or(up_to.iter().rev().filter(|made| made.there).find_map(|made| made.step));
        self.goes_on_from(order);
        self.is_rolled_back = false;
    }

    /// A snapshot was restored that was taken there.
    pub(super) fn rolled_back(&mut self, place: Place) {
        self.is_rolled_back = true;
        (self.head, self.came_from) = (place.head, place.came_from);
        self.restored = place.head.or(self.restored);
    }

    fn goes_on_from(&mut self, order: u64) {
        (self.head, self.restored) = (Some(order), Some(order));
        self.came_from = match self.origins.get(&order) {
            Some((process, came_from)) if *process == self.process => *came_from,
            _ => Some(order),
        };
    }

    /// There was nothing that could be restored: what is damaged was moved aside.
    pub(super) fn begun(&mut self) {
        self.tried(0);
        (self.head, self.last_step) = (None, None);
    }

    /// Nothing was restored, and a new run is asked for.
    pub(super) fn unrestored(&mut self) {
        (self.head, self.last_step) = (None, None);
    }

    /// How many of the own ones stay when the run continues from the head.
    fn staying(&self) -> usize {
        let Some(mut order) = self.head else { return 0 };
        loop {
            if let Some(at) = self.own.iter().position(|made| made.order == order) {
                return at + 1;
            }
            let aside = self.aside.iter().find(|made| made.order == order && made.there);
            match aside.and_then(|made| made.before) {
                Some(before) => order = before,
                // Where it came from is gone: those that were there before it stay.
                None => return self.own.iter().rposition(|made| made.order < order).map_or(0, |at| at + 1),
            }
        }
    }

    /// The numbers of those that the next save supersedes.
    pub(super) fn later(&self) -> Vec<u64> {
        self.own[self.staying()..].iter().filter(|made| made.there).map(|made| made.number).collect()
    }

    /// Whether the next save supersedes anything from which a run can be restarted.
    pub(super) fn goes_back(&self) -> bool {
        self.own[self.staying()..].iter().any(Made::is_taken)
    }

    /// What a save at this step comes to.
    pub(super) fn save(&self, step: u64, value: u64) -> Then {
        let last = self.own.last().filter(|made| self.is_that_of(made, step) && !made.is_unclean);
        if last.is_some_and(|made| made.there && made.value == value) && self.last_step == Some(step) {
            return Then::Already;
        }
        self.save_new(step)
    }

    pub(super) fn save_new(&self, number: u64) -> Then {
        let mut supersedes = self.later();
        supersedes.extend(self.own.iter().filter(|made| made.there && made.number == number).map(|made| made.number));
        // One that takes the place of the head continues from where that continued.
        let is_replaced = |made: &&Made| Some(made.order) == self.head && supersedes.contains(&made.number);
        let before = match self.own.iter().find(|made| made.there && is_replaced(made)) {
            Some(made) => made.before,
            None => self.head,
        };
        Then::New { supersedes, before }
    }

    /// It was saved, as the `order`-th of the directory.
    pub(super) fn saved(&mut self, saved: &Saved, then: Then, rules: &Rules, order: u64) {
        let Saved { number, step, value, time, .. } = *saved;
        if let Then::New { supersedes, before } = then {
            let counted_from = self.counted_from(rules, &supersedes, time);
            let (gone, own) = self.own.drain(..).partition(|made: &Made| supersedes.contains(&made.number));
            self.own = own;
            self.aside.extend(gone.into_iter().filter(|made: &Made| made.there));
            self.own.retain(|made| made.there);
            self.is_parted |= before.is_none() && !self.is_empty();
            let process = self.process;
            // It names the one that it follows, or else what its process goes back to.
            let of_another = |order: &u64| self.origins.get(order).is_some_and(|(of, _)| *of != process);
            let came_from = before.filter(of_another).or(before.and(self.came_from));
            self.origins.insert(order, (process, came_from));
            let Saved { is_unhealthy, is_unclean, .. } = *saved;
            let (there, made) = (true, Made::default());
            let made = Made { number, step, value, order, before, came_from, there, time, counted_from, ..made };
            self.own.push(Made { is_unhealthy, is_unclean, ..made });
            self.is_rolled_back = false;
        }
        if let Some(made) = self.own.last_mut() {
            made.metrics.extend(saved.metrics.clone());
        }
        self.head = self.own.last().map(|made| made.order);
        self.last_step = step.or(self.last_step);
    }

    /// Whether nothing is there but what is permanent.
    pub(super) fn is_all_kept(&self) -> bool {
        self.own.iter().all(|made| made.permanent || !made.is_whole())
    }

    pub(super) fn removed(&mut self, at: usize) {
        self.own[at].there = false;
    }
}

//! What a directory should hold, kept as plain lists. It knows nothing of manifests, sequences, chains or indexes, and
//! shares no code with what keeps them.

use std::collections::BTreeMap;

/// A checkpoint that was saved.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub number: u64,
    pub step: Option<u64>,
    /// What it holds; no two hold the same.
    pub value: u64,
    /// The how manyth save of the directory it was.
    pub order: u64,
    /// The value of the one it continues from.
    pub before: Option<u64>,
    /// What its process had restored of an earlier one.
    pub came_from: Option<u64>,
    pub permanent: bool,
    pub pinned: bool,
    pub metrics: BTreeMap<String, f64>,
    /// Nobody removed it.
    pub there: bool,
    pub is_damaged: bool,
}

impl Made {
    pub(super) fn is_whole(&self) -> bool {
        self.there && !self.is_damaged
    }
}

/// What a manager is asked to keep.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// The newest ones.
    pub latest: usize,
    /// How many with the lowest `m0`.
    pub best: usize,
    /// Those at multiples of this step; 0 for none.
    pub multiples: u64,
    /// How many newer ones what was restored waits for.
    pub restored: usize,
}

/// What a save comes to.
#[derive(Debug)]
pub(super) enum Then {
    /// It is saved already.
    Already,
    /// A new one, which takes the place of those with these numbers.
    New { supersedes: Vec<u64>, before: Option<u64> },
}

/// The checkpoints of one name.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Those the run consists of, oldest first.
    pub own: Vec<Made>,
    /// Those a run went back from.
    pub aside: Vec<Made>,
    /// The value of the one restored or saved last in this process.
    head: Option<u64>,
    pub last_step: Option<u64>,
    process: u64,
    /// The value restored last in this process.
    restored: Option<u64>,
    /// The value of an earlier process that this one goes back to.
    came_from: Option<u64>,
    /// Which process saved each value, and what that went back to.
    origins: BTreeMap<u64, (u64, Option<u64>)>,
    /// A damaged one was moved aside, so that it is never empty again.
    lost: bool,
    /// Of every value the how manyth save of the directory it was, also where the checkpoint is gone.
    orders: BTreeMap<u64, u64>,
}

impl Line {
    /// A new process knows nothing.
    pub(super) fn opened(&mut self) {
        self.own.retain(|made| made.there);
        self.aside.retain(|made| made.there);
        (self.head, self.last_step, self.restored, self.came_from) = (None, None, None, None);
        self.process += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.own.iter().all(|made| !made.there) && self.aside.iter().all(|made| !made.there) && !self.lost
    }

    /// Whether the last one was saved or restored last, and is that of `step`.
    pub(super) fn ends_at(&self, step: u64) -> bool {
        self.own.last().is_some_and(|made| Some(made.value) == self.head && made.step == Some(step))
    }

    /// The value of the newest whole one.
    pub(super) fn newest(&self) -> Option<u64> {
        self.own.iter().rfind(|made| made.is_whole()).map(|made| made.value)
    }

    /// This one was restored. What is damaged and newer was moved aside if the newest was asked for.
    pub(super) fn restored(&mut self, value: u64, newest: bool) {
        if newest {
            let at = self.own.iter().position(|made| made.value == value).unwrap_or(0);
            self.lost |= self.own[at + 1..].iter().any(|made| made.there);
            self.own.truncate(at + 1);
        }
        self.head = Some(value);
        self.restored = Some(value);
        self.came_from = match self.origins.get(&value) {
            Some((process, came_from)) if *process == self.process => *came_from,
            _ => Some(value),
        };
        self.last_step = self.find(value).and_then(|made| made.step);
    }

    /// There was nothing that could be restored: what is damaged was moved aside.
    pub(super) fn begun(&mut self) {
        self.lost |= self.own.iter().any(|made| made.there);
        self.own.clear();
        (self.head, self.last_step) = (None, None);
    }

    /// Nothing was restored, and a new run is asked for.
    pub(super) fn unrestored(&mut self) {
        (self.head, self.last_step) = (None, None);
    }

    fn find(&self, value: u64) -> Option<&Made> {
        self.own.iter().chain(&self.aside).find(|made| made.value == value)
    }

    /// How many of the own ones stay when the run continues from the head.
    fn staying(&self) -> usize {
        let Some(mut value) = self.head else { return 0 };
        loop {
            if let Some(at) = self.own.iter().position(|made| made.value == value) {
                return at + 1;
            }
            let before = self.aside.iter().find(|made| made.value == value && made.there).and_then(|made| made.before);
            match before {
                Some(before) => value = before,
                // Where it came from is gone: those that were there before it stay.
                None => {
                    let order = self.orders.get(&value).copied().unwrap_or(0);
                    return self.own.iter().rposition(|made| made.order < order).map_or(0, |at| at + 1);
                }
            }
        }
    }

    /// The numbers of those that the next save supersedes.
    pub(super) fn later(&self) -> Vec<u64> {
        self.own[self.staying()..].iter().filter(|made| made.there).map(|made| made.number).collect()
    }

    /// What a save at this step comes to.
    pub(super) fn save(&self, step: u64, value: u64) -> Then {
        let last = self.own.last().filter(|made| Some(made.value) == self.head && made.step == Some(step));
        if last.is_some_and(|made| made.there && made.value == value) && self.last_step == Some(step) {
            return Then::Already;
        }
        self.save_new(step, value)
    }

    pub(super) fn save_new(&self, number: u64, value: u64) -> Then {
        let mut supersedes = self.later();
        supersedes.extend(self.own.iter().filter(|made| made.there && made.number == number).map(|made| made.number));
        let replaced = self.head.and_then(|head| self.own.iter().find(|made| made.value == head));
        // One that was removed by hand may be saved again: it continues from where the first continued.
        let before = match replaced.filter(|made| supersedes.contains(&made.number) || made.value == value) {
            Some(made) => made.before,
            None => self.head.filter(|head| *head != value),
        };
        Then::New { supersedes, before }
    }

    /// It was saved, as the `order`-th of the directory.
    pub(super) fn saved(&mut self, number: u64, step: Option<u64>, value: u64, then: Then, order: u64) {
        if let Then::New { supersedes, before } = then {
            let (gone, own) = self.own.drain(..).partition(|made: &Made| supersedes.contains(&made.number));
            self.own = own;
            self.aside.extend(gone.into_iter().filter(|made: &Made| made.there));
            self.own.retain(|made| made.there);
            // Nobody has restored the one that takes the place of one of the same value, which was removed by hand.
            let all = self.own.iter_mut().chain(&mut self.aside).map(|made| &mut made.came_from);
            all.chain([&mut self.restored, &mut self.came_from]).for_each(|from| {
                from.take_if(|from| *from == value);
            });
            let (permanent, pinned, metrics) = (false, false, BTreeMap::new());
            let (there, is_damaged) = (true, false);
            self.orders.insert(value, order);
            let process = self.process;
            // It names the one that it follows, or else what its process goes back to.
            let of_another = |value: &u64| self.origins.get(value).is_some_and(|(of, _)| *of != process);
            let came_from = before.filter(of_another).or(before.and(self.came_from));
            // Saved again after it was removed by hand: the run goes back to the one that is gone.
            let came_from = came_from.filter(|_| !of_another(&value));
            self.origins.insert(value, (process, self.came_from));
            self.own.push(Made {
                number,
                step,
                value,
                order,
                before,
                came_from,
                permanent,
                pinned,
                metrics,
                there,
                is_damaged,
            });
        }
        self.head = self.own.last().map(|made| made.value);
        self.last_step = step.or(self.last_step);
    }

    pub(super) fn add_metrics(&mut self, value: u64, metrics: BTreeMap<String, f64>) {
        if let Some(made) = self.own.iter_mut().find(|made| made.value == value) {
            made.metrics.extend(metrics);
        }
    }

    /// What stays after a save, and superseded ones until enough newer ones are there. `preserved` are the values of
    /// those that the manager says it keeps permanently: that is its choice, once.
    pub(super) fn rotated(&mut self, rules: &Rules, preserved: &[u64]) {
        let stay: Vec<bool> = (0..self.own.len()).map(|at| self.stays(at, rules)).collect();
        let mut stay = stay.into_iter();
        self.own.retain_mut(|made| {
            let stays = stay.next().unwrap_or(true);
            if made.there && !stays {
                made.permanent = preserved.contains(&made.value);
            }
            stays || made.permanent
        });
        let newer = |order: u64| self.own.iter().filter(|made| made.there && made.order > order).count();
        let done: Vec<bool> = self
            .aside
            .iter()
            .map(|made| newer(made.order) >= rules.latest && !made.permanent && !made.pinned)
            .collect();
        for (made, done) in self.aside.iter_mut().zip(done) {
            made.there &= !done;
        }
    }

    /// Whether a rule keeps one of the own ones, by what is there.
    fn stays(&self, at: usize, rules: &Rules) -> bool {
        let made = &self.own[at];
        if !made.there || made.permanent || made.pinned {
            return true;
        }
        let newer: Vec<&Made> = self.own[at + 1..].iter().filter(|other| other.there).collect();
        let temporary = newer.iter().filter(|other| !other.permanent).count();
        let is_multiple = made.step.is_some_and(|step| rules.multiples > 0 && step % rules.multiples == 0);
        let went_on = |other: &Made| other.came_from == Some(made.value);
        let was_restored =
            self.restored == Some(made.value) || self.own.iter().any(|other| other.there && went_on(other));
        newer.is_empty()
            || temporary < rules.latest
            || is_multiple
            || self.is_among_the_best(at, rules.best)
            || was_restored && newer.len() < rules.restored
    }

    /// Whether fewer than `best` others have a lower `m0`, or the same and are newer.
    fn is_among_the_best(&self, at: usize, best: usize) -> bool {
        let Some(own) = self.own[at].metrics.get("m0") else { return false };
        let better = self.own.iter().enumerate().filter(|(other_at, other)| {
            let value = other.metrics.get("m0").filter(|_| other.there && *other_at != at);
            value.is_some_and(|value| value < own || value == own && *other_at > at)
        });
        better.count() < best
    }

    /// Whether nothing is there but what is permanent.
    pub(super) fn is_all_kept(&self) -> bool {
        self.own.iter().all(|made| made.permanent || !made.is_whole())
    }

    pub(super) fn removed(&mut self, at: usize) {
        self.own[at].there = false;
    }
}

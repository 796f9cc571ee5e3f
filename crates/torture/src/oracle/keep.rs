//! The documented rules of what stays after a save.

use super::{Line, Made, Rules};

/// What keeps a checkpoint.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// With all components: to be resumed from, or for a pin.
    whole: bool,
    /// By a policy, or independently of the policies.
    otherwise: bool,
    /// By the policy of intervals.
    for_good: bool,
}

impl Line {
    /// Removes what nothing keeps after a save at this time, and notes what becomes permanent and what loses its slots.
    /// Superseded checkpoints stay until enough newer ones exist.
    pub(crate) fn rotated(&mut self, rules: &Rules, now: i64) {
        let due = self.due(rules, now);
        let kept: Vec<Kept> = (0..self.own.len()).map(|at| self.kept(at, rules, due[at])).collect();
        let mut with_slots = 0;
        for (made, kept) in self.own.iter_mut().zip(&kept).rev() {
            let stays = kept.whole || kept.otherwise || kept.for_good;
            if !made.there || !stays {
                continue;
            }
            made.permanent |= !kept.whole && !kept.otherwise;
            if made.is_healthy() && !made.is_thinned && rules.slots > 0 {
                made.is_thinned = with_slots >= rules.slots && !kept.whole;
                with_slots += 1;
            }
        }
        let mut kept = kept.iter();
        self.own.retain(|made| {
            let kept = kept.next().copied().unwrap_or_default();
            !made.there || kept.whole || kept.otherwise || kept.for_good
        });
        let replaces =
            |newer: &Made, made: &Made| newer.order > made.order && (newer.is_healthy() || !made.is_healthy());
        let newer = |made: &Made| self.own.iter().filter(|newer| newer.there && replaces(newer, made)).count();
        // One from which a run can be restarted stays as long as there is no newer one.
        let takes_over = |newer: &Made, made: &Made| newer.there && newer.order > made.order && newer.is_taken();
        let is_needed = |made: &Made| made.is_taken() && !self.own.iter().any(|newer| takes_over(newer, made));
        let is_done = |made: &Made| newer(made) >= rules.latest && !is_needed(made) && !made.permanent && !made.pinned;
        let done: Vec<bool> = self.aside.iter().map(is_done).collect();
        for (made, done) in self.aside.iter_mut().zip(done) {
            made.there &= !done;
        }
    }

    /// Returns what keeps one of the own checkpoints.
    fn kept(&self, at: usize, rules: &Rules, is_due: bool) -> Kept {
        let made = &self.own[at];
        let newer: Vec<&Made> = self.own[at + 1..].iter().filter(|other| other.there).collect();
        let healthy = newer.iter().filter(|other| other.is_healthy()).count();
        let complete = newer.iter().filter(|other| other.is_taken()).count();
        let unhealthy = newer.len() - healthy;
        let is_newest = newer.is_empty() || made.is_healthy() && (healthy == 0 || !made.is_thinned && complete == 0);
        let went_on = |other: &Made| other.came_from == Some(made.order);
        let was_restored =
            self.restored == Some(made.order) || self.own.iter().any(|other| other.there && went_on(other));
        let temporary = newer.iter().filter(|other| other.is_healthy() && !other.permanent).count();
        let is_multiple = made.step.is_some_and(|step| rules.multiples > 0 && step % rules.multiples == 0);
        let by_policy = temporary < rules.latest || is_multiple || self.is_among_the_best(at, rules.best);
        Kept {
            whole: is_newest || made.pinned || was_restored && healthy < rules.restored,
            otherwise: made.permanent || if made.is_healthy() { by_policy } else { unhealthy == 0 },
            for_good: is_due,
        }
    }

    /// Returns `true` if fewer than `best` others have a lower `m0`, or the same and are newer.
    fn is_among_the_best(&self, at: usize, best: usize) -> bool {
        let Some(own) = self.own[at].metrics.get("m0") else { return false };
        let better = self.own.iter().enumerate().filter(|(other_at, other)| {
            let counts = other.there && other.is_healthy() && *other_at != at;
            let value = other.metrics.get("m0").filter(|_| counts);
            value.is_some_and(|value| value < own || value == own && *other_at > at)
        });
        better.count() < best
    }
}

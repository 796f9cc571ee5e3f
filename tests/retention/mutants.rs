//! Policies with one mistake each: the comparison with the oracle must find every one.

use super::model::{Maker, check, histories, policy};
use super::oracle::Rule;
use chrono::{DateTime, Utc};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::time::Duration;
use tch_checkpoint::retention::{CheckpointInfo, Every, Latest, Reason, RetentionPolicy, YoungerThan};

/// A policy that asks another one about a changed list.
#[derive(Debug)]
struct Seeing(Box<dyn RetentionPolicy>, fn(&mut CheckpointInfo, usize));

impl RetentionPolicy for Seeing {
    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let mut seen = checkpoints.to_vec();
        let last = seen.len();
        seen.iter_mut().enumerate().for_each(|(at, info)| self.1(info, last - at));
        self.0.keep(&seen, now)
    }

    fn counted_from(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.0.counted_from(checkpoints, now)
    }
}

/// Of checkpoints with the same value the older one is better.
#[derive(Debug)]
struct OlderWins(Box<dyn RetentionPolicy>);

impl RetentionPolicy for OlderWins {
    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let reversed: Vec<CheckpointInfo> = checkpoints.iter().rev().cloned().collect();
        let mut reasons = self.0.keep(&reversed, now);
        reasons.reverse();
        reasons
    }
}

/// Forgets from when it counts.
#[derive(Debug)]
struct Forgetful(Every);

impl RetentionPolicy for Forgetful {
    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        self.0.keep(checkpoints, now)
    }
}

/// Keeps no checkpoint permanently.
#[derive(Debug)]
struct Temporary(Every);

impl RetentionPolicy for Temporary {
    fn keep(&self, checkpoints: &[CheckpointInfo], now: DateTime<Utc>) -> Vec<Option<Reason>> {
        let reasons = self.0.keep(checkpoints, now).into_iter();
        reasons.map(|reason| reason.map(|reason| Reason::new(reason.why))).collect()
    }
}

fn seconds(minutes: i64, more: i64) -> Duration {
    Duration::from_secs((60 * minutes + more) as u64)
}

fn mutant(which: usize, rule: &Rule) -> Box<dyn RetentionPolicy> {
    match (which, rule) {
        (0, Rule::Latest(n)) => Box::new(Latest(n + 1)),
        (1, Rule::Latest(n)) => Box::new(Latest(n - 1)),
        (2, Rule::Lowest(_) | Rule::Highest(_)) => Box::new(OlderWins(policy(rule))),
        (3, Rule::Lowest(n)) => policy(&Rule::Highest(*n)),
        // Infinite values win.
        (4, Rule::Lowest(_) | Rule::Highest(_)) => Box::new(Seeing(policy(rule), |info, _| {
            info.metrics.values_mut().for_each(|value| *value = value.clamp(-1e300, 1e300));
        })),
        // What has no metric counts as 0.
        (5, Rule::Lowest(_) | Rule::Highest(_)) => Box::new(Seeing(policy(rule), |info, _| {
            info.metrics.entry("m".to_string()).or_insert(0.0);
        })),
        (6, Rule::Multiples(_)) => Box::new(Seeing(policy(rule), |info, _| {
            info.step = info.step.map(|step| step + 1);
        })),
        // What has no step counts as step 0.
        (7, Rule::Multiples(_)) => Box::new(Seeing(policy(rule), |info, _| {
            info.step = Some(info.step.unwrap_or(0));
        })),
        (8, Rule::Closest(n)) => policy(&Rule::Multiples(*n)),
        (9, Rule::Closest(_)) => Box::new(OlderWins(policy(rule))),
        (10, Rule::Every(minutes)) => Box::new(Every(seconds(*minutes, 1))),
        (11, Rule::Every(minutes)) => Box::new(Every(seconds(*minutes, -60))),
        (12, Rule::Every(minutes)) => Box::new(Forgetful(Every(seconds(*minutes, 0)))),
        (13, Rule::Every(minutes)) => Box::new(Temporary(Every(seconds(*minutes, 0)))),
        (14, Rule::Younger(minutes)) => Box::new(YoungerThan(seconds(*minutes, 1))),
        (15, Rule::Younger(minutes)) => Box::new(YoungerThan(seconds(*minutes, -60))),
        (16, Rule::Steps(steps)) => policy(&Rule::Steps(steps.iter().skip(1).copied().collect())),
        // It changes its mind when others are gone.
        (17, Rule::Every(_)) => Box::new(Seeing(policy(rule), |info, from_end| {
            info.permanent = false;
            info.counted_from = info.counted_from.filter(|_| from_end < 2);
        })),
        _ => policy(rule),
    }
}

/// All mutants as functions: the comparison takes no closure.
const MUTANTS: [Maker; 18] = [
    |rule| mutant(0, rule),
    |rule| mutant(1, rule),
    |rule| mutant(2, rule),
    |rule| mutant(3, rule),
    |rule| mutant(4, rule),
    |rule| mutant(5, rule),
    |rule| mutant(6, rule),
    |rule| mutant(7, rule),
    |rule| mutant(8, rule),
    |rule| mutant(9, rule),
    |rule| mutant(10, rule),
    |rule| mutant(11, rule),
    |rule| mutant(12, rule),
    |rule| mutant(13, rule),
    |rule| mutant(14, rule),
    |rule| mutant(15, rule),
    |rule| mutant(16, rule),
    |rule| mutant(17, rule),
];

#[test]
fn every_mutant_is_found() {
    for (number, mutant) in MUTANTS.into_iter().enumerate() {
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let found = (0..3000).any(|_| {
            let history = histories().new_tree(&mut runner).unwrap().current();
            check(&history, mutant).is_err()
        });
        assert!(found, "mutant {number} is not found");
    }
}

//! A directory of checkpoints as a plain list, on which policies decide after every save, compared with the oracle.

use super::oracle::{Rule, Save};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::collections::BTreeSet;
use std::time::Duration;
use tch_checkpoint::retention::{
    Best, CheckpointInfo, Every, EveryNSteps, EveryNStepsClosest, Goal, Latest, RetentionPolicy, Steps, YoungerThan,
};

pub type Policies = Vec<Box<dyn RetentionPolicy>>;

/// What makes a policy of a rule.
pub type Maker = fn(&Rule) -> Box<dyn RetentionPolicy>;

pub fn policy(rule: &Rule) -> Box<dyn RetentionPolicy> {
    let minutes = |minutes: &i64| Duration::from_secs(60 * *minutes as u64);
    match rule {
        Rule::Latest(n) => Box::new(Latest(*n)),
        Rule::Lowest(n) => Box::new(Best::new("m", Goal::Minimize, *n)),
        Rule::Highest(n) => Box::new(Best::new("m", Goal::Maximize, *n)),
        Rule::Multiples(n) => Box::new(EveryNSteps(*n)),
        Rule::Closest(n) => Box::new(EveryNStepsClosest(*n)),
        Rule::Every(interval) => Box::new(Every(minutes(interval))),
        Rule::Steps(steps) => Box::new(Steps::new(steps.iter().copied())),
        Rule::Younger(age) => Box::new(YoungerThan(minutes(age))),
    }
}

pub fn at(minutes: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::minutes(10_000_000 + minutes)
}

/// What is there, oldest first: the place among all saves, and what is known of it.
#[derive(Default)]
pub struct Listed(pub Vec<(usize, CheckpointInfo)>);

impl Listed {
    pub fn infos(&self) -> Vec<CheckpointInfo> {
        self.0.iter().map(|(_, info)| info.clone()).collect()
    }

    /// Adds a save and removes what no policy keeps, as a manager does that keeps nothing but the newest otherwise.
    pub fn save(&mut self, place: usize, save: &Save, policies: &Policies, start: i64) {
        let now = at(save.minutes);
        let mut info = CheckpointInfo::new(format!("ckpt-{place}"), now);
        info.step = save.step;
        info.metrics.extend(save.metric.map(|value| ("m".to_string(), value)));
        let counted = if self.0.is_empty() { at(start).min(now) } else { now };
        info.counted_from = policies.iter().find_map(|policy| policy.counted_from(&self.infos(), counted));
        self.0.push((place, info));
        let infos = self.infos();
        let reasons: Vec<_> = policies.iter().map(|policy| policy.keep(&infos, now)).collect();
        let (mut of, newest) = (0.., infos.len() - 1);
        self.0.retain_mut(|(_, info)| {
            let at = of.next().unwrap();
            let reasons = reasons.iter().filter_map(|reasons| reasons[at].as_ref());
            let (for_good, others): (Vec<_>, Vec<_>) = reasons.partition(|reason| reason.for_good);
            info.permanent |= !for_good.is_empty() && others.is_empty() && at != newest;
            info.permanent || !for_good.is_empty() || !others.is_empty() || at == newest
        });
    }
}

/// Saves; at some, the policies change.
#[derive(Debug, Clone)]
pub struct History {
    pub start: i64,
    pub saves: Vec<Save>,
    pub rules: Vec<(usize, Vec<Rule>)>,
}

pub fn histories() -> impl Strategy<Value = History> {
    let rule = prop_oneof![
        (1usize..4).prop_map(Rule::Latest),
        (1usize..4).prop_map(Rule::Lowest),
        (1usize..4).prop_map(Rule::Highest),
        (1u64..7).prop_map(Rule::Multiples),
        (1u64..9).prop_map(Rule::Closest),
        (1i64..9).prop_map(Rule::Every),
        prop::collection::vec(0u64..40, 0..4).prop_map(Rule::Steps),
        (1i64..12).prop_map(Rule::Younger),
    ];
    let metric = prop_oneof![
        2 => Just(None),
        5 => (0i64..5).prop_map(|value| Some(value as f64)),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0)].prop_map(Some),
    ];
    // Steps go back at times.
    let saves = prop::collection::vec((prop_oneof![8 => 0i64..5, 1 => -9i64..0], 0i64..6, metric, 0u8..9), 1..30);
    let rules = prop::collection::vec((0usize..30, prop::collection::vec(rule, 0..4)), 1..3);
    (0i64..9, saves, rules).prop_map(|(start, deltas, mut rules)| {
        let (mut step, mut minutes) = (0i64, start);
        let saves = deltas.into_iter().map(|(steps, later, metric, unnumbered)| {
            (step, minutes) = ((step + steps).max(0), minutes + later);
            Save { step: (unnumbered > 0).then_some(step as u64), minutes, metric }
        });
        let saves = saves.collect();
        rules.sort_by_key(|(from, _)| *from);
        rules[0].0 = 0;
        // What one interval keeps permanently, another one counts from.
        for (_, rules) in &mut rules {
            let first = rules.iter().position(|rule| matches!(rule, Rule::Every(_)));
            let mut at = 0..;
            rules.retain(|rule| at.next() == first || !matches!(rule, Rule::Every(_)));
        }
        History { start, saves, rules }
    })
}

/// Whether what is there is after each save what the rules say.
pub fn check(history: &History, policy: Maker) -> Result<(), TestCaseError> {
    let mut listed = Listed::default();
    // What the rules choose from: what was there when they became those, and all that came since.
    let mut pool: Vec<usize> = Vec::new();
    let mut rules: &[Rule] = &[];
    let (mut policies, mut for_good) = (Vec::new(), BTreeSet::new());
    // From when intervals are counted, and what each save recorded of it.
    let (mut start, mut recorded) = (history.start, Vec::new());
    for (place, save) in history.saves.iter().enumerate() {
        if let Some((_, next)) = history.rules.iter().rev().find(|(from, _)| *from == place) {
            (rules, policies) = (next.as_slice(), next.iter().map(policy).collect());
            pool = listed.0.iter().map(|(place, _)| *place).collect();
            let oldest = pool.first().map(|at| history.saves[*at].minutes);
            start = pool.iter().find_map(|at| recorded[*at]).or(oldest).unwrap_or(history.start);
        }
        listed.save(place, save, &policies, history.start);
        pool.push(place);
        recorded.push(rules.iter().any(|rule| matches!(rule, Rule::Every(_))).then_some(start));
        let so_far = &history.saves[..=place];
        let mut expected: BTreeSet<usize> = [place].into();
        for rule in rules {
            expected.extend(rule.wants(so_far, &pool, start, &for_good));
        }
        expected.extend(&for_good);
        let kept: BTreeSet<usize> = listed.0.iter().map(|(place, _)| *place).collect();
        prop_assert_eq!(&kept, &expected, "after save {} by {:?}", place, rules);
        let marked = listed.0.iter().filter(|(_, info)| info.permanent).map(|(place, _)| *place);
        for_good.extend(marked);
    }
    Ok(())
}

/// How many histories: `RETENTION_HISTORIES` in the environment, or few.
pub fn count(few: u32) -> u32 {
    std::env::var("RETENTION_HISTORIES").ok().and_then(|count| count.parse().ok()).unwrap_or(few)
}

#[test]
fn what_is_there_is_what_the_rules_say_of_all_that_was_saved() {
    let config = Config { cases: count(3000), max_shrink_iters: 100_000, ..Config::default() };
    let result = TestRunner::new(config).run(&histories(), |history| check(&history, policy));
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn intervals_go_on_after_the_clock_was_set_back() {
    let jumps = prop::collection::vec(prop_oneof![9 => 0i64..6, 1 => -500i64..0, 1 => 0i64..500], 1..40);
    let inputs = (jumps, 1i64..9, 1usize..4);
    let config = Config { cases: count(2000), ..Config::default() };
    let result = TestRunner::new(config).run(&inputs, |(jumps, interval, latest)| {
        let (mut listed, mut saves) = (Listed::default(), Vec::new());
        let policies = vec![policy(&Rule::Latest(latest)), policy(&Rule::Every(interval))];
        // The time from which is counted, the saves since the clock was set back, and those of them to be kept.
        let (mut minutes, mut last, mut since, mut wanted) = (0, 0, 0, Vec::new());
        for (place, jump) in jumps.into_iter().enumerate() {
            minutes += jump;
            if minutes < last {
                (last, since, wanted) = (minutes, place, Vec::new());
            } else if minutes >= last + interval {
                last = minutes;
                wanted.push(place);
            }
            saves.push(Save { step: None, minutes, metric: None });
            listed.save(place, &saves[place], &policies, 0);
            let newest = saves.len().saturating_sub(latest);
            let kept = listed.0.iter().map(|(place, _)| *place).filter(|place| *place >= since);
            let kept: Vec<usize> = kept.filter(|place| *place < newest).collect();
            let expected: Vec<usize> = wanted.iter().copied().filter(|place| *place < newest).collect();
            prop_assert_eq!(kept, expected, "after save {}", place);
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

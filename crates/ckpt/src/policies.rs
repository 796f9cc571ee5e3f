//! Retention policies on the command line.

use clap::Args;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tch_checkpoint::retention::{
    Best, Every, EveryNSteps, EveryNStepsClosest, Goal, Latest, RetentionPolicy, Steps, YoungerThan,
};

/// The retention policies. A checkpoint is kept if any of them keeps it.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Policies {
    /// The newest N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub latest: Option<u32>,
    /// The N best by a metric: METRIC:min:N or METRIC:max:N; can be given several times
    #[arg(long, value_name = "METRIC:GOAL:N", value_parser = best)]
    pub best: Vec<Best>,
    /// Those whose step is a multiple of N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub every_steps: Option<u64>,
    /// For each multiple of N, the one whose step is closest to it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub closest: Option<u64>,
    /// One per interval, such as 90s, 30m, 6h or 2d
    #[arg(long, value_name = "INTERVAL", value_parser = duration)]
    pub every: Option<Duration>,
    /// Those with these steps, such as 1000,5000
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    pub steps: Vec<u64>,
    /// Those saved less than this duration ago, such as 12h
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub younger_than: Option<Duration>,
}

impl Policies {
    /// Returns the policies.
    pub fn values(&self) -> Vec<Arc<dyn RetentionPolicy>> {
        let mut policies: Vec<Arc<dyn RetentionPolicy>> = Vec::new();
        policies.extend(self.latest.map(|n| Arc::new(Latest(n as usize)) as Arc<dyn RetentionPolicy>));
        policies.extend(self.best.iter().map(|best| Arc::new(best.clone()) as Arc<dyn RetentionPolicy>));
        policies.extend(self.every_steps.map(|n| Arc::new(EveryNSteps(n)) as Arc<dyn RetentionPolicy>));
        policies.extend(self.closest.map(|n| Arc::new(EveryNStepsClosest(n)) as Arc<dyn RetentionPolicy>));
        policies.extend(self.every.map(|interval| Arc::new(Every(interval)) as Arc<dyn RetentionPolicy>));
        policies.extend(self.younger_than.map(|age| Arc::new(YoungerThan(age)) as Arc<dyn RetentionPolicy>));
        if !self.steps.is_empty() {
            policies.push(Arc::new(Steps::new(self.steps.iter().copied())));
        }
        policies
    }
}

/// Components that only the newest checkpoints keep.
#[derive(Debug, Args)]
pub struct Components {
    /// Keep a component, such as the optimizer, only in the newest N, in those needed to resume, and in pinned ones;
    /// can be given several times
    #[arg(long = "keep-component", value_name = "NAME=N", value_parser = component)]
    pub keep: Vec<(String, usize)>,
}

impl Components {
    /// Returns how many checkpoints keep each of them.
    pub fn values(&self) -> BTreeMap<String, usize> {
        self.keep.iter().cloned().collect()
    }
}

/// `NAME=N`.
fn component(text: &str) -> Result<(String, usize), String> {
    let (name, count) = text.rsplit_once('=').unwrap_or((text, ""));
    match count.parse() {
        Ok(count) if count > 0 && !name.is_empty() => Ok((name.to_string(), count)),
        _ => Err("it has the form NAME=N, such as optimizer=2".to_string()),
    }
}

/// `METRIC:min:N`. The metric's name may have colons.
fn best(text: &str) -> Result<Best, String> {
    let mut parts = text.rsplitn(3, ':');
    let (count, goal, metric) = (parts.next(), parts.next(), parts.next());
    let goal = goal.and_then(goal_named);
    let count = count.and_then(|count| count.parse().ok()).filter(|count| *count > 0);
    match (metric.filter(|metric| !metric.is_empty()), goal, count) {
        (Some(metric), Some(goal), Some(count)) => Ok(Best::new(metric, goal, count)),
        _ => Err("it has the form METRIC:min:N or METRIC:max:N, such as loss:min:3".to_string()),
    }
}

fn goal_named(name: &str) -> Option<Goal> {
    match name {
        "min" => Some(Goal::Minimize),
        "max" => Some(Goal::Maximize),
        _ => None,
    }
}

/// A number and a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "it is a whole number and a unit: s, m, h or d, such as 6h".to_string();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).filter(|seconds| *seconds > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

//! Inner parts of a save, opened for `benches/micro.rs`.

use super::memory::Memory;
use crate::graph::{Node, Trackable};
use crate::retention::{Candidate, Retention};
use crate::save::{self, SaveOptions};
use chrono::{DateTime, TimeDelta};

/// Objects to be planned.
#[derive(Debug)]
pub struct Objects(Vec<(String, Node)>);

impl Objects {
    /// So many small tensors in one component.
    pub fn new(tensors: usize) -> Objects {
        let tensor = |i: usize| (format!("layer{i}.weight"), Memory::new(vec![0; 8]).node());
        Objects(vec![("encoder".to_string(), Node::group((0..tensors).map(tensor)))])
    }

    /// Plans a save of them; returns the bytes it would write.
    pub fn plan(&self) -> u64 {
        save::plan(&self.0, &SaveOptions::default()).map_or(0, |plan| plan.bytes())
    }
}

/// A long list of checkpoints, and what decides over them.
#[derive(Debug)]
pub struct Decision(Vec<Candidate>, Retention);

impl Decision {
    /// So many checkpoints, of which the newest ten stay and one an hour is preserved.
    pub fn new(checkpoints: i64) -> Decision {
        let candidate = |i: i64| Candidate {
            name: format!("ckpt-{i}"),
            saved_at: DateTime::UNIX_EPOCH + TimeDelta::minutes(10 * i),
            preserved: false,
        };
        let retention = Retention { max_to_keep: Some(10), keep_every: Some(TimeDelta::hours(1)) };
        Decision((0..checkpoints).map(candidate).collect(), retention)
    }

    /// Decides; returns how many are to be removed.
    pub fn decide(&self) -> usize {
        self.1.decide(&self.0, None, chrono::Utc::now()).remove.len()
    }
}

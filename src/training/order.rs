//! The order of the data, resumed in the middle of an epoch.

use super::permutation::{Permutation, Shuffle};
use crate::error::{BoxError, Error, Result};
use crate::graph::{Node, Trackable, ValueApply, ValueLeaf};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The batches of a data set, epoch after epoch: indices of items, in a random order or in that of the data. A run that
/// is resumed in the middle of an epoch continues with the batch that would have come next.
///
/// It saves the number of items, the seed, the epoch and the number of items done in the epoch, but no order: the order
/// of an epoch is computed by [`Shuffle`]. Clones share the position.
///
/// ```
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{Batches, Checkpoint};
/// let words = ["never", "odd", "or", "even", "again"];
/// let mut batches = Batches::new(words.len(), 2)?.shuffle(7);
/// let checkpoint = Checkpoint::new().track("batches", &batches)?;
/// for batch in batches.by_ref().take(3) {
///     let batch: Vec<&str> = batch.into_iter().map(|index| words[index]).collect();
///     assert!(!batch.is_empty());
/// }
/// assert_eq!((batches.epoch(), batches.position()), (1, 0));
/// # let _ = checkpoint;
/// # Ok(())
/// # }
/// ```
///
/// # What stays exact
///
/// The position counts items of the epoch. After a restore
///
/// * with another batch size, the next batch starts with the item that would have come next, and every item of the
///   epoch is still used once; only the boundaries of batches differ;
/// * with another number of workers or machines, nothing changes if a batch is that of all workers together and each
///   takes its share, for example `batch.iter().skip(rank).step_by(workers)`. A batch size per worker changes the total
///   batch size with the number of workers;
/// * with another seed in the program, the checkpoint's seed is kept: a new order would repeat items of the epoch and
///   omit others;
/// * with another number of items, the restore fails, because the order would differ. To continue with more data, leave
///   the component out with [`RestoreOptions::skip`](crate::RestoreOptions::skip), which starts a new epoch.
///
/// To load data ahead, call [`next`](Iterator::next) where batches are used, not where they are loaded, so that a
/// checkpoint counts the batches that were trained on. [`ahead`](Batches::ahead) returns the indices of later batches
/// for loading.
///
/// For data that is read once and in order, a [`Counter`](crate::Counter) is enough.
#[derive(Debug, Clone)]
pub struct Batches {
    items: usize,
    batch: usize,
    drop_last: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    position: Position,
    /// The order of the epoch, if it has been computed.
    order: Option<(u64, Permutation)>,
}

/// What is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    items: usize,
    /// `None` for the order of the data.
    seed: Option<u64>,
    epoch: u64,
    /// Items of the epoch that are done.
    done: usize,
}

impl Batches {
    /// Creates batches of `batch` items out of `items`, in the order of the data. The last batch of an epoch may be
    /// shorter.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there are no items, or none in a batch.
    pub fn new(items: usize, batch: usize) -> Result<Batches> {
        if items == 0 || batch == 0 {
            return Err(Error::InvalidArgument(format!(
                "batches of {batch} of {items} items; both must be at least 1"
            )));
        }
        let position = Position { items, seed: None, epoch: 0, done: 0 };
        Ok(Batches { items, batch, drop_last: false, state: Arc::new(Mutex::new(State { position, order: None })) })
    }

    /// Sets a random order, a new one in every epoch. The seed of a restored checkpoint replaces this one.
    #[must_use]
    pub fn shuffle(self, seed: u64) -> Batches {
        self.lock().position.seed = Some(seed);
        self
    }

    /// Omits the last batch of an epoch if it would be shorter than the others, unless it is the only one.
    #[must_use]
    pub fn drop_last(mut self) -> Batches {
        self.drop_last = self.items >= self.batch;
        self
    }

    /// Returns the number of batches per epoch.
    #[must_use]
    pub fn per_epoch(&self) -> usize {
        if self.drop_last { self.items / self.batch } else { self.items.div_ceil(self.batch) }
    }

    /// Returns the epoch of the next batch, counted from 0.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.normal(self.lock().position).epoch
    }

    /// Returns the number of items of the epoch that are done.
    #[must_use]
    pub fn position(&self) -> usize {
        self.normal(self.lock().position).done
    }

    /// Returns the remaining batches of this epoch.
    pub fn rest_of_epoch(&mut self) -> impl Iterator<Item = Vec<usize>> + '_ {
        let epoch = self.epoch();
        std::iter::from_fn(move || (self.epoch() == epoch).then(|| self.take_next()))
    }

    /// Returns the batch that follows after `n` others, without advancing; `ahead(0)` is the next one.
    #[must_use]
    pub fn ahead(&self, n: usize) -> Vec<usize> {
        let state = &mut *self.lock();
        let mut position = self.normal(state.position);
        let left = self.left(position);
        if n < left {
            position.done += n * self.batch;
        } else {
            let (epochs, batches) = ((n - left) / self.per_epoch(), (n - left) % self.per_epoch());
            position.epoch = position.epoch.saturating_add(1).saturating_add(epochs as u64);
            position.done = batches * self.batch;
        }
        self.batch_at(state, position)
    }

    /// Returns the number of batches of the epoch from a position on.
    fn left(&self, position: Position) -> usize {
        let items = self.items - position.done;
        if self.drop_last { items / self.batch } else { items.div_ceil(self.batch) }
    }

    /// Returns the position of the next batch, which is in the next epoch if this one is complete.
    fn normal(&self, position: Position) -> Position {
        match self.left(position) {
            0 => Position { epoch: position.epoch.saturating_add(1), done: 0, ..position },
            _ => position,
        }
    }

    fn take_next(&self) -> Vec<usize> {
        let state = &mut *self.lock();
        let position = self.normal(state.position);
        let batch = self.batch_at(state, position);
        state.position = self.normal(Position { done: position.done + batch.len(), ..position });
        batch
    }

    fn batch_at(&self, state: &mut State, Position { seed, epoch, done, .. }: Position) -> Vec<usize> {
        let places = done..self.items.min(done.saturating_add(self.batch));
        let Some(seed) = seed else { return places.collect() };
        let known = state.order.take().filter(|(known, _)| *known == epoch);
        let (_, order) =
            state.order.insert(known.unwrap_or_else(|| (epoch, Shuffle::new(self.items, seed).epoch(epoch))));
        places.filter_map(|place| order.get(place)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Never ends: the last batch of an epoch is followed by the first one of the next epoch.
impl Iterator for Batches {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        Some(self.take_next())
    }
}

impl Trackable for Batches {
    fn node(&self) -> Node {
        Node::value(self.clone())
    }
}

impl ValueLeaf for Batches {
    fn save(&self) -> std::result::Result<serde_json::Value, BoxError> {
        Ok(serde_json::to_value(self.normal(self.lock().position))?)
    }

    fn load(&self, saved: &serde_json::Value) -> std::result::Result<ValueApply, BoxError> {
        let position: Position = serde_json::from_value(saved.clone())
            .map_err(|e| format!("the position in a data set is expected, not {saved}: {e}"))?;
        if position.items != self.items {
            return Err(format!(
                "the checkpoint's data set has {} items and this one {}, so that its order is another one; leave the \
                 component out with `RestoreOptions::skip` to begin a new epoch",
                position.items, self.items
            )
            .into());
        }
        if position.done > position.items {
            return Err(format!("{} of {} items are done", position.done, position.items).into());
        }
        if position.seed.is_some() != self.lock().position.seed.is_some() {
            let (saved, own) = if position.seed.is_some() { ("shuffles", "not") } else { ("does not shuffle", "does") };
            return Err(format!(
                "the run of the checkpoint {saved}, this one {own}; set `Batches::shuffle` as it was there"
            )
            .into());
        }
        let handle = self.clone();
        Ok(Box::new(move || *handle.lock() = State { position, order: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(from: &Batches, into: Batches) -> Batches {
        let saved = serde_json::to_string(&from.save().unwrap()).unwrap();
        into.load(&serde_json::from_str(&saved).unwrap()).unwrap()();
        into
    }

    #[test]
    fn the_next_batch_is_the_one_that_would_have_come() {
        for (items, batch, drop_last, shuffled) in
            [(10, 3, false, true), (10, 3, true, true), (10, 5, false, false), (2, 5, true, true), (7, 1, false, true)]
        {
            let new = |seed| {
                let batches = Batches::new(items, batch).unwrap();
                let batches = if shuffled { batches.shuffle(seed) } else { batches };
                if drop_last { batches.drop_last() } else { batches }
            };
            let whole: Vec<_> = new(1).take(40).collect();
            for stop in 0..39 {
                let mut first = new(1);
                let _ = first.by_ref().take(stop).count();
                // With another seed, which the checkpoint's replaces.
                let mut second = restored(&first, new(2));
                assert_eq!((second.epoch(), second.position()), (first.epoch(), first.position()));
                for (n, expected) in whole[stop..].iter().enumerate() {
                    assert_eq!(second.ahead(n), *expected, "{stop} + {n}");
                }
                assert!(second.by_ref().take(40 - stop).eq(whole[stop..].iter().cloned()));
            }
        }
    }

    #[test]
    fn an_epoch_has_every_item_once_also_when_the_batch_size_changes() {
        let mut batches = Batches::new(100, 7).unwrap().shuffle(3);
        let mut seen: Vec<usize> = batches.by_ref().take(5).flatten().collect();
        let mut larger = restored(&batches, Batches::new(100, 16).unwrap().shuffle(3));
        seen.extend(larger.rest_of_epoch().flatten());
        assert_eq!((larger.epoch(), larger.position()), (1, 0));
        let order: Vec<usize> = Shuffle::new(100, 3).epoch(0).iter().collect();
        assert_eq!(seen, order);
        assert_eq!(larger.rest_of_epoch().count(), larger.per_epoch());
        assert_eq!(larger.epoch(), 2);
    }

    #[test]
    fn short_batches_are_kept_or_left_out() {
        let sizes = |batches: Batches| batches.take(5).map(|batch| batch.len()).collect::<Vec<_>>();
        assert_eq!(sizes(Batches::new(10, 4).unwrap()), [4, 4, 2, 4, 4]);
        assert_eq!(sizes(Batches::new(10, 4).unwrap().drop_last()), [4, 4, 4, 4, 4]);
        assert_eq!(sizes(Batches::new(3, 4).unwrap().drop_last()), [3; 5]);
        assert!(Batches::new(0, 4).is_err() && Batches::new(4, 0).is_err());
        assert_eq!(Batches::new(4, usize::MAX).unwrap().next().unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let batches = Batches::new(10, 4).unwrap().shuffle(1);
        let refusal = |saved: serde_json::Value| batches.load(&saved).err().unwrap().to_string();
        let saved = |items: u64, done: u64| serde_json::json!({"items": items, "seed": 1, "epoch": 0, "done": done});
        assert!(refusal(saved(11, 0)).contains("11 items"));
        assert!(refusal(saved(10, 11)).contains("11 of 10"));
        assert!(refusal(serde_json::json!(3)).contains("position"));
        let mut in_order = saved(10, 0);
        in_order["seed"] = serde_json::Value::Null;
        assert!(refusal(in_order).contains("does not shuffle"));
    }
}

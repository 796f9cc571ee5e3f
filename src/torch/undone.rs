//! Changes of tensors that were undone bit for bit, such as those of an evaluation with averages. libtorch's version
//! counters count the change and the undoing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of each tensor object the latest versions at which it had the same elements.
static SAME: Mutex<BTreeMap<usize, VecDeque<u64>>> = Mutex::new(BTreeMap::new());

/// The maximum number of versions per tensor.
const MOST: usize = 64;

fn same() -> MutexGuard<'static, BTreeMap<usize, VecDeque<u64>>> {
    SAME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records that tensors, as [objects](super::shim::object), have the same elements at two versions, now and before.
pub(super) fn record(tensors: impl Iterator<Item = (usize, u64, u64)>) {
    let mut same = same();
    for (object, before, now) in tensors {
        let versions = same.entry(object).or_default();
        if versions.back() != Some(&before) {
            versions.clear();
            versions.push_back(before);
        }
        versions.push_back(now);
        if versions.len() > MOST {
            versions.pop_front();
        }
    }
}

/// Returns `true` if a tensor is known to have the same elements at both versions.
pub(super) fn is_same(object: usize, one: u64, other: u64) -> bool {
    same().get(&object).is_some_and(|versions| versions.contains(&one) && versions.contains(&other))
}

/// Forgets a tensor: another one may get its address.
pub(super) fn forget(object: usize) {
    same().remove(&object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_same_only_while_nothing_else_has_changed() {
        let object = usize::MAX;
        record([(object, 3, 5)].into_iter());
        record([(object, 5, 7)].into_iter());
        assert!(is_same(object, 3, 7) && is_same(object, 5, 7) && !is_same(object, 3, 6) && !is_same(object, 4, 7));
        // Something else has changed it between the versions 7 and 8.
        record([(object, 8, 10)].into_iter());
        assert!(is_same(object, 8, 10) && !is_same(object, 7, 10));
        (0..200).for_each(|i| record([(object, 10 + i, 11 + i)].into_iter()));
        assert!(is_same(object, 209, 210) && !is_same(object, 8, 210));
        forget(object);
        assert!(!is_same(object, 209, 210));
    }
}

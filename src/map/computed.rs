//! Tensors that are computed as a whole and read in pieces.

use crate::dtype::TensorSpec;
use crate::error::Result;
use crate::parallel;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All elements of a tensor, once they are computed. Its lock is held meanwhile.
type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// The tensors that were computed as a whole and are being read in pieces, oldest first: at most as many as there are
/// threads that read.
#[derive(Debug, Default)]
pub(super) struct Computed(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    key: String,
    slot: Slot,
    /// How many bytes have not been read.
    left: u64,
}

impl Computed {
    /// Copies the elements `range` of the tensor `key`, which are among those of `spec`, to `target`. `compute` returns
    /// all of its elements; they are kept until as many have been read as there are. Of several threads that read the
    /// same tensor, one computes it and the others wait. If that fails, the next one tries again.
    pub(super) fn read_range(
        &self,
        key: &str,
        spec: &TensorSpec,
        range: Range<u64>,
        target: &mut [u8],
        compute: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        let slot = self.slot(key, spec);
        let bytes = {
            // Other threads compute other tensors meanwhile.
            let mut computed = lock(&slot);
            match &*computed {
                Some(bytes) => bytes.clone(),
                None => computed.insert(Arc::new(compute()?)).clone(),
            }
        };
        let size = spec.dtype.size() as u64;
        target.copy_from_slice(&bytes[(range.start * size) as usize..(range.end * size) as usize]);
        let mut all = lock(&self.0);
        if let Some(at) = all.iter().position(|entry| Arc::ptr_eq(&entry.slot, &slot)) {
            all[at].left = all[at].left.saturating_sub(target.len() as u64);
            if all[at].left == 0 {
                all.remove(at);
            }
        }
        Ok(())
    }

    /// Returns the slot of the tensor `key`. A new one takes the place of the oldest if there are too many.
    fn slot(&self, key: &str, spec: &TensorSpec) -> Slot {
        let mut all = lock(&self.0);
        if let Some(entry) = all.iter().find(|entry| entry.key == key) {
            return entry.slot.clone();
        }
        let most = parallel::default_threads().max(2);
        let surplus = (all.len() + 1).saturating_sub(most);
        all.drain(..surplus);
        let slot = Slot::default();
        all.push(Entry { key: key.to_string(), slot: slot.clone(), left: spec.bytes().unwrap_or(u64::MAX) });
        slot
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

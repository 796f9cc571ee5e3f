//! A directory whose writer's lock is held: the next sequence, and exclusive access to the index.

use crate::catalog::Sequences;
use crate::error::{Error, Result};
use crate::format::{Index, MAX_SEQUENCE};
use crate::repository::{Directory, Lock};
use crate::sync::{Mutex, PoisonError};

/// A directory whose lock is held by this process.
#[derive(Debug)]
pub(crate) struct Held {
    directory: Directory,
    lock: Lock,
    /// The highest sequence of the directory, including saves in progress.
    sequence: Mutex<u64>,
    index: Mutex<()>,
}

impl Held {
    /// Takes the lock of a directory, creating it if necessary, and finds its highest sequence.
    pub(crate) fn take(directory: &Directory) -> Result<Held> {
        Held::take_again(directory, &mut Sequences::default())
    }

    /// Like [`take`](Held::take), where `sequences` are those that it found before.
    pub(crate) fn take_again(directory: &Directory, sequences: &mut Sequences) -> Result<Held> {
        directory.create()?;
        let lock = directory.lock()?;
        let scan = directory.scan_for_writing()?;
        // Leftovers of a save or a removal whose process died.
        directory.sweep(&scan.leftovers);
        Ok(Held::new(directory, lock, sequences.highest(directory, &scan)?))
    }

    /// Returns the directory whose lock this is; `highest` is its highest sequence.
    pub(crate) fn new(directory: &Directory, lock: Lock, highest: u64) -> Held {
        let (sequence, index) = (Mutex::new(highest), Mutex::default());
        Held { directory: directory.clone(), lock, sequence, index }
    }

    /// Returns `true` if it is the lock of this directory.
    pub(crate) fn is_of(&self, directory: &Directory) -> bool {
        self.directory.is_same(directory)
    }

    /// Checks that this process holds the lock, and that the directory is the one whose lock it is.
    ///
    /// # Errors
    /// As for [`Repository::check`](crate::repository::Repository::check).
    pub(crate) fn check(&self) -> Result<()> {
        self.directory.check()
    }

    /// Returns the sequence of the next save. It is used up even if the save fails, because its leftovers could
    /// reappear after a power cut.
    pub(crate) fn next_sequence(&self) -> Result<u64> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        if *sequence >= MAX_SEQUENCE {
            let root = self.directory.root().display();
            return Err(Error::InvalidArgument(format!(
                "a checkpoint in {root} has the highest sequence there is, {sequence}, so that none can be saved after it; \
                 move it out of the directory"
            )));
        }
        *sequence += 1;
        Ok(*sequence)
    }

    /// Changes the index, exclusively.
    pub(crate) fn update_index(&self, directory: &Directory, change: impl FnOnce(&mut Index)) -> Result<()> {
        let _alone = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = directory.index().unwrap_or_default();
        change(&mut index);
        directory.write_index(&self.lock, &index)
    }

    /// Removes an index that could not be written: checkpoints that it does not list would be taken for those of
    /// another program.
    pub(crate) fn forget_index(&self, directory: &Directory) {
        let _alone = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        directory.forget_index(&self.lock);
    }
}

//! A captured state: the files' bytes in memory that is allocated once, and reused from save to save.

use super::buffer::PageBuffer;
use super::plan::Plan;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The chunks of a plan's spans, in memory.
pub(crate) struct Image {
    spans: Vec<Vec<Mutex<PageBuffer>>>,
}

impl Image {
    pub fn chunk(&self, span: usize, chunk: usize) -> MutexGuard<'_, PageBuffer> {
        self.spans[span][chunk].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

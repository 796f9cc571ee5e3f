//! A buffer that starts on a page, as direct writes need it.

use crate::store::PAGE;

/// `capacity` bytes in one piece, of which the first byte is on a page.
pub(super) struct PageBuffer {
    memory: Vec<u8>,
    start: usize,
    capacity: usize,
}

impl PageBuffer {
    pub(super) fn new(capacity: usize) -> PageBuffer {
        let memory = vec![0; capacity + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        PageBuffer { memory, start, capacity }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.capacity]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.capacity]
    }
}

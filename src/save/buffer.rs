//! A page-aligned buffer, as required by direct writes, in huge pages if the system has them: copying to those is
//! faster, and the first access several times as fast.

use crate::error::{Error, Result};
use memmap2::{MmapMut, MmapOptions};

/// A zeroed buffer of its own memory.
#[derive(Default)]
pub(super) struct PageBuffer(Option<MmapMut>);

impl PageBuffer {
    pub(super) fn new(capacity: usize) -> Result<PageBuffer> {
        if capacity == 0 {
            return Ok(PageBuffer(None));
        }
        let refused = |_| Error::out_of_memory("a copy of the state", capacity as u64);
        let memory = MmapOptions::new().len(capacity).map_anon().map_err(refused)?;
        // Without huge pages it is only slower.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(PageBuffer(Some(memory)))
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

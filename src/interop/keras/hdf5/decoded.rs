//! Chunks that were decoded, and are read part by part.

use super::filter::Filter;
use crate::error::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// The maximum number of bytes that are kept. A longer chunk is kept alone.
const MOST: usize = 16 << 20;

/// What the bytes of a chunk depend on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Encoded {
    pub address: u64,
    pub size: u64,
    pub mask: u32,
    pub filters: Vec<Filter>,
    /// The length when decoded.
    pub bytes: usize,
}

/// The chunks of a file of which more is to be read, oldest first. Without them, reading a tensor in ranges would
/// decode a long chunk for every range.
#[derive(Debug, Default)]
pub(in crate::interop::keras) struct Decoded(Mutex<Vec<(Encoded, Arc<Vec<u8>>)>>);

impl Decoded {
    /// Returns a chunk, and keeps it if `more` of it is to be read.
    pub(super) fn get(
        &self,
        encoded: &Encoded,
        more: bool,
        decode: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Arc<Vec<u8>>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = lock();
        let known = kept.iter().position(|(known, _)| known == encoded).map(|at| kept.remove(at).1);
        drop(kept);
        let bytes = match known {
            Some(bytes) => bytes,
            None => Arc::new(decode()?),
        };
        if more {
            let mut kept = lock();
            kept.retain(|(known, _)| known != encoded);
            let mut room = MOST.saturating_sub(bytes.len());
            // The newest that fit.
            let first = kept.iter().rposition(|(_, other)| match room.checked_sub(other.len()) {
                Some(left) => {
                    room = left;
                    false
                }
                None => true,
            });
            kept.drain(..first.map_or(0, |at| at + 1));
            kept.push((encoded.clone(), bytes.clone()));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_decoded_once_while_it_is_read() {
        let decoded = Decoded::default();
        let encoded = |address, bytes| Encoded { address, size: 1, mask: 0, filters: vec![Filter::Deflate], bytes };
        let mut count = 0;
        let mut read = |address, bytes: usize, more| {
            let chunk = decoded.get(&encoded(address, bytes), more, || {
                count += 1;
                Ok(vec![address as u8; bytes])
            });
            assert_eq!(chunk.unwrap().len(), bytes);
            count
        };
        assert_eq!([read(1, 100, true), read(1, 100, true), read(1, 100, false)], [1, 1, 1]);
        // It was read to its end. One of another length is another one.
        assert_eq!([read(1, 100, true), read(1, 200, true)], [2, 3]);
        // Long ones push others out, and are kept alone.
        assert_eq!([read(2, MOST, true), read(2, MOST, true), read(1, 100, true)], [4, 4, 5]);
        assert_eq!([read(3, MOST + 1, true), read(3, MOST + 1, true)], [6, 6]);
        assert_eq!(decoded.0.lock().unwrap().len(), 1);
    }
}

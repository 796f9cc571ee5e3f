//! How much may be made of a file in which one text stands for many.

/// Bytes that are always allowed.
const FREE: usize = 16 << 20;
/// Bytes for each byte of the description.
const TIMES: usize = 8;

/// The bytes that may still be made: references multiply texts, and a small file must not become a large one.
pub(super) struct Room(usize);

impl Room {
    /// Returns the room for a description of `bytes` bytes.
    pub(super) fn of(bytes: u64) -> Room {
        Room(usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(TIMES).saturating_add(FREE))
    }

    /// Takes `bytes` of it. Returns `false`, and takes nothing, if there are fewer.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let mut room = Room::of(10);
        assert!(room.take(FREE) && room.take(78));
        assert!(!room.take(3) && room.take(2) && !room.take(1));
        assert!(Room::of(u64::MAX).take(usize::MAX));
    }
}

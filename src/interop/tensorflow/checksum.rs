//! CRC-32C as TensorFlow stores it: "masked", so that a checksum of bytes that hold checksums is still a good one.

const DELTA: u32 = 0xa282_ead8;

/// Returns the masked form of a CRC.
pub(super) fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(DELTA)
}

/// Returns the masked CRC-32C of `bytes`.
pub(super) fn masked(bytes: &[u8]) -> u32 {
    mask(crc32c::crc32c(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked(b""), 0xa282_ead8);
    }
}

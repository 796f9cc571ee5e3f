//! Elements of any type as numbers.

use super::lanes::Single;
use crate::dtype::Dtype;
use half::{bf16, f16};

/// Elements as numbers of 32 bits, little-endian, where these are exact.
pub(super) struct Singles {
    dtype: Dtype,
    /// The numbers of all elements of one byte.
    table: Vec<Single>,
    decoded: Vec<Single>,
}

impl Singles {
    /// Prepares for elements of type `dtype`. Returns `None` for types of more digits.
    pub(super) fn of(dtype: Dtype) -> Option<Singles> {
        if matches!(dtype, Dtype::F64 | Dtype::I32 | Dtype::U32 | Dtype::I64 | Dtype::U64) {
            return None;
        }
        let mut table = Vec::new();
        if dtype.size() == 1 {
            let bytes: Vec<u8> = (0..=u8::MAX).collect();
            let mut numbers = Vec::new();
            decode(dtype, &bytes, &mut numbers);
            table = numbers.into_iter().map(|number| (number as f32).to_le_bytes()).collect();
        }
        Some(Singles { dtype, table, decoded: Vec::new() })
    }

    /// Decodes little-endian elements. Complex numbers are two numbers each, the real and the imaginary part.
    pub(super) fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [Single] {
        if matches!(self.dtype, Dtype::F32 | Dtype::C64) {
            return bytes.as_chunks().0;
        }
        self.decoded.clear();
        let two = bytes.as_chunks().0.iter().copied();
        match self.dtype {
            Dtype::F16 => self.decoded.extend(two.map(|x| half_to_single(u16::from_le_bytes(x)).to_le_bytes())),
            Dtype::BF16 => self.decoded.extend(two.map(|[low, high]| [0, 0, low, high])),
            Dtype::U16 => self.decoded.extend(two.map(|x| f32::from(u16::from_le_bytes(x)).to_le_bytes())),
            Dtype::I16 => self.decoded.extend(two.map(|x| f32::from(i16::from_le_bytes(x)).to_le_bytes())),
            // All others have one byte.
            _ => self.decoded.extend(bytes.iter().filter_map(|byte| self.table.get(usize::from(*byte)))),
        }
        &self.decoded
    }
}

/// A float of 16 bits in 32, without a branch: many at once.
fn half_to_single(half: u16) -> f32 {
    const EXPONENT: u32 = 0x1f << 23;
    // What an exponent of 32 bits is larger by.
    const LARGER: u32 = 127 - 15;
    let magnitude = u32::from(half & 0x7fff) << 13;
    let normal = magnitude + (LARGER << 23);
    // Below the lowest exponent there is no leading one: it is added, and subtracted again.
    let one = (LARGER + 1) << 23;
    let small = (f32::from_bits(magnitude + one) - f32::from_bits(one)).to_bits();
    let special = magnitude + ((2 * LARGER) << 23);
    let bits = if magnitude & EXPONENT == 0 { small } else { normal };
    let bits = if magnitude & EXPONENT == EXPONENT { special } else { bits };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// Replaces `numbers` by the little-endian elements `bytes` of type `dtype`. Integers of more than 53 bits are rounded,
/// booleans are 0 and 1, and complex numbers are two numbers each, the real and the imaginary part.
pub(super) fn decode(dtype: Dtype, bytes: &[u8], numbers: &mut Vec<f64>) {
    numbers.clear();
    match dtype {
        Dtype::Bool => extend(numbers, bytes, |[x]: [u8; 1]| f64::from(u8::from(x != 0))),
        Dtype::U8 => extend(numbers, bytes, |[x]: [u8; 1]| x.into()),
        Dtype::I8 => extend(numbers, bytes, |x| i8::from_le_bytes(x).into()),
        Dtype::U16 => extend(numbers, bytes, |x| u16::from_le_bytes(x).into()),
        Dtype::I16 => extend(numbers, bytes, |x| i16::from_le_bytes(x).into()),
        Dtype::U32 => extend(numbers, bytes, |x| u32::from_le_bytes(x).into()),
        Dtype::I32 => extend(numbers, bytes, |x| i32::from_le_bytes(x).into()),
        Dtype::U64 => extend(numbers, bytes, |x| u64::from_le_bytes(x) as f64),
        Dtype::I64 => extend(numbers, bytes, |x| i64::from_le_bytes(x) as f64),
        Dtype::F8E5m2 => small(numbers, bytes, |x| float(x, 5, 2, 15, Special::Ieee)),
        Dtype::F8E4m3 => small(numbers, bytes, |x| float(x, 4, 3, 7, Special::NanOnly)),
        Dtype::F8E5m2fnuz => small(numbers, bytes, |x| float(x, 5, 2, 16, Special::NoNegativeZero)),
        Dtype::F8E4m3fnuz => small(numbers, bytes, |x| float(x, 4, 3, 8, Special::NoNegativeZero)),
        Dtype::F8E8m0 => small(numbers, bytes, power_of_two),
        Dtype::F16 => extend(numbers, bytes, |x| f16::from_le_bytes(x).to_f64()),
        Dtype::BF16 => extend(numbers, bytes, |x| bf16::from_le_bytes(x).to_f64()),
        // The two parts of complex numbers.
        Dtype::F32 | Dtype::C64 => extend(numbers, bytes, |x| f32::from_le_bytes(x).into()),
        Dtype::F64 => extend(numbers, bytes, f64::from_le_bytes),
    }
}

fn extend<const N: usize>(numbers: &mut Vec<f64>, bytes: &[u8], read: impl Fn([u8; N]) -> f64) {
    numbers.extend(bytes.as_chunks().0.iter().map(|element| read(*element)));
}

/// Decodes elements of one byte through a table.
fn small(numbers: &mut Vec<f64>, bytes: &[u8], read: impl Fn(u64) -> f64) {
    let table: [f64; 256] = std::array::from_fn(|byte| read(byte as u64));
    numbers.extend(bytes.iter().map(|byte| table[usize::from(*byte)]));
}

/// Which bit patterns of a small float type are not numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    /// The highest exponent is infinity and NaN.
    Ieee,
    /// All ones but the sign is NaN; there is no infinity.
    NanOnly,
    /// What would be the negative zero is NaN; there is no infinity.
    NoNegativeZero,
}

/// A number of one bit for the sign, `exponent_bits` and `mantissa_bits`.
pub(super) fn float(bits: u64, exponent_bits: u32, mantissa_bits: u32, bias: i32, special: Special) -> f64 {
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let exponent_mask = (1 << exponent_bits) - 1;
    let exponent = bits >> mantissa_bits & exponent_mask;
    let negative = bits >> (mantissa_bits + exponent_bits) & 1 == 1;
    let all_ones = exponent == exponent_mask;
    let magnitude = match special {
        Special::Ieee if all_ones && mantissa == 0 => f64::INFINITY,
        Special::Ieee if all_ones => f64::NAN,
        Special::NanOnly if all_ones && mantissa == (1 << mantissa_bits) - 1 => f64::NAN,
        Special::NoNegativeZero if negative && exponent == 0 && mantissa == 0 => f64::NAN,
        _ => {
            // Below the lowest exponent there is no leading one.
            let (leading, exponent) = if exponent == 0 { (0, 1) } else { (1 << mantissa_bits, exponent as i32) };
            (leading | mantissa) as f64 * 2f64.powi(exponent - bias - mantissa_bits as i32)
        }
    };
    if negative { -magnitude } else { magnitude }
}

/// A number that consists of an exponent only.
pub(super) fn power_of_two(bits: u64) -> f64 {
    if bits == 255 { f64::NAN } else { 2f64.powi(bits as i32 - 127) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats() {
        let f16 = |bits| float(bits, 5, 10, 15, Special::Ieee);
        assert_eq!([f16(0x3c00), f16(0xc000), f16(0x7bff), f16(0x0001)], [1.0, -2.0, 65504.0, 2f64.powi(-24)]);
        assert!(f16(0x7c00).is_infinite() && f16(0x7e00).is_nan());
        for bits in 0..=u16::MAX {
            let expected = f64::from(f32::from_bits(u32::from(bits) << 16));
            let found = float(bits.into(), 8, 7, 127, Special::Ieee);
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:x}");
        }
        let e4m3 = |bits| float(bits, 4, 3, 7, Special::NanOnly);
        assert_eq!([e4m3(0x38), e4m3(0x7e), e4m3(0x01)], [1.0, 448.0, 2f64.powi(-9)]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        let e5m2 = |bits| float(bits, 5, 2, 15, Special::Ieee);
        assert_eq!([e5m2(0x3c), e5m2(0x7b), e5m2(0x01)], [1.0, 57344.0, 2f64.powi(-16)]);
        assert!(e5m2(0x7c).is_infinite());
        let e4m3fnuz = |bits| float(bits, 4, 3, 8, Special::NoNegativeZero);
        assert_eq!([e4m3fnuz(0x40), e4m3fnuz(0x7f), e4m3fnuz(0x01)], [1.0, 240.0, 2f64.powi(-10)]);
        assert!(e4m3fnuz(0x80).is_nan());
        let e5m2fnuz = |bits| float(bits, 5, 2, 16, Special::NoNegativeZero);
        assert_eq!([e5m2fnuz(0x40), e5m2fnuz(0x7f), e5m2fnuz(0x01)], [1.0, 57344.0, 2f64.powi(-17)]);
        assert_eq!([power_of_two(127), power_of_two(0), power_of_two(254)], [1.0, 2f64.powi(-127), 2f64.powi(127)]);
        assert!(power_of_two(255).is_nan());
    }

    /// All elements of at most two bytes, in 32 bits as in 64.
    #[test]
    fn singles_are_exact() {
        for &dtype in Dtype::ALL {
            let Some(mut singles) = Singles::of(dtype) else { continue };
            let all: Vec<u8> = match dtype.size() {
                1 => (0..=u8::MAX).collect(),
                2 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
                _ => [0.0, -0.0, 1.5, f32::NAN, f32::MAX, 1e-45, f32::INFINITY, -3.0].map(f32::to_le_bytes).concat(),
            };
            let mut expected = Vec::new();
            decode(dtype, &all, &mut expected);
            let found: Vec<f64> = singles.decode(&all).iter().map(|x| f32::from_le_bytes(*x).into()).collect();
            assert_eq!(found.len(), expected.len(), "{dtype}");
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{dtype} {i:x}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn every_type_is_decoded() {
        let decoded = |dtype, bytes: &[u8]| {
            let mut numbers = vec![9.0];
            decode(dtype, bytes, &mut numbers);
            numbers
        };
        let minus_two: [(Dtype, &[u8]); 10] = [
            (Dtype::I8, &(-2i8).to_le_bytes()),
            (Dtype::I16, &(-2i16).to_le_bytes()),
            (Dtype::I32, &(-2i32).to_le_bytes()),
            (Dtype::I64, &(-2i64).to_le_bytes()),
            (Dtype::F16, &f16::from_f32(-2.0).to_le_bytes()),
            (Dtype::BF16, &bf16::from_f32(-2.0).to_le_bytes()),
            (Dtype::F32, &(-2f32).to_le_bytes()),
            (Dtype::F64, &(-2f64).to_le_bytes()),
            (Dtype::F8E5m2, &[0xc0]),
            (Dtype::F8E4m3, &[0xc0]),
        ];
        for (dtype, bytes) in minus_two {
            assert_eq!(decoded(dtype, bytes), [-2.0], "{dtype}");
        }
        assert_eq!(decoded(Dtype::F8E5m2fnuz, &[0xc4]), [-2.0]);
        assert_eq!(decoded(Dtype::F8E4m3fnuz, &[0xc8]), [-2.0]);
        assert_eq!(decoded(Dtype::F8E8m0, &[128]), [2.0]);
        assert_eq!(decoded(Dtype::Bool, &[0, 1, 2]), [0.0, 1.0, 1.0]);
        assert_eq!(decoded(Dtype::U8, &[255]), [255.0]);
        assert_eq!(decoded(Dtype::U16, &[255; 2]), [65_535.0]);
        assert_eq!(decoded(Dtype::U32, &[255; 4]), [4_294_967_295.0]);
        assert_eq!(decoded(Dtype::U64, &[255; 8]), [u64::MAX as f64]);
        let point = [3f32.to_le_bytes(), (-4f32).to_le_bytes()].concat();
        assert_eq!(decoded(Dtype::C64, &point), [3.0, -4.0]);
    }
}

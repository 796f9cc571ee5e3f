//! Conversion of elements from one type to another.

use crate::dtype::Dtype;
use crate::error::Loss;
use half::{bf16, f16};

/// Returns what a conversion loses.
///
/// # Errors
/// The reason, if there is no conversion.
pub(super) fn loss(from: Dtype, to: Dtype) -> Result<Loss, String> {
    if from == to {
        return Ok(Loss::Nothing);
    }
    let (Some(from_kind), Some(to_kind)) = (kind(from), kind(to)) else {
        return Err(format!("there is no conversion from {from} to {to}"));
    };
    match (from_kind, to_kind) {
        (Kind::Float { bits: from, range: narrow }, Kind::Float { bits: to, range }) => {
            Ok(if from <= to && narrow <= range { Loss::Nothing } else { Loss::Precision })
        }
        // Integers must fit.
        (Kind::Integer { .. }, Kind::Integer { .. }) => Ok(Loss::Nothing),
        (Kind::Integer { bits }, Kind::Float { bits: to, .. }) => {
            Ok(if bits <= to { Loss::Nothing } else { Loss::Precision })
        }
        (Kind::Float { .. }, Kind::Integer { .. }) => {
            Err(format!("there is no conversion from {from} to {to}: floats would be cut off"))
        }
    }
}

/// Returns `true` if the conversion depends on the elements.
pub(super) fn may_fail(from: Dtype, to: Dtype) -> bool {
    let integer = |dtype| matches!(kind(dtype), Some(Kind::Integer { .. }));
    from != to && integer(from) && integer(to)
}

enum Kind {
    /// The maximum number of bits of a magnitude.
    Integer { bits: u32 },
    /// Bits of the significand, and of the exponent.
    Float { bits: u32, range: u32 },
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::Bool => Kind::Integer { bits: 1 },
        Dtype::I8 => Kind::Integer { bits: 7 },
        Dtype::U8 => Kind::Integer { bits: 8 },
        Dtype::I16 => Kind::Integer { bits: 15 },
        Dtype::U16 => Kind::Integer { bits: 16 },
        Dtype::I32 => Kind::Integer { bits: 31 },
        Dtype::U32 => Kind::Integer { bits: 32 },
        Dtype::I64 => Kind::Integer { bits: 63 },
        Dtype::U64 => Kind::Integer { bits: 64 },
        Dtype::F16 => Kind::Float { bits: 11, range: 5 },
        Dtype::BF16 => Kind::Float { bits: 8, range: 8 },
        Dtype::F32 => Kind::Float { bits: 24, range: 8 },
        Dtype::F64 => Kind::Float { bits: 53, range: 11 },
        _ => return None,
    })
}

/// Converts elements.
///
/// # Errors
/// The reason: an integer that does not fit, or no such conversion.
pub(crate) fn cast(bytes: &[u8], from: Dtype, to: Dtype) -> Result<Vec<u8>, String> {
    if from == to {
        return Ok(bytes.to_vec());
    }
    loss(from, to)?;
    match from {
        Dtype::Bool => integers(bytes, to, |[byte]: [u8; 1]| i128::from(byte != 0)),
        Dtype::U8 => integers(bytes, to, |[byte]: [u8; 1]| byte.into()),
        Dtype::I8 => integers(bytes, to, |x| i8::from_le_bytes(x).into()),
        Dtype::I16 => integers(bytes, to, |x| i16::from_le_bytes(x).into()),
        Dtype::U16 => integers(bytes, to, |x| u16::from_le_bytes(x).into()),
        Dtype::I32 => integers(bytes, to, |x| i32::from_le_bytes(x).into()),
        Dtype::U32 => integers(bytes, to, |x| u32::from_le_bytes(x).into()),
        Dtype::I64 => integers(bytes, to, |x| i64::from_le_bytes(x).into()),
        Dtype::U64 => integers(bytes, to, |x| u64::from_le_bytes(x).into()),
        Dtype::F16 => floats(bytes, to, |x| f16::from_le_bytes(x).to_f64()),
        Dtype::BF16 => floats(bytes, to, |x| bf16::from_le_bytes(x).to_f64()),
        Dtype::F32 => floats(bytes, to, |x| f32::from_le_bytes(x).into()),
        Dtype::F64 => floats(bytes, to, f64::from_le_bytes),
        _ => Err(format!("there is no conversion from {from} to {to}")),
    }
}

/// Returns every element as an array of bytes.
fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

fn floats<const N: usize>(bytes: &[u8], to: Dtype, read: impl Fn([u8; N]) -> f64) -> Result<Vec<u8>, String> {
    let numbers = elements(bytes).map(read);
    Ok(match to {
        Dtype::F16 => numbers.flat_map(|x| half_of(x).to_le_bytes()).collect(),
        Dtype::BF16 => numbers.flat_map(|x| brain_of(x).to_le_bytes()).collect(),
        Dtype::F32 => numbers.flat_map(|x| (x as f32).to_le_bytes()).collect(),
        Dtype::F64 => numbers.flat_map(f64::to_le_bytes).collect(),
        _ => return Err(format!("there is no conversion from floats to {to}")),
    })
}

fn integers<const N: usize>(bytes: &[u8], to: Dtype, read: impl Fn([u8; N]) -> i128) -> Result<Vec<u8>, String> {
    let numbers = elements(bytes).map(read);
    macro_rules! fit {
        ($type:ty) => {{
            let mut all = Vec::with_capacity(bytes.len() / N * size_of::<$type>());
            for number in numbers {
                let fits = <$type>::try_from(number).map_err(|_| format!("the element {number} does not fit {to}"))?;
                all.extend_from_slice(&fits.to_le_bytes());
            }
            all
        }};
    }
    Ok(match to {
        Dtype::U8 => fit!(u8),
        Dtype::I8 => fit!(i8),
        Dtype::I16 => fit!(i16),
        Dtype::U16 => fit!(u16),
        Dtype::I32 => fit!(i32),
        Dtype::U32 => fit!(u32),
        Dtype::I64 => fit!(i64),
        Dtype::U64 => fit!(u64),
        Dtype::Bool => {
            let mut all = Vec::with_capacity(bytes.len() / N);
            for number in numbers {
                let fits = u8::try_from(number).ok().filter(|byte| *byte < 2);
                all.push(fits.ok_or_else(|| format!("the element {number} does not fit {to}"))?);
            }
            all
        }
        // The conversion to 16 bits uses an intermediate number that preserves the direction of rounding.
        Dtype::F16 => numbers.flat_map(|x| half_of(odd(x)).to_le_bytes()).collect(),
        Dtype::BF16 => numbers.flat_map(|x| brain_of(odd(x)).to_le_bytes()).collect(),
        Dtype::F32 => numbers.flat_map(|x| (x as f32).to_le_bytes()).collect(),
        Dtype::F64 => numbers.flat_map(|x| (x as f64).to_le_bytes()).collect(),
        _ => return Err(format!("there is no conversion from integers to {to}")),
    })
}

/// Returns the number rounded to odd, so that rounding the result again to fewer bits equals rounding once.
fn odd(number: i128) -> f64 {
    let near = number as f64;
    if near as i128 == number || near.to_bits() & 1 == 1 {
        return near;
    }
    let further = (near as i128).abs() < number.abs();
    f64::from_bits(if further { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

/// Like [`odd`], from 64 bits to 32.
fn odd_single(number: f64) -> f32 {
    let near = number as f32;
    if f64::from(near) == number || number.is_nan() || near.to_bits() & 1 == 1 {
        return near;
    }
    let further = f64::from(near).abs() < number.abs();
    f32::from_bits(if further { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

/// Rounds once, independent of the processor's instructions.
fn half_of(number: f64) -> f16 {
    f16::from_f32(odd_single(number))
}

fn brain_of(number: f64) -> bf16 {
    bf16::from_f32(odd_single(number))
}

/// Adds floats of one type.
///
/// # Errors
/// The reason, for another type.
pub(super) fn add(dtype: Dtype, sum: &mut [u8], other: &[u8]) -> Result<(), String> {
    fn each<const N: usize>(sum: &mut [u8], other: &[u8], add: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
        for (a, b) in sum.as_chunks_mut().0.iter_mut().zip(other.as_chunks().0) {
            *a = add(*a, *b);
        }
    }
    match dtype {
        Dtype::F16 => each(sum, other, |a, b| (f16::from_le_bytes(a) + f16::from_le_bytes(b)).to_le_bytes()),
        Dtype::BF16 => each(sum, other, |a, b| (bf16::from_le_bytes(a) + bf16::from_le_bytes(b)).to_le_bytes()),
        Dtype::F32 => each(sum, other, |a, b| (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes()),
        Dtype::F64 => each(sum, other, |a, b| (f64::from_le_bytes(a) + f64::from_le_bytes(b)).to_le_bytes()),
        _ => return Err(format!("{dtype} cannot be added; cast it before")),
    }
    Ok(())
}

/// Returns one element with the value `value`.
///
/// # Errors
/// The reason, if the type cannot represent it.
pub(super) fn element(dtype: Dtype, value: f64) -> Result<Vec<u8>, String> {
    if value == 0.0 && value.is_sign_positive() {
        return Ok(vec![0; dtype.size()]);
    }
    match kind(dtype) {
        Some(Kind::Float { .. }) => cast(&value.to_le_bytes(), Dtype::F64, dtype),
        // 2^53: integers up to here are exact.
        Some(Kind::Integer { .. }) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => {
            cast(&(value as i64).to_le_bytes(), Dtype::I64, dtype)
        }
        _ => Err(format!("{dtype} does not hold {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounding_is_to_nearest_even_also_from_long_integers() {
        // 2^24 + 1 lies halfway; 2^62 + 2^38 + 1 would be rounded wrongly by way of an f64.
        let f = |n: i64, to| cast(&n.to_le_bytes(), Dtype::I64, to).unwrap();
        assert_eq!(f((1 << 24) + 1, Dtype::F32), 16_777_216f32.to_le_bytes());
        let n = (1i64 << 62) + (1 << 54) + 1;
        assert_eq!(f(n, Dtype::BF16), bf16::from_f32(n as f32 * (1.0 + f32::EPSILON)).to_le_bytes());
        assert_eq!(
            f((1 << 62) + (1 << 54), Dtype::BF16),
            bf16::from_f32(((1i64 << 62) + (1 << 54)) as f32).to_le_bytes()
        );
        assert_eq!(f(70_000, Dtype::F16), f16::INFINITY.to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let bytes = 300i32.to_le_bytes();
        assert!(cast(&bytes, Dtype::I32, Dtype::U8).unwrap_err().contains("300"));
        assert!(cast(&bytes, Dtype::I32, Dtype::Bool).is_err());
        assert_eq!(cast(&bytes, Dtype::I32, Dtype::I16).unwrap(), 300i16.to_le_bytes());
        assert!(loss(Dtype::F32, Dtype::I32).is_err() && loss(Dtype::F8E4m3, Dtype::F32).is_err());
    }

    proptest! {
        /// What is said to lose nothing comes back.
        #[test]
        fn a_lossless_cast_comes_back(bits in any::<u64>(), from in 0usize..19, to in 0usize..19) {
            let (from, to) = (Dtype::ALL[from], Dtype::ALL[to]);
            prop_assume!(loss(from, to) == Ok(Loss::Nothing));
            let mut bytes = bits.to_le_bytes()[..from.size()].to_vec();
            if from == Dtype::Bool { bytes[0] &= 1; }
            let is_float = matches!(kind(from), Some(Kind::Float { .. }));
            let is_nan = is_float && f64::from_le_bytes(cast(&bytes, from, Dtype::F64).unwrap().try_into().unwrap()).is_nan();
            prop_assume!(!is_nan);
            let Ok(there) = cast(&bytes, from, to) else { return Ok(()) };
            let back = match (is_float, kind(to)) {
                (false, Some(Kind::Float { .. })) => {
                    // Back to integers there is no conversion: the number is the same.
                    let number = cast(&there, to, Dtype::F64).unwrap();
                    prop_assert_eq!(number, cast(&bytes, from, Dtype::F64).unwrap());
                    return Ok(());
                }
                _ => cast(&there, to, from).unwrap(),
            };
            prop_assert_eq!(back, bytes);
        }
    }
}

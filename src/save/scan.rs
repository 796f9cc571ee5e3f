//! Statistics of a tensor's values, computed in the pass that digests: whether all are finite, norm, minimum and
//! maximum.
//!
//! Values are processed in blocks that are counted from the tensor's first element, so that the results do not depend
//! on how the bytes arrive. Within a block, sums are computed in single precision, in lanes; a block in which that
//! could be inexact (values that are not finite, very large or very small) is summed again in double precision. Values
//! that are not finite show in the sum of the squares: without minimum and maximum a block takes less than half the time.

use super::options::Health;
use crate::dtype::Dtype;
use crate::format::Statistics;

/// Bytes of a block: a multiple of every element's size.
const BLOCK: usize = 4096;
/// The number of sums that a processor can compute at a time.
const LANES: usize = 16;
/// Between these bounds, the sum of the squares of a block is accurate to about five digits.
const EXACT_ENOUGH: std::ops::RangeInclusive<f32> = 1e-30..=1e37;
/// The largest finite value of half precision. Decoded infinities and NaNs are larger.
const F16_MAX: f32 = 65504.0;

/// How elements are read.
#[derive(Debug, Clone, Copy)]
enum Elements {
    F16,
    Bf16,
    F32,
    F64,
    /// Of one byte.
    F8(fn(u8) -> f64),
}

/// Processes the bytes of one tensor, in order.
#[derive(Debug)]
pub(super) struct Scan {
    elements: Elements,
    /// Whether the minimum and the maximum are wanted.
    has_range: bool,
    /// The bytes of a block that is not complete.
    rest: Vec<u8>,
    totals: Totals,
}

#[derive(Debug)]
struct Totals {
    non_finite: u64,
    /// Of the squares of finite values.
    squares: f64,
    min: f64,
    max: f64,
}

impl Totals {
    fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.squares += value * value;
            (self.min, self.max) = (self.min.min(value), self.max.max(value));
        } else {
            self.non_finite += 1;
        }
    }
}

impl Scan {
    /// Creates a scan for a tensor of this type; `None` for integers and booleans, and if nothing is recorded.
    pub(super) fn of(dtype: Dtype, health: Health) -> Option<Scan> {
        let has_range = match health {
            Health::Off => return None,
            Health::Finite => false,
            Health::Statistics => true,
        };
        let elements = match dtype {
            Dtype::F16 => Elements::F16,
            Dtype::BF16 => Elements::Bf16,
            Dtype::F32 | Dtype::C64 => Elements::F32,
            Dtype::F64 => Elements::F64,
            Dtype::F8E5m2 => Elements::F8(|byte| f16(u16::from(byte) << 8)),
            Dtype::F8E4m3 => Elements::F8(|byte| f8(byte, 3, 7, |magnitude| magnitude == 0x7f)),
            Dtype::F8E4m3fnuz => Elements::F8(|byte| f8_without_negative_zero(byte, 3, 8)),
            Dtype::F8E5m2fnuz => Elements::F8(|byte| f8_without_negative_zero(byte, 2, 16)),
            _ => return None,
        };
        let totals = Totals { non_finite: 0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };
        Some(Scan { elements, has_range, rest: Vec::new(), totals })
    }

    /// Processes the next bytes.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let (first, others) = bytes.split_at(bytes.len().min(BLOCK - self.rest.len()));
            self.rest.extend_from_slice(first);
            bytes = others;
            if self.rest.len() < BLOCK {
                return;
            }
            let mut block = std::mem::take(&mut self.rest);
            self.block(&block);
            block.clear();
            self.rest = block;
        }
        let blocks = bytes.chunks_exact(BLOCK);
        self.rest.extend_from_slice(blocks.remainder());
        blocks.for_each(|block| self.block(block));
    }

    /// Returns the statistics.
    pub(super) fn finish(mut self) -> Statistics {
        let rest = std::mem::take(&mut self.rest);
        self.exactly(&rest);
        let Totals { non_finite, squares, min, max } = self.totals;
        let range = (self.has_range && min <= max).then_some((min, max));
        Statistics { non_finite, norm: squares.sqrt().min(f64::MAX), range }
    }

    fn block(&mut self, block: &[u8]) {
        let quick = match self.elements {
            Elements::F32 => quick(block, self.has_range, f32::from_le_bytes),
            Elements::Bf16 => {
                quick(block, self.has_range, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
            }
            // Whether they are finite shows in their range only.
            Elements::F16 => quick(block, true, f16_unless_infinite).filter(|(_, min, max)| max.max(-min) <= F16_MAX),
            Elements::F64 if self.has_range => return self.block_of_doubles::<true>(block),
            Elements::F64 => return self.block_of_doubles::<false>(block),
            Elements::F8(_) => None,
        };
        match quick {
            Some((squares, min, max)) => {
                self.totals.squares += squares;
                self.totals.min = self.totals.min.min(min.into());
                self.totals.max = self.totals.max.max(max.into());
            }
            None => self.exactly(block),
        }
    }

    /// Like [`quick`], in double precision.
    fn block_of_doubles<const RANGE: bool>(&mut self, block: &[u8]) {
        let (mut squares, mut min, mut max) = ([0f64; LANES], [f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        let (elements, _) = block.as_chunks::<8>();
        let (rows, _) = elements.as_chunks::<LANES>();
        for row in rows {
            for lane in 0..LANES {
                let value = f64::from_le_bytes(row[lane]);
                squares[lane] += value * value;
                if RANGE {
                    min[lane] = if value < min[lane] { value } else { min[lane] };
                    max[lane] = if value > max[lane] { value } else { max[lane] };
                }
            }
        }
        let total: f64 = squares.iter().sum();
        if !total.is_finite() {
            return self.exactly(block);
        }
        self.totals.squares += total;
        self.totals.min = min.into_iter().fold(self.totals.min, f64::min);
        self.totals.max = max.into_iter().fold(self.totals.max, f64::max);
    }

    fn exactly(&mut self, bytes: &[u8]) {
        let totals = &mut self.totals;
        match self.elements {
            Elements::F32 => each(bytes, |bytes| totals.add(f32::from_le_bytes(bytes).into())),
            Elements::F64 => each(bytes, |bytes| totals.add(f64::from_le_bytes(bytes))),
            Elements::F16 => each(bytes, |bytes| totals.add(f16(u16::from_le_bytes(bytes)))),
            Elements::Bf16 => each(bytes, |bytes| {
                totals.add(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16).into());
            }),
            Elements::F8(value) => {
                let mut counts = [0u32; 256];
                bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
                for (byte, count) in (0u8..=255).zip(counts).filter(|(_, count)| *count > 0) {
                    let value = value(byte);
                    totals.add(value);
                    let others = f64::from(count - 1);
                    match value.is_finite() {
                        true => totals.squares += others * value * value,
                        false => totals.non_finite += u64::from(count - 1),
                    }
                }
            }
        }
    }
}

/// Calls `take` with each element.
fn each<const SIZE: usize>(bytes: &[u8], mut take: impl FnMut([u8; SIZE])) {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    elements.iter().for_each(|element| take(*element));
}

/// Returns the sum of the squares of a block, and if `has_range` its minimum and maximum (infinities otherwise); `None` if
/// single precision is not sufficient.
fn quick<const SIZE: usize>(
    block: &[u8],
    has_range: bool,
    value: impl Fn([u8; SIZE]) -> f32 + Copy,
) -> Option<(f64, f32, f32)> {
    if has_range {
        return sums::<SIZE, true>(block, value);
    }
    // Zeros are common, and only the range tells them from values whose squares are too small.
    sums::<SIZE, false>(block, value).or_else(|| sums::<SIZE, true>(block, value))
}

/// As for [`quick`], with a range if `RANGE`.
fn sums<const SIZE: usize, const RANGE: bool>(
    block: &[u8],
    value: impl Fn([u8; SIZE]) -> f32,
) -> Option<(f64, f32, f32)> {
    let (mut squares, mut min, mut max) = ([0f32; LANES], [f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (elements, _) = block.as_chunks::<SIZE>();
    let (rows, _) = elements.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            let value = value(row[lane]);
            squares[lane] += value * value;
            if RANGE {
                min[lane] = if value < min[lane] { value } else { min[lane] };
                max[lane] = if value > max[lane] { value } else { max[lane] };
            }
        }
    }
    let total: f32 = squares.iter().sum();
    let min = min.into_iter().fold(f32::INFINITY, f32::min);
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let is_zero = total == 0.0 && min == 0.0 && max == 0.0;
    (is_zero || EXACT_ENOUGH.contains(&total)).then(|| (squares.iter().map(|&sum| f64::from(sum)).sum(), min, max))
}

/// Decodes a value of half precision. Infinities and NaN become values above [`F16_MAX`].
fn f16_unless_infinite(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    // Exponents are counted from 15 there and from 127 here: 2 to the power of 112.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Decodes a value of half precision.
fn f16(bits: u16) -> f64 {
    let is_finite = bits & 0x7c00 != 0x7c00;
    let value = f16_unless_infinite(bits.to_le_bytes());
    if is_finite { value.into() } else { f64::NAN }
}

/// Decodes a value of one byte with so many bits of mantissa, an exponent biased by `bias`, and these NaNs.
fn f8(byte: u8, mantissa: u32, bias: i32, is_nan: impl Fn(u8) -> bool) -> f64 {
    let magnitude = byte & 0x7f;
    if is_nan(magnitude) {
        return f64::NAN;
    }
    let (exponent, fraction) = (i32::from(magnitude >> mantissa), f64::from(magnitude & ((1 << mantissa) - 1)));
    let fraction = fraction / f64::from(1u32 << mantissa);
    let value = match exponent {
        0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
    };
    if byte & 0x80 == 0 { value } else { -value }
}

fn f8_without_negative_zero(byte: u8, mantissa: u32, bias: i32) -> f64 {
    if byte == 0x80 { f64::NAN } else { f8(byte, mantissa, bias, |_| false) }
}

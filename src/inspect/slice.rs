//! A part of a tensor, element by element.

use super::reading::CHUNK;
use super::target::Target;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::source::{TensorSource, no_such_tensor};
use half::{bf16, f16};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A selection of a tensor's elements, in the notation of NumPy's basic indexing without steps: an index or a range per
/// dimension, separated by commas.
///
/// `3` selects one index and removes the dimension; `0:10`, `5:`, `:5` and `:` select a range. Negative numbers count
/// from the end. Ranges are cut off at the length of the dimension, as in NumPy; indices beyond it are errors.
/// Dimensions that are not given are selected completely.
///
/// ```
/// use tch_checkpoint::inspect::Slice;
/// let first_ten_of_row_three: Slice = "3,0:10".parse()?;
/// let all: Slice = "".parse()?;
/// assert!("1:2:3".parse::<Slice>().is_err());
/// # let _ = (first_ten_of_row_three, all);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice(Vec<Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Index(i64),
    Range(Option<i64>, Option<i64>),
}

impl FromStr for Slice {
    type Err = Error;

    /// Parses a slice.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], with the part that is wrong.
    fn from_str(text: &str) -> Result<Slice> {
        if text.trim().is_empty() {
            return Ok(Slice::default());
        }
        let part = |part: &str| {
            let part = part.trim();
            let wrong = || {
                let reason = "it is an index such as 3, or a range such as 0:10, 5:, :5 or :";
                Error::InvalidArgument(format!("{part:?} is no part of a slice: {reason}"))
            };
            let number = |text: &str| text.trim().parse::<i64>().map_err(|_| wrong());
            let end = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
            match part.split_once(':') {
                None => number(part).map(Part::Index),
                Some((from, to)) => Ok(Part::Range(end(from)?, end(to)?)),
            }
        };
        text.split(',').map(part).collect::<Result<_>>().map(Slice)
    }
}

impl Slice {
    /// Returns the range of each dimension, and the remaining dimensions.
    fn resolve(&self, key: &str, spec: &TensorSpec) -> Result<(Vec<Range<u64>>, Vec<u64>)> {
        if self.0.len() > spec.shape.len() {
            let reason = format!("a slice of {} dimensions does not fit {spec}", self.0.len());
            return Err(Error::object(key, reason));
        }
        let (mut ranges, mut shape) = (Vec::new(), Vec::new());
        for (dimension, &length) in spec.shape.iter().enumerate() {
            let from_end = |at: i64| if at < 0 { i128::from(at) + i128::from(length) } else { i128::from(at) };
            let cut = |at: i64| u64::try_from(from_end(at).max(0)).unwrap_or(u64::MAX).min(length);
            match self.0.get(dimension).copied().unwrap_or(Part::Range(None, None)) {
                Part::Index(at) => {
                    let found = u64::try_from(from_end(at)).ok().filter(|at| *at < length);
                    let found = found.ok_or_else(|| {
                        Error::object(key, format!("there is no index {at} in dimension {dimension} of {spec}"))
                    })?;
                    ranges.push(found..found + 1);
                }
                Part::Range(from, to) => {
                    let (from, to) = (from.map_or(0, cut), to.map_or(length, cut));
                    ranges.push(from..to.max(from));
                    shape.push(to.saturating_sub(from));
                }
            }
        }
        Ok((ranges, shape))
    }
}

/// One element of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Element {
    /// A boolean.
    Bool(bool),
    /// An unsigned integer.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// A float of at most 32 bits, exactly.
    Single(f32),
    /// A float of 64 bits.
    Double(f64),
    /// A complex number: the real and the imaginary part.
    Complex(f32, f32),
}

/// Writes numbers with the fewest digits that identify them. `1.5+2j` is complex; NaN and infinities are `nan`, `inf`
/// and `-inf`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Element::Bool(value) => value.fmt(f),
            Element::Unsigned(value) => value.fmt(f),
            Element::Signed(value) => value.fmt(f),
            Element::Single(value) => single(f, value),
            Element::Double(value) if value.is_nan() => f.write_str("nan"),
            Element::Double(value) if exceeds(value) => write!(f, "{value:e}"),
            Element::Double(value) => value.fmt(f),
            Element::Complex(re, im) => {
                single(f, re)?;
                f.write_str(if im.is_sign_negative() || im.is_nan() { "" } else { "+" })?;
                f.write_str(if im.is_nan() { "+" } else { "" })?;
                single(f, im)?;
                f.write_str("j")
            }
        }
    }
}

fn single(f: &mut fmt::Formatter<'_>, value: f32) -> fmt::Result {
    match value {
        _ if value.is_nan() => f.write_str("nan"),
        _ if exceeds(value.into()) => write!(f, "{value:e}"),
        _ => write!(f, "{value}"),
    }
}

/// Returns `true` for numbers that would take many digits without an exponent.
fn exceeds(value: f64) -> bool {
    value != 0.0 && value.is_finite() && !(1e-5..1e16).contains(&value.abs())
}

/// A part of a tensor; see [`Target::slice`].
#[derive(Debug)]
pub struct TensorSlice<'a> {
    source: &'a dyn TensorSource,
    key: &'a str,
    dtype: Dtype,
    full: &'a [u64],
    ranges: Vec<Range<u64>>,
    shape: Vec<u64>,
}

impl Target {
    /// Returns a part of the tensor `key`. Verifies the complete tensor first, as far as the format allows; the
    /// elements of the part are read later.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # #[cfg(feature = "huggingface")]
    /// # {
    /// use tch_checkpoint::inspect::Target;
    /// # let path = dir.path().join("model.safetensors");
    /// # let data: Vec<u8> = (0..6u8).map(|x| x as f32).flat_map(|x| x.to_le_bytes()).collect();
    /// # let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 3], &data)?;
    /// # safetensors::serialize_to_file([("weight", view)], None, &path)?;
    /// let target = Target::open(path)?;
    /// let row = target.slice("weight", &"1,0:2".parse()?)?;
    /// assert_eq!(row.shape(), [2]);
    /// let mut elements = Vec::new();
    /// row.for_each(|element| {
    ///     elements.push(element.to_string());
    ///     Ok(())
    /// })?;
    /// assert_eq!(elements, ["3", "4"]);
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] if there is no such tensor, or if the slice does not fit its shape; [`Error::Damaged`],
    /// [`Error::Io`].
    pub fn slice<'a>(&'a self, key: &str, slice: &Slice) -> Result<TensorSlice<'a>> {
        let source = self.source();
        let Some((key, spec)) = source.tensors().get_key_value(key) else {
            return Err(no_such_tensor(source, key));
        };
        let (ranges, shape) = slice.resolve(key, spec)?;
        source.verify_tensor(key)?;
        Ok(TensorSlice { source, key, dtype: spec.dtype, full: &spec.shape, ranges, shape })
    }
}

impl TensorSlice<'_> {
    /// Returns the key of the tensor.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key
    }

    /// Returns the element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns the length of every dimension of the part.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Calls `with` with the elements of the part in row-major order, as little-endian bytes, one or more complete
    /// elements at a time. Reads in order, in pieces of 512 KiB, and skips what lies between the elements.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`], and the errors of `with`.
    pub fn for_each_bytes(&self, mut with: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.ranges.iter().any(Range::is_empty) {
            return Ok(());
        }
        let size = self.dtype.size();
        let mut piece = Piece { slice: self, at: 0..0, bytes: Vec::new(), end: self.flat(|range| range.end - 1) + 1 };
        // The innermost dimensions that are selected completely form runs together with the next outer one.
        let whole = |(range, length): (&Range<u64>, &u64)| *range == (0..*length);
        let inner = self.ranges.iter().zip(self.full).rev().take_while(|pair| whole(*pair)).count();
        let outer = self.ranges.len().saturating_sub(inner + 1);
        let run: u64 = self.ranges[outer..].iter().map(|range| range.end - range.start).product();
        let mut index: Vec<u64> = self.ranges.iter().map(|range| range.start).collect();
        loop {
            let mut at = index.iter().zip(self.full).fold(0, |flat, (at, length)| flat * length + at);
            let end = at + run;
            while at < end {
                let bytes = piece.of(at, end)?;
                with(bytes)?;
                at += (bytes.len() / size) as u64;
            }
            // The next index of the outer dimensions.
            let mut dimension = outer;
            loop {
                let Some(next) = dimension.checked_sub(1) else { return Ok(()) };
                dimension = next;
                index[dimension] += 1;
                if index[dimension] < self.ranges[dimension].end {
                    break;
                }
                index[dimension] = self.ranges[dimension].start;
            }
        }
    }

    /// Calls `with` with each element of the part, in row-major order.
    ///
    /// # Errors
    /// As for [`for_each_bytes`](TensorSlice::for_each_bytes).
    pub fn for_each(&self, mut with: impl FnMut(Element) -> Result<()>) -> Result<()> {
        let mut small = Vec::new();
        self.for_each_bytes(|bytes| {
            bytes.chunks_exact(self.dtype.size()).try_for_each(|bytes| with(element(self.dtype, bytes, &mut small)))
        })
    }

    /// Returns the place of an element in the whole tensor.
    fn flat(&self, at: impl Fn(&Range<u64>) -> u64) -> u64 {
        self.ranges.iter().zip(self.full).fold(0, |flat, (range, length)| flat * length + at(range))
    }
}

/// The elements that were read last.
struct Piece<'a, 'b> {
    slice: &'a TensorSlice<'b>,
    at: Range<u64>,
    bytes: Vec<u8>,
    /// The element after the last one of the part.
    end: u64,
}

impl Piece<'_, '_> {
    /// Returns elements from `from` on, at least one and not beyond `to`.
    fn of(&mut self, from: u64, to: u64) -> Result<&[u8]> {
        let size = self.slice.dtype.size();
        if !self.at.contains(&from) {
            self.at = from..(from + CHUNK / size as u64).min(self.end);
            self.bytes.resize((self.at.end - self.at.start) as usize * size, 0);
            self.slice.source.read_range(self.slice.key, self.at.clone(), &mut self.bytes)?;
        }
        let place = |element: u64| (element - self.at.start) as usize * size;
        Ok(&self.bytes[place(from)..place(to.min(self.at.end))])
    }
}

/// Returns one element, given as little-endian bytes.
fn element(dtype: Dtype, bytes: &[u8], small: &mut Vec<f64>) -> Element {
    // At most 8 bytes.
    let unsigned = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let part = |from: usize| f32::from_bits((unsigned >> (8 * from)) as u32);
    match dtype {
        Dtype::Bool => Element::Bool(unsigned != 0),
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => Element::Unsigned(unsigned),
        Dtype::I8 => Element::Signed((unsigned as i8).into()),
        Dtype::I16 => Element::Signed((unsigned as i16).into()),
        Dtype::I32 => Element::Signed((unsigned as i32).into()),
        Dtype::I64 => Element::Signed(unsigned as i64),
        Dtype::F16 => Element::Single(f16::from_bits(unsigned as u16).to_f32()),
        Dtype::BF16 => Element::Single(bf16::from_bits(unsigned as u16).to_f32()),
        Dtype::F32 => Element::Single(part(0)),
        Dtype::F64 => Element::Double(f64::from_bits(unsigned)),
        Dtype::C64 => Element::Complex(part(0), part(4)),
        Dtype::F8E5m2 | Dtype::F8E4m3 | Dtype::F8E5m2fnuz | Dtype::F8E4m3fnuz | Dtype::F8E8m0 => {
            super::numbers::decode(dtype, bytes, small);
            // Floats of 8 bits are exact in 32.
            Element::Single(small.first().copied().unwrap_or_default() as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_printed_as_short_as_they_are_told_apart() {
        for (element, text) in [
            (Element::Single(0.1), "0.1"),
            (Element::Single(f32::NAN), "nan"),
            (Element::Single(1e-20), "1e-20"),
            (Element::Double(f64::NEG_INFINITY), "-inf"),
            (Element::Double(-0.0), "-0"),
            (Element::Double(1e300), "1e300"),
            (Element::Complex(1.5, 2.0), "1.5+2j"),
            (Element::Complex(0.0, -1.0), "0-1j"),
            (Element::Complex(0.0, f32::NAN), "0+nanj"),
            (Element::Signed(-7), "-7"),
            (Element::Bool(true), "true"),
        ] {
            assert_eq!(element.to_string(), text);
        }
    }

    #[test]
    fn elements_of_every_type() {
        for dtype in Dtype::ALL {
            let bytes: Vec<u8> = [0xb8; 8][..dtype.size()].to_vec();
            let found = element(*dtype, &bytes, &mut Vec::new()).to_string();
            let mut numbers = Vec::new();
            super::super::numbers::decode(*dtype, &bytes, &mut numbers);
            let found = match dtype {
                Dtype::Bool => f64::from(u8::from(found == "true")),
                Dtype::C64 => found.split_once('j').map_or("", |(text, _)| &text[..text.len() / 2]).parse().unwrap(),
                Dtype::U64 | Dtype::I64 => found.parse::<i128>().unwrap() as f64,
                _ => found.parse().unwrap(),
            };
            let same = (found - numbers[0]).abs() <= numbers[0].abs() * 1e-7;
            assert!(same, "{dtype}: {found} and {numbers:?}");
        }
    }
}

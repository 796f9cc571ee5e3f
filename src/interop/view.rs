//! Tensors as views of stored bytes: any strides, either byte order, in one or several parts.

use super::blob::Blob;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// The maximum number of bytes to read ahead.
const WINDOW: usize = 256 << 10;

/// Elements that are farther apart than this, in bytes, are read one by one.
const FAR: u64 = 4096;

/// The size of the largest compressed range that is unpacked as a whole, for tensors whose elements are not in order.
const MAX_INFLATED: u64 = 64 << 20;

/// A transformation of stored elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Change {
    /// Bytes that are reversed together; 0 or 1 for none.
    pub swap: u8,
    /// Negates the second of two floats of this many bytes each; 0 for none.
    pub conj: u8,
    /// Negates floats of this many bytes; 0 for none.
    pub neg: u8,
}

impl Change {
    fn apply(self, bytes: &mut [u8]) {
        if self.swap > 1 {
            bytes.chunks_exact_mut(self.swap.into()).for_each(<[u8]>::reverse);
        }
        // The sign of a little-endian float is in its last byte.
        let mut flip =
            |size: usize, step: usize| bytes.iter_mut().skip(step - 1).step_by(size).for_each(|byte| *byte ^= 0x80);
        if self.conj > 0 {
            flip(2 * usize::from(self.conj), 2 * usize::from(self.conj));
        }
        if self.neg > 0 {
            flip(self.neg.into(), self.neg.into());
        }
    }
}

/// Elements in a blob.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub blob: Arc<Blob>,
    /// The first byte of the first element.
    pub begin: u64,
    /// In elements.
    pub stride: Vec<u64>,
    pub change: Change,
}

/// A box of a tensor, and the position of its elements.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Its first element.
    pub begin: Vec<u64>,
    pub shape: Vec<u64>,
    pub view: View,
}

/// A tensor.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub spec: TensorSpec,
    /// They cover the tensor and do not overlap.
    pub parts: Vec<Part>,
}

/// Returns the strides of contiguous elements, with the last dimension first.
pub(crate) fn row_major(shape: &[u64]) -> Vec<u64> {
    let mut stride = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        stride[d - 1] = shape[d].saturating_mul(stride[d]);
    }
    stride
}

/// Returns the strides of contiguous elements, with the first dimension first.
pub(crate) fn column_major(shape: &[u64]) -> Vec<u64> {
    let mut stride = vec![1; shape.len()];
    for d in 1..shape.len() {
        stride[d] = shape[d - 1].saturating_mul(stride[d - 1]);
    }
    stride
}

impl Stored {
    /// Creates a tensor of one view.
    pub(crate) fn new(spec: TensorSpec, view: View) -> Stored {
        let (begin, shape) = (vec![0; spec.shape.len()], spec.shape.clone());
        Stored { spec, parts: vec![Part { begin, shape, view }] }
    }

    /// Returns a value that is equal for two names of the same elements.
    pub(crate) fn identity(&self) -> Option<(*const Blob, u64, Vec<u64>, Change, &TensorSpec)> {
        let [part] = self.parts.as_slice() else { return None };
        let view = &part.view;
        // The stride of a dimension of length 1 has no effect.
        let stride = view.stride.iter().zip(&part.shape).map(|(&stride, &length)| if length == 1 { 0 } else { stride });
        (self.spec.bytes() != Some(0))
            .then(|| (Arc::as_ptr(&view.blob), view.begin, stride.collect(), view.change, &self.spec))
    }

    /// Reads and verifies all elements.
    pub(crate) fn read(&self, target: &mut [u8]) -> Result<()> {
        if let [part] = self.parts.as_slice() {
            let view = &part.view;
            let is_whole = view.begin == 0 && view.blob.len() == target.len() as u64;
            if is_whole && (part.shape.contains(&0) || view.lies_in_order(&part.shape)) {
                view.blob.read_all(target)?;
                view.change.apply(target);
                return Ok(());
            }
        }
        self.parts.iter().try_for_each(|part| part.view.blob.verify())?;
        let count = self.spec.shape.iter().product();
        self.read_range(0..count, target)
    }

    /// Makes sure that all elements can be read, and verifies nothing. Returns `false` if that takes reading them.
    pub(crate) fn fetch(&self) -> Result<bool> {
        for part in &self.parts {
            let Some(range) = part.bytes(self.spec.dtype.size() as u64) else { return Ok(false) };
            if !part.view.blob.fetch(range)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the elements `range`, which is inside the tensor and fits `target`.
    pub(crate) fn read_range(&self, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let shape = &self.spec.shape;
        let size = self.spec.dtype.size() as u64;
        for_each_box(shape, range.clone(), |lo, lengths| {
            for part in &self.parts {
                part.copy(lo, lengths, shape, size, range.start, target)?;
            }
            Ok(())
        })
    }
}

impl View {
    fn lies_in_order(&self, shape: &[u64]) -> bool {
        let expected = row_major(shape);
        self.stride.iter().zip(&expected).zip(shape).all(|((own, expected), &length)| length <= 1 || own == expected)
    }
}

/// Splits a row-major range into boxes: each dimension but one has either one index or all of them.
fn for_each_box(shape: &[u64], range: Range<u64>, mut with: impl FnMut(&[u64], &[u64]) -> Result<()>) -> Result<()> {
    let stride = row_major(shape);
    let mut at = range.start;
    while at < range.end {
        let mut lo = Vec::with_capacity(shape.len());
        let mut rest = at;
        for (&stride, &length) in stride.iter().zip(shape) {
            lo.push(rest / stride.max(1) % length.max(1));
            rest %= stride.max(1);
        }
        // The outermost dimension along which only whole slices follow.
        let along = (0..shape.len()).find(|&d| at.is_multiple_of(stride[d]) && range.end - at >= stride[d]);
        let mut lengths = vec![1; shape.len()];
        let taken = match along {
            None => 1,
            Some(d) => {
                lengths[d] = ((range.end - at) / stride[d]).min(shape[d] - lo[d]);
                lengths[d + 1..].copy_from_slice(&shape[d + 1..]);
                lengths[d] * stride[d]
            }
        };
        with(&lo, &lengths)?;
        at += taken;
    }
    Ok(())
}

/// One loop of a copy: the number of iterations, and the strides of source and target in elements.
#[derive(Debug, Clone, Copy)]
struct Loop {
    length: u64,
    source: u64,
    target: u64,
}

impl Part {
    /// Returns the bytes of the blob from the first to the last element, unless most of them are of others.
    fn bytes(&self, size: u64) -> Option<Range<u64>> {
        let count = self.shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length))?;
        if count == 0 {
            return Some(0..0);
        }
        let steps = self.shape.iter().zip(&self.view.stride);
        let step =
            |(&length, &stride): (&u64, &u64)| if length == 1 { Some(0) } else { (length - 1).checked_mul(stride) };
        let last = steps.map(step).try_fold(0u64, |sum, step| sum.checked_add(step?))?;
        let span = last.checked_add(1).filter(|span| *span / 2 <= count)?.checked_mul(size)?;
        Some(self.view.begin..self.view.begin.checked_add(span)?)
    }

    /// Copies the intersection of this part with the box at `lo` to its place in `target`, whose first element is the
    /// element `first` of the tensor.
    fn copy(&self, lo: &[u64], lengths: &[u64], shape: &[u64], size: u64, first: u64, target: &mut [u8]) -> Result<()> {
        let target_stride = row_major(shape);
        let (mut source, mut place) = (0, 0);
        let mut loops = Vec::with_capacity(shape.len());
        for d in 0..shape.len() {
            let begin = lo[d].max(self.begin[d]);
            let end = (lo[d] + lengths[d]).min(self.begin[d] + self.shape[d]);
            let Some(length) = end.checked_sub(begin).filter(|&length| length > 0) else { return Ok(()) };
            let stride = if self.shape[d] == 1 { 0 } else { self.view.stride[d] };
            source += (begin - self.begin[d]) * stride;
            place += begin * target_stride[d];
            if length > 1 {
                loops.push(Loop { length, source: stride, target: target_stride[d] });
            }
        }
        self.view.copy(source, place - first, merge(loops), size, target)
    }
}

/// Returns the loops in the order of the source's bytes, with contiguous ones merged.
fn merge(mut loops: Vec<Loop>) -> Vec<Loop> {
    loops.sort_by_key(|own| std::cmp::Reverse((own.source, own.target)));
    let mut merged: Vec<Loop> = Vec::with_capacity(loops.len());
    for inner in loops {
        match merged.last_mut() {
            Some(outer)
                if outer.source == inner.source * inner.length && outer.target == inner.target * inner.length =>
            {
                *outer = Loop { length: outer.length * inner.length, ..inner };
            }
            _ => merged.push(inner),
        }
    }
    merged
}

impl View {
    /// Runs the loops, from the element `source` of the view to the element `place` of `target`.
    fn copy(&self, source: u64, place: u64, mut loops: Vec<Loop>, size: u64, target: &mut [u8]) -> Result<()> {
        let inner = loops.pop().unwrap_or(Loop { length: 1, source: 1, target: 1 });
        let is_run = inner.source == 1 && inner.target == 1;
        if !(is_run && loops.is_empty()) && self.blob.input().is_none() {
            return self.copy_inflated(source, place, loops, inner, size, target);
        }
        let mut window = Window { blob: &self.blob, start: 0, bytes: Vec::new(), ahead: 0 };
        let mut counts = vec![0u64; loops.len()];
        let (mut source, mut place) = (source, place);
        loop {
            self.row(&mut window, source, place, inner, size, target)?;
            // The innermost of the outer loops runs first.
            let mut d = loops.len();
            loop {
                let Some(next) = d.checked_sub(1) else { return Ok(()) };
                d = next;
                counts[d] += 1;
                source += loops[d].source;
                place += loops[d].target;
                if counts[d] < loops[d].length {
                    break;
                }
                source -= loops[d].source * loops[d].length;
                place -= loops[d].target * loops[d].length;
                counts[d] = 0;
            }
        }
    }

    /// One run of the innermost loop.
    fn row(
        &self,
        window: &mut Window<'_>,
        source: u64,
        place: u64,
        inner: Loop,
        size: u64,
        target: &mut [u8],
    ) -> Result<()> {
        let begin = self.begin + source * size;
        let outside = || Error::object(self.blob.name(), "the target is shorter than the elements");
        if inner.source == 1 && inner.target == 1 {
            let range = (place * size) as usize..((place + inner.length) * size) as usize;
            let to = target.get_mut(range).ok_or_else(outside)?;
            if to.len() >= WINDOW / 4 {
                self.blob.read(begin, to)?;
            } else {
                to.copy_from_slice(window.get(begin, to.len())?);
            }
            self.change.apply(to);
            return Ok(());
        }
        // As many elements at a time as are close together.
        let together = match inner.source * size {
            0 => inner.length,
            step if step > FAR => 1,
            step => (WINDOW as u64 / step).max(1),
        };
        let mut done = 0;
        while done < inner.length {
            let count = together.min(inner.length - done);
            let span = ((count - 1) * inner.source + 1) * size;
            let from = window.get(begin + done * inner.source * size, span as usize)?;
            for i in 0..count {
                let at = (i * inner.source * size) as usize;
                let to = ((place + (done + i) * inner.target) * size) as usize;
                let to = target.get_mut(to..to + size as usize).ok_or_else(outside)?;
                to.copy_from_slice(&from[at..at + size as usize]);
                self.change.apply(to);
            }
            done += count;
        }
        Ok(())
    }

    /// Like [`copy`](View::copy), for elements in another order in a compressed blob.
    fn copy_inflated(
        &self,
        source: u64,
        place: u64,
        mut loops: Vec<Loop>,
        inner: Loop,
        size: u64,
        target: &mut [u8],
    ) -> Result<()> {
        let bytes = self.blob.read_vec(MAX_INFLATED)?;
        let memory = super::input::Input::memory(std::path::Path::new(self.blob.name()), bytes);
        let blob = Arc::new(Blob::stored(self.blob.name(), memory, None));
        loops.push(inner);
        View { blob, ..self.clone() }.copy(source, place, loops, size, target)
    }
}

/// Recently read bytes of a blob. Reads further ahead the longer reads are sequential.
struct Window<'a> {
    blob: &'a Blob,
    start: u64,
    bytes: Vec<u8>,
    ahead: usize,
}

impl Window<'_> {
    fn get(&mut self, offset: u64, length: usize) -> Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + length as u64 > end {
            let follows = offset >= self.start && offset <= end + FAR;
            self.ahead = if follows { (self.ahead * 2).clamp(512, WINDOW) } else { 512 };
            let most = self.blob.len().saturating_sub(offset).min(self.ahead as u64) as usize;
            self.bytes.resize(length.max(most), 0);
            self.blob.read(offset, &mut self.bytes)?;
            self.start = offset;
        }
        let at = (offset - self.start) as usize;
        Ok(&self.bytes[at..at + length])
    }
}

/// The most pairs of boxes that are compared.
const MAX_COMPARISONS: u64 = 50_000_000;

/// Returns whether two boxes have an element in common, `None` if there are too many to compare. Sorts along the first
/// dimension, so that few boxes are compared.
pub(crate) fn overlap(parts: &[Part]) -> Option<bool> {
    let mut boxes: Vec<&Part> = parts.iter().filter(|part| !part.shape.contains(&0)).collect();
    boxes.sort_by(|a, b| a.begin.cmp(&b.begin));
    let end = |part: &Part, d: usize| part.begin[d] + part.shape[d];
    let mut left = MAX_COMPARISONS;
    for (i, a) in boxes.iter().enumerate() {
        for b in boxes[i + 1..].iter().take_while(|b| a.begin.is_empty() || b.begin[0] < end(a, 0)) {
            left = left.checked_sub(1)?;
            if (0..a.begin.len()).all(|d| a.begin[d] < end(b, d) && b.begin[d] < end(a, d)) {
                return Some(true);
            }
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::interop::input::Input;
    use proptest::prelude::*;
    use std::path::Path;

    /// A tensor over numbered elements of two bytes.
    fn numbered(shape: &[u64], stride: &[u64], offset: u64) -> Stored {
        let last: u64 = shape.iter().zip(stride).map(|(length, stride)| length.saturating_sub(1) * stride).sum();
        let bytes: Vec<u8> = (0..=(offset + last) as u16).flat_map(u16::to_le_bytes).collect();
        let blob = Arc::new(Blob::stored("numbers", Input::memory(Path::new("numbers"), bytes), None));
        let view = View { blob, begin: 2 * offset, stride: stride.to_vec(), change: Change::default() };
        Stored::new(TensorSpec::new(Dtype::I16, shape), view)
    }

    /// Returns the numbers one by one.
    fn expected(shape: &[u64], stride: &[u64], offset: u64) -> Vec<u8> {
        let count: u64 = shape.iter().product();
        let number = |mut i: u64| {
            let mut at = offset;
            for (length, stride) in shape.iter().zip(stride).rev() {
                at += i % length * stride;
                i /= length;
            }
            at as u16
        };
        (0..count).flat_map(|i| number(i).to_le_bytes()).collect()
    }

    proptest! {
        /// Any strides, overlapping and expanded ones among them, as a whole and in pieces.
        #[test]
        fn every_view_is_read_row_major(
            dims in prop::collection::vec((0u64..5, 0u64..40), 0..5), offset in 0u64..9, cut in 0usize..200, cut2 in 0usize..200,
        ) {
            let (shape, stride): (Vec<u64>, Vec<u64>) = dims.into_iter().unzip();
            let tensor = numbered(&shape, &stride, offset);
            let wanted = expected(&shape, &stride, offset);
            let mut read = vec![0; wanted.len()];
            tensor.read(&mut read).unwrap();
            prop_assert_eq!(&read, &wanted);
            let count = wanted.len() / 2;
            let (a, b) = (cut.min(count).min(cut2.min(count)), cut.min(count).max(cut2.min(count)));
            let mut part = vec![0; 2 * (b - a)];
            tensor.read_range(a as u64..b as u64, &mut part).unwrap();
            prop_assert_eq!(&part, &wanted[2 * a..2 * b]);
        }
    }

    /// Boxes that only differ in the second dimension: each would be compared with all others.
    #[test]
    fn comparisons_of_boxes_are_bounded() {
        let columns = |count: u64| -> Vec<Part> {
            let [column] = numbered(&[1, 1], &[1, 1], 0).parts.try_into().unwrap();
            (0..count).map(|i| Part { begin: vec![0, i], ..column.clone() }).collect()
        };
        assert_eq!(overlap(&columns(1_000)), Some(false));
        assert_eq!(overlap(&[columns(1_000), columns(1)].concat()), Some(true));
        assert_eq!(overlap(&columns(100_000)), None);
    }

    #[test]
    fn far_apart_and_long_rows_are_read_too() {
        for (shape, stride) in
            [([3, 5], [20_000, 1]), ([5, 3], [1, 20_000]), ([2, 30_000], [30_000, 1]), ([200, 200], [1, 200])]
        {
            let tensor = numbered(&shape, &stride, 3);
            let wanted = expected(&shape, &stride, 3);
            let mut read = vec![0; wanted.len()];
            tensor.read(&mut read).unwrap();
            assert!(read == wanted, "{shape:?} {stride:?}");
        }
    }
}

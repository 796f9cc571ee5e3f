//! The bytes of a tensor along its dimensions.

use crate::dtype::TensorSpec;

/// A tensor's bytes as rows along a dimension.
pub(super) struct Rows {
    /// The number of rows.
    pub outer: usize,
    /// The number of steps per row.
    pub length: usize,
    /// The number of bytes per step.
    pub inner: usize,
}

impl Rows {
    pub(super) fn of(spec: &TensorSpec, dim: usize) -> Rows {
        let product = |lengths: &[u64]| lengths.iter().product::<u64>() as usize;
        let (before, from) = spec.shape.split_at(dim.min(spec.shape.len()));
        let (length, after) = from.split_first().map_or((1, &[][..]), |(length, after)| (*length as usize, after));
        Rows { outer: product(before), length, inner: product(after) * spec.dtype.size() }
    }

    /// Returns the rows, including rows without bytes.
    pub(super) fn of_bytes<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let length = self.length * self.inner;
        (0..self.outer).map(move |at| bytes.get(at * length..(at + 1) * length).unwrap_or_default())
    }
}

/// Copies the elements of a tensor in the order of other axes.
pub(super) fn permuted(from: &[u8], spec: &TensorSpec, axes: &[usize], target: &mut [u8]) {
    // Trailing dimensions that keep their place count as part of the element.
    let kept = axes.iter().enumerate().rev().take_while(|(place, axis)| place == *axis).count();
    let (moved, _) = axes.split_at(axes.len() - kept);
    let element = spec.shape[axes.len() - kept..].iter().product::<u64>() as usize * spec.dtype.size();
    if element == 0 || target.is_empty() {
        return;
    }
    let mut stride = vec![element; moved.len()];
    for dim in (1..moved.len()).rev() {
        stride[dim - 1] = stride[dim] * spec.shape[dim] as usize;
    }
    let loops: Vec<(usize, usize)> = moved.iter().map(|&axis| (spec.shape[axis] as usize, stride[axis])).collect();
    match element {
        1 => walk::<1>(from, &loops, target),
        2 => walk::<2>(from, &loops, target),
        4 => walk::<4>(from, &loops, target),
        8 => walk::<8>(from, &loops, target),
        _ => each(from, &loops, 0, element, &mut target.chunks_exact_mut(element)),
    }
}

/// Like [`each`], for elements whose length is known at compile time.
fn walk<const N: usize>(from: &[u8], loops: &[(usize, usize)], target: &mut [u8]) {
    fn inner<const N: usize>(
        from: &[u8],
        loops: &[(usize, usize)],
        at: usize,
        target: &mut std::slice::IterMut<'_, [u8; N]>,
    ) {
        match loops {
            [] => {
                if let (Some(place), Some(element)) =
                    (target.next(), from.get(at..).and_then(|rest| rest.first_chunk()))
                {
                    *place = *element;
                }
            }
            [(length, stride)] => {
                for (step, place) in target.by_ref().take(*length).enumerate() {
                    if let Some(element) = from.get(at + step * stride..).and_then(|rest| rest.first_chunk()) {
                        *place = *element;
                    }
                }
            }
            [(length, stride), rest @ ..] => {
                (0..*length).for_each(|step| inner(from, rest, at + step * stride, target));
            }
        }
    }
    inner::<N>(from, loops, 0, &mut target.as_chunks_mut().0.iter_mut());
}

/// Copies elements of any length: `loops` has the length and stride of each dimension, outermost first.
fn each(
    from: &[u8],
    loops: &[(usize, usize)],
    at: usize,
    element: usize,
    target: &mut std::slice::ChunksExactMut<'_, u8>,
) {
    match loops {
        [] => {
            if let (Some(place), Some(bytes)) = (target.next(), from.get(at..at + element)) {
                place.copy_from_slice(bytes);
            }
        }
        [(length, stride), rest @ ..] => {
            (0..*length).for_each(|step| each(from, rest, at + step * stride, element, target));
        }
    }
}

//! Partitioned tensors: where the elements of a slice are in the whole tensor.

use super::messages::Entry;
use super::ordered::Extent;
use super::wire::Parsed;

/// Comparisons of slices with one another, over a whole bundle.
pub(super) const MAX_COMPARISONS: u64 = 50_000_000;

/// A slice: a box of the whole tensor, and where its bytes are.
#[derive(Debug)]
pub(super) struct Slice {
    /// Start and length in every dimension that is not of length 1.
    extents: Vec<(u64, u64)>,
    /// The whole tensor's lengths in these dimensions.
    shape: Vec<u64>,
    /// Elements that are next to one another in the slice and in the tensor, and how often.
    run: u64,
    runs: u64,
    pub entry: Entry,
    /// The extents as they are written in the slice's key.
    pub written: Vec<Extent>,
}

impl Slice {
    /// A slice of a tensor of this shape. `None` when it lies outside.
    pub(super) fn new(shape: &[u64], extents: &[Extent], entry: Entry) -> Option<Slice> {
        if shape.len() != extents.len() {
            return None;
        }
        let whole: Option<Vec<(u64, u64)>> = (shape.iter().zip(extents))
            .map(|(dimension, extent)| {
                let length = extent.length.unwrap_or(*dimension);
                let end = extent.start.checked_add(length)?;
                (end <= *dimension && (extent.length.is_some() || extent.start == 0)).then_some((extent.start, length))
            })
            .collect();
        let written = extents.to_vec();
        let extents = whole?;
        if !extents.iter().map(|(_, length)| length).eq(&entry.shape) {
            return None;
        }
        let elements = entry.elements()?;
        // The last dimensions that the slice has in full, and the one before them, are one run.
        let full = extents.iter().zip(shape).rev().take_while(|((_, length), dimension)| length == *dimension).count();
        let first = shape.len().saturating_sub(full + 1);
        let run = entry.shape[first..].iter().fold(1u64, |product, length| product.saturating_mul(*length));
        let runs = elements.checked_div(run).unwrap_or(0);
        // A dimension of length 1 moves nothing.
        let (extents, shape) = extents.into_iter().zip(shape).filter(|(_, length)| **length != 1).unzip();
        Some(Slice { extents, shape, run, runs, entry, written })
    }

    /// Elements of the slice.
    pub(super) fn elements(&self) -> u64 {
        self.run * self.runs
    }

    /// Returns the start of the run of this number in the whole tensor. Runs are in order there.
    fn run_start(&self, number: u64) -> u64 {
        let mut rest = number;
        let mut stride = 1;
        let mut start = 0;
        let mut inner = 1;
        for ((first, length), dimension) in self.extents.iter().zip(&self.shape).rev() {
            // Dimensions inside of a run count from its first element.
            let index = if inner < self.run { 0 } else { rest % length };
            if inner >= self.run {
                rest /= length;
            }
            inner *= length;
            start += (first + index) * stride;
            stride *= dimension;
        }
        start
    }

    /// Elements of the slice, counted in the slice, among which are all those in `begin..end` of the whole tensor.
    pub(super) fn elements_within(&self, begin: u64, end: u64) -> std::ops::Range<u64> {
        let first = self.partition(|number| self.run_start(number) + self.run <= begin);
        let last = self.partition(|number| self.run_start(number) < end);
        if last <= first {
            return 0..0;
        }
        let skipped = begin.saturating_sub(self.run_start(first));
        let length = (end - self.run_start(last - 1)).min(self.run);
        first * self.run + skipped..(last - 1) * self.run + length
    }

    /// Where the element of this number in the slice is in the whole tensor.
    pub(super) fn position(&self, element: u64) -> u64 {
        self.run_start(element / self.run) + element % self.run
    }

    /// Returns the first run for which `before` no longer holds.
    fn partition(&self, before: impl Fn(u64) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.runs);
        while low < high {
            let middle = low + (high - low) / 2;
            match before(middle) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    /// Puts `bytes`, which start at byte `position` of the slice, to their place in `target`, which holds the bytes of
    /// the tensor from `begin` on. What is outside of `target` is left out.
    pub(super) fn scatter(&self, mut position: u64, mut bytes: &[u8], element: u64, begin: u64, target: &mut [u8]) {
        let run = self.run * element;
        let end = begin + target.len() as u64;
        while !bytes.is_empty() && run > 0 {
            let within = position % run;
            let length = (run - within).min(bytes.len() as u64);
            let (head, tail) = bytes.split_at(length as usize);
            let at = self.run_start(position / run) * element + within;
            let (from, to) = (at.max(begin), (at + length).min(end));
            if from < to {
                let part = &head[(from - at) as usize..(to - at) as usize];
                target[(from - begin) as usize..(to - begin) as usize].copy_from_slice(part);
            }
            position += length;
            bytes = tail;
        }
    }

    fn overlaps(&self, other: &Slice) -> bool {
        let both = self.extents.iter().zip(&other.extents);
        let mut apart = both.map(|((a, n), (b, m))| a + n <= *b || b + m <= *a);
        self.elements() > 0 && other.elements() > 0 && !apart.any(|apart| apart)
    }
}

/// Checks that the slices are the whole tensor: no hole, no overlap. `budget` is what comparisons may still be made.
pub(super) fn check_complete(slices: &mut [Slice], elements: u64, budget: &mut u64) -> Parsed<()> {
    let held = slices.iter().try_fold(0u64, |sum, slice| sum.checked_add(slice.elements()));
    slices.sort_by(|a, b| a.extents.cmp(&b.extents));
    let first = |slice: &Slice| slice.extents.first().copied().unwrap_or_default();
    for (i, slice) in slices.iter().enumerate() {
        let end = first(slice).0 + first(slice).1;
        // Sorted by the first dimension: those that start after this one's end cannot overlap it.
        for other in slices[i + 1..].iter().take_while(|other| first(other).0 < end.max(1)) {
            *budget = budget.checked_sub(1).ok_or("it has too many slices to compare")?;
            if slice.overlaps(other) {
                return Err("slices of a partitioned tensor overlap".into());
            }
        }
    }
    match held {
        Some(held) if held == elements => Ok(()),
        _ => Err("slices of a partitioned tensor are missing".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slice(shape: &[u64], extents: &[(u64, u64)]) -> Slice {
        let whole: Vec<Extent> = extents.iter().map(|(start, n)| Extent { start: *start, length: Some(*n) }).collect();
        let entry = Entry { shape: extents.iter().map(|(_, n)| *n).collect(), ..Entry::default() };
        Slice::new(shape, &whole, entry).unwrap()
    }

    proptest! {
        #[test]
        fn elements_arrive_where_they_belong(
            dimensions in prop::collection::vec((1u64..5, 0u64..5, 0u64..5), 0..5),
            chunk in 1usize..7, begin in 0u64..40, length in 0usize..60,
        ) {
            let shape: Vec<u64> = dimensions.iter().map(|d| d.0).collect();
            let extents: Vec<(u64, u64)> = dimensions.iter().map(|d| {
                let start = d.1.min(d.0);
                (start, d.2.min(d.0 - start))
            }).collect();
            let slice = slice(&shape, &extents);
            // The slow way: every element of the tensor by its indices.
            let total: u64 = shape.iter().product();
            let mut expected = vec![255u8; total as usize];
            let mut count = 0u8;
            for at in 0..total {
                let (mut rest, mut inside) = (at, true);
                for (dimension, (start, n)) in shape.iter().zip(&extents).rev() {
                    let index = rest % dimension;
                    rest /= dimension;
                    inside &= index >= *start && index < start + n;
                }
                if inside {
                    expected[at as usize] = count;
                    count += 1;
                }
            }
            prop_assert_eq!(u64::from(count), slice.elements());
            let bytes: Vec<u8> = (0..count).collect();
            let mut found = vec![255u8; total as usize];
            for (i, part) in bytes.chunks(chunk).enumerate() {
                slice.scatter((i * chunk) as u64, part, 1, 0, &mut found);
            }
            prop_assert_eq!(&found, &expected);
            // A part of the tensor, from the runs that matter only.
            let begin = begin.min(total);
            let end = (begin + length as u64).min(total);
            let within = slice.elements_within(begin, end);
            let mut part = vec![255u8; (end - begin) as usize];
            slice.scatter(within.start, &bytes[within.start as usize..within.end as usize], 1, begin, &mut part);
            prop_assert_eq!(&part[..], &expected[begin as usize..end as usize]);
        }
    }

    #[test]
    fn holes_and_overlaps_are_found() {
        let check = |mut slices: Vec<Slice>| check_complete(&mut slices, 12, &mut 100);
        let (left, right) = ([(0, 3), (0, 2)], [(0, 3), (2, 2)]);
        assert_eq!(check(vec![slice(&[3, 4], &right), slice(&[3, 4], &left)]), Ok(()));
        assert!(check(vec![slice(&[3, 4], &left)]).unwrap_err().contains("missing"));
        let wide = [(0, 3), (1, 2)];
        assert!(check(vec![slice(&[3, 4], &left), slice(&[3, 4], &wide)]).unwrap_err().contains("overlap"));
        assert!(check((0..20).map(|_| slice(&[3, 4], &[(0, 3), (0, 0)])).collect()).unwrap_err().contains("compare"));
    }
}

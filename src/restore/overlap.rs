//! Tensors that have memory in common: a part of one is also another, under another name.
//!
//! They are written one after the other, because two threads must not write the same memory, and only if the checkpoint
//! has the same bytes for what they have in common: otherwise the last one would win.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::graph::{Area, Identity};
use crate::source::room;

/// Returns the places of areas that overlap, in groups, each in order.
pub(super) fn groups(areas: impl Iterator<Item = Option<Area>>) -> Vec<Vec<usize>> {
    let areas = areas.enumerate().filter_map(|(place, area)| Some((area?, place)));
    let mut areas: Vec<(Area, usize)> = areas.collect();
    areas.sort_unstable();
    let mut groups = Vec::new();
    let mut rest = areas.as_slice();
    while let Some(((first, _), others)) = rest.split_first() {
        let mut reach = *first;
        let overlaps = |(area, _): &&(Area, usize)| {
            let overlaps = reach.overlaps(area);
            reach = if overlaps { reach.joined(*area) } else { reach };
            overlaps
        };
        let count = 1 + others.iter().take_while(overlaps).count();
        if count > 1 {
            let mut group: Vec<usize> = rest[..count].iter().map(|(_, place)| *place).collect();
            group.sort_unstable();
            groups.push(group);
        }
        rest = &rest[count..];
    }
    groups
}

/// The bytes that the tensors of a group get, as far as they are known.
pub(super) struct Common {
    area: Area,
    bytes: Vec<u8>,
    is_known: Vec<u8>,
}

impl Common {
    /// Returns the memory of a group of tensors, of which nothing is known yet; `key` is one of them.
    pub(super) fn of(key: &str, areas: impl Iterator<Item = Area>) -> Result<Option<Common>> {
        let Some(area) = areas.reduce(Area::joined) else { return Ok(None) };
        let room = || room(key, u64::try_from(area.bytes()).ok());
        Ok(Some(Common { area, bytes: room()?, is_known: room()? }))
    }

    /// Adds the elements of a tensor. Returns `false`, and adds nothing, if bytes of them are known to be others.
    pub(super) fn add(&mut self, key: &str, identity: &Identity, elements: &[u8]) -> Result<bool> {
        let begin = self.area.offset(identity.address);
        let pieces = pieces(identity);
        let failed = || Error::object(key, "its memory changed while it was being restored");
        let mut differ = false;
        for is_checked in [false, true] {
            for (at, piece) in pieces.each(elements) {
                let range = begin + at..begin + at + piece.len();
                let known = self.is_known.get_mut(range.clone()).ok_or_else(failed)?;
                let bytes = self.bytes.get_mut(range).ok_or_else(failed)?;
                if is_checked {
                    bytes.copy_from_slice(piece);
                    known.fill(1);
                } else {
                    let other = |((known, bytes), piece): ((&u8, &u8), &u8)| *known == 1 && bytes != piece;
                    differ |= known.iter().zip(bytes.iter()).zip(piece).any(other);
                }
            }
            if differ {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// How the elements of a tensor are spread over its memory: in pieces of consecutive bytes.
struct Pieces {
    bytes: usize,
    /// Length and stride in bytes of each dimension of pieces.
    dimensions: Vec<(usize, usize)>,
}

fn pieces(identity: &Identity) -> Pieces {
    let Identity { spec: TensorSpec { dtype, shape, .. }, strides, .. } = identity;
    let size = dtype.size();
    let length = |length: &u64| usize::try_from(*length).unwrap_or(usize::MAX);
    let stride = |stride: &i64| usize::try_from(stride.unsigned_abs()).unwrap_or(usize::MAX);
    let both = shape.iter().map(length).zip(strides.iter().map(stride));
    let mut dimensions: Vec<(usize, usize)> = both.map(|(length, stride)| (length, stride * size)).collect();
    let mut bytes = size;
    // The last dimensions, as far as they are consecutive.
    while let Some(&(length, stride)) = dimensions.last().filter(|(length, stride)| *length == 1 || *stride == bytes) {
        if length > 1 {
            bytes = stride * length;
        }
        dimensions.pop();
    }
    Pieces { bytes, dimensions }
}

impl Pieces {
    /// Returns each piece of `elements`, in order, with its place in memory, in bytes from the first element.
    fn each<'a>(&'a self, elements: &'a [u8]) -> impl Iterator<Item = (usize, &'a [u8])> {
        let place = |piece: usize| {
            let mut rest = piece;
            let step = |&(length, stride): &(usize, usize)| {
                let index = rest % length.max(1);
                rest /= length.max(1);
                index * stride
            };
            self.dimensions.iter().rev().map(step).sum()
        };
        elements.chunks_exact(self.bytes.max(1)).enumerate().map(move |(piece, bytes)| (place(piece), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    fn places(shape: &[u64], strides: &[i64]) -> (usize, Vec<usize>) {
        let identity = Identity::new("d", 0, TensorSpec::new(Dtype::I16, shape), strides.to_vec());
        let elements = vec![0; 2 * shape.iter().product::<u64>() as usize];
        let pieces = pieces(&identity);
        (pieces.bytes, pieces.each(&elements).map(|(at, _)| at).collect())
    }

    #[test]
    fn elements_are_where_the_strides_lead() {
        assert_eq!(places(&[2, 3], &[3, 1]), (12, vec![0]));
        assert_eq!(places(&[2, 3], &[10, 1]), (6, vec![0, 20]));
        assert_eq!(places(&[3, 1, 2], &[2, 0, 1]), (12, vec![0]));
        assert_eq!(places(&[2, 3], &[1, 2]), (2, vec![0, 4, 8, 2, 6, 10]));
        assert_eq!(places(&[], &[]), (2, vec![0]));
    }
}

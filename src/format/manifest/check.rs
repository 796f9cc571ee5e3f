//! What makes a manifest valid.

use super::{FileEntry, MAX_EARLIER, Manifest, Piece, TensorRecord};
use crate::dtype::TensorSpec;
use crate::format::json;
use crate::format::safetensors::{Header, LENGTH_BYTES, MAX_HEADER, METADATA};
use crate::format::{FormatError, MANIFEST_FILE, MAX_RANK, MAX_TENSOR_NAME, damaged};
use crate::name;
use chrono::{DateTime, Datelike, Utc};
use std::collections::{BTreeMap, HashMap, HashSet};

impl Manifest {
    /// Checks that the headers of the files agree with the manifest and have no other tensors, so that other programs,
    /// which read the headers, read the same tensors. `headers` has the headers by file name; a file without one is
    /// skipped.
    ///
    /// # Errors
    ///
    /// [`FormatError::Damaged`] with the first difference.
    pub fn check_headers(&self, headers: &BTreeMap<String, Header>) -> Result<(), FormatError> {
        let entries = |header: &Header| header.tensors.len();
        let mut in_headers = HashMap::with_capacity(headers.values().map(entries).sum());
        for (file, header) in headers {
            for entry in &header.tensors {
                in_headers.insert((file.as_str(), entry.name.as_str()), (entry, header.data_start));
            }
        }
        let mut named = HashSet::with_capacity(in_headers.len());
        for (key, record) in &self.tensors {
            for piece in record.pieces.iter().filter(|piece| headers.contains_key(&piece.file)) {
                let place = (piece.file.as_str(), piece.name.as_str());
                let agree = in_headers.get(&place).is_some_and(|(entry, data_start)| {
                    let range = Range { key, record, piece, index: 0 };
                    entry.spec.dtype == record.spec.dtype
                        && range.shape().eq(entry.spec.shape.iter().copied())
                        && piece.begin.checked_sub(*data_start) == Some(entry.begin)
                        && piece.end.checked_sub(*data_start) == Some(entry.end)
                });
                if !agree {
                    let (file, name, key) = (place.0, name::shown(place.1), name::shown(key));
                    return Err(damaged(format!("the header of {file:?} says something else of {name}, {key}")));
                }
                named.insert(place);
            }
        }
        match in_headers.keys().find(|place| !named.contains(*place)) {
            Some((file, name)) => {
                Err(damaged(format!("the header of {file:?} has a tensor {} more", name::shown(name))))
            }
            None => Ok(()),
        }
    }
}

/// Invariants that readers rely on, and that writers must keep as well.
impl Manifest {
    pub(super) fn check(&self) -> Result<(), FormatError> {
        let counts = [("files", self.files.len()), ("assets", self.assets.len()), ("tensors", self.tensors.len())];
        for (what, entries) in counts {
            check_count(what, entries)?;
        }
        check_sequence(self.sequence)?;
        check_run(&self.run)?;
        check_time(self.saved_at)?;
        check_count("metrics", self.metrics.len())?;
        for follows in self.follows.iter().chain(&self.earlier) {
            check_run(&follows.run)?;
            check_sequence(follows.sequence)?;
        }
        if self.follows.is_none() && !self.earlier.is_empty() || self.earlier.len() > MAX_EARLIER {
            return Err(damaged(format!("it names {} earlier runs", self.earlier.len())));
        }
        self.counted_from.map_or(Ok(()), check_time)?;
        self.check_files()?;
        self.check_keys()?;
        let mut left = json::MAX_NODES;
        for (key, value) in self.values.iter().chain(&self.metadata) {
            json::check_bounds(value, &mut left, 0)
                .map_err(|reason| damaged(format!("the value {key:?}: {reason}")))?;
        }
        check_count("metadata", self.metadata.len())?;
        self.check_without()?;
        self.check_ranges()
    }

    /// Checks that components that are left out are absent.
    fn check_without(&self) -> Result<(), FormatError> {
        if !self.without.is_sorted_by(|a, b| a < b) {
            return Err(damaged("the components that it leaves out are not sorted, or one of them appears twice"));
        }
        let is_in = |key: &String| {
            let component = name::path(name::component(key)).and_then(|mut path| path.pop());
            component.is_some_and(|component| self.without.binary_search(&component).is_ok())
        };
        match self.tensors.keys().chain(self.values.keys()).find(|key| !self.without.is_empty() && is_in(key)) {
            Some(key) => Err(damaged(format!("it leaves out the component of {}, and has it", name::shown(key)))),
            None => Ok(()),
        }
    }

    fn check_files(&self) -> Result<(), FormatError> {
        let mut folded = HashSet::new();
        for (file, FileEntry { bytes, header }) in &self.files {
            if !name::is_plain_file_name(file) || !file.ends_with(name::COMPONENT_EXTENSION) {
                return Err(damaged(format!("{file:?} is not the name of a component's file")));
            }
            if !folded.insert(file.to_ascii_lowercase()) {
                return Err(damaged(format!("another file's name differs from {file:?} only in case")));
            }
            let (least, most) = (LENGTH_BYTES as u64 + 2, LENGTH_BYTES as u64 + MAX_HEADER);
            if header.bytes > *bytes || !(least..=most).contains(&header.bytes) {
                return Err(damaged(format!("{file:?} of {bytes} bytes cannot have a header of {}", header.bytes)));
            }
        }
        for asset in self.assets.keys() {
            let is_taken = asset.ends_with(name::COMPONENT_EXTENSION) || asset.eq_ignore_ascii_case(MANIFEST_FILE);
            if !name::is_plain_file_name(asset) || is_taken || !folded.insert(asset.to_ascii_lowercase()) {
                return Err(damaged(format!("{asset:?} is not the name of an asset, or there is another such file")));
            }
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), FormatError> {
        for key in self.tensors.keys().chain(self.values.keys()) {
            if !is_key(key) {
                return Err(damaged(format!("{} is not a key", name::shown(key))));
            }
        }
        check_tree(self.tensors.keys(), 100)?;
        check_tree(self.values.keys(), 3)?;
        match self.values.keys().find(|key| self.tensors.contains_key(*key)) {
            Some(key) => Err(damaged(format!("{key:?} is both a tensor and a value"))),
            None => Ok(()),
        }
    }

    /// Checks that every tensor is complete, and that every byte of every file belongs to the header or to one tensor
    /// of the file.
    fn check_ranges(&self) -> Result<(), FormatError> {
        let mut ranges: BTreeMap<&str, Vec<Range<'_>>> =
            self.files.keys().map(|file| (file.as_str(), vec![])).collect();
        for (key, record) in &self.tensors {
            check_pieces(key, record)?;
            for (index, piece) in record.pieces.iter().enumerate() {
                let file = ranges.get_mut(piece.file.as_str());
                let file =
                    file.ok_or_else(|| damaged(format!("{key:?} is in {:?}, which is not listed", piece.file)))?;
                file.push(Range { key, record, piece, index });
            }
        }
        for (file, ranges) in &mut ranges {
            if let Some(entry) = self.files.get(*file) {
                check_file_ranges(file, entry, ranges)?;
            }
        }
        Ok(())
    }
}

/// A piece and its tensor.
struct Range<'a> {
    key: &'a str,
    record: &'a TensorRecord,
    piece: &'a Piece,
    /// Its index among the tensor's pieces.
    index: usize,
}

impl Range<'_> {
    /// Returns the lengths of the piece's dimensions.
    fn shape(&self) -> impl Iterator<Item = u64> {
        let first = self.piece.slice.as_ref().and_then(|slice| slice.first()).map(|[_, length]| *length);
        let whole = self.record.spec.shape.iter().copied();
        whole.enumerate().map(move |(i, length)| if i == 0 { first.unwrap_or(length) } else { length })
    }

    /// Returns `true` if both are the same piece of one tensor that has two keys. All pieces of such tensors are equal,
    /// so that no byte is read for two digests. The first pieces compare the whole lists; the others have the same
    /// first piece.
    fn is_tied_to(&self, other: &Range<'_>) -> bool {
        let (a, b) = (self.record, other.record);
        let lists_agree = if self.index == 0 { a.pieces == b.pieces } else { a.pieces.first() == b.pieces.first() };
        !std::ptr::eq(a, b)
            && self.index == other.index
            && self.piece == other.piece
            && (&a.spec, a.digest) == (&b.spec, b.digest)
            && lists_agree
    }
}

/// Checks that the pieces cover the whole tensor and have the bytes of their shape.
fn check_pieces(key: &str, TensorRecord { spec, pieces, .. }: &TensorRecord) -> Result<(), FormatError> {
    if spec.shape.len() > MAX_RANK {
        return Err(damaged(format!("the tensor {key:?} has more than {MAX_RANK} dimensions")));
    }
    let total = spec.bytes().ok_or_else(|| damaged(format!("the tensor {key:?} of {spec} is too large")))?;
    let mut next = 0;
    for piece in pieces {
        if piece.name.len() > MAX_TENSOR_NAME || piece.name == METADATA {
            return Err(damaged(format!("the tensor {key:?} has a name in its file that is not allowed")));
        }
        let bytes = match &piece.slice {
            None if pieces.len() == 1 => total,
            None => return Err(damaged(format!("a piece of the tensor {key:?} is all of it, and there is another"))),
            Some(slice) => {
                let length = first_dimension(key, spec, slice, next)?;
                next += length;
                let part = [length];
                let mut lengths = part.iter().chain(spec.shape.iter().skip(1));
                let bytes = lengths.try_fold(spec.dtype.size() as u64, |bytes, length| bytes.checked_mul(*length));
                bytes.ok_or_else(|| damaged(format!("a piece of the tensor {key:?} is too large")))?
            }
        };
        if piece.end.checked_sub(piece.begin) != Some(bytes) {
            let (begin, end) = (piece.begin, piece.end);
            return Err(damaged(format!("{bytes} bytes of the tensor {key:?} cannot be the bytes {begin} to {end}")));
        }
    }
    let complete = match pieces.as_slice() {
        [] => false,
        [Piece { slice: None, .. }] => true,
        _ => spec.shape.first() == Some(&next),
    };
    if complete { Ok(()) } else { Err(damaged(format!("a part of the tensor {key:?} is in no file"))) }
}

/// Returns the length, in the first dimension, of a slice that starts at `next` and is complete in the other
/// dimensions.
fn first_dimension(key: &str, spec: &TensorSpec, slice: &[[u64; 2]], next: u64) -> Result<u64, FormatError> {
    let fits = slice.len() == spec.shape.len()
        && slice
            .iter()
            .zip(&spec.shape)
            .all(|([start, length], &whole)| start.checked_add(*length).is_some_and(|end| end <= whole));
    if !fits {
        return Err(damaged(format!("a piece of the tensor {key:?} is not a part of its shape {:?}", spec.shape)));
    }
    let whole_otherwise = slice.iter().zip(&spec.shape).skip(1).all(|(part, &whole)| *part == [0, whole]);
    match slice.first() {
        Some(&[start, length]) if whole_otherwise && start == next && length > 0 => Ok(length),
        _ => Err(FormatError::Unsupported(format!(
            "the tensor {key:?} is not cut along its first dimension alone, in order; this version reads no other cut"
        ))),
    }
}

/// Checks that the ranges are disjoint or the same tensor, and leave no gap between the header and the end.
fn check_file_ranges(file: &str, entry: &FileEntry, ranges: &mut [Range<'_>]) -> Result<(), FormatError> {
    ranges.sort_by(|a, b| {
        let order = |range: &Range<'_>| (range.piece.begin, range.piece.end);
        order(a).cmp(&order(b)).then_with(|| a.piece.name.cmp(&b.piece.name))
    });
    let mut names = HashSet::with_capacity(ranges.len());
    let mut end = entry.header.bytes;
    let mut previous: Option<&Range<'_>> = None;
    for range in &*ranges {
        let Range { key, piece, .. } = range;
        if previous.is_some_and(|previous| range.is_tied_to(previous)) {
            continue;
        }
        if piece.begin != end {
            return Err(damaged(format!(
                "the bytes {} to {} of {file:?} cannot be those of {key:?}: the bytes before end at {end}",
                piece.begin, piece.end
            )));
        }
        if !names.insert(piece.name.as_str()) {
            return Err(damaged(format!("the name {:?} stands for two tensors of {file:?}", piece.name)));
        }
        end = piece.end;
        previous = Some(range);
    }
    if end != entry.bytes {
        return Err(damaged(format!("the tensors in {file:?} end at byte {end}, the file at {}", entry.bytes)));
    }
    Ok(())
}

/// Returns `true` if this is a key: names of valid length, escaped as in [`name::key`].
fn is_key(key: &str) -> bool {
    let simple = |part: &str| {
        !part.is_empty() && part.len() <= name::MAX_NAME && part.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'%')
    };
    // Most keys have nothing to unescape; the allocations of the general case would be slow for a million keys.
    key.split('/').all(simple) && key.split('/').nth(name::MAX_NAMES).is_none()
        || name::path(key).is_some_and(|names| names.iter().all(|name| name.len() <= name::MAX_NAME))
}

/// Checks that the tree of the names in these sorted keys takes memory in proportion to the manifest. `least` is the
/// minimum length of an entry in the text, without its key.
fn check_tree<'a>(keys: impl Iterator<Item = &'a String>, least: usize) -> Result<(), FormatError> {
    let (mut parents, mut bytes) = (0, 0);
    let mut previous = "";
    for key in keys {
        let above = |key: &str| key.bytes().filter(|&byte| byte == b'/').count();
        let shared = key.split('/').zip(previous.split('/')).take_while(|(a, b)| a == b).count();
        parents += above(key) - shared.min(above(previous)).min(above(key));
        bytes += key.len() + least;
        previous = key;
    }
    if parents <= PARENTS_BESIDE + bytes / BYTES_PER_PARENT {
        return Ok(());
    }
    Err(damaged(format!("its keys nest too deep for their length: {parents} objects have no more than {bytes} bytes")))
}

/// The maximum number of objects with children, plus one more per so many bytes of the manifest. Such an object takes
/// about 1000 bytes of memory in a restore.
const PARENTS_BESIDE: usize = 16_000;
const BYTES_PER_PARENT: usize = 16;

/// Checks a sequence against [`MAX_SEQUENCE`], so that there is always a later one.
pub(crate) fn check_sequence(sequence: u64) -> Result<(), FormatError> {
    if sequence <= MAX_SEQUENCE {
        return Ok(());
    }
    Err(damaged(format!("the sequence {sequence} is above {MAX_SEQUENCE}")))
}

/// A number that a writer that counts saves never reaches.
pub(crate) const MAX_SEQUENCE: u64 = 1 << 63;

/// Checks that a run is 32 lower-case hexadecimal digits.
pub(crate) fn check_run(run: &str) -> Result<(), FormatError> {
    if run.len() == 32 && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    Err(damaged(format!("{run:?} is not the identity of a run: that has 32 lower-case hexadecimal digits")))
}

/// Checks that RFC 3339 can represent the year.
pub(crate) fn check_time(time: DateTime<Utc>) -> Result<(), FormatError> {
    if (0..=9999).contains(&time.year()) { Ok(()) } else { Err(damaged(format!("the time {time} is out of range"))) }
}

pub(crate) fn check_count(what: &str, entries: usize) -> Result<(), FormatError> {
    let most = json::MAX_ENTRIES;
    if entries <= most { Ok(()) } else { Err(damaged(format!("{entries} {what} are too many, {most} are allowed"))) }
}

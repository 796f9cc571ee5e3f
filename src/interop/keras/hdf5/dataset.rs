//! Datasets: where their elements are, and reading them.

use super::attributes::{Attributes, texts};
use super::decoded::{Decoded, Encoded};
use super::filter::{self, Filter};
use super::group::leaves;
use super::metadata::{Metadata, UNDEFINED};
use super::types::{self, Kind, Type};
use crate::dtype::{Dtype, TensorSpec};
use crate::error::Result;
use crate::interop::input::Input;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of texts that become a value.
const MAX_TEXT: u64 = 1 << 20;
/// Bytes in memory for each text, about.
const TEXT: u64 = 16;

/// A dataset.
#[derive(Debug)]
pub(in crate::interop::keras) struct Dataset {
    pub shape: Vec<u64>,
    /// The type of the elements, or why they cannot be held.
    pub dtype: Result<Dtype, String>,
    /// The texts, if that is what the elements are.
    pub texts: Option<Vec<String>>,
    kind: Type,
    layout: Layout,
    /// The element that stands for those never written; empty for zeros.
    fill: Vec<u8>,
}

#[derive(Debug)]
enum Layout {
    /// In the description itself.
    Compact(Vec<u8>),
    Contiguous(u64),
    /// Never written.
    Fill,
    Chunked {
        /// Lengths of a chunk.
        chunk: Vec<u64>,
        filters: Vec<Filter>,
        index: Arc<Vec<Chunk>>,
    },
}

/// A chunk that was written.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The first element in every dimension.
    offset: Vec<u64>,
    address: u64,
    size: u64,
    mask: u32,
}

/// Indices of chunks, by the address of the tree.
pub(super) type Indices = BTreeMap<u64, Arc<Vec<Chunk>>>;

impl Dataset {
    /// Returns the dataset of a header.
    pub(super) fn parse(
        metadata: &Metadata<'_>,
        messages: &[(u16, Vec<u8>)],
        indices: &mut Indices,
    ) -> Result<Dataset> {
        let message = |kind: u16| messages.iter().find(|(found, _)| *found == kind).map(|(_, data)| &data[..]);
        let needed = |kind: u16| message(kind).ok_or_else(|| metadata.damaged("a dataset has no type, shape or place"));
        let kind = Type::parse(metadata, needed(0x03)?)?;
        let space = types::shape(metadata, needed(0x01)?)?;
        let mut attributes = Attributes::default();
        for (_, data) in messages.iter().filter(|(kind, _)| *kind == 0x0c) {
            attributes.add(metadata, data)?;
        }
        let mut dtype = match &kind.kind {
            Kind::Number { dtype, .. } => Ok(*dtype),
            // Keras has no other way to write bfloat16.
            Kind::Opaque if kind.size == 2 && attributes.text("dtype") == Some("bfloat16") => Ok(Dtype::BF16),
            Kind::Opaque => Err("opaque bytes, which are no numbers".to_string()),
            Kind::FixedText | Kind::Text => Err("text".to_string()),
            Kind::Other(reason) => Err(reason.clone()),
        };
        if space.is_none() {
            dtype = dtype.and(Err("a dataset without elements".to_string()));
        }
        let shape = space.unwrap_or_default();
        // In the order of `TensorSpec::bytes`, which a zero behind an overflow does not make fit either.
        let bytes = shape.iter().try_fold(kind.size, |all, length| all.checked_mul(*length)).filter(|_| kind.size > 0);
        let bytes = bytes.ok_or_else(|| metadata.damaged("a dataset has more elements than there are"))?;
        let fill = fill(metadata, message(0x05), message(0x04), kind.size)?;
        let filters = message(0x0b).map_or(Ok(Vec::new()), |message| filter::parse(metadata, message))?;
        if let Some(Filter::Other(id)) = filters.iter().find(|filter| matches!(filter, Filter::Other(_))) {
            dtype = dtype.and(Err(format!("written with filter {id}, which this crate does not know")));
        }
        let layout = layout(metadata, needed(0x08)?, &shape, &kind, bytes, filters, indices)?;
        let mut dataset = Dataset { shape, dtype, texts: None, kind, layout, fill };
        dataset.read_texts(metadata, bytes)?;
        Ok(dataset)
    }

    /// Returns what it holds, if that are numbers.
    pub(in crate::interop::keras) fn spec(&self) -> Option<TensorSpec> {
        Some(TensorSpec { dtype: self.dtype.clone().ok()?, shape: self.shape.clone() })
    }

    /// Returns bytes of all elements.
    pub(in crate::interop::keras) fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.kind.size, |all, length| all.saturating_mul(*length))
    }

    /// Returns bytes of all chunks, which are read whole, or of all elements if those are more.
    pub(in crate::interop::keras) fn decoded_bytes(&self) -> u64 {
        let chunks = match &self.layout {
            Layout::Chunked { index, .. } => index.len().max(1) as u64,
            _ => 0,
        };
        self.bytes().max(self.chunk_bytes().saturating_mul(chunks))
    }

    /// Returns bytes that must be in memory at once to read any element.
    fn chunk_bytes(&self) -> u64 {
        match &self.layout {
            Layout::Chunked { chunk, .. } => {
                chunk.iter().fold(self.kind.size, |all, length| all.saturating_mul(*length))
            }
            _ => 0,
        }
    }

    /// Returns `true` if every byte has a checksum in the file.
    pub(in crate::interop::keras) fn is_checksummed(&self) -> bool {
        let Layout::Chunked { filters, index, .. } = &self.layout else {
            return false;
        };
        let sums = filters.iter().any(|filter| matches!(filter, Filter::Fletcher | Filter::Deflate));
        sums && index.iter().all(|chunk| chunk.mask == 0)
    }

    fn read_texts(&mut self, metadata: &Metadata<'_>, bytes: u64) -> Result<()> {
        if !matches!(self.kind.kind, Kind::FixedText | Kind::Text) || bytes > MAX_TEXT {
            return Ok(());
        }
        // Several datasets may be the same bytes, or none.
        let (decoded, count) = (self.decoded_bytes(), bytes / self.kind.size);
        if self.chunk_bytes() > MAX_TEXT || !metadata.has_room(decoded.saturating_add(TEXT * count)) {
            return Ok(());
        }
        let mut raw = vec![0; bytes as usize];
        self.read_bytes(metadata.input, &Decoded::default(), 0, &mut raw)?;
        self.texts = Some(texts(metadata, &self.kind, count, &raw)?);
        Ok(())
    }

    /// See [`File::read`](super::File::read).
    pub(super) fn read(&self, input: &Input, decoded: &Decoded, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        self.read_bytes(input, decoded, range.start * self.kind.size, target)?;
        if let Kind::Number { unit, big: true, .. } = &self.kind.kind {
            target.chunks_exact_mut(*unit).for_each(<[u8]>::reverse);
        }
        Ok(())
    }

    /// Reads from byte `begin` on.
    fn read_bytes(&self, input: &Input, decoded: &Decoded, begin: u64, target: &mut [u8]) -> Result<()> {
        match &self.layout {
            Layout::Compact(bytes) => {
                target.copy_from_slice(&bytes[begin as usize..begin as usize + target.len()]);
                Ok(())
            }
            Layout::Contiguous(address) => input.read(address + begin, target),
            Layout::Fill => {
                self.fill(target);
                Ok(())
            }
            Layout::Chunked { chunk, filters, index } => {
                self.fill(target);
                for found in self.chunks_within(index, chunk, begin, begin + target.len() as u64) {
                    self.read_chunk((input, decoded), chunk, filters, found, begin, target)?;
                }
                Ok(())
            }
        }
    }

    /// Returns the chunks that may have some of the bytes `begin..end`. They are in order: those whose first dimension
    /// of more than one index lies elsewhere are left out.
    fn chunks_within<'a>(&self, index: &'a [Chunk], lengths: &[u64], begin: u64, end: u64) -> &'a [Chunk] {
        let Some(d) = self.shape.iter().position(|length| *length > 1) else { return index };
        let row = self.shape[d + 1..].iter().fold(self.kind.size, |all, length| all.saturating_mul(*length)).max(1);
        let first = index.partition_point(|chunk| chunk.offset[d] + lengths[d] <= begin / row);
        let last = index.partition_point(|chunk| chunk.offset[d] <= end / row);
        &index[first..last.max(first)]
    }

    /// `target` starts and ends between elements.
    fn fill(&self, target: &mut [u8]) {
        match self.fill.iter().all(|byte| *byte == 0) {
            true => target.fill(0),
            false => target.chunks_exact_mut(self.fill.len()).for_each(|element| element.copy_from_slice(&self.fill)),
        }
    }

    fn read_chunk(
        &self,
        (input, decoded): (&Input, &Decoded),
        lengths: &[u64],
        filters: &[Filter],
        chunk: &Chunk,
        begin: u64,
        target: &mut [u8],
    ) -> Result<()> {
        let size = self.kind.size;
        let end = begin + target.len() as u64;
        // The part of the chunk that is inside of the dataset: chunks at the edges are stored whole.
        let clipped = lengths.iter().zip(&chunk.offset).zip(&self.shape);
        let inside: Vec<u64> = clipped.map(|((length, offset), all)| (*length).min(all - offset)).collect();
        let position = |index: &[u64]| {
            let indices = index.iter().zip(&chunk.offset).zip(&self.shape);
            indices.fold(0, |at, ((index, offset), length)| at * length + offset + index) * size
        };
        let first = position(&vec![0; inside.len()]);
        let last = position(&inside.iter().map(|length| length - 1).collect::<Vec<_>>()) + size;
        if last <= begin || first >= end {
            return Ok(());
        }
        let encoded = &Encoded {
            address: chunk.address,
            size: chunk.size,
            mask: chunk.mask,
            filters: filters.to_vec(),
            bytes: self.chunk_bytes() as usize,
        };
        let bytes = decoded.get(encoded, last > end, || {
            let stored = input.read_vec(encoded.address..encoded.address + encoded.size, u64::MAX)?;
            let bytes = filter::undo(&encoded.filters, encoded.mask, stored, encoded.bytes);
            bytes.map_err(|reason| input.damaged(reason))
        })?;
        let row = inside.last().copied().unwrap_or(1) * size;
        let mut index = vec![0; inside.len()];
        loop {
            let at = position(&index);
            let (from, to) = (at.max(begin), (at + row).min(end));
            if from < to {
                let source = index.iter().zip(lengths).fold(0, |at, (index, length)| at * length + index) * size;
                let part = &bytes[(source + from - at) as usize..(source + to - at) as usize];
                target[(from - begin) as usize..(to - begin) as usize].copy_from_slice(part);
            }
            // The next row.
            let mut dimension = inside.len().saturating_sub(1);
            loop {
                let Some(next) = dimension.checked_sub(1) else {
                    return Ok(());
                };
                dimension = next;
                index[dimension] += 1;
                if index[dimension] < inside[dimension] {
                    break;
                }
                index[dimension] = 0;
            }
        }
    }

    /// Decodes every chunk that has a checksum.
    pub(in crate::interop::keras) fn verify(&self, input: &Input) -> Result<()> {
        let Layout::Chunked { filters, index, .. } = &self.layout else {
            return Ok(());
        };
        if filters.is_empty() || self.dtype.is_err() {
            return Ok(());
        }
        for chunk in index.iter() {
            let stored = input.read_vec(chunk.address..chunk.address + chunk.size, u64::MAX)?;
            let undone = filter::undo(filters, chunk.mask, stored, self.chunk_bytes() as usize);
            undone.map_err(|reason| input.damaged(reason))?;
        }
        Ok(())
    }
}

/// Returns the element that stands for those never written; nothing for zeros.
fn fill(metadata: &Metadata<'_>, new: Option<&[u8]>, old: Option<&[u8]>, size: u64) -> Result<Vec<u8>> {
    let value = match (new, old) {
        (Some(message), _) => {
            let mut cursor = metadata.cursor(message);
            let version = cursor.u8()?;
            let defined = match version {
                1 | 2 => {
                    cursor.skip(2)?;
                    let defined = cursor.u8()? != 0;
                    version == 1 || defined
                }
                3 => cursor.u8()? & 0x20 != 0,
                _ => return Err(metadata.unsupported(format!("version {version} of a fill value"))),
            };
            let length = if defined { u64::from(cursor.u32()?) } else { 0 };
            cursor.take(length)?
        }
        (None, Some(message)) => {
            let mut cursor = metadata.cursor(message);
            let length = u64::from(cursor.u32()?);
            cursor.take(length)?
        }
        (None, None) => &[],
    };
    match value.len() as u64 {
        0 => Ok(Vec::new()),
        length if length == size => Ok(value.to_vec()),
        _ => Err(metadata.damaged("a fill value has another length than the elements")),
    }
}

fn layout(
    metadata: &Metadata<'_>,
    message: &[u8],
    shape: &[u64],
    kind: &Type,
    bytes: u64,
    filters: Vec<Filter>,
    indices: &mut Indices,
) -> Result<Layout> {
    let mut cursor = metadata.cursor(message);
    let version = cursor.u8()?;
    if version != 3 {
        return Err(metadata.unsupported(format!("version {version} of the place of a dataset's bytes")));
    }
    match cursor.u8()? {
        0 => {
            let length = u64::from(cursor.u16()?);
            let data = cursor.take(length)?;
            let data = usize::try_from(bytes).ok().and_then(|bytes| data.get(..bytes));
            let data = data.ok_or_else(|| metadata.damaged("a dataset has fewer bytes than its shape needs"))?;
            Ok(Layout::Compact(data.to_vec()))
        }
        1 => {
            let (address, size) = (cursor.u64()?, cursor.u64()?);
            if address == UNDEFINED {
                return Ok(Layout::Fill);
            }
            let end = address.checked_add(bytes).filter(|end| *end <= metadata.input.len() && size >= bytes);
            end.map(|_| Layout::Contiguous(address)).ok_or_else(|| {
                metadata.damaged(format!("a dataset of {bytes} bytes lies outside of it: it is cut off or damaged"))
            })
        }
        2 => {
            let rank = usize::from(cursor.u8()?);
            let tree = cursor.u64()?;
            let lengths: Result<Vec<u64>> = (0..rank).map(|_| cursor.u32().map(u64::from)).collect();
            let mut chunk = lengths?;
            let element = chunk.pop();
            let sound = chunk.len() == shape.len() && element == Some(kind.size) && !chunk.contains(&0);
            let size = chunk.iter().try_fold(kind.size, |all, length| all.checked_mul(*length));
            if !sound || size.is_none_or(|size| size > u64::from(u32::MAX)) {
                return Err(metadata.damaged("the chunks of a dataset do not fit its shape"));
            }
            let index = match indices.get(&tree) {
                _ if tree == UNDEFINED => Arc::default(),
                Some(known) => {
                    // As if it were read again: it is compared with the shape again.
                    metadata.charge((known.len() * (24 + 8 * chunk.len())) as u64)?;
                    known.clone()
                }
                None => {
                    let index = Arc::new(index(metadata, tree, chunk.len())?);
                    indices.insert(tree, index.clone());
                    index
                }
            };
            check_index(metadata, &index, shape, &chunk)?;
            Ok(Layout::Chunked { chunk, filters, index })
        }
        class => Err(metadata.unsupported(format!("a dataset's bytes are in a place of class {class}"))),
    }
}

/// Returns the chunks of a tree.
fn index(metadata: &Metadata<'_>, tree: u64, rank: usize) -> Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    for (key, address) in leaves(metadata, tree, 1, 8 + 8 * (rank as u64 + 1))? {
        let mut cursor = metadata.cursor(&key);
        let (size, mask) = (u64::from(cursor.u32()?), cursor.u32()?);
        let offset: Result<Vec<u64>> = (0..rank).map(|_| cursor.u64()).collect();
        chunks.push(Chunk { offset: offset?, address, size, mask });
    }
    Ok(chunks)
}

/// Every chunk is in the file, at its place in the dataset, once.
fn check_index(metadata: &Metadata<'_>, index: &[Chunk], shape: &[u64], lengths: &[u64]) -> Result<()> {
    for chunk in index {
        let end = chunk.address.checked_add(chunk.size).filter(|end| *end <= metadata.input.len());
        let fits = chunk.offset.len() == shape.len()
            && chunk.offset.iter().zip(lengths).zip(shape).all(|((o, length), all)| o % length == 0 && o < all);
        if end.is_none() || !fits {
            return Err(metadata.damaged("a chunk lies outside of the file or of its dataset"));
        }
    }
    match index.windows(2).all(|pair| pair[0].offset < pair[1].offset) {
        true => Ok(()),
        false => Err(metadata.damaged("the chunks of a dataset are not in order")),
    }
}

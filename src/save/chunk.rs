//! A file's bytes, cut for the threads: spans of whole tensors, one thread each at a time, and in them chunks that
//! begin and end on pages, written one by one.

use super::SaveOptions;
use super::lazy::Lazy;
use super::plan::{Plan, PlannedFile, PlannedTensor};
use crate::error::{Error, Result};
use crate::graph::{TensorBytes, TensorPin, bytes_as};
use crate::repository::{DIRECT, PAGE};
use std::ops::Range;
use std::sync::Arc;

/// Bytes gathered, digested and written at a time, unless the user says.
const CHUNK: usize = 4 << 20;

/// The same for files that always go through the page cache, and are small: new memory for a whole chunk would take
/// longer than their bytes, so that they make do with little of it, which stays in the core's cache.
const SMALL_CHUNK: usize = 64 << 10;

/// A span is not made smaller than this.
const MIN_SPAN: u64 = 16 << 20;

/// A part of a file: whole tensors; the first of a file has the header too.
pub(crate) struct Span {
    /// The file's place in `Plan::files`.
    pub file: usize,
    pub chunks: Vec<Chunk>,
}

/// Consecutive bytes of a span. All but the first and the last begin and end on a page of the file.
#[derive(Clone)]
pub(crate) struct Chunk {
    /// In the file.
    pub offset: u64,
    pub length: usize,
    pub parts: Vec<Part>,
}

/// Consecutive bytes of one source.
#[derive(Clone)]
pub(crate) struct Part {
    pub source: Source,
    /// In the source.
    pub from: usize,
    /// In the chunk.
    pub at: Range<usize>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Source {
    Header,
    /// By place in `Plan::tensors`.
    Tensor(usize),
}

/// Cuts a file into spans of about equal length for the threads, between tensors, and these into chunks.
pub(super) fn spans(place: usize, file: &PlannedFile, tensors: &[PlannedTensor], options: &SaveOptions) -> Vec<Span> {
    let target = file.bytes.div_ceil(options.threads.max(1) as u64).max(MIN_SPAN);
    let mut spans = Vec::new();
    let capacity = options.chunk_bytes.unwrap_or(if file.bytes < DIRECT { SMALL_CHUNK } else { CHUNK });
    let mut cutter = Cutter::new(0, capacity);
    cutter.add(Source::Header, file.header.len());
    for &tensor in &file.tensors {
        let range = &tensors[tensor].range;
        if cutter.total >= target {
            let next = Cutter::new(range.start, capacity);
            spans.push(Span { file: place, chunks: std::mem::replace(&mut cutter, next).finish() });
        }
        cutter.add(Source::Tensor(tensor), (range.end - range.start) as usize);
    }
    spans.push(Span { file: place, chunks: cutter.finish() });
    spans
}

struct Cutter {
    chunks: Vec<Chunk>,
    current: Chunk,
    total: u64,
    /// A chunk's length.
    capacity: usize,
}

impl Cutter {
    fn new(offset: u64, capacity: usize) -> Cutter {
        Cutter { chunks: Vec::new(), current: Chunk { offset, length: 0, parts: Vec::new() }, total: 0, capacity }
    }

    fn add(&mut self, source: Source, length: usize) {
        let mut from = 0;
        while from < length {
            // A span that begins inside a page has a first chunk that ends with that page.
            let misaligned = self.current.offset as usize % PAGE;
            let capacity = if misaligned == 0 { self.capacity } else { PAGE - misaligned };
            let now = (capacity - self.current.length).min(length - from);
            let at = self.current.length..self.current.length + now;
            self.current.parts.push(Part { source, from, at });
            self.current.length += now;
            from += now;
            if self.current.length == capacity {
                let next = Chunk { offset: self.current.offset + capacity as u64, length: 0, parts: Vec::new() };
                self.chunks.push(std::mem::replace(&mut self.current, next));
            }
        }
        self.total += length as u64;
    }

    fn finish(mut self) -> Vec<Chunk> {
        if self.current.length > 0 {
            self.chunks.push(self.current);
        }
        self.chunks
    }
}

/// The memory that tensors of a plan had at the call, where that is held.
#[derive(Default)]
pub(super) struct Pins {
    /// What is held from save to save.
    pub lazy: Option<Arc<Lazy>>,
    /// By place in `Plan::tensors`, what is held for this save; nothing where that is nothing at all.
    pub fresh: Vec<Option<Box<dyn TensorPin>>>,
}

impl Pins {
    pub(super) fn get(&self, place: usize) -> Option<&dyn TensorPin> {
        let fresh = self.fresh.get(place).and_then(Option::as_deref);
        fresh.or_else(|| self.lazy.as_ref()?.kept(place))
    }
}

/// Copies tensors' bytes into chunks; keeps the last tensor open, since a large one fills many chunks. What is pinned is
/// read from the memory that it had at the call.
pub(super) struct Gatherer<'a> {
    plan: &'a Plan,
    pins: &'a Pins,
    open: Option<(usize, Box<dyn TensorBytes + 'a>)>,
}

impl<'a> Gatherer<'a> {
    pub(super) fn new(plan: &'a Plan, pins: &'a Pins) -> Self {
        Gatherer { plan, pins, open: None }
    }

    /// Fills the parts of a chunk that `wanted` names; `buffer` has the chunk's length.
    pub(super) fn gather(
        &mut self,
        span: &Span,
        chunk: &Chunk,
        buffer: &mut [u8],
        wanted: impl Fn(Source) -> bool,
    ) -> Result<()> {
        for part in chunk.parts.iter().filter(|part| wanted(part.source)) {
            let target = &mut buffer[part.at.clone()];
            match part.source {
                Source::Header => {
                    let header = &self.plan.files[span.file].header;
                    target.copy_from_slice(&header[part.from..part.from + target.len()]);
                }
                Source::Tensor(place) => {
                    let tensor = &self.plan.tensors[place];
                    let is_whole = target.len() as u64 == tensor.range.end - tensor.range.start;
                    if is_whole && self.pins.get(place).is_none() {
                        let copied = tensor.leaf.copy_to(&tensor.spec, target);
                        copied.map_err(|reason| Error::object(&tensor.key, reason))?;
                    } else {
                        let bytes = self.tensor(place)?;
                        target.copy_from_slice(&bytes[part.from..part.from + target.len()]);
                    }
                }
            }
        }
        Ok(())
    }

    fn tensor(&mut self, place: usize) -> Result<&[u8]> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != place) {
            self.open = None;
            let tensor = &self.plan.tensors[place];
            let failed = |reason| Error::object(&tensor.key, reason);
            let bytes = match self.pins.get(place) {
                Some(pin) => pin.bytes().map_err(failed)?,
                None => bytes_as(&*tensor.leaf, &tensor.spec).map_err(failed)?,
            };
            if bytes.as_slice().len() as u64 != tensor.range.end - tensor.range.start {
                return Err(failed("its size changed while it was being saved".to_string()));
            }
            self.open = Some((place, bytes));
        }
        Ok(self.open.as_ref().map_or(&[], |(_, bytes)| bytes.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{Dtype, TensorSpec};
    use crate::graph::{TensorLeaf, TensorTarget};
    use proptest::prelude::*;

    struct Numbered(usize, usize);

    impl TensorLeaf for Numbered {
        fn spec(&self) -> Result<TensorSpec, String> {
            Ok(TensorSpec::new(Dtype::U8, [self.1 as u64]))
        }
        fn bytes(&self) -> Result<Box<dyn TensorBytes>, String> {
            let mut bytes = vec![(self.0 * 7) as u8; self.1];
            bytes.chunks_mut(1000).enumerate().for_each(|(i, row)| row[0] = i as u8);
            Ok(Box::new(bytes))
        }
        fn target(&self) -> Result<Box<dyn TensorTarget>, String> {
            Err("read only".into())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn chunks_are_the_file(lengths in prop::collection::vec(prop_oneof![0usize..10_000, 1_000_000usize..9_000_000], 0..12), threads in 1usize..5, pages in prop::option::of(1usize..2000)) {
            let header = vec![0xAB; 4096];
            let mut tensors = Vec::new();
            let mut expected = header.clone();
            for (i, &length) in lengths.iter().enumerate() {
                let leaf: Arc<dyn TensorLeaf> = Arc::new(Numbered(i, length));
                let range = expected.len() as u64..(expected.len() + length) as u64;
                expected.extend_from_slice(leaf.bytes().unwrap().as_slice());
                let spec = leaf.spec().unwrap();
                tensors.push(PlannedTensor { key: i.to_string(), name_in_file: i.to_string(), spec, leaf, range, area: None, address: None, guarded: false });
            }
            let file = PlannedFile { name: "f".into(), header: header.into(), bytes: expected.len() as u64, tensors: (0..lengths.len()).collect() };
            let chunk_bytes = pages.map(|pages| pages * PAGE);
            let spans = spans(0, &file, &tensors, &SaveOptions { threads, chunk_bytes, ..SaveOptions::default() });
            let mut plan = Plan::default();
            plan.files.push(file);
            plan.tensors = tensors;
            let mut written = vec![0; expected.len()];
            let mut bytes = 0;
            for span in &spans {
                let inner = span.chunks.len().saturating_sub(1);
                for (i, chunk) in span.chunks.iter().enumerate() {
                    prop_assert!(chunk.length <= chunk_bytes.unwrap_or(CHUNK) && (i == 0 || chunk.offset % PAGE as u64 == 0));
                    prop_assert!(i == inner || (chunk.offset as usize + chunk.length).is_multiple_of(PAGE));
                    let pins = Pins::default();
                    let mut gatherer = Gatherer::new(&plan, &pins);
                    let mut buffer = vec![0; chunk.length];
                    gatherer.gather(span, chunk, &mut buffer, |_| true).unwrap();
                    written[chunk.offset as usize..][..chunk.length].copy_from_slice(&buffer);
                    bytes += chunk.length;
                }
            }
            prop_assert_eq!(bytes, expected.len());
            prop_assert!(written == expected);
        }
    }
}

//! Divides a file's bytes among threads: spans of whole tensors, each written by one thread, consisting of chunks that
//! start and end on pages.

use super::options::Layout;
use crate::repository::{DIRECT, PAGE};
use std::ops::Range;

/// The default number of bytes that are gathered, digested and written at a time.
pub(super) const CHUNK: usize = 4 << 20;

/// The same for small files, which always go through the page cache: allocating a full chunk would take longer than
/// writing their bytes, and a small chunk stays in the core's cache.
const SMALL_CHUNK: usize = 64 << 10;

/// The minimum size of a span in bytes.
const MIN_SPAN: u64 = 16 << 20;

/// A part of a file: whole tensors. The first one of a file includes the header.
#[derive(Clone)]
pub(crate) struct Span {
    /// The file's place in `Plan::files`.
    pub file: usize,
    pub chunks: Vec<Chunk>,
}

/// Consecutive bytes of a span. All except the first and the last start and end on a page of the file.
#[derive(Clone)]
pub(crate) struct Chunk {
    /// The offset in the file.
    pub offset: u64,
    pub length: usize,
    pub parts: Vec<Part>,
}

/// Consecutive bytes of one source.
#[derive(Clone)]
pub(crate) struct Part {
    pub source: Source,
    /// The offset in the source.
    pub from: usize,
    /// The range in the chunk.
    pub at: Range<usize>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Source {
    Header,
    /// By place in `Plan::tensors`.
    Tensor(usize),
}

/// Divides a file of `bytes`, at this place of the plan, into spans of whole tensors of about equal length for the
/// threads, and these into chunks. `tensors` has the places of its tensors and their bytes, which follow the header.
pub(super) fn spans(
    place: usize,
    bytes: u64,
    header: usize,
    tensors: impl Iterator<Item = (usize, Range<u64>)>,
    layout: &Layout,
) -> Vec<Span> {
    let target = bytes.div_ceil(layout.threads.max(1) as u64).max(MIN_SPAN);
    let mut spans = Vec::new();
    let capacity = layout.chunk_bytes.unwrap_or(if bytes < DIRECT { SMALL_CHUNK } else { CHUNK });
    let mut cutter = Cutter::new(0, capacity);
    cutter.add(Source::Header, header);
    for (tensor, range) in tensors {
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
            // The first chunk of a span that starts inside a page ends with that page.
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

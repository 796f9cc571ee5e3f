//! Writing the planned bytes. Each thread takes a span and goes through its chunks: gathers the tensors' bytes (or
//! takes them from an image captured before), digests them while they are in the cache, and writes them. Whoever
//! ends a large file's last span syncs it, while the others go on; small files are synced together in the end.

use super::SaveOptions;
use super::buffer::PageBuffer;
use super::chunk::{Chunk, Gatherer, Part, Source, Span};
use super::image::Image;
use super::plan::{Plan, PlannedFile};
use super::unchanged::Unchanged;
use crate::error::Result;
use crate::format::{Digest, FileEntry, Hasher, HeaderEntry, Piece, TensorRecord};
use crate::parallel;
use crate::progress::Tally;
use crate::store::{Finished, PAGE, StagedFile, Staging};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// So many bytes stay in a core's cache from being digested to being written.
const CACHED: usize = 512 << 10;

/// What was written.
pub(crate) struct Written {
    pub files: BTreeMap<String, FileEntry>,
    pub tensors: BTreeMap<String, TensorRecord>,
    /// Which files, by place in the plan, are the last checkpoint's.
    pub linked: Vec<bool>,
    /// What the others were when they were finished.
    pub finished: Vec<Option<Finished>>,
}

/// A file being written. It is open from its first span to its last, so that many files need few open ones.
struct FileInWork<'a> {
    staged: Mutex<Option<Arc<StagedFile<'a>>>>,
    spans_left: AtomicUsize,
    finished: OnceLock<Finished>,
}

impl<'a> FileInWork<'a> {
    fn new(spans: usize) -> FileInWork<'a> {
        FileInWork { staged: Mutex::new(None), spans_left: AtomicUsize::new(spans), finished: OnceLock::new() }
    }

    /// The file, created by whoever comes first.
    fn open(&self, staging: &'a Staging<'_>, planned: &PlannedFile) -> Result<Arc<StagedFile<'a>>> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*staged {
            return Ok(open.clone());
        }
        let new = Arc::new(staging.create(&planned.name, planned.bytes)?);
        Ok(staged.insert(new).clone())
    }

    /// A span is written; the last one ends the file.
    fn wrote(&self, file: Arc<StagedFile<'a>>) -> Result<()> {
        drop(file);
        if self.spans_left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner).take();
        // All others have let go of it.
        if let Some(staged) = staged.and_then(Arc::into_inner) {
            let _ = self.finished.set(staged.finish()?);
        }
        Ok(())
    }
}

/// Writes all files of a plan, from the live tensors or from `image`; those that are unchanged get a second name
/// instead.
pub(super) fn write(
    plan: &Plan,
    image: Option<&Image>,
    unchanged: &Unchanged,
    staging: &Staging<'_>,
    options: &SaveOptions,
) -> Result<Written> {
    let threads = parallel::worth(options.threads, plan.bytes());
    let tally = options.observer.begin(plan.bytes());
    let mut digests = vec![Digest::of(&[]); plan.tensors.len()];
    let mut files = Vec::with_capacity(plan.files.len());
    for (place, planned) in plan.files.iter().enumerate() {
        if link(plan, place, unchanged, staging, threads, image.is_some(), &mut digests)? {
            tally.add(planned.bytes);
            files.push(None);
            continue;
        }
        let spans = plan.spans.iter().filter(|span| span.file == place).count();
        files.push(Some(FileInWork::new(spans)));
    }
    let linked: Vec<bool> = files.iter().map(Option::is_none).collect();
    let written = plan.files.iter().zip(&linked).filter(|(_, linked)| !**linked);
    staging.make_room(&written.map(|(planned, _)| planned.bytes).collect::<Vec<u64>>());
    let spans: Vec<(usize, &Span)> = plan.spans.iter().enumerate().collect();
    let digests = Mutex::new(digests);
    let longest = spans.iter().flat_map(|(_, span)| &span.chunks).map(|chunk| chunk.length).max().unwrap_or_default();
    let write_span = |&(place, span): &(usize, &Span), buffer: &mut PageBuffer| {
        let Some(file) = &files[span.file] else { return Ok(()) };
        let staged = file.open(staging, &plan.files[span.file])?;
        let mut writer = SpanWriter { plan, file: &staged, tally: &tally, current: None, digests: Vec::new() };
        let mut gatherer = Gatherer::new(plan);
        // What was thought to be unchanged was not captured; that it is unchanged was found out just now.
        let image = image.filter(|_| !unchanged.has(span.file));
        for (i, chunk) in span.chunks.iter().enumerate() {
            if let Some(image) = image {
                writer.write(chunk, image.chunk(place, i).as_slice())?;
                continue;
            }
            // What goes past the page cache must lie on pages.
            if !staged.is_direct()
                && let Some(bytes) = gatherer.in_place(chunk)?
            {
                writer.write(chunk, bytes)?;
                continue;
            }
            if buffer.as_slice().is_empty() {
                *buffer = PageBuffer::new(longest)?;
            }
            let buffer = &mut buffer.as_mut_slice()[..chunk.length];
            gatherer.gather(span, chunk, buffer, |_| true)?;
            writer.write(chunk, buffer)?;
        }
        let finished = writer.finish();
        let mut digests = digests.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, digest) in finished {
            digests[place] = digest;
        }
        drop(digests);
        file.wrote(staged)
    };
    parallel::for_each(&spans, threads, PageBuffer::default, write_span)?;
    let digests = digests.into_inner().unwrap_or_else(PoisonError::into_inner);
    let finished = files.into_iter().map(|file| file.and_then(|file| file.finished.into_inner())).collect();
    let entry = |planned: &PlannedFile| {
        let header = HeaderEntry { bytes: planned.header.len() as u64, digest: Digest::of(&planned.header) };
        (planned.name.clone(), FileEntry { bytes: planned.bytes, header })
    };
    Ok(Written { files: plan.files.iter().map(entry).collect(), tensors: records(plan, &digests), linked, finished })
}

/// Gives the last checkpoint's file another name if it holds what is to be saved; says whether it did.
fn link(
    plan: &Plan,
    place: usize,
    unchanged: &Unchanged,
    staging: &Staging<'_>,
    threads: usize,
    captured: bool,
    digests: &mut [Digest],
) -> Result<bool> {
    let known = match unchanged.digests(plan, place, threads) {
        Ok(Some(known)) => known,
        Ok(None) => return Ok(false),
        // In the background the state of the call is gone; otherwise it is still there to be written.
        Err(error) if captured => return Err(error),
        Err(_) => return Ok(false),
    };
    let planned = &plan.files[place];
    let Some((earlier, finished)) = unchanged.shared(place) else { return Ok(false) };
    if let Err(e) = staging.link(earlier, &planned.name, &finished) {
        log::debug!("{} is written again: {e}", planned.name);
        return Ok(false);
    }
    for (place, digest) in known {
        digests[place] = digest;
    }
    Ok(true)
}

/// Digests and writes the chunks of one span, in order.
struct SpanWriter<'a> {
    plan: &'a Plan,
    file: &'a StagedFile<'a>,
    tally: &'a Tally,
    /// The large tensor that the last chunk ended in.
    current: Option<(usize, Hasher)>,
    digests: Vec<(usize, Digest)>,
}

impl SpanWriter<'_> {
    fn write(&mut self, chunk: &Chunk, bytes: &[u8]) -> Result<()> {
        self.digest_and_write(chunk, bytes)?;
        self.tally.add(chunk.length as u64);
        Ok(())
    }

    fn digest_and_write(&mut self, chunk: &Chunk, bytes: &[u8]) -> Result<()> {
        if !self.file.is_direct() && chunk.parts.len() == 1 {
            // While a piece is in the core's cache it is digested and written.
            for (i, piece) in bytes[..chunk.length].chunks(CACHED).enumerate() {
                self.digest(&chunk.parts[0], piece);
                self.file.write_all_at(chunk.offset + (i * CACHED) as u64, piece)?;
            }
            return Ok(());
        }
        for part in &chunk.parts {
            self.digest(part, &bytes[part.at.clone()]);
        }
        // What does not fill a page is shared with a neighbour, or ends the file: it goes through the page cache.
        let whole = if chunk.offset.is_multiple_of(PAGE as u64) { chunk.length / PAGE * PAGE } else { 0 };
        let (pages, rest) = bytes[..chunk.length].split_at(whole);
        if !pages.is_empty() {
            self.file.write_all_at(chunk.offset, pages)?;
        }
        if !rest.is_empty() {
            self.file.write_all_at(chunk.offset + whole as u64, rest)?;
        }
        Ok(())
    }

    /// Takes in the next bytes of a part.
    fn digest(&mut self, part: &Part, bytes: &[u8]) {
        let Source::Tensor(place) = part.source else { return };
        let range = &self.plan.tensors[place].range;
        if bytes.len() as u64 == range.end - range.start {
            return self.digests.push((place, Digest::of(bytes)));
        }
        if self.current.as_ref().is_none_or(|(current, _)| *current != place) {
            self.next(Some(place));
        }
        if let Some((_, hasher)) = &mut self.current {
            hasher.update(bytes);
        }
    }

    fn next(&mut self, place: Option<usize>) {
        let next = place.map(|place| (place, Hasher::new()));
        if let Some((done, hasher)) = std::mem::replace(&mut self.current, next) {
            self.digests.push((done, hasher.finish()));
        }
    }

    fn finish(mut self) -> Vec<(usize, Digest)> {
        self.next(None);
        self.digests
    }
}

/// The manifest's entries: one for every key, those of shared memory pointing to the same bytes.
fn records(plan: &Plan, digests: &[Digest]) -> BTreeMap<String, TensorRecord> {
    let record = |file: &PlannedFile, place: usize| {
        let tensor = &plan.tensors[place];
        let (begin, end) = (tensor.range.start, tensor.range.end);
        let piece = Piece { file: file.name.clone(), name: tensor.name_in_file.clone(), begin, end, slice: None };
        TensorRecord { spec: tensor.spec.clone(), digest: digests[place], pieces: vec![piece], requires_grad: None }
    };
    let places = plan.files.iter().flat_map(|file| file.tensors.iter().map(move |&place| (file, place)));
    let mut records: BTreeMap<String, TensorRecord> =
        places.map(|(file, place)| (plan.tensors[place].key.clone(), record(file, place))).collect();
    for (alias, place) in &plan.aliases {
        let same = records.get(&plan.tensors[*place].key).cloned();
        records.extend(same.map(|record| (alias.clone(), record)));
    }
    records
}

//! Writes the planned bytes. Each thread takes a span and processes its chunks: it gathers the tensors' bytes in a
//! buffer (or takes them from an image captured before), digests them while they are in the cache, and writes the same
//! bytes, even if the tensors change meanwhile. The thread that completes the last span of a large file syncs it while
//! the others continue; small files are synced together at the end.

use super::buffer::PageBuffer;
use super::chunk::{Chunk, Part, Source, Span};
use super::gather::{Gatherer, Pins};
use super::image::Image;
use super::plan::{Plan, PlannedFile};
use super::scan::Scan;
use super::unchanged::Unchanged;
use super::{Health, SaveOptions};
use crate::error::{Error, Result};
use crate::format::{Digest, FileEntry, Hasher, HeaderEntry, Piece, Statistics, TensorRecord};
use crate::parallel;
use crate::progress::Tally;
use crate::repository::{Directory, Finished, PAGE, ReadFile, StagedFile, Transaction};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The number of bytes that stay in a core's cache from being digested to being written.
const CACHED: usize = 512 << 10;
/// The number of bytes that stay in the nearest cache from being digested to being searched for values.
const SCANNED: usize = 64 << 10;

/// The result of writing.
pub(crate) struct Written {
    pub files: BTreeMap<String, FileEntry>,
    pub tensors: BTreeMap<String, TensorRecord>,
    /// The files, by place in the plan, that are the last checkpoint's.
    pub linked: Vec<bool>,
    /// The states of the other files when they were finished.
    pub finished: Vec<Option<Finished>>,
    /// Whether a file of the last checkpoint could not be linked.
    pub cannot_link: bool,
}

/// The origin of a file's bytes.
enum From<'a> {
    Image(&'a Image),
    Live,
    /// The file of the last checkpoint, which has the state at the time of the call and could not be linked.
    Last(Arc<dyn ReadFile>),
}

type Staged<'a> = Box<dyn StagedFile + 'a>;

/// A file being written. It is open only from its first span to its last, so that few of many files are open at a time.
struct FileInWork<'a> {
    staged: Mutex<Option<Arc<Staged<'a>>>>,
    from: From<'a>,
    spans_left: AtomicUsize,
    finished: OnceLock<Finished>,
}

impl<'a> FileInWork<'a> {
    fn new(from: From<'a>, spans: usize) -> FileInWork<'a> {
        FileInWork { staged: Mutex::new(None), from, spans_left: AtomicUsize::new(spans), finished: OnceLock::new() }
    }

    /// Returns the file, which the first caller creates.
    fn open(&self, staging: &'a dyn Transaction, planned: &PlannedFile) -> Result<Arc<Staged<'a>>> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*staged {
            return Ok(open.clone());
        }
        let new = Arc::new(staging.create(&planned.name, planned.bytes)?);
        Ok(staged.insert(new).clone())
    }

    /// Records that a span is written; the last one finishes the file.
    fn wrote(&self, file: Arc<Staged<'a>>, bytes: u64) -> Result<()> {
        drop(file);
        if self.spans_left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner).take();
        // All other threads have released it.
        if let Some(staged) = staged.and_then(Arc::into_inner) {
            let _ = self.finished.set(staged.finish(bytes)?);
        }
        Ok(())
    }
}

/// Writes all files of a plan, from `image`, or from the live tensors if there is none. Unchanged files are hard-linked
/// instead. Files of the lengths `beside` will be written afterwards.
pub(super) fn write(
    plan: &Plan,
    image: Option<&Image>,
    unchanged: &Unchanged,
    beside: &[u64],
    directory: &Directory,
    staging: &dyn Transaction,
    options: &SaveOptions,
) -> Result<Written> {
    let threads = parallel::worth(options.threads, plan.bytes());
    let tally = options.observer.begin(plan.bytes());
    let noted = Mutex::new(vec![Noted { digest: Digest::of(&[]), statistics: None }; plan.tensors.len()]);
    let longest = plan.spans.iter().flat_map(|span| &span.chunks).map(|chunk| chunk.length).max().unwrap_or_default();
    let pins = Pins::default();
    let keys = plan.tensors.iter().enumerate().map(|(place, tensor)| (tensor.key.as_str(), place));
    let keys = keys.chain(plan.aliases.iter().map(|(key, place)| (key.as_str(), *place)));
    let health = options.health_of(keys, plan.tensors.len());
    let work = Work { plan, image, unchanged, directory, staging, threads, tally, health, longest, pins, noted };

    let mut cannot_link = false;
    let mut files = Vec::with_capacity(plan.files.len());
    for file in 0..plan.files.len() {
        let same = work.same(file);
        let is_linked = same.as_ref().is_some_and(|digests| work.link(file, digests));
        cannot_link |= same.is_some() && !is_linked;
        files.push(if is_linked { None } else { Some(work.start(file, same.is_some())) });
    }
    let linked: Vec<bool> = files.iter().map(Option::is_none).collect();
    work.make_room(&linked, beside);

    let spans: Vec<(usize, &Span)> = plan.spans.iter().enumerate().collect();
    let write_span = |&(place, span): &(usize, &Span), buffer: &mut PageBuffer| match &files[span.file] {
        Some(file) => work.write_span(place, span, file, buffer),
        None => Ok(()),
    };
    parallel::for_each(&spans, threads, PageBuffer::default, write_span)?;

    let finished = files.into_iter().map(|file| file.and_then(|file| file.finished.into_inner())).collect();
    let noted = work.noted.into_inner().unwrap_or_else(PoisonError::into_inner);
    let files = plan.files.iter().map(entry).collect();
    Ok(Written { files, tensors: records(plan, &noted), linked, finished, cannot_link })
}

/// Returns a file's entry in the manifest, with its name.
fn entry(planned: &PlannedFile) -> (String, FileEntry) {
    let header = HeaderEntry { bytes: planned.header.len() as u64, digest: Digest::of(&planned.header) };
    (planned.name.clone(), FileEntry { bytes: planned.bytes, header })
}

/// The state that the writing threads share. Files, spans and tensors are numbered as in the plan.
struct Work<'a> {
    plan: &'a Plan,
    image: Option<&'a Image>,
    unchanged: &'a Unchanged,
    directory: &'a Directory,
    staging: &'a dyn Transaction,
    threads: usize,
    tally: Tally,
    /// What is recorded about each tensor.
    health: Vec<Health>,
    /// The length of the longest chunk.
    longest: usize,
    /// Tensors are read while they are written, and none is pinned.
    pins: Pins,
    noted: Mutex<Vec<Noted>>,
}

impl<'a> Work<'a> {
    /// Returns the digests of a file's tensors if they are those of the last checkpoint.
    fn same(&self, file: usize) -> Option<Vec<(usize, Digest)>> {
        match self.image {
            Some(_) if self.unchanged.is_proved(file) => self.unchanged.known(self.plan, file),
            Some(image) => self.unchanged.known(self.plan, file).filter(|known| image.has(self.plan, file, known)),
            None => self.unchanged.live_digests(self.plan, file, self.threads),
        }
    }

    /// Hard-links the last checkpoint's file. Returns `false` if the file must be written again.
    fn link(&self, file: usize, digests: &[(usize, Digest)]) -> bool {
        let planned = &self.plan.files[file];
        let Some((earlier, is)) = self.unchanged.shared(file) else { return false };
        if let Err(e) = self.staging.reuse(&planned.name, earlier, &is) {
            log::debug!("{} is written again: {e:#}", planned.name);
            return false;
        }
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        for (&(tensor, digest), statistics) in digests.iter().zip(self.unchanged.statistics(file)) {
            noted[tensor] = Noted { digest, statistics: *statistics };
        }
        self.tally.add(planned.bytes);
        true
    }

    /// Decides the origin of a file's bytes; `is_same` if they are those of the last checkpoint.
    fn start(&self, file: usize, is_same: bool) -> FileInWork<'a> {
        let from = match self.image {
            Some(image) => match self.unchanged.last(file).filter(|_| is_same) {
                Some(last) => From::Last(last),
                None => From::Image(image),
            },
            None => From::Live,
        };
        FileInWork::new(from, self.plan.spans.iter().filter(|span| span.file == file).count())
    }

    fn make_room(&self, linked: &[bool], beside: &[u64]) {
        let written = self.plan.files.iter().zip(linked).filter(|(_, linked)| !**linked);
        let lengths = written.map(|(planned, _)| planned.bytes).chain(beside.iter().copied());
        self.staging.make_room(&lengths.collect::<Vec<u64>>());
    }

    fn write_span(&self, place: usize, span: &Span, file: &FileInWork<'a>, buffer: &mut PageBuffer) -> Result<()> {
        let planned = &self.plan.files[span.file];
        let staged = file.open(self.staging, planned)?;
        let mut writer = SpanWriter {
            plan: self.plan,
            file: &**staged,
            tally: &self.tally,
            health: &self.health,
            current: None,
            done: Vec::new(),
        };
        match &file.from {
            From::Image(image) => {
                for (i, chunk) in span.chunks.iter().enumerate() {
                    writer.write(chunk, image.chunk(place, i).as_slice())?;
                }
            }
            From::Live => self.write_gathered(span, None, &mut writer, buffer)?,
            From::Last(last) => self.write_gathered(span, Some(&**last), &mut writer, buffer)?,
        }
        let finished = writer.finish();
        if let From::Last(_) = &file.from {
            self.must_be_known(span.file, &finished)?;
        }
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        finished.into_iter().for_each(|(tensor, one)| noted[tensor] = one);
        drop(noted);
        file.wrote(staged, planned.bytes)
    }

    /// Writes a span from the live tensors, or from the last checkpoint's file with a new header.
    fn write_gathered(
        &self,
        span: &Span,
        last: Option<&dyn ReadFile>,
        writer: &mut SpanWriter<'_>,
        buffer: &mut PageBuffer,
    ) -> Result<()> {
        let mut gatherer = Gatherer::new(self.plan, &self.pins);
        if buffer.as_slice().is_empty() {
            *buffer = PageBuffer::new(self.longest)?;
        }
        for chunk in span.chunks.iter().flat_map(|chunk| pieces(chunk, writer.file.is_direct())) {
            let buffer = &mut buffer.as_mut_slice()[..chunk.length];
            if let Some(last) = last {
                let path = || self.unchanged.path_in_last(self.plan, span.file, self.directory);
                last.read_exact_at(chunk.offset, buffer).map_err(|e| Error::io("read", path(), e))?;
            }
            gatherer.gather(span, &chunk, buffer, |source| last.is_none() || source == Source::Header)?;
            writer.write(&chunk, buffer)?;
        }
        Ok(())
    }

    /// Returns an error for bytes of the last checkpoint that differ from what was written then.
    fn must_be_known(&self, file: usize, finished: &[(usize, Noted)]) -> Result<()> {
        let known = self.unchanged.known(self.plan, file).unwrap_or_default();
        let changed = finished.iter().find(|(tensor, noted)| !known.contains(&(*tensor, noted.digest)));
        let Some((tensor, _)) = changed else { return Ok(()) };
        let reason = format!("the tensor {:?} has changed since it was written", self.plan.tensors[*tensor].key);
        Err(Error::damaged(self.unchanged.path_in_last(self.plan, file, self.directory), reason))
    }
}

/// The size of the pieces of a chunk: small enough to stay in the core's cache from being gathered to being written,
/// except for direct writes, which should be long.
fn pieces(chunk: &Chunk, is_direct: bool) -> Vec<Cow<'_, Chunk>> {
    let [part] = chunk.parts.as_slice() else { return vec![Cow::Borrowed(chunk)] };
    if is_direct || chunk.length <= CACHED {
        return vec![Cow::Borrowed(chunk)];
    }
    let piece = |at: usize| {
        let length = CACHED.min(chunk.length - at);
        let parts = vec![Part { source: part.source, from: part.from + at, at: 0..length }];
        Cow::Owned(Chunk { offset: chunk.offset + at as u64, length, parts })
    };
    (0..chunk.length).step_by(CACHED).map(piece).collect()
}

/// The result of the pass over a tensor's bytes.
#[derive(Debug, Clone, Copy)]
struct Noted {
    digest: Digest,
    statistics: Option<Statistics>,
}

/// A tensor of which more bytes follow.
struct Pass {
    hasher: Hasher,
    scan: Option<Scan>,
}

impl Pass {
    fn update(&mut self, bytes: &[u8]) {
        let Some(scan) = &mut self.scan else { return self.hasher.update(bytes) };
        for piece in bytes.chunks(SCANNED) {
            self.hasher.update(piece);
            scan.update(piece);
        }
    }
}

/// Digests and writes the chunks of one span, in order.
struct SpanWriter<'a> {
    plan: &'a Plan,
    file: &'a dyn StagedFile,
    tally: &'a Tally,
    /// The large tensor in which the last chunk ended.
    current: Option<(usize, Pass)>,
    done: Vec<(usize, Noted)>,
    health: &'a [Health],
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

    /// Processes the next bytes of a part.
    fn digest(&mut self, part: &Part, bytes: &[u8]) {
        let Source::Tensor(place) = part.source else { return };
        let range = &self.plan.tensors[place].range;
        let is_whole = bytes.len() as u64 == range.end - range.start;
        if is_whole && bytes.len() <= SCANNED {
            let scan = self.scan(place).map(|mut scan| {
                scan.update(bytes);
                scan
            });
            let statistics = self.statistics(place, scan);
            return self.done.push((place, Noted { digest: Digest::of(bytes), statistics }));
        }
        if self.current.as_ref().is_none_or(|(current, _)| *current != place) {
            self.next(Some(place));
        }
        if let Some((_, pass)) = &mut self.current {
            pass.update(bytes);
        }
    }

    fn scan(&self, place: usize) -> Option<Scan> {
        let dtype = self.plan.tensors[place].spec.dtype;
        Scan::of(dtype, self.health[place])
    }

    /// Returns the part of a finished scan that is recorded.
    fn statistics(&self, place: usize, scan: Option<Scan>) -> Option<Statistics> {
        let statistics = scan?.finish();
        (statistics.non_finite > 0 || self.health[place] == Health::Statistics).then_some(statistics)
    }

    fn next(&mut self, place: Option<usize>) {
        let next = place.map(|place| (place, Pass { hasher: Hasher::new(), scan: self.scan(place) }));
        if let Some((done, pass)) = std::mem::replace(&mut self.current, next) {
            let statistics = self.statistics(done, pass.scan);
            self.done.push((done, Noted { digest: pass.hasher.finish(), statistics }));
        }
    }

    fn finish(mut self) -> Vec<(usize, Noted)> {
        self.next(None);
        self.done
    }
}

/// Returns the manifest's entries: one for every key, those of shared memory pointing to the same bytes.
fn records(plan: &Plan, noted: &[Noted]) -> BTreeMap<String, TensorRecord> {
    let record = |file: &PlannedFile, place: usize| {
        let tensor = &plan.tensors[place];
        let (begin, end) = (tensor.range.start, tensor.range.end);
        let piece = Piece { file: file.name.clone(), name: tensor.name_in_file.clone(), begin, end, slice: None };
        let (spec, Noted { digest, statistics }) = (tensor.spec.clone(), noted[place]);
        TensorRecord { spec, digest, pieces: vec![piece], requires_grad: None, statistics }
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

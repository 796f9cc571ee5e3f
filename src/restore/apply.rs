//! Verifies the saved bytes and reads them into the objects.

use super::matching::{Matched, Matching};
use super::options::{RestoreOptions, Verify};
use super::origin::{Any, Origin};
use crate::error::{BoxError, Error, Result};
use crate::format::{Digest, Piece, TensorRecord};
use crate::graph::{self, Mark, Node, TensorLeaf, Touched};
use crate::location::Location;
use crate::parallel;
use crate::progress::Tally;
use crate::source::{CHUNK, Source};
use std::collections::HashMap;
use std::sync::Arc;

/// Restores the matched values. If it verifies first, an error leaves everything unchanged.
pub(crate) fn run(matching: Matching, origin: &Origin<'_>, options: &RestoreOptions) -> Result<()> {
    let tensors = &matching.tensors;
    let objects = &matching.objects;
    let overwriting = match origin {
        Origin::Ours(source) => {
            let (jobs, last) = (jobs(tensors, source, false), jobs(tensors, source, true));
            let (runs, last) = (runs(&jobs), runs(&last));
            let all = || runs.iter().chain(&last).copied();
            let bytes = all().flatten().map(Job::bytes).sum();
            let threads = parallel::worth(options.threads, bytes);
            if options.verify != Verify::Never {
                source.manifest.files.keys().try_for_each(|file| source.verify_header(file))?;
            }
            let verifies = options.verify != Verify::Never;
            let check = |tally: &Tally| verify(&all().collect::<Vec<_>>(), source, threads, tally);
            let put = |tally: &Tally| {
                read(&runs, source, verifies, threads, tally)?;
                read(&last, source, verifies, 1, tally)
            };
            in_passes(tensors, objects, &source.path, bytes, options, check, put)?
        }
        Origin::Any(any) => {
            let jobs = any_jobs(tensors, any);
            let (last, first): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.overlaps);
            let bytes = jobs.iter().map(|job| job.bytes).sum();
            let threads = parallel::worth(options.threads, bytes);
            let check = |tally: &Tally| verify_any(&jobs, any, threads, tally);
            let put = |tally: &Tally| {
                read_any(&first, any, threads, tally)?;
                read_any(&last, any, 1, tally)
            };
            in_passes(tensors, objects, any.source.path(), bytes, options, check, put)?
        }
    };
    let path = origin.path();
    for apply in matching.values {
        apply();
    }
    for (key, leaf, requires_grad) in matching.flags {
        leaf.set_requires_grad(requires_grad).map_err(|reason| Error::PartlyRestored {
            path: path.clone(),
            source: Box::new(Error::object(key, reason)),
        })?;
    }
    for replacement in matching.collections {
        if !replacement.dropped.is_empty() {
            replacement.collection.remove(&replacement.dropped);
        }
        replacement.adopt.into_iter().for_each(|adopt| adopt());
    }
    overwriting.end();
    Ok(())
}

/// Tensors that are being overwritten. If this is dropped before the end, also by a panic, they are marked as partly
/// overwritten in the whole process.
#[must_use]
struct Overwriting<'a> {
    tensors: &'a [Matched],
    objects: &'a [(String, Node)],
}

impl Overwriting<'_> {
    /// Everything is restored.
    fn end(self) {
        graph::mark_whole(self.tensors.iter().map(|tensor| Mark::at(tensor.leaf.clone(), &tensor.key, self.objects)));
        std::mem::forget(self);
    }
}

impl Drop for Overwriting<'_> {
    fn drop(&mut self) {
        graph::mark_torn(self.tensors.iter().map(|tensor| match tensor.is_created {
            true => Mark::new(tensor.leaf.clone()),
            false => Mark::at(tensor.leaf.clone(), &tensor.key, self.objects),
        }));
    }
}

/// Verifies everything that will be used, and then reads it into the tensors.
fn in_passes<'a>(
    tensors: &'a [Matched],
    objects: &'a [(String, Node)],
    path: &Location,
    bytes: u64,
    options: &RestoreOptions,
    check: impl FnOnce(&Tally) -> Result<()>,
    put: impl FnOnce(&Tally) -> Result<()>,
) -> Result<Overwriting<'a>> {
    let passes = if options.verify == Verify::Before { 2 } else { 1 };
    let tally = options.observer.begin(passes * bytes);
    if options.verify == Verify::Before {
        check(&tally)?;
    }
    // A background save may still be copying them.
    graph::wait_for(|| {
        let mut written = Touched::default();
        tensors.iter().for_each(|tensor| written.add_leaf(&*tensor.leaf));
        written
    });
    // From here on, an error leaves the objects partly changed.
    let overwriting = Overwriting { tensors, objects };
    put(&tally).map_err(|error| Error::PartlyRestored { path: path.clone(), source: Box::new(error) })?;
    Ok(overwriting)
}

/// A tensor to be restored from a source of any format.
struct AnyJob<'a> {
    key: &'a str,
    bytes: u64,
    leaf: &'a Arc<dyn TensorLeaf>,
    overlaps: bool,
}

/// Returns the tensors in the order of the file.
fn any_jobs<'a>(tensors: &'a [Matched], any: &Any<'_>) -> Vec<AnyJob<'a>> {
    let order: HashMap<&str, usize> = any.source.order().into_iter().enumerate().map(|(at, key)| (key, at)).collect();
    let bytes = |key: &str| any.source.tensors().get(key).and_then(|spec| spec.bytes()).unwrap_or_default();
    let job =
        |Matched { key, leaf, overlaps, .. }: &'a Matched| AnyJob { key, bytes: bytes(key), leaf, overlaps: *overlaps };
    let mut jobs: Vec<AnyJob<'_>> = tensors.iter().map(job).collect();
    jobs.sort_by_key(|job| order.get(job.key).copied());
    jobs
}

fn verify_any(jobs: &[AnyJob<'_>], any: &Any<'_>, threads: usize, tally: &Tally) -> Result<()> {
    parallel::for_each(
        jobs,
        threads,
        || (),
        |job, ()| {
            any.verify(job.key)?;
            tally.add(job.bytes);
            Ok(())
        },
    )
}

fn read_any(jobs: &[&AnyJob<'_>], any: &Any<'_>, threads: usize, tally: &Tally) -> Result<()> {
    parallel::for_each(
        jobs,
        threads,
        || (),
        |job, ()| {
            fill(job.key, job.leaf, Some(job.bytes), |memory| any.read(job.key, memory))?;
            tally.add(job.bytes);
            Ok(())
        },
    )
}

/// A tensor to be restored.
struct Job<'a> {
    key: &'a str,
    record: &'a TensorRecord,
    leaf: &'a Arc<dyn TensorLeaf>,
}

impl<'a> Job<'a> {
    fn bytes(&self) -> u64 {
        self.record.spec.bytes().unwrap_or_default()
    }

    /// Returns its bytes if they are one piece.
    fn piece(&self) -> Option<&'a Piece> {
        self.record.pieces.first().filter(|_| self.record.pieces.len() == 1)
    }
}

/// Returns the tensors that overlap others, or those that do not, in the order of the files, so that adjacent ones can be
/// read together.
fn jobs<'a>(tensors: &'a [Matched], source: &'a Source, overlap: bool) -> Vec<Job<'a>> {
    let records = &source.manifest.tensors;
    let job =
        |tensor: &'a Matched| Some(Job { key: &tensor.key, record: records.get(&tensor.key)?, leaf: &tensor.leaf });
    let wanted = tensors.iter().filter(|tensor| tensor.overlaps == overlap);
    let mut jobs: Vec<Job<'_>> = wanted.filter_map(job).collect();
    jobs.sort_by_key(|job| job.piece().map(|piece| (piece.file.as_str(), piece.begin, piece.end)));
    jobs
}

/// Divides jobs into runs that are read together: adjacent tensors in a file that fit a chunk, or one tensor.
fn runs<'a, 'b>(jobs: &'b [Job<'a>]) -> Vec<&'b [Job<'a>]> {
    let follows = |a: &Job<'_>, b: &Job<'_>| match (a.piece(), b.piece()) {
        (Some(a), Some(b)) => a.file == b.file && a.end == b.begin,
        _ => false,
    };
    let mut runs = Vec::new();
    let mut rest = jobs;
    while let Some(first) = rest.first() {
        let begin = first.piece().map_or(0, |piece| piece.begin);
        let fits = |job: &Job<'_>| job.piece().is_some_and(|piece| piece.end - begin <= CHUNK as u64);
        let more = rest.windows(2).take_while(|pair| follows(&pair[0], &pair[1]) && fits(&pair[1])).count();
        let (run, tail) = rest.split_at(1 + more);
        runs.push(run);
        rest = tail;
    }
    runs
}

/// Reads a run of several tensors and passes each its bytes.
fn each_of_run(
    run: &[Job<'_>],
    source: &Source,
    buffer: &mut Vec<u8>,
    mut with: impl FnMut(&Job<'_>, &[u8]) -> Result<()>,
) -> Result<()> {
    let (Some(first), Some(last)) = (run.first().and_then(Job::piece), run.last().and_then(Job::piece)) else {
        return Ok(());
    };
    source.read_run(first.begin..last.end, &first.file, buffer)?;
    for job in run {
        let Some(piece) = job.piece() else { continue };
        with(job, &buffer[(piece.begin - first.begin) as usize..(piece.end - first.begin) as usize])?;
    }
    Ok(())
}

/// Verifies every byte that [`read`] will use.
fn verify(runs: &[&[Job<'_>]], source: &Source, threads: usize, tally: &Tally) -> Result<()> {
    parallel::for_each(runs, threads, Vec::new, |run, buffer| {
        match run {
            [job] => source.verify_tensor(job.key, job.record, buffer)?,
            run => each_of_run(run, source, buffer, |job, bytes| {
                source.check_tensor(job.key, job.record, Digest::of(bytes))
            })?,
        }
        tally.add(run.iter().map(Job::bytes).sum());
        Ok(())
    })
}

/// Reads the saved bytes into the tensors.
fn read(runs: &[&[Job<'_>]], source: &Source, verify: bool, threads: usize, tally: &Tally) -> Result<()> {
    parallel::for_each(runs, threads, Vec::new, |run, buffer| {
        match run {
            [job] => fill(job.key, job.leaf, job.record.spec.bytes(), |memory| {
                source.read_tensor(job.key, job.record, memory, verify)
            })?,
            run => each_of_run(run, source, buffer, |job, bytes| {
                if verify {
                    source.check_tensor(job.key, job.record, Digest::of(bytes))?;
                }
                fill(job.key, job.leaf, job.record.spec.bytes(), |memory| {
                    memory.copy_from_slice(bytes);
                    Ok(())
                })
            })?,
        }
        tally.add(run.iter().map(Job::bytes).sum());
        Ok(())
    })
}

/// Overwrites a tensor with the bytes that `put` writes to a buffer of its size.
fn fill(
    key: &str,
    leaf: &Arc<dyn TensorLeaf>,
    bytes: Option<u64>,
    put: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<()> {
    let failed = |reason: BoxError| Error::object(key, reason);
    let mut target = leaf.target().map_err(failed)?;
    let memory = target.as_mut_slice();
    if bytes != Some(memory.len() as u64) {
        return Err(failed("its size changed while it was being restored".into()));
    }
    put(memory)?;
    target.finish().map_err(failed)
}

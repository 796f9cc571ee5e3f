//! Writing the planned bytes: every thread takes the next run of tensors, digests each chunk while it is in the
//! cache, and writes it where it belongs.

use super::plan::{Plan, PlannedFile};
use crate::error::{Error, Result};
use crate::format::{Digest, FileEntry, Hasher, HeaderEntry, Piece, TensorRecord};
use crate::parallel;
use crate::store::{StagedFile, Staging};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Bytes digested and written at a time; small tensors that follow one another are gathered up to this.
const CHUNK: usize = 4 << 20;

/// What was written.
pub(crate) struct Written {
    pub files: BTreeMap<String, FileEntry>,
    pub tensors: BTreeMap<String, TensorRecord>,
}

/// Writes all files of a plan. Their content is durable when this returns, their names are not yet.
pub(super) fn write(plan: &Plan, staging: &Staging<'_>, threads: usize) -> Result<Written> {
    let mut digests = vec![Digest::of(&[]); plan.tensors.len()];
    let mut files = BTreeMap::new();
    for planned in &plan.files {
        let file = staging.create(&planned.name)?;
        file.write_all_at(0, &planned.header)?;
        for (place, digest) in write_tensors(plan, planned, &file, threads)? {
            digests[place] = digest;
        }
        file.finish()?;
        let header = HeaderEntry { bytes: planned.header.len() as u64, digest: Digest::of(&planned.header) };
        files.insert(planned.name.clone(), FileEntry { bytes: planned.bytes, header });
    }
    Ok(Written { files, tensors: records(plan, &digests) })
}

/// The manifest's entries: one for every key, those of shared memory pointing to the same bytes.
fn records(plan: &Plan, digests: &[Digest]) -> BTreeMap<String, TensorRecord> {
    let mut records = vec![None; plan.tensors.len()];
    for file in &plan.files {
        for &place in &file.tensors {
            let tensor = &plan.tensors[place];
            let piece = Piece {
                file: file.name.clone(),
                name: tensor.name_in_file.clone(),
                begin: tensor.range.start,
                end: tensor.range.end,
                slice: None,
            };
            records[place] =
                Some(TensorRecord { spec: tensor.spec.clone(), digest: digests[place], pieces: vec![piece] });
        }
    }
    let own = plan.tensors.iter().enumerate().map(|(place, tensor)| (tensor.key.clone(), place));
    let all = own.chain(plan.aliases.iter().cloned());
    all.filter_map(|(key, place)| Some((key, records[place].clone()?))).collect()
}

/// Writes the tensors of one file; gives their digests, by place.
fn write_tensors(
    plan: &Plan,
    planned: &PlannedFile,
    file: &StagedFile<'_>,
    threads: usize,
) -> Result<Vec<(usize, Digest)>> {
    let digests = Mutex::new(Vec::with_capacity(planned.tensors.len()));
    parallel::for_each(&runs(plan, planned), threads, |run, buffer| {
        let written = write_run(plan, run, file, buffer)?;
        digests.lock().unwrap_or_else(PoisonError::into_inner).extend(written);
        Ok(())
    })?;
    Ok(digests.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The file's tensors, in order, cut so that neighbours that together fit one chunk are written as one.
fn runs<'a>(plan: &Plan, planned: &'a PlannedFile) -> Vec<&'a [usize]> {
    let length = |place: usize| plan.tensors[place].range.end - plan.tensors[place].range.start;
    let mut runs = Vec::new();
    let mut rest = planned.tensors.as_slice();
    while !rest.is_empty() {
        let mut total = 0;
        let fitting = rest.iter().take_while(|&&place| {
            total += length(place);
            total <= CHUNK as u64
        });
        let (run, tail) = rest.split_at(fitting.count().max(1));
        runs.push(run);
        rest = tail;
    }
    runs
}

fn write_run(plan: &Plan, run: &[usize], file: &StagedFile<'_>, buffer: &mut Vec<u8>) -> Result<Vec<(usize, Digest)>> {
    buffer.clear();
    let mut digests = Vec::with_capacity(run.len());
    for &place in run {
        let tensor = &plan.tensors[place];
        let bytes = tensor.leaf.bytes().map_err(|reason| Error::object(&tensor.key, reason))?;
        let bytes = bytes.as_slice();
        if bytes.len() as u64 != tensor.range.end - tensor.range.start {
            return Err(Error::object(&tensor.key, "its size changed while it was being saved"));
        }
        if run.len() > 1 {
            digests.push((place, Digest::of(bytes)));
            buffer.extend_from_slice(bytes);
            continue;
        }
        let mut hasher = Hasher::new();
        let mut offset = tensor.range.start;
        for chunk in bytes.chunks(CHUNK) {
            hasher.update(chunk);
            file.write_all_at(offset, chunk)?;
            offset += chunk.len() as u64;
        }
        digests.push((place, hasher.finish()));
    }
    if let (false, Some(&first)) = (buffer.is_empty(), run.first()) {
        file.write_all_at(plan.tensors[first].range.start, buffer)?;
    }
    Ok(digests)
}

//! Verifying what will be read, and then reading it into the objects.

use super::matching::Matching;
use super::options::{RestoreOptions, Verify};
use crate::error::{Error, Result};
use crate::format::TensorRecord;
use crate::graph::TensorLeaf;
use crate::parallel;
use crate::source::Source;
use std::collections::BTreeSet;
use std::sync::Arc;

type Job<'a> = (&'a str, &'a TensorRecord, &'a Arc<dyn TensorLeaf>);

fn jobs<'a>(matching: &'a Matching, source: &'a Source) -> Vec<Job<'a>> {
    let records = &source.manifest.tensors;
    matching.tensors.iter().filter_map(|(key, leaf)| Some((key.as_str(), records.get(key)?, leaf))).collect()
}

/// Checks every byte that [`apply`] will use, and the headers of the files they are in.
pub(crate) fn verify(matching: &Matching, source: &Source, threads: usize) -> Result<()> {
    let jobs = jobs(matching, source);
    let files: BTreeSet<&str> = source.manifest.files.keys().map(String::as_str).collect();
    for file in files {
        source.verify_header(file)?;
    }
    parallel::for_each(&jobs, threads, Vec::new, |(key, record, _), buffer| source.verify_tensor(key, record, buffer))
}

/// Puts the saved values into the objects. From here on an error leaves them partly changed.
pub(crate) fn apply(matching: Matching, source: &Source, options: &RestoreOptions) -> Result<()> {
    let jobs = jobs(&matching, source);
    parallel::for_each(
        &jobs,
        options.threads,
        || (),
        |(key, record, leaf), ()| {
            let mut target = leaf.target().map_err(|reason| Error::object(*key, reason))?;
            let memory = target.as_mut_slice();
            if record.spec.bytes() != Some(memory.len() as u64) {
                return Err(Error::object(*key, "its size changed while it was being restored"));
            }
            source.read_tensor(key, record, memory, options.verify != Verify::Never)?;
            target.finish().map_err(|reason| Error::object(*key, reason))
        },
    )
    .map_err(|error| Error::PartlyRestored { path: source.path.clone(), source: Box::new(error) })?;
    for apply in matching.values {
        apply();
    }
    for replacement in matching.collections {
        replacement.collection.replace(replacement.created, replacement.dropped);
    }
    Ok(())
}

//! Saving: `plan` (objects → components → byte layout), `write` (several threads, positional writes, digests in the
//! same pass), then `Staging::publish`. The only place that sequences durability.

#[cfg(feature = "torch")]
mod asset;
mod buffer;
mod chunk;
mod image;
mod plan;
mod unchanged;
mod write;

#[cfg(feature = "torch")]
pub(crate) use asset::{Asset, Assets, copy_with_assets, save_with_assets, write_asset};
pub(crate) use image::{Capture, Image};
pub(crate) use plan::{Plan, plan};
pub(crate) use unchanged::{Memo, Unchanged};

use crate::error::Result;
use crate::format::Manifest;
use crate::parallel;
use crate::progress::Observer;
use crate::store::{Directory, Lock};
use chrono::Utc;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How to save.
#[derive(Debug, Clone)]
pub(crate) struct SaveOptions {
    /// Threads that write.
    pub threads: usize,
    /// Bytes gathered, digested and written at a time: whole pages; `None` for what suits a file's length.
    pub chunk_bytes: Option<usize>,
    /// A component larger than this is split into several files.
    pub max_file_bytes: u64,
    /// Who wants to know how far it is.
    pub observer: Observer,
}

impl Default for SaveOptions {
    fn default() -> Self {
        SaveOptions {
            threads: parallel::default_threads(),
            chunk_bytes: None,
            max_file_bytes: 16 << 30,
            observer: Observer::default(),
        }
    }
}

/// What a checkpoint says of itself, beside its content.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// One more than the highest of the folder.
    pub sequence: u64,
    /// The run that writes.
    pub run: String,
    pub step: Option<u64>,
    pub save_counter: i64,
    pub metrics: BTreeMap<String, f64>,
}

/// What a save writes beside tensors: taken at the call, whenever the tensors follow.
pub(crate) struct Header {
    pub stamp: Stamp,
    pub values: BTreeMap<String, serde_json::Value>,
}

impl Header {
    fn into_manifest(self) -> Manifest {
        let Header { stamp, values } = self;
        let mut manifest = Manifest::new(stamp.sequence, stamp.run, Utc::now());
        manifest.step = stamp.step;
        manifest.save_counter = Some(stamp.save_counter);
        manifest.values = values;
        manifest.metrics = stamp.metrics;
        manifest
    }
}

/// A checkpoint that was saved.
pub(crate) struct Saved {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// What to compare the next save with.
    pub memo: Memo,
}

/// Writes the planned state as the checkpoint `name` of `directory`, from the live tensors or from `image`. Durable
/// when this returns; on an error the folder is as it was.
pub(crate) fn save(
    plan: &Plan,
    image: Option<&Image>,
    unchanged: Unchanged,
    directory: &Directory,
    name: &str,
    header: Header,
    options: &SaveOptions,
) -> Result<Saved> {
    let staging = directory.stage(name, plan.bytes())?;
    let written = write::write(plan, image, &unchanged, &staging, options)?;
    let mut manifest = header.into_manifest();
    manifest.files = written.files;
    manifest.tensors = written.tensors;
    let path = staging.publish(&manifest, options.threads)?;
    let memo = unchanged.into_memo(plan, &path, &manifest, &written.linked);
    Ok(Saved { path, manifest, memo })
}

/// Takes the lock of a folder that no manager of ours has open, creating it if need be; and the next sequence in it.
pub(crate) fn lock(directory: &Directory) -> Result<(Lock, u64)> {
    directory.create()?;
    let lock = directory.lock()?;
    let scan = directory.scan()?;
    // Damaged checkpoints do not count.
    let sequences = scan.checkpoints.iter().filter_map(|name| Some(directory.manifest(name).ok()?.sequence));
    Ok((lock, sequences.max().unwrap_or(0).saturating_add(1)))
}

//! Saving: `plan` (objects → components → byte layout), `write` (several threads, positional writes, digests in the
//! same pass), then `Transaction::commit`. The only place that sequences durability.

#[cfg(feature = "torch")]
mod asset;
mod behind;
mod buffer;
mod chunk;
mod gather;
mod held;
mod image;
mod lazy;
mod plan;
mod same;
mod samples;
mod scan;
mod tracked;
mod unchanged;
mod write;

#[cfg(feature = "torch")]
pub(crate) use asset::{Asset, Assets, copy_with_assets, save_with_assets, write_asset};
pub(crate) use held::Held;
pub(crate) use image::{Capture, Failure, Image, Others};
pub(crate) use lazy::{AllSeen, Lazy};
pub(crate) use plan::{Plan, plan};
pub(crate) use same::is_saved;
pub use tracked::Asset as UserAsset;
pub(crate) use tracked::Captured;
pub(crate) use unchanged::{Memo, Unchanged};

use crate::error::{Error, Result};
use crate::format::{Follows, Manifest, TensorRecord};
use crate::graph::Seen;
use crate::parallel;
use crate::progress::Observer;
use crate::repository::Directory;
use chrono::{DateTime, Utc};
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
    /// What is noted of the values of float tensors.
    pub health: Health,
    /// Whether a state with values that are not finite is not saved.
    pub refuse_unhealthy: bool,
    /// Who wants to know how far it is.
    pub observer: Observer,
}

/// What a save notes of the values of tensors of float types, in the pass that digests them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Health {
    /// Nothing. No checkpoint counts as unhealthy.
    Off,
    /// Which tensors have values that are NaN or infinite.
    #[default]
    Finite,
    /// Of every tensor norm, minimum, maximum and how many values are not finite. Adds about 60 bytes per tensor to the
    /// manifest.
    Statistics,
}

impl Default for SaveOptions {
    fn default() -> Self {
        SaveOptions {
            threads: parallel::default_threads(),
            chunk_bytes: None,
            max_file_bytes: 16 << 30,
            health: Health::default(),
            refuse_unhealthy: false,
            observer: Observer::default(),
        }
    }
}

/// What a checkpoint says of itself, beside its content.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// One more than the highest of the directory.
    pub sequence: u64,
    /// The run that writes.
    pub run: String,
    pub step: Option<u64>,
    pub save_counter: i64,
    pub metrics: BTreeMap<String, f64>,
    /// The checkpoint restored or saved before.
    pub follows: Option<Follows>,
    /// The checkpoints of earlier runs that this run came from, latest first.
    pub earlier: Vec<Follows>,
    /// For the policies of a manager that count intervals.
    pub counted_from: Option<DateTime<Utc>>,
    /// What the program records about the run and this save.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Whether it may not belong together.
    pub unclean: bool,
    /// The components that are tracked and left out, sorted.
    pub without: Vec<String>,
}

/// What a save writes beside tensors: taken at the call, whenever the tensors follow.
pub(crate) struct Header {
    stamp: Stamp,
    values: BTreeMap<String, serde_json::Value>,
    assets: Vec<Captured>,
}

impl Header {
    /// Of the values as they are now.
    pub(crate) fn of(stamp: Stamp, plan: &Plan) -> Result<Header> {
        Ok(Header { stamp, values: plan.values()?, assets: Vec::new() })
    }

    /// With the user's own files.
    pub(crate) fn with_assets(self, assets: Vec<Captured>) -> Header {
        Header { assets, ..self }
    }

    fn into_manifest(
        self,
        plan: &Plan,
        seen: &[Seen],
        mut tensors: BTreeMap<String, TensorRecord>,
        saved_at: DateTime<Utc>,
    ) -> Manifest {
        let Header { stamp, values, .. } = self;
        plan.note_trainable(seen, &mut tensors);
        let mut manifest = Manifest::new(stamp.sequence, stamp.run, saved_at);
        manifest.step = stamp.step;
        manifest.save_counter = Some(stamp.save_counter);
        manifest.tensors = tensors;
        manifest.values = values;
        manifest.metrics = stamp.metrics;
        manifest.earlier = stamp.earlier;
        manifest.earlier.retain(|earlier| stamp.follows.as_ref().is_some_and(|follows| follows != earlier));
        manifest.follows = stamp.follows;
        manifest.counted_from = stamp.counted_from;
        manifest.metadata = stamp.metadata;
        manifest.unclean = stamp.unclean;
        manifest.without = stamp.without;
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
/// when this returns; on an error the directory is as it was. `ready` is called when all is written and nothing of it has
/// its name yet; an error of it ends the save.
#[expect(clippy::too_many_arguments, reason = "what a save consists of")]
pub(crate) fn save(
    plan: &Plan,
    image: Option<&Image>,
    mut unchanged: Unchanged,
    directory: &Directory,
    name: &str,
    mut header: Header,
    options: &SaveOptions,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Saved> {
    let assets = std::mem::take(&mut header.assets);
    let bytes = assets.iter().fold(plan.bytes(), |sum, asset| sum.saturating_add(asset.entry.bytes));
    let staging = directory.begin(name, bytes)?;
    let written = write::write(plan, image, &unchanged, directory, &*staging, options)?;
    if written.cannot_link {
        unchanged.cannot_link();
    }
    let mut manifest = header.into_manifest(plan, unchanged.seen(), written.tensors, directory.now());
    manifest.files = written.files;
    if options.refuse_unhealthy {
        let tensors: Vec<String> = manifest.non_finite().map(str::to_string).collect();
        if !tensors.is_empty() {
            return Err(Error::Unhealthy { path: directory.path(name), tensors });
        }
    }
    let write = |asset: Captured| {
        let earlier = unchanged.earlier(&asset.name).cloned();
        asset.write(unchanged.from(), earlier.as_ref(), directory, &*staging)
    };
    let assets = assets.into_iter().map(write).collect::<Result<Vec<_>>>()?;
    let entries = assets.iter().map(|asset| (asset.captured.name.clone(), asset.captured.entry.clone()));
    manifest.assets = entries.collect();
    ready()?;
    staging.commit(&manifest.to_bytes()?, options.threads)?;
    let path = directory.path(name);
    let memo = unchanged.into_memo(plan, name, &manifest, &written.linked, &written.finished, assets);
    Ok(Saved { path, manifest, memo })
}

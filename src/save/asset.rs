//! Files of a checkpoint that are no components: written from the beginning to the end, under one digest.

use super::{AllSeen, Header, Held, Memo, Plan, SaveOptions, Unchanged, write};
use crate::error::Result;
use crate::format::{AssetEntry, Hasher};
use crate::parallel;
use crate::repository::{Directory, StagedFile, Transaction};
use crate::source::{CHUNK, Source};
use chrono::Utc;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file being written.
pub(crate) struct Asset<'a> {
    file: Box<dyn StagedFile + 'a>,
    bytes: u64,
    hasher: Hasher,
}

impl<'a> Asset<'a> {
    pub(crate) fn create(staging: &'a dyn Transaction, name: &str) -> Result<Asset<'a>> {
        Ok(Asset { file: staging.create(name, 0)?, bytes: 0, hasher: Hasher::new() })
    }

    /// Appends `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(self.bytes, bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The content is durable when the checkpoint is published, where durability asks for it.
    pub(crate) fn finish(self) -> Result<AssetEntry> {
        self.file.finish(self.bytes)?;
        Ok(AssetEntry { bytes: self.bytes, digest: self.hasher.finish() })
    }
}

/// Writes a whole asset.
pub(crate) fn write_asset(staging: &dyn Transaction, name: &str, bytes: &[u8]) -> Result<AssetEntry> {
    let mut asset = Asset::create(staging, name)?;
    asset.write(bytes)?;
    asset.finish()
}

/// Copies a component's file from another checkpoint.
fn copy_file(source: &Source, name: &str, bytes: u64, staging: &dyn Transaction) -> Result<()> {
    let mut copy = Asset::create(staging, name)?;
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    while copy.bytes < bytes {
        let length = (bytes - copy.bytes).min(CHUNK as u64) as usize;
        source.read(name, copy.bytes, &mut buffer[..length])?;
        copy.write(&buffer[..length])?;
    }
    copy.finish().map(drop)
}

/// Writes assets, and returns their entries by name.
type WriteAssets<'a> = dyn FnMut(&dyn Transaction) -> Result<BTreeMap<String, AssetEntry>> + 'a;

/// What writes the assets of a checkpoint, when its components are written.
pub(crate) struct Assets<'a> {
    /// About how many bytes they will take.
    pub bytes: u64,
    pub write: &'a mut WriteAssets<'a>,
}

/// As [`save`], from the live tensors and with assets.
pub(crate) fn save_with_assets(
    plan: &Plan,
    seen: AllSeen,
    directory: &Directory,
    name: &str,
    mut header: Header,
    options: &SaveOptions,
    assets: Assets<'_>,
) -> Result<PathBuf> {
    let users = std::mem::take(&mut header.assets);
    let bytes = users.iter().fold(assets.bytes, |sum, asset| sum.saturating_add(asset.entry.bytes));
    let staging = directory.begin(name, plan.bytes().saturating_add(bytes))?;
    let unchanged = Unchanged::since(&Memo::default(), plan, seen);
    let written = write::write(plan, None, &unchanged, directory, &*staging, options)?;
    let mut manifest = header.into_manifest(plan, unchanged.seen(), written.tensors, directory.now());
    manifest.assets = (assets.write)(&*staging)?;
    for asset in users {
        let captured = asset.write(unchanged.from(), None, directory, &*staging)?.captured;
        manifest.assets.insert(captured.name, captured.entry);
    }
    manifest.files = written.files;
    staging.commit(&manifest.to_bytes()?, options.threads)?;
    Ok(directory.path(name))
}

/// Saves the state of another checkpoint, verified, with other assets.
pub(crate) fn copy_with_assets(
    source: &Source,
    directory: &Directory,
    name: &str,
    run: String,
    assets: Assets<'_>,
) -> Result<PathBuf> {
    let old = &source.manifest;
    old.files.keys().try_for_each(|file| source.verify_header(file))?;
    let tensors: Vec<_> = old.tensors.iter().collect();
    parallel::for_each(&tensors, parallel::default_threads(), Vec::new, |(key, record), buffer| {
        source.verify_tensor(key, record, buffer)
    })?;
    let held = Held::take(directory)?;
    let staging = directory.begin(name, old.bytes().saturating_add(assets.bytes))?;
    old.files.iter().try_for_each(|(file, entry)| copy_file(source, file, entry.bytes, &*staging))?;
    let mut manifest = old.clone();
    (manifest.sequence, manifest.run, manifest.saved_at) = (held.next_sequence()?, run, Utc::now());
    manifest.follows = None;
    manifest.earlier.clear();
    manifest.assets = (assets.write)(&*staging)?;
    staging.commit(&manifest.to_bytes()?, parallel::default_threads())?;
    Ok(directory.path(name))
}

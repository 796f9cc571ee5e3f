//! A checkpoint as a copy of another one, verified while it is copied.

use super::asset::{AssetFile, AssetStream, check_names, write_streams};
use super::{Held, SaveOptions};
use crate::error::{Error, Result};
use crate::format::{AssetEntry, Digest, Hasher, TensorRecord};
use crate::location::Location;
use crate::parallel;
use crate::repository::{Directory, Transaction, nonce};
use crate::source::{CHUNK, Source};
use chrono::Utc;
use std::collections::{BTreeMap, HashSet};

/// Saves the state of another checkpoint, verified, as `name` of `directory`. `assets` are added; those of the other
/// checkpoint that have the same names are left out.
pub(crate) fn copy(
    source: &Source,
    directory: &Directory,
    name: &str,
    options: &SaveOptions,
    assets: Vec<AssetStream<'_>>,
) -> Result<Location> {
    check_names(&assets, [])?;
    let held = Held::take(directory)?;
    directory.must_be_free(name)?;
    let old = &source.manifest;
    let (by_file, others) = parts(source);
    parallel::for_each(&others, options.threads, Vec::new, |(key, record), buffer| {
        source.verify_tensor(key, record, buffer)
    })?;
    let bytes = assets.iter().fold(old.bytes(), |sum, asset| sum.saturating_add(asset.bytes));
    let staging = directory.begin(name, bytes)?;
    for (file, parts) in by_file {
        copy_file(source, file, &parts, &*staging)?;
    }
    let replaced: HashSet<String> = assets.iter().map(|asset| asset.name.to_ascii_lowercase()).collect();
    let kept = old.assets.keys().filter(|name| !replaced.contains(&name.to_ascii_lowercase()));
    let kept: BTreeMap<_, _> = kept.map(|name| copy_asset(source, name, &*staging)).collect::<Result<_>>()?;
    let mut manifest = old.clone();
    (manifest.sequence, manifest.run, manifest.saved_at) = (held.next_sequence()?, nonce(), Utc::now());
    // They are those of the save that is copied.
    manifest.figures = None;
    manifest.follows = None;
    manifest.earlier.clear();
    manifest.assets = write_streams(assets, &*staging)?;
    manifest.assets.extend(kept);
    staging.commit(&manifest.to_bytes()?, options.threads, &[])?;
    Ok(directory.path(name))
}

/// A tensor by its key.
type Keyed<'a> = (&'a String, &'a TensorRecord);

/// A part of a file that has a digest: the header, or a tensor.
struct Part<'a> {
    begin: u64,
    end: u64,
    digest: Digest,
    /// The tensors in it: several keys may have the same memory.
    tensors: Vec<Keyed<'a>>,
}

/// Returns the parts of every file, in order and without overlaps, and the tensors of which a file has no such part.
fn parts(source: &Source) -> (BTreeMap<&String, Vec<Part<'_>>>, Vec<Keyed<'_>>) {
    let header = |entry: &crate::format::FileEntry| {
        vec![Part { begin: 0, end: entry.header.bytes, digest: entry.header.digest, tensors: Vec::new() }]
    };
    let files = source.manifest.files.iter();
    let mut by_file: BTreeMap<&String, Vec<Part<'_>>> = files.map(|(name, entry)| (name, header(entry))).collect();
    let (mut whole, mut others) = (Vec::new(), Vec::new());
    for (key, record) in &source.manifest.tensors {
        match &record.pieces[..] {
            [piece] if piece.begin < piece.end => whole.push((piece.begin, piece.end, (key, record))),
            _ => others.push((key, record)),
        }
    }
    whole.sort_by_key(|(begin, end, _)| (*begin, *end));
    for (begin, end, keyed) in whole {
        let Some(parts) = by_file.get_mut(&keyed.1.pieces[0].file) else {
            others.push(keyed);
            continue;
        };
        match parts.last_mut() {
            Some(last) if (last.begin, last.end) == (begin, end) => last.tensors.push(keyed),
            Some(last) if last.end > begin => others.push(keyed),
            _ => parts.push(Part { begin, end, digest: keyed.1.digest, tensors: vec![keyed] }),
        }
    }
    (by_file, others)
}

/// Copies a component's file from another checkpoint.
///
/// # Errors
/// [`Error::Damaged`] if a part of it has another digest than when it was written.
fn copy_file(source: &Source, name: &str, parts: &[Part<'_>], staging: &dyn Transaction) -> Result<()> {
    let bytes = source.manifest.files.get(name).map_or(0, |entry| entry.bytes);
    let mut copy = AssetFile::create(staging, name, bytes)?;
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    let (mut parts, mut next, mut hasher) = (parts.iter(), None, Hasher::new());
    while copy.written() < bytes {
        let offset = copy.written();
        let length = (bytes - offset).min(CHUNK as u64) as usize;
        source.read(name, offset, &mut buffer[..length])?;
        let end = offset + length as u64;
        while let Some(part) = next.take().or_else(|| parts.next()) {
            let (from, to) = (part.begin.clamp(offset, end), part.end.clamp(offset, end));
            hasher.update(&buffer[(from - offset) as usize..(to - offset) as usize]);
            if part.end > end {
                // The rest comes later.
                next = Some(part);
                break;
            }
            check(source, name, part, std::mem::replace(&mut hasher, Hasher::new()).finish())?;
        }
        copy.append(&buffer[..length])?;
    }
    if next.or_else(|| parts.next()).is_some() {
        return Err(Error::damaged(source.path.join(name), "it ends before what it is to contain"));
    }
    copy.finish().map(drop)
}

/// Checks the digest of a part that was read.
fn check(source: &Source, file: &str, part: &Part<'_>, found: Digest) -> Result<()> {
    if part.tensors.is_empty() && found != part.digest {
        let reason = "its header has changed since it was written";
        return Err(Error::damaged(source.path.join(file), reason));
    }
    part.tensors.iter().try_for_each(|(key, record)| source.check_tensor(key, record, found))
}

/// Copies an asset from another checkpoint, verified.
fn copy_asset(source: &Source, name: &str, staging: &dyn Transaction) -> Result<(String, AssetEntry)> {
    let bytes = source.manifest.assets.get(name).map_or(0, |entry| entry.bytes);
    let mut copy = AssetFile::create(staging, name, bytes)?;
    source.verify_asset(name, |bytes| copy.append(bytes))?;
    Ok((name.to_string(), copy.finish()?))
}

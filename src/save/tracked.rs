//! Files of the user that are saved in addition to the components.

use crate::error::{Error, Result};
use crate::format::{AssetEntry, Digest, Hasher, INDEX_FILE, MANIFEST_FILE, SAVED_MODEL_FILES};
use crate::name;
use crate::repository::{Directory, Finished, Transaction};
use crate::source::{CHUNK, Source};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file of the user that every checkpoint contains in addition to its components, with a digest: for example a
/// tokenizer, a vocabulary, or a replay shard. Added with [`Checkpoint::asset`](crate::Checkpoint::asset).
///
/// The content is read during the call that saves, and is held in memory until it is written. A file that has not
/// changed since the manager's last checkpoint is not read: it is hard-linked like a component, or copied, verified, from
/// that checkpoint, or from the file itself if that checkpoint is gone or damaged.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use std::io::Write;
/// use tch_checkpoint::{Asset, Checkpoint, CheckpointReader};
///
/// std::fs::write(dir.join("tokenizer.json"), "{}")?;
/// let words = vec!["never", "odd", "or", "even"];
/// let mut checkpoint = Checkpoint::new()
///     .asset(Asset::file(dir.join("tokenizer.json")))?
///     .asset(Asset::writer("words.txt", move |out| out.write_all(words.join("\n").as_bytes())))?;
/// let path = checkpoint.write(dir.join("ckpt"))?;
///
/// let reader = CheckpointReader::open(path)?;
/// reader.copy_asset("words.txt", dir.join("restored.txt"))?; // verified
/// assert_eq!(std::fs::read_to_string(dir.join("restored.txt"))?, "never\nodd\nor\neven");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Asset {
    name: String,
    content: Content,
}

/// The origin of an asset's content.
type Writer = dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync;

#[derive(Clone)]
enum Content {
    File(PathBuf),
    Writer(Arc<Writer>),
}

impl Asset {
    /// Creates an asset from the file at `path`, with its content at the time of each save. It keeps its file name. A
    /// relative path is that of the working directory now, even if another one is the working directory later.
    pub fn file(path: impl Into<PathBuf>) -> Asset {
        let path = path.into();
        let path = std::path::absolute(&path).unwrap_or(path);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Asset { name, content: Content::File(path) }
    }

    /// Creates an asset whose content `write` writes; it is called for every checkpoint, by the call that saves. If it
    /// writes the same bytes for the same state, checkpoints can share the file.
    pub fn writer(
        name: impl Into<String>,
        write: impl Fn(&mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Asset {
        Asset { name: name.into(), content: Content::Writer(Arc::new(write)) }
    }

    /// Sets the name of the file in the checkpoint.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Asset {
        self.name = name.into();
        self
    }

    /// Returns its name in a checkpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks that a checkpoint can have a file of this name.
    pub(crate) fn check_name(&self) -> Result<()> {
        check_asset_name(&self.name)?;
        if SAVED_MODEL_FILES.contains(&self.name.to_ascii_lowercase().as_str()) {
            return Err(Error::name(&self.name, RESERVED_NAME));
        }
        Ok(())
    }

    /// Returns the state of the user's file. `None` if a later change may go unnoticed: the file has changed just now or
    /// cannot be read, or a function writes the content.
    pub(crate) fn stamp(&self) -> Option<FileStamp> {
        match &self.content {
            Content::File(path) => std::fs::metadata(path).ok().map(|file| FileStamp::of(&file)),
            Content::Writer(_) => None,
        }
        .filter(FileStamp::is_settled)
    }

    /// Returns the current content.
    pub(crate) fn capture(&self, earlier: Option<&Earlier>) -> Result<Captured> {
        let failed = |e: io::Error| Error::object(&self.name, format!("its writer failed: {e}"));
        let (bytes, stamp) = match &self.content {
            Content::Writer(write) => {
                let mut bytes = Vec::new();
                write(&mut bytes).map_err(failed)?;
                (bytes, None)
            }
            Content::File(path) => match read(path, earlier)? {
                (Some(bytes), stamp) => (bytes, stamp),
                (None, stamp) => {
                    // It was read, because there is no earlier one.
                    let entry = earlier
                        .map_or(AssetEntry { bytes: 0, digest: Digest::of(&[]) }, |earlier| earlier.entry.clone());
                    let bytes = Bytes::Unchanged(path.clone());
                    return Ok(Captured { name: self.name.clone(), entry, bytes, stamp });
                }
            },
        };
        let entry = AssetEntry { bytes: bytes.len() as u64, digest: Digest::of(&bytes) };
        Ok(Captured { name: self.name.clone(), entry, bytes: Bytes::Read(bytes), stamp })
    }
}

/// Checks that a file of this name can be an asset.
pub(super) fn check_asset_name(name: &str) -> Result<()> {
    let lower = name.to_ascii_lowercase();
    let reason = if !name::is_plain_file_name(name) {
        "an asset's name has letters, digits, `.`, `-`, `_` and `%` of ASCII, and does not begin with `.`; choose another \
         (`Asset::named`)"
    } else if lower.ends_with(name::COMPONENT_EXTENSION)
        || [MANIFEST_FILE, INDEX_FILE].contains(&lower.as_str())
        || lower.starts_with("mark-")
    {
        RESERVED_NAME
    } else {
        return Ok(());
    };
    Err(Error::name(name, reason))
}

const RESERVED_NAME: &str = "files of this name are the checkpoint's own; choose another (`Asset::named`)";

impl fmt::Debug for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match &self.content {
            Content::File(path) => Some(path),
            Content::Writer(_) => None,
        };
        f.debug_struct("Asset").field("name", &self.name).field("path", &path).finish_non_exhaustive()
    }
}

/// An asset of the last checkpoint.
#[derive(Clone)]
pub(crate) struct Earlier {
    pub entry: AssetEntry,
    /// The state of the user's file; `None` if that does not show whether it has changed.
    pub stamp: Option<FileStamp>,
    /// The state of the checkpoint's file when it was finished.
    pub finished: Finished,
    /// Whether one more checkpoint may share that file.
    pub may_share: bool,
    /// The checkpoints that have it.
    pub shares: BTreeSet<String>,
}

/// The state of a file, to detect changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Within so many seconds, a file can change without a change of its times.
const GRANULARITY: i64 = 2;

impl FileStamp {
    fn of(file: &Metadata) -> FileStamp {
        FileStamp {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Returns `true` if a later change would be detected.
    fn is_settled(&self) -> bool {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        i64::try_from(now).is_ok_and(|now| self.changed.0 < now - GRANULARITY && self.modified.0 < now - GRANULARITY)
    }
}

/// Returns the bytes of a file, unless it is unchanged since the earlier checkpoint.
fn read(path: &Path, earlier: Option<&Earlier>) -> Result<(Option<Vec<u8>>, Option<FileStamp>)> {
    let failed = |e| Error::io("read the file", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(Error::InvalidArgument(format!("the asset {} is not a file", path.display())));
    }
    let stamp = FileStamp::of(&before);
    let is_settled = stamp.is_settled();
    if is_settled && earlier.is_some_and(|earlier| earlier.stamp == Some(stamp)) {
        return Ok((None, Some(stamp)));
    }
    let mut bytes = Vec::new();
    let room = usize::try_from(before.len()).ok().and_then(|length| bytes.try_reserve_exact(length).ok());
    room.ok_or_else(|| Error::out_of_memory(path.to_string_lossy(), before.len()))?;
    file.read_to_end(&mut bytes).map_err(failed)?;
    if FileStamp::of(&file.metadata().map_err(failed)?) != stamp || bytes.len() as u64 != stamp.bytes {
        let reason = "the asset was changed while it was being read; save when it is complete";
        return Err(Error::object(path.to_string_lossy(), reason));
    }
    Ok((Some(bytes), is_settled.then_some(stamp)))
}

/// An asset's content at the time of a save.
pub(crate) struct Captured {
    pub name: String,
    pub entry: AssetEntry,
    bytes: Bytes,
    pub stamp: Option<FileStamp>,
}

/// The content at the time of a save.
enum Bytes {
    Read(Vec<u8>),
    /// The user's file at this path, which is unchanged since the last checkpoint.
    Unchanged(PathBuf),
}

/// The result of saving an asset.
pub(crate) struct SavedAsset {
    pub captured: Captured,
    /// The state of its file when it was finished; `None` if it is the last checkpoint's.
    pub finished: Option<Finished>,
}

impl Captured {
    /// Hard-links the file of the `earlier` asset in the checkpoint `last`. Returns `false` if it must be written.
    pub(crate) fn link(&self, last: &str, earlier: Option<&Earlier>, staging: &dyn Transaction) -> bool {
        let Some(earlier) = earlier.filter(|earlier| earlier.may_share && earlier.entry == self.entry) else {
            return false;
        };
        let linked = staging.reuse(&self.name, last, &earlier.finished);
        linked.inspect_err(|e| log::debug!("{} is written again: {e:#}", self.name)).is_ok()
    }

    /// Writes it. `last` is the last checkpoint.
    pub(crate) fn write(mut self, last: &str, directory: &Directory, staging: &dyn Transaction) -> Result<SavedAsset> {
        let file = staging.create(&self.name, self.entry.bytes)?;
        let mut written = 0;
        let mut write = |bytes: &[u8]| {
            file.write_all_at(written, bytes)?;
            written += bytes.len() as u64;
            Ok(())
        };
        match std::mem::replace(&mut self.bytes, Bytes::Read(Vec::new())) {
            Bytes::Read(bytes) => bytes.chunks(CHUNK).try_for_each(&mut write)?,
            // Verified before the first byte is written: every byte is written once.
            Bytes::Unchanged(path) => match self.verified_in(directory, last) {
                Ok(source) => source.verify_asset(&self.name, &mut write)?,
                Err(e) => {
                    log::debug!("{} is read again: {e:#}", path.display());
                    self.copy(&path, &mut write)?;
                }
            },
        }
        let finished = file.finish(written)?;
        Ok(SavedAsset { captured: self, finished: Some(finished) })
    }

    /// Returns the checkpoint `last` if it has this content.
    fn verified_in(&self, directory: &Directory, last: &str) -> Result<Source> {
        let source = Source::open_in(directory, last)?;
        if source.manifest.assets.get(&self.name) != Some(&self.entry) {
            return Err(Error::damaged(source.path.join(&self.name), "it is another file than the one that was saved"));
        }
        source.verify_asset(&self.name, |_| Ok(()))?;
        Ok(source)
    }

    /// Reads the user's file again, which must still have this content.
    fn copy(&self, path: &Path, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = |e| Error::io("read the file", path, e);
        let mut file = File::open(path).map_err(failed)?;
        let (mut hasher, mut left) = (Hasher::new(), self.entry.bytes);
        let mut buffer = vec![0; left.min(CHUNK as u64) as usize];
        while left > 0 {
            let length = left.min(CHUNK as u64) as usize;
            match file.read_exact(&mut buffer[..length]) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read.map_err(failed)?,
            }
            hasher.update(&buffer[..length]);
            write(&buffer[..length])?;
            left -= length as u64;
        }
        if left == 0 && hasher.finish() == self.entry.digest {
            return Ok(());
        }
        let reason = "the asset was changed after the save was called for, and its copy in the last checkpoint is gone or \
                      damaged; the next save reads it again";
        Err(Error::object(path.to_string_lossy(), reason))
    }
}

//! Seals: digests of another tool's checkpoint, in a small file next to it.

use super::ReadOptions;
use super::durable::DurableFile;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::format::{Digest, canonical};
use crate::location::Location;
use crate::name;
use crate::source::{SourceAttributes, TensorSource, VerifiedBy, digest};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The suffix of a seal's file name.
const SUFFIX: &str = ".seal.json";

/// The maximum length of a seal in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    /// The version of the file's format: 1.
    seal: u32,
    /// The format that was sealed.
    format: String,
    /// XXH3-128 of every tensor's elements, row-major and little-endian.
    tensors: BTreeMap<String, Entry>,
    /// XXH3-128 of all values, as the JSON of one object, whose keys are sorted, as are those of objects in it.
    values: Digest,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    digest: Digest,
}

/// Returns the path of the seal of `path`.
fn place(path: &Path) -> PathBuf {
    // Without a trailing separator.
    let mut text = path.components().as_path().as_os_str().to_os_string();
    text.push(SUFFIX);
    PathBuf::from(text)
}

/// Writes the digests of all tensors and values of another tool's checkpoint at `path` to a file next to it,
/// `PATH.seal.json`, and returns the path of that file. From then on, [`open`](super::open), restores and `ckpt verify`
/// compare what they read with the seal, as with the digests of this crate's own checkpoints. Verifies everything that
/// has a checksum first.
///
/// A seal detects accidental corruption, not tampering: anyone who changes the file can also write a new seal.
///
/// # Errors
/// [`Error::AlreadyExists`] if there is a seal: remove it first if the present content is right.
/// [`Error::InvalidArgument`] for a checkpoint of this crate, which has digests of its own; otherwise as for
/// [`open`](super::open).
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{VerifiedBy, interop};
/// interop::seal("model.safetensors")?;
/// let source = interop::open("model.safetensors")?;
/// assert_eq!(source.verified_by("encoder.weight"), VerifiedBy::Digest);
/// # Ok(())
/// # }
/// ```
pub fn seal(path: impl AsRef<Path>) -> Result<PathBuf> {
    seal_with(path, &ReadOptions::default())
}

/// Like [`seal`], with options. Entries that cannot be read are not sealed.
///
/// # Errors
/// As for [`seal`].
pub fn seal_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<PathBuf> {
    let path = path.as_ref();
    let source = super::detect::open(path, options)?;
    if source.format() == super::ours::FORMAT {
        let reason = format!("{} is a checkpoint of this crate: its manifest has the digests", path.display());
        return Err(Error::InvalidArgument(reason));
    }
    let place = place(path);
    if std::fs::symlink_metadata(&place).is_ok() {
        return Err(already_sealed(&place));
    }
    source.verify()?;
    let mut tensors = BTreeMap::new();
    let mut digests = Digests::default();
    for (key, spec) in source.tensors() {
        let digest = digests.of(&*source, key)?;
        tensors.insert(key.clone(), Entry { dtype: spec.dtype, shape: spec.shape.clone(), digest });
    }
    let values = digest_of_values(&*source);
    let seal = Seal { seal: 1, format: source.format().to_string(), tensors, values };
    let text =
        serde_json::to_string(&seal).map_err(|e| Error::InvalidArgument(format!("the seal cannot be written: {e}")))?;
    write_new(&place, &text)?;
    Ok(place)
}

/// Writes the seal at `place`, unless there is one by now.
fn write_new(place: &Path, text: &str) -> Result<()> {
    let write = || {
        let file = DurableFile::create_new(place)?;
        file.write_at(0, text.as_bytes())?;
        file.publish()
    };
    write().map_err(|error| match error {
        // The usual remedy is for a conversion.
        Error::AlreadyExists { .. } => already_sealed(place),
        error => error,
    })
}

fn already_sealed(place: &Path) -> Error {
    let hint = "remove the seal and seal again if the present content is right".to_string();
    Error::AlreadyExists { path: place.into(), hint }
}

/// The digests of the tensors of one source, each stored tensor read once.
#[derive(Default)]
struct Digests<'a>(BTreeMap<&'a str, Digest>);

impl<'a> Digests<'a> {
    fn of(&mut self, source: &'a dyn TensorSource, key: &'a str) -> Result<Digest> {
        let first = source.first_alias(key);
        if let Some(known) = self.0.get(first) {
            return Ok(*known);
        }
        let found = digest(source, first)?;
        self.0.insert(first, found);
        Ok(found)
    }
}

fn digest_of_values(source: &dyn TensorSource) -> Digest {
    let all: serde_json::Map<String, Value> =
        source.values().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Digest::of(canonical(&Value::Object(all)).as_bytes())
}

/// Opens the seal at `place`, if there is one. Like the files of a checkpoint, it must be a regular file and no link,
/// and nothing waits for the other end of a pipe.
fn open_seal(place: &Path) -> Result<Option<File>> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
    let failed = |action: &'static str, e: io::Error| match Errno::from_io_error(&e) {
        // A name to which the suffix cannot be added has no seal.
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
        Some(Errno::LOOP) => {
            Err(Error::link(place, "a seal must be a file: copy what it leads to into its place (`cp -L`)"))
        }
        // A socket.
        Some(Errno::NXIO) => Err(Error::unsupported(place, "it is not a regular file")),
        _ => Err(Error::io(action, place, e)),
    };
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(place) {
        Ok(file) => file,
        Err(e) => return failed("open the file", e),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => Err(Error::unsupported(place, "it is not a regular file")),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            Err(Error::damaged(place, format!("it has {} bytes, a seal has at most {MAX_BYTES}", metadata.len())))
        }
        Ok(_) => Ok(Some(file)),
        Err(e) => failed("read the file", e),
    }
}

/// Wraps the source with its seal, if it has one.
pub(super) fn with_seal(path: &Path, source: Box<dyn TensorSource>) -> Result<Box<dyn TensorSource>> {
    if source.format() == super::ours::FORMAT {
        return Ok(source);
    }
    let place = place(path);
    let Some(file) = open_seal(&place)? else { return Ok(source) };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| Error::io("read the file", &place, e))?;
    let seal: Seal = serde_json::from_slice(&bytes)
        .map_err(|e| Error::damaged(&place, name::short_message(format!("it is not a seal: {e}"))))?;
    if seal.seal != 1 {
        return Err(Error::unsupported(place, format!("version {} of seals is not known", seal.seal)));
    }
    let differing = |key: &String| {
        let sealed = seal.tensors.get(key).map(|entry| TensorSpec::new(entry.dtype, entry.shape.clone()));
        sealed.as_ref() != source.tensors().get(key)
    };
    if let Some(key) = source.tensors().keys().chain(seal.tensors.keys()).find(|key| differing(key)) {
        let reason = format!("the tensor {} is not what was sealed in {}", name::shown(key), place.display());
        return Err(Error::damaged(source.path(), reason));
    }
    if digest_of_values(&*source) != seal.values {
        return Err(Error::damaged(
            source.path(),
            format!("its values are not what was sealed in {}", place.display()),
        ));
    }
    Ok(Box::new(Sealed { source, place, seal }))
}

/// A source with a seal.
#[derive(Debug)]
struct Sealed {
    source: Box<dyn TensorSource>,
    place: PathBuf,
    seal: Seal,
}

impl Sealed {
    fn check(&self, key: &str, found: Digest) -> Result<()> {
        match self.seal.tensors.get(key) {
            Some(entry) if entry.digest == found => Ok(()),
            _ => {
                let key = name::shown(key);
                let reason = format!("the tensor {key} is not what was sealed in {}", self.place.display());
                Err(Error::damaged(self.source.path(), reason))
            }
        }
    }
}

impl TensorSource for Sealed {
    fn format(&self) -> &'static str {
        self.source.format()
    }

    fn path(&self) -> &Location {
        self.source.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        self.source.tensors()
    }

    fn order(&self) -> Vec<&str> {
        self.source.order()
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        self.source.values()
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.source.value(key)
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        self.source.unreadable()
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.source.first_alias(key)
    }

    fn lacks(&self, key: &str) -> Option<(String, String)> {
        self.source.lacks(key)
    }

    fn requires_grad(&self, key: &str) -> Option<bool> {
        self.source.requires_grad(key)
    }

    fn attributes(&self) -> Result<SourceAttributes> {
        self.source.attributes()
    }

    fn read_asset(&self, name: &str, with: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.source.read_asset(name, with)
    }

    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Digest
    }

    fn digest(&self, key: &str) -> Option<Digest> {
        self.seal.tensors.get(key).map(|entry| entry.digest)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.source.read(key, target)?;
        self.check(key, Digest::of(target))
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        self.source.read_range(key, range, target)
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        self.source.ensure_readable(key)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.check(key, digest(&*self.source, key)?)
    }

    fn verify(&self) -> Result<()> {
        self.source.verify()?;
        let mut digests = Digests::default();
        self.tensors().keys().try_for_each(|key| self.check(key, digests.of(&*self.source, key)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever order the program's `serde_json` keeps; here the file has another.
    #[test]
    fn values_are_sealed_with_sorted_keys() {
        let pickle = b"\x80\x02}X\x01\0\0\0g](}(X\x01\0\0\0bK\x02X\x01\0\0\0aK\x01ues.";
        let bytes = crate::interop::pytorch::archive_of(&[("x/data.pkl", pickle)]).unwrap();
        let source = crate::interop::pytorch::open_bytes(bytes, &ReadOptions::default()).unwrap();
        assert_eq!(digest_of_values(&source), Digest::of(br#"{"g":[{"a":1,"b":2}]}"#));
    }

    /// Whether it is there before the file is opened or appears afterwards.
    #[test]
    fn a_seal_that_is_there_is_to_be_removed() {
        let temp = tempfile::tempdir().unwrap();
        let place = temp.path().join("weights.seal.json");
        write_new(&place, "{}").unwrap();
        let error = write_new(&place, "{}").unwrap_err().to_string();
        assert!(error.contains("remove the seal") && !error.contains("--force"), "{error}");
    }
}

//! Writing safetensors files: one, or a directory with an index.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::safetensors::{Layout, layout};
use crate::interop::durable::{DurableDirectory, DurableFile};
use crate::interop::{Written, for_each_chunk, verify_before_streaming};
use crate::name;
use crate::source::TensorSource;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Options of [`write()`].
///
/// ```
/// use tch_checkpoint::interop::huggingface::WriteOptions;
/// let options = WriteOptions::default().only("model").max_shard_bytes(2 << 30);
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriteOptions {
    only: Option<String>,
    /// Whether an existing file is an error.
    pub(crate) is_new: bool,
    max_shard_bytes: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions { only: None, is_new: false, max_shard_bytes: 5_000_000_000 }
    }
}

impl WriteOptions {
    /// Sets the key to write: only entries below `key` are written, without `key` in their names.
    #[must_use]
    pub fn only(mut self, key: impl Into<String>) -> Self {
        self.only = Some(key.into());
        self
    }

    /// Sets the maximum size of a shard, in bytes of its tensors. A larger tensor gets a shard of its own. Defaults to
    /// 5 GB, as in Hugging Face's tools.
    #[must_use]
    pub fn max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }
}

/// Writes the tensors of a source for tools that read Hugging Face's formats. The names of a key are joined by dots.
///
/// A `path` that ends in `.safetensors` becomes one file. Any other `path` becomes a new directory with
/// `model.safetensors`, or `model-00001-of-0000N.safetensors` if one shard is not enough, and with the index
/// `model.safetensors.index.json`, which tells it from what is left of a checkpoint of this crate. The file or directory appears atomically when everything is on disk. The same source produces the same
/// bytes. Tensors that share their elements are written under each of their names. Values are left out and listed in
/// the result.
///
/// # Errors
/// [`Error::AlreadyExists`] if the directory exists (a file is replaced); [`Error::InvalidName`] for two tensors of one
/// name; [`Error::InvalidArgument`], [`Error::NoSpace`], [`Error::Io`]; the errors of reading.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::interop::{self, huggingface};
/// let source = interop::open("checkpoints/ckpt-1500")?;
/// huggingface::write(&*source, "export/model", &huggingface::WriteOptions::default().only("model"))?;
/// # Ok(())
/// # }
/// ```
pub fn write(source: &dyn TensorSource, path: impl AsRef<Path>, options: &WriteOptions) -> Result<Written> {
    let path = path.as_ref();
    let (names, written) = names(source, options)?;
    verify_before_streaming(source, names.values().copied())?;
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        let mut file = if options.is_new { DurableFile::create_new(path)? } else { DurableFile::create(path)? };
        write_file(source, &names, &mut file)?;
        file.publish()?;
        return Ok(written);
    }
    let shards = shards(source, names, options.max_shard_bytes);
    let directory = DurableDirectory::create(path)?;
    let count = shards.len();
    let (mut map, mut total) = (BTreeMap::new(), 0u64);
    for (i, shard) in shards.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let mut file = directory.file(&name)?;
        total += write_file(source, shard, &mut file)?;
        file.sync()?;
        map.extend(shard.keys().map(|tensor| (tensor.clone(), Value::from(name.clone()))));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    let mut text = serde_json::to_vec_pretty(&index).map_err(|e| Error::InvalidArgument(e.to_string()))?;
    text.push(b'\n');
    let file = directory.file("model.safetensors.index.json")?;
    file.write_at(0, &text)?;
    file.sync()?;
    directory.publish()?;
    Ok(written)
}

/// Returns the keys of tensors by the names they get, and what is left out.
fn names<'a>(source: &'a dyn TensorSource, options: &WriteOptions) -> Result<(BTreeMap<String, &'a str>, Written)> {
    let inside = |key: &str| match options.only.as_deref() {
        None => Some(key.to_string()),
        Some(only) => key.strip_prefix(only)?.strip_prefix('/').map(str::to_string),
    };
    let (mut names, mut written) = (BTreeMap::new(), Written::default());
    for key in source.tensors().keys() {
        let Some(place) = inside(key) else { continue };
        let name = name::path(&place).map_or(place, |path| path.join("."));
        if names.contains_key(&name) {
            return Err(Error::name(name, "two tensors would have this name in the file"));
        }
        names.insert(name, key.as_str());
    }
    if names.is_empty() {
        let what = options.only.as_deref().map(|key| format!(" under the key {key:?}")).unwrap_or_default();
        return Err(Error::InvalidArgument(format!("{} has no tensor{what}", source.path().display())));
    }
    let values = source.values().keys().filter(|key| inside(key).is_some());
    written.left_out.extend(values.map(|key| (key.clone(), "safetensors files hold tensors only".to_string())));
    let unreadable = source.unreadable().iter().filter(|(key, _)| inside(key).is_some());
    written.left_out.extend(unreadable.map(|(key, reason)| (key.clone(), reason.clone())));
    written.tensors = names.len();
    Ok((names, written))
}

/// Assigns names to files, as many per file as fit.
fn shards<'a>(
    source: &dyn TensorSource,
    names: BTreeMap<String, &'a str>,
    most: u64,
) -> Vec<BTreeMap<String, &'a str>> {
    let mut shards = vec![BTreeMap::new()];
    let mut bytes = 0u64;
    for (name, key) in names {
        let own = source.tensors().get(key).and_then(TensorSpec::bytes).unwrap_or(0);
        if bytes.saturating_add(own) > most && shards.last().is_some_and(|shard: &BTreeMap<_, _>| !shard.is_empty()) {
            shards.push(BTreeMap::new());
            bytes = 0;
        }
        bytes += own;
        if let Some(shard) = shards.last_mut() {
            shard.insert(name, key);
        }
    }
    shards
}

/// Writes one file. Returns the bytes of its tensors.
fn write_file(source: &dyn TensorSource, names: &BTreeMap<String, &str>, file: &mut DurableFile) -> Result<u64> {
    let specs = names.iter().map(|(name, key)| match source.tensors().get(*key) {
        Some(spec) => Ok((name.clone(), spec.clone())),
        None => Err(Error::object(*key, "the source has no such tensor")),
    });
    let Layout { header, tensors, file_bytes } = layout(specs.collect::<Result<_>>()?)?;
    file.write_at(0, &header)?;
    for tensor in &tensors {
        let mut at = tensor.begin;
        let Some(key) = names.get(&tensor.name) else { continue };
        for_each_chunk(source, key, &mut |bytes| {
            file.write_at(at, bytes)?;
            at += bytes.len() as u64;
            Ok(())
        })?;
    }
    Ok(file_bytes - header.len() as u64)
}

//! Writing `.pt` files.

mod object;
mod pickler;
mod plain;

use crate::error::{Error, Result};
use crate::interop::durable::DurableFile;
use crate::interop::view::row_major;
use crate::interop::zip::ZipWriter;
use crate::interop::{Written, for_each_chunk};
use crate::source::TensorSource;
use object::{Key, Object};
use pickler::Pickler;
use std::collections::BTreeMap;
use std::path::Path;

/// The one directory of the archive: the same for every file, so that its bytes are.
const TOP: &str = "archive";

/// The alignment of tensors, for readers that map the file into memory.
const ALIGNMENT: u64 = 64;

/// Options of [`write()`].
///
/// ```
/// use tch_checkpoint::interop::pytorch::WriteOptions;
/// let options = WriteOptions::default().only("model").optimizer("optimizer", [["fc.weight", "fc.bias"]]);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct WriteOptions {
    only: Option<String>,
    /// Whether an existing file is an error.
    pub(crate) is_new: bool,
    flat: bool,
    optimizers: BTreeMap<String, Vec<Vec<String>>>,
}

impl WriteOptions {
    /// Writes only what is under `key`, as the root of the file: with `model`, a `state_dict` of the model.
    #[must_use]
    pub fn only(mut self, key: impl Into<String>) -> Self {
        self.only = Some(key.into());
        self
    }

    /// Writes one dictionary of tensors, their names joined by dots, and no values: what tch's `VarStore::load` takes.
    /// By default, each `/` of a key becomes a nested dictionary.
    #[must_use]
    pub fn flat(mut self, flat: bool) -> Self {
        self.flat = flat;
        self
    }

    /// Writes the state of the optimizer under `key` as PyTorch's `Optimizer.state_dict()`. That numbers the
    /// parameters: `parameters` are the names of the variables in the order in which PyTorch's optimizer gets them,
    /// a list for each parameter group.
    #[must_use]
    pub fn optimizer<N: Into<String>>(
        mut self,
        key: impl Into<String>,
        parameters: impl IntoIterator<Item = impl IntoIterator<Item = N>>,
    ) -> Self {
        let groups = parameters.into_iter().map(|group| group.into_iter().map(Into::into).collect());
        self.optimizers.insert(key.into(), groups.collect());
        self
    }
}

/// Writes a source as a file that `torch.load(weights_only=True)` of PyTorch 1.6 and later reads (1.6 does not know
/// the types `U16`, `U32`, `U64` and those of 8-bit floats).
///
/// Keys become dictionaries, values Python objects (those with bytes, or with keys that are neither integers nor texts,
/// are left out and listed in the result); tensors that are the same elements share a storage. The file
/// appears at `path` atomically when it is completely on the disk, and replaces an existing file. The same source
/// produces the same bytes. Memory is bounded: tensors above 8 MiB that have checksums are verified first, and then
/// read in pieces.
///
/// # Errors
/// [`Error::InvalidArgument`] if the options do not fit the source; [`Error::NoSpace`], [`Error::Io`]; the errors of
/// reading. After an error, `path` is unchanged.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::interop::{self, pytorch};
/// use tch_checkpoint::{Checkpoint, Counter};
/// let ours = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// pytorch::write(&*interop::open(ours)?, dir.join("seven.pt"), &pytorch::WriteOptions::default())?;
/// assert_eq!(interop::open(dir.join("seven.pt"))?.values()["step"], 7);
/// # Ok(())
/// # }
/// ```
pub fn write(source: &dyn TensorSource, path: impl AsRef<Path>, options: &WriteOptions) -> Result<Written> {
    let (root, written) = object::plan(source, options)?;
    let mut tensors = Vec::new();
    let pickle = pickle(source, &root, &mut tensors)?;
    crate::interop::verify_before_streaming(source, tensors.iter().copied())?;

    let path = path.as_ref();
    let mut file = if options.is_new { DurableFile::create_new(path)? } else { DurableFile::create(path)? };
    let mut zip = ZipWriter::new(&mut file, ALIGNMENT);
    zip.record(&format!("{TOP}/data.pkl"), &pickle)?;
    zip.record(&format!("{TOP}/byteorder"), b"little")?;
    for (i, key) in tensors.iter().enumerate() {
        let bytes = source.tensors().get(*key).and_then(|spec| spec.bytes());
        let bytes = bytes.ok_or_else(|| Error::object(*key, "it has no length"))?;
        zip.stream(&format!("{TOP}/data/{i}"), bytes, &mut |write| for_each_chunk(source, key, write))?;
    }
    zip.record(&format!("{TOP}/version"), b"3\n")?;
    zip.finish()?;
    file.publish()?;
    Ok(written)
}

/// Returns the pickle, and the tensors in the order of their storages.
fn pickle<'a>(source: &'a dyn TensorSource, root: &'a Object, tensors: &mut Vec<&'a str>) -> Result<Vec<u8>> {
    let mut pickler = Pickler::new();
    object(&mut pickler, source, root, tensors)?;
    Ok(pickler.finish())
}

fn object<'a>(
    pickler: &mut Pickler,
    source: &'a dyn TensorSource,
    object: &'a Object,
    tensors: &mut Vec<&'a str>,
) -> Result<()> {
    match object {
        Object::Tensor(key) => tensor(pickler, source, source.first_alias(key), tensors),
        Object::Value(value) => {
            pickler.value(value);
            Ok(())
        }
        Object::Dict(entries) => {
            pickler.op(b'}');
            if entries.is_empty() {
                return Ok(());
            }
            pickler.op(b'(');
            for (key, value) in entries {
                match key {
                    Key::Text(text) => pickler.text(text),
                    Key::Int(i) => pickler.int((*i).into()),
                }
                self::object(pickler, source, value, tensors)?;
            }
            pickler.op(b'u');
            Ok(())
        }
    }
}

/// A tensor over a storage of its own, which is its place in `tensors`.
fn tensor<'a>(
    pickler: &mut Pickler,
    source: &'a dyn TensorSource,
    key: &'a str,
    tensors: &mut Vec<&'a str>,
) -> Result<()> {
    let memo = format!("tensor {key}");
    if pickler.recall(&memo) {
        return Ok(());
    }
    let spec = source.tensors().get(key).ok_or_else(|| Error::object(key, "the source has no such tensor"))?;
    let (torch_type, class) = super::types::torch_class(spec.dtype);
    let count = spec.bytes().unwrap_or(0) / spec.dtype.size() as u64;
    pickler.global("torch._utils", if class.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" });
    pickler.op(b'(');
    // The persistent id of the storage.
    pickler.op(b'(');
    pickler.text("storage");
    match class {
        Some(class) => pickler.global("torch", class),
        None => pickler.global("torch.storage", "UntypedStorage"),
    }
    pickler.text(&tensors.len().to_string());
    pickler.text("cpu");
    // An untyped storage counts bytes.
    pickler.int(if class.is_some() { count } else { count * torch_type.size() }.into());
    pickler.op(b't');
    pickler.op(b'Q');
    pickler.int(0);
    pickler.lengths(&spec.shape);
    pickler.lengths(&row_major(&spec.shape));
    pickler.bool(false);
    pickler.global("collections", "OrderedDict");
    pickler.op(b')');
    pickler.op(b'R');
    if class.is_none() {
        pickler.global("torch", torch_type.name());
    }
    pickler.op(b't');
    pickler.op(b'R');
    pickler.remember(memo);
    tensors.push(key);
    Ok(())
}

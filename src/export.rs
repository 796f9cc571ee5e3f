//! Exports weights as ordinary safetensors files.

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::interop::huggingface;
use crate::interop::{ReadOptions, huggingface::WriteOptions};
use crate::name;
use crate::snapshot::Snapshot;
use crate::source::{TensorSource, room};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which weights [`Checkpoint::export_weights`] writes, and how.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tch_checkpoint::{Dtype, WeightsExport};
/// let export = WeightsExport::of(["model", "ema"]).dtype(Dtype::BF16)?.file_per_component();
/// # let _ = export;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "nothing is written until it is given to `export_weights`"]
pub struct WeightsExport {
    components: BTreeSet<String>,
    dtype: Option<Dtype>,
    file_per_component: bool,
    keep: Option<usize>,
}

impl WeightsExport {
    /// Selects components, by the names of the tracked objects, and writes them into one file.
    pub fn of<N: Into<String>>(components: impl IntoIterator<Item = N>) -> WeightsExport {
        let components = components.into_iter().map(Into::into).collect();
        WeightsExport { components, dtype: None, file_per_component: false, keep: None }
    }

    /// Converts the tensors of floating-point types F64, F32, F16 and BF16 to this one: F32, F16 or BF16. Rounds to the
    /// nearest value, ties to even, as libtorch does; values beyond the range become infinite. Tensors of other types
    /// are unchanged. By default, no tensor is converted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another type.
    pub fn dtype(mut self, dtype: Dtype) -> Result<WeightsExport> {
        if ![Dtype::F32, Dtype::F16, Dtype::BF16].contains(&dtype) {
            return Err(Error::InvalidArgument(format!("weights are exported as F32, F16 or BF16, not as {dtype}")));
        }
        self.dtype = Some(dtype);
        Ok(self)
    }

    /// Writes one file per component, named after it, into a directory.
    pub fn file_per_component(mut self) -> WeightsExport {
        self.file_per_component = true;
        self
    }

    /// Keeps only the newest `keep` exports, but at least one, of those that
    /// [`export_weights_when`](crate::CheckpointManagerBuilder::export_weights_when) writes: after each export, older
    /// ones are removed. By default, all are kept. [`export_weights`](Checkpoint::export_weights) removes nothing.
    ///
    /// An entry is removed only if it has the name of an export (`weights-STEP.safetensors`, or a directory
    /// `weights-STEP` with nothing else in it) and the same header, byte by byte, as the new export: the tensors of the
    /// same components, with the same types and shapes, as this crate arranges them. Exports of later steps than the
    /// new one, from which the run went back, count as older. What exports of killed processes left
    /// (`.weights-STEP.safetensors.tch-checkpoint-…`) is removed before the first export of each process, whatever is kept.
    pub fn keep(mut self, keep: usize) -> WeightsExport {
        self.keep = Some(keep.max(1));
        self
    }

    /// Returns how many exports are kept.
    pub(crate) fn kept(&self) -> Option<usize> {
        self.keep
    }

    /// Returns the path of the export of a step: a file, or a directory of files.
    pub(crate) fn path_of_step(&self, directory: &Path, step: u64) -> PathBuf {
        let extension = if self.file_per_component { "" } else { name::COMPONENT_EXTENSION };
        directory.join(format!("weights-{step}{extension}"))
    }

    /// Returns the paths of the files of an export at `path`, in the order in which they are written.
    pub(crate) fn files(&self, path: &Path) -> Vec<PathBuf> {
        if !self.file_per_component {
            return vec![path.to_path_buf()];
        }
        let file = |component| path.join(format!("{}{}", name::file_stem(component), name::COMPONENT_EXTENSION));
        self.components.iter().map(|component| file(component)).collect()
    }
}

impl Checkpoint {
    /// Writes the weights of selected tracked objects as safetensors files, for publishing, for serving, or for Python.
    /// Returns the paths. Values are left out. `path` is the file, which ends in `.safetensors`, or with
    /// [`file_per_component`](WeightsExport::file_per_component) the directory.
    ///
    /// Each file is durable, and replaces an earlier one atomically. It is then read back and compared with the
    /// tensors. The tensors have their names in the component, joined by dots, as `VarStore::load` and Python expect;
    /// in one file for several components, the component's name comes first. Needs as much memory as the exported
    /// tensors, which must not change until this returns.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::{Dtype, WeightsExport};
    /// // When the training is done.
    /// checkpoint.export_weights("model-bf16.safetensors", &WeightsExport::of(["model"]).dtype(Dtype::BF16)?)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] if no object of a name is tracked, or it has no tensor, or if a step of a tracked optimizer on
    /// another thread changed something meanwhile; [`Error::InvalidArgument`] for no components, and for a path that does
    /// not end in `.safetensors`; [`Error::NoSpace`], [`Error::Io`]; [`Error::Damaged`] if the file read back differs
    /// from what was written.
    pub fn export_weights(&self, path: impl AsRef<Path>, export: &WeightsExport) -> Result<Vec<PathBuf>> {
        self.export_after(path.as_ref(), export, || Ok(()))
    }

    /// Like [`export_weights`](Checkpoint::export_weights). Calls `begin` before the first file is written.
    pub(crate) fn export_after(
        &self,
        path: &Path,
        export: &WeightsExport,
        begin: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<PathBuf>> {
        if export.components.is_empty() {
            return Err(Error::InvalidArgument("`WeightsExport` has no component to export".to_string()));
        }
        let mut weights = self.snapshot_of(&export.components)?;
        for component in &export.components {
            let prefix = format!("{}/", name::key([component]));
            let key = &prefix[..prefix.len() - 1];
            if !weights.tensors().keys().any(|tensor| tensor == key || tensor.starts_with(&prefix)) {
                return Err(Error::object(component, "it is to be exported, and has no tensor"));
            }
        }
        if let Some(dtype) = export.dtype {
            weights.cast_floats(dtype)?;
        }
        if !export.file_per_component {
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                let reason = format!("{} does not end in .safetensors: one file of weights does", path.display());
                return Err(Error::InvalidArgument(reason));
            }
            let only = export.components.first().filter(|_| export.components.len() == 1);
            begin()?;
            write(&weights, only.map(String::as_str), path)?;
            return Ok(vec![path.to_path_buf()]);
        }
        fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        begin()?;
        let files = export.files(path);
        for (component, file) in export.components.iter().zip(&files) {
            write(&weights, Some(component), file)?;
        }
        Ok(files)
    }
}

/// Writes one file, of one or all components, and reads it back.
fn write(weights: &Snapshot, component: Option<&str>, path: &Path) -> Result<()> {
    let key = component.map(|component| name::key([component]));
    // A tracked object that is itself a tensor has no name below its component.
    let is_one = key.as_ref().is_some_and(|key| weights.tensors().contains_key(key));
    let options = match &key {
        Some(key) if !is_one => WriteOptions::default().only(key.clone()),
        _ => WriteOptions::default(),
    };
    let one;
    let source: &dyn TensorSource = match &key {
        Some(key) if is_one => {
            one = weights.only(key);
            &one
        }
        _ => weights,
    };
    huggingface::write(source, path, &options)?;
    let written = huggingface::open(path, &ReadOptions::default())?;
    for tensor in source.tensors().keys() {
        let inside = match &key {
            Some(key) if !is_one => tensor.strip_prefix(key.as_str()).and_then(|rest| rest.strip_prefix('/')),
            _ => Some(tensor.as_str()),
        };
        let Some(inside) = inside else { continue };
        let name = name::path(inside).map_or(inside.to_string(), |names| names.join("."));
        let name = name::key([&name]);
        let digest = |source: &dyn TensorSource, key: &str| {
            let spec = source.tensors().get(key).cloned();
            let mut bytes = room(key, spec.as_ref().and_then(|spec| spec.bytes()))?;
            source.read(key, &mut bytes)?;
            Ok::<_, Error>((spec, Digest::of(&bytes)))
        };
        if !written.tensors().contains_key(&name) || digest(source, tensor)? != digest(&*written, &name)? {
            return Err(Error::damaged(path, format!("the tensor {} is not what was written", name::shown(tensor))));
        }
    }
    Ok(())
}

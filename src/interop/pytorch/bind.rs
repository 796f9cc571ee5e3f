//! Binds tensors of a pickle to views of stored bytes.

use super::pickle::{Arena, Id, Node, StorageRef, TensorRef};
use super::types::{StorageType, TorchType};
use crate::dtype::TensorSpec;
use crate::error::Result;
use crate::interop::blob::Blob;
use crate::interop::input::Input;
use crate::interop::view::{Change, Stored, View, column_major, row_major};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Binds tensors to their bytes.
pub(super) trait Binder {
    /// Returns the tensor, or why it cannot be represented.
    fn bind(&mut self, arena: &Arena, id: Id) -> Result<Result<Stored, String>>;

    /// Returns `true` if the tensor was bound before under another name.
    fn is_known(&self, id: Id) -> bool {
        let _ = id;
        false
    }
}

/// The storages of a file.
pub(super) trait Storages {
    /// Returns the bytes of a storage, `None` when they were left out, and whether they are big-endian.
    fn storage(&mut self, storage: &StorageRef) -> Result<(Option<Arc<Blob>>, bool)>;
}

/// Binds tensors to storages.
pub(super) struct StorageBinder<S> {
    pub storages: S,
    /// The file, for arrays, whose elements are in the pickle.
    path: Arc<Path>,
    arrays: HashMap<u32, Arc<Blob>>,
    known: HashSet<Id>,
}

impl<S: Storages> StorageBinder<S> {
    pub(super) fn new(storages: S, path: &Path) -> StorageBinder<S> {
        StorageBinder { storages, path: path.into(), arrays: HashMap::new(), known: HashSet::new() }
    }

    fn tensor(&mut self, arena: &Arena, tensor: &TensorRef) -> Result<Result<Stored, String>> {
        let TensorRef { dtype, offset, shape, stride, conj, neg, .. } = tensor;
        let Some(dtype_here) = dtype.dtype() else {
            return Ok(Err(format!("it is of the type torch.{}, which safetensors cannot hold", dtype.name())));
        };
        let parts = (dtype.size() / dtype.parts()) as u8;
        let is_float =
            matches!(dtype, TorchType::F16 | TorchType::BF16 | TorchType::F32 | TorchType::F64 | TorchType::C64);
        if (*conj && dtype.parts() != 2) || (*neg && !is_float) {
            return Ok(Err(format!("it is marked as conjugated or negated, and of the type torch.{}", dtype.name())));
        }
        let Some(storage) = arena.storages.get(tensor.storage as usize) else {
            return Ok(Err("it has no storage".to_string()));
        };
        let (blob, big_endian) = self.storages.storage(storage)?;
        let Some(blob) = blob else {
            return Ok(Err("its elements were left out when the file was written".to_string()));
        };
        // The bytes of typed storages were swapped by their own type when they were written.
        let swapped = match storage.kind {
            StorageType::Of(own) => (own.size() / own.parts()) as u8,
            StorageType::Untyped => parts,
        };
        let change = Change {
            swap: if big_endian && swapped > 1 { swapped } else { 0 },
            conj: if *conj { parts } else { 0 },
            neg: if *neg { parts } else { 0 },
        };
        if change.swap > 0 && dtype.size() % u64::from(change.swap) != 0 {
            return Ok(Err("it is of another type than its big-endian storage".to_string()));
        }
        let spec = TensorSpec::new(dtype_here, shape.clone());
        Ok(Ok(Stored::new(spec, View { blob, begin: offset * dtype.size(), stride: stride.clone(), change })))
    }

    fn array(&mut self, arena: &Arena, place: u32) -> Result<Stored, String> {
        let array = arena.arrays.get(place as usize).ok_or("it is not an array")?;
        let torch_type = array.dtype.torch_type().ok_or("it is an array without elements")?;
        let dtype = torch_type.dtype();
        let dtype =
            dtype.ok_or_else(|| format!("it is of the type {}, which safetensors cannot hold", torch_type.name()))?;
        let blob = self.arrays.entry(place).or_insert_with(|| {
            Arc::new(Blob::stored("an array in the pickle", Input::memory(&self.path, array.data.clone()), None))
        });
        let part = (torch_type.size() / torch_type.parts()) as u8;
        let change = Change { swap: if array.dtype.big_endian && part > 1 { part } else { 0 }, ..Change::default() };
        let stride = if array.fortran { column_major(&array.shape) } else { row_major(&array.shape) };
        let spec = TensorSpec::new(dtype, array.shape.clone());
        Ok(Stored::new(spec, View { blob: blob.clone(), begin: 0, stride, change }))
    }
}

impl<S: Storages> Binder for StorageBinder<S> {
    fn bind(&mut self, arena: &Arena, id: Id) -> Result<Result<Stored, String>> {
        self.known.insert(id);
        match arena.node(id) {
            Node::Tensor(place) => match arena.tensors.get(*place as usize) {
                Some(tensor) => self.tensor(arena, tensor),
                None => Ok(Err("it is not a tensor".to_string())),
            },
            &Node::Array(place) => Ok(self.array(arena, place)),
            _ => Ok(Err("it is not a tensor".to_string())),
        }
    }

    fn is_known(&self, id: Id) -> bool {
        self.known.contains(&id)
    }
}

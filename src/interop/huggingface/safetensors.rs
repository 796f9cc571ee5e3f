//! One safetensors file.

use crate::dtype::TensorSpec;
use crate::error::Result;
use crate::format::safetensors::{LENGTH_BYTES, MAX_HEADER, header_bytes, parse_header};
use crate::interop::blob::Blob;
use crate::interop::foreign::Found;
use crate::interop::input::Input;
use crate::interop::view::{Change, Stored, View, row_major};
use crate::name;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The content of a file.
pub(super) struct Contents {
    pub input: Input,
    /// By name, not by key.
    pub tensors: BTreeMap<String, Stored>,
    pub metadata: BTreeMap<String, String>,
}

pub(super) fn read(input: Input) -> Result<Contents> {
    let mut start = vec![0; input.len().min(LENGTH_BYTES as u64) as usize];
    input.read(0, &mut start)?;
    let length = header_bytes(&start, input.len()).map_err(|e| e.at(input.path()))? as u64;
    let header = input.read_vec(0..length, MAX_HEADER + LENGTH_BYTES as u64)?;
    let header = parse_header(&header, input.len()).map_err(|e| e.at(input.path()))?;
    let mut tensors = BTreeMap::new();
    for tensor in header.tensors {
        let range = header.data_start + tensor.begin..header.data_start + tensor.end;
        let bytes = input.slice(range).ok_or_else(|| input.damaged("a tensor is outside of the file"))?;
        let blob = Arc::new(Blob::stored(format!("the tensor {:?}", tensor.name), bytes, None));
        let TensorSpec { dtype, shape } = tensor.spec;
        let view = View { blob, begin: 0, stride: row_major(&shape), change: Change::default() };
        tensors.insert(tensor.name, Stored::new(TensorSpec { dtype, shape }, view));
    }
    Ok(Contents { input, tensors, metadata: header.metadata })
}

impl Contents {
    /// Returns the content as a source. The texts of the header are values under `__metadata__`.
    pub(super) fn alone(self) -> Found {
        let values = self.metadata.iter().map(|(name, text)| (name::key(["__metadata__", name]), text.clone().into()));
        Found {
            values: values.collect(),
            file_bytes: self.input.len(),
            stored: self.tensors.into_iter().map(|(name, tensor)| (name::key([name]), tensor)).collect(),
            ..Found::default()
        }
    }
}

//! One safetensors file.

use crate::dtype::TensorSpec;
use crate::error::Result;
use crate::format::safetensors::{LENGTH_BYTES, MAX_HEADER, header_bytes, parse_header};
use crate::interop::blob::Blob;
use crate::interop::foreign::Found;
use crate::interop::input::Input;
use crate::interop::view::{Change, Stored, View, row_major};
use crate::name;
use serde::Deserialize;
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

/// The metadata in which DCP's writer records which slice of a tensor a file has.
const SHARDING: &str = "DCP_SHARDING_INFO";

/// The offsets of the slice of a tensor.
#[derive(Deserialize)]
struct Slice {
    saved_offsets: Vec<u64>,
}

impl Contents {
    /// Returns the offsets of the slices that the file has, by name; `None` if it does not record them.
    pub(super) fn slices(&self) -> Result<Option<BTreeMap<String, Vec<u64>>>> {
        let Some(text) = self.metadata.get(SHARDING) else { return Ok(None) };
        let slices: BTreeMap<String, Option<Slice>> =
            serde_json::from_str(text).map_err(|e| self.input.damaged(format!("{SHARDING} is not right: {e}")))?;
        Ok(Some(slices.into_iter().filter_map(|(name, slice)| Some((name, slice?.saved_offsets))).collect()))
    }

    /// Returns the content as a source. The texts of the header are values under `__metadata__`. A slice that does not
    /// start where its tensor does is an error.
    pub(super) fn alone(self) -> Result<Found> {
        for (name, offsets) in self.slices()?.unwrap_or_default() {
            if self.tensors.contains_key(&name) && offsets.iter().any(|offset| *offset > 0) {
                let reason =
                    format!("it has only a slice of {name:?}: open the directory, with the files of the others");
                return Err(self.input.unsupported(reason));
            }
        }
        let values = self.metadata.iter().map(|(name, text)| (name::key(["__metadata__", name]), text.clone().into()));
        Ok(Found {
            values: values.collect(),
            file_bytes: self.input.len(),
            stored: self.tensors.into_iter().map(|(name, tensor)| (name::key([name]), tensor)).collect(),
            ..Found::default()
        })
    }
}

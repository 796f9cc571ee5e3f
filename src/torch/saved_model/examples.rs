//! The examples of a saved model: a safetensors file, in which `encode.0.inputs.letters` is an input of the first
//! example.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::safetensors::{TensorEntry, layout, parse_header};
use crate::format::{EXAMPLES_FILE, Signature, TensorInfo};
use crate::location::Location;
use crate::torch::shim;
use crate::torch::tensor::{bytes_of, examine, scalar_type};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use tch::Tensor;

/// The inputs of an example, and the outputs for them.
#[derive(Debug)]
pub(super) struct Example {
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
}

/// The examples of all signatures.
pub(super) type Examples = BTreeMap<String, Vec<Example>>;

fn name(signature: &str, place: usize, side: &str, tensor: &TensorInfo) -> String {
    format!("{signature}.{place}.{side}.{}", tensor.name)
}

/// Estimates the length of the file in bytes.
pub(super) fn bytes(examples: &Examples) -> u64 {
    let tensors = examples.values().flatten().flat_map(|example| example.inputs.iter().chain(&example.outputs));
    tensors.map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64 + 256).sum()
}

/// Writes the file.
pub(super) fn write(
    file: &mut dyn Write,
    signatures: &BTreeMap<String, Signature>,
    examples: &Examples,
) -> io::Result<()> {
    let failed = |reason| io::Error::other(Error::object(EXAMPLES_FILE, reason));
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (signature, info) in signatures {
        for (place, example) in examples.get(signature).into_iter().flatten().enumerate() {
            let inputs = info.inputs.iter().zip(&example.inputs).map(|(info, tensor)| ("inputs", info, tensor));
            let outputs = info.outputs.iter().zip(&example.outputs).map(|(info, tensor)| ("outputs", info, tensor));
            let all = inputs.chain(outputs);
            tensors.extend(all.map(|(side, info, tensor)| (name(signature, place, side, info), tensor.contiguous())));
        }
    }
    let spec = |(name, tensor): &(String, Tensor)| Ok((name.clone(), examine(tensor).map_err(failed)?.0));
    let specs = tensors.iter().map(spec).collect::<io::Result<Vec<(String, TensorSpec)>>>()?;
    let layout = layout(specs).map_err(io::Error::other)?;
    file.write_all(&layout.header)?;
    for placed in &layout.tensors {
        file.write_all(bytes_of(&tensors[placed.index].1).map_err(failed)?.as_slice())?;
    }
    Ok(())
}

/// Reads the file, whose bytes have been verified.
pub(super) fn read(path: &Location, bytes: &[u8], signatures: &BTreeMap<String, Signature>) -> Result<Examples> {
    let path = path.join(EXAMPLES_FILE);
    let damaged = |reason: String| Error::damaged(&path, reason);
    let length = bytes.len() as u64;
    let start = crate::format::safetensors::header_bytes(bytes, length).map_err(|e| e.at(&path))?;
    let header = bytes.get(..start).ok_or_else(|| damaged("it ends in its header".to_string()))?;
    let header = parse_header(header, length).map_err(|e| e.at(&path))?;
    let start = header.data_start;
    let entries: Entries = header.tensors.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let tensors = |signature: &str, place: usize, side: &str, infos: &[TensorInfo]| {
        let one =
            |info: &TensorInfo| tensor(&entries, start, bytes, &name(signature, place, side, info)).map_err(damaged);
        infos.iter().map(one).collect::<Result<Vec<Tensor>>>()
    };
    let mut examples = Examples::new();
    for (signature, info) in signatures {
        let count = usize::try_from(info.examples).unwrap_or(usize::MAX);
        for place in 0..count {
            let inputs = tensors(signature, place, "inputs", &info.inputs)?;
            let outputs = tensors(signature, place, "outputs", &info.outputs)?;
            examples.entry(signature.clone()).or_default().push(Example { inputs, outputs });
        }
    }
    Ok(examples)
}

/// The tensors of the file, by name.
type Entries<'a> = HashMap<&'a str, &'a TensorEntry>;

fn tensor(entries: &Entries<'_>, start: u64, bytes: &[u8], name: &str) -> Result<Tensor, String> {
    let missing = || format!("it has no tensor {name:?}");
    let entry = entries.get(name).ok_or_else(missing)?;
    let number = scalar_type(entry.spec.dtype).ok_or_else(|| format!("libtorch has no type {}", entry.spec.dtype))?;
    let shape: Result<Vec<i64>, _> = entry.spec.shape.iter().map(|&length| i64::try_from(length)).collect();
    let tensor = shim::zeros(number, &shape.map_err(|_| format!("{name:?} is too large"))?)?;
    let at = |offset: u64| usize::try_from(start + offset).map_err(|e| e.to_string());
    let mut content = bytes.get(at(entry.begin)?..at(entry.end)?).ok_or_else(missing)?.to_vec();
    shim::fill(&tensor, &mut content)?;
    Ok(tensor)
}

/// Returns `true` if two tensors have the same type, shape and bits.
pub(super) fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool, String> {
    let (a, b) = (a.contiguous(), b.contiguous());
    if examine(&a)?.0 != examine(&b)?.0 {
        return Ok(false);
    }
    Ok(bytes_of(&a)?.as_slice() == bytes_of(&b)?.as_slice())
}

//! The description of a saved model: its signatures, its variables and its metadata.

use super::json::{Values, check_memory, unique_map};
use super::{FormatError, damaged, dtype_named};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// The program: TorchScript, with the variables.
pub const PROGRAM_FILE: &str = "program.pt";

/// The description of the program.
pub const SAVED_MODEL_FILE: &str = "saved_model.json";

/// Example inputs and the outputs for them, in a safetensors file.
pub const EXAMPLES_FILE: &str = "examples.st";

/// The files that make a checkpoint a saved model, in lower case.
pub(crate) const SAVED_MODEL_FILES: [&str; 3] = [SAVED_MODEL_FILE, PROGRAM_FILE, EXAMPLES_FILE];

/// The maximum length of a description in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The largest number of a parameter group: an optimizer allocates options for all groups up to it.
const MAX_GROUP: u64 = 4095;

/// Checks the length of a description before it is read.
pub(crate) fn check_length(bytes: u64) -> Result<(), FormatError> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(FormatError::Unsupported(format!("it has {bytes} bytes, at most {MAX_BYTES} are allowed")))
}

const FORMAT: &str = "tch-checkpoint-saved-model";

/// A description without the keys that version 2 has.
const PLAIN: u64 = 1;
/// Adds `same_lengths` and `other_keys`. A description that needs neither is written as version 1.
const VERSION: u64 = 2;

/// The description of a saved model's program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SavedModelInfo {
    format: String,
    version: u64,
    /// The device it was exported on, such as `cpu`.
    pub device: String,
    /// The methods of the program, by name.
    #[serde(deserialize_with = "unique_map")]
    pub signatures: BTreeMap<String, Signature>,
    /// Its parameters and buffers, by the names that the `VarStore` and the program have for them.
    #[serde(deserialize_with = "unique_map")]
    pub variables: BTreeMap<String, Variable>,
    /// Metadata of the exporting program, such as a vocabulary or a licence.
    #[serde(deserialize_with = "values")]
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Free lengths that must be equal, by signature: each list has several.
    #[serde(default, deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub same_lengths: BTreeMap<String, Vec<Vec<Length>>>,
    /// Other keys under which the checkpoint has the memory of a variable, with the variable's name.
    #[serde(default, deserialize_with = "unique_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub other_keys: BTreeMap<String, String>,
}

/// A length of an input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Length {
    /// The input's name.
    pub input: String,
    /// Its dimension, from 0.
    pub dim: u64,
}

/// Writes ``size 1 of `letters` ``.
impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "size {} of `{}`", self.dim, self.input)
    }
}

/// The inputs and outputs of a method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Signature {
    /// The inputs, in order.
    pub inputs: Vec<TensorInfo>,
    /// The outputs. One is returned as a tensor, several as a tuple.
    pub outputs: Vec<TensorInfo>,
    /// The number of examples.
    pub examples: u64,
}

/// An input or output of a signature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(serialize_with = "write_dtype", deserialize_with = "read_dtype")]
    pub dtype: Dtype,
    /// Its shape; `None` for a free length.
    pub shape: Vec<Option<u64>>,
}

/// A parameter or buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Variable {
    /// Its key in the checkpoint.
    pub key: String,
    /// Whether it is a parameter and not a buffer.
    pub trainable: bool,
    /// Its parameter group in an optimizer, at most 4095.
    pub group: u64,
}

fn write_dtype<S: Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.name())
}

fn read_dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
    let name = String::deserialize(deserializer)?;
    dtype_named(&name).ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no element type")))
}

fn values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, serde_json::Value>, D::Error> {
    Values::deserialize(deserializer).map(|values| values.0)
}

/// Writes the form `letters: F32 [?, 64]`.
impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |length: &Option<u64>| length.map_or_else(|| "?".to_string(), |length| length.to_string());
        let lengths: Vec<String> = self.shape.iter().map(length).collect();
        write!(f, "{}: {} [{}]", self.name, self.dtype, lengths.join(", "))
    }
}

#[cfg(feature = "torch")]
impl TensorInfo {
    /// Returns the reason why a tensor of this type and shape is refused, if it is.
    pub(crate) fn refuses(&self, dtype: Dtype, shape: &[u64]) -> Option<String> {
        let fits = |(asked, is): (&Option<u64>, &u64)| asked.is_none_or(|asked| asked == *is);
        let same = self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(fits);
        (dtype != self.dtype || !same).then(|| format!("`{self}` is asked for, {dtype} {shape:?} was given"))
    }
}

/// Reserved words of Python and TorchScript.
const RESERVED: [&str; 38] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "self", "training", "torch",
];

/// Returns `true` if a name is reserved in a program.
fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// Returns the reason why a variable of this name cannot be in a program, if it cannot. TorchScript's text form
/// determines the rule.
#[cfg(feature = "torch")]
pub(crate) fn unexportable(variable: &str) -> Option<String> {
    let rule = "the names of an exported model's variables have printable ASCII characters other than `\"` and `\\`, between \
                the dots at least one; rename it";
    if variable.split('.').any(str::is_empty) {
        return Some(format!("a part of its name is empty: {rule}"));
    }
    if let Some(wrong) = variable.chars().find(|&c| !matches!(c, ' '..='~') || c == '"' || c == '\\') {
        return Some(format!("TorchScript cannot have {wrong:?} in a name: {rule}"));
    }
    let word = variable.split('.').find(|part| is_reserved(part))?;
    Some(format!("`{word}` is a word of TorchScript and cannot be a name in a program; rename it"))
}

/// Returns `true` if an input, output or method can have this name: it must be a valid identifier in Python and
/// TorchScript.
pub(crate) fn is_identifier(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts = name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic());
    starts && name.len() <= 100 && name.bytes().all(plain) && !is_reserved(name)
}

impl SavedModelInfo {
    /// Creates an empty description.
    pub fn new(device: impl Into<String>) -> SavedModelInfo {
        SavedModelInfo {
            format: FORMAT.to_string(),
            version: PLAIN,
            device: device.into(),
            signatures: BTreeMap::new(),
            variables: BTreeMap::new(),
            metadata: BTreeMap::new(),
            same_lengths: BTreeMap::new(),
            other_keys: BTreeMap::new(),
        }
    }

    /// Returns `true` if it needs version 2.
    fn is_extended(&self) -> bool {
        !self.same_lengths.is_empty() || !self.other_keys.is_empty()
    }

    /// Returns the text of the file.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a description that [`from_bytes`](SavedModelInfo::from_bytes) would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let version = if self.is_extended() { VERSION } else { PLAIN };
        let versioned = SavedModelInfo { version, ..self.clone() };
        let text = serde_json::to_vec_pretty(&versioned)
            .map_err(|e| Error::InvalidArgument(format!("{SAVED_MODEL_FILE}: {e}")))?;
        SavedModelInfo::from_bytes(&text).map_err(|e| e.unwritable(SAVED_MODEL_FILE))?;
        Ok(text)
    }

    /// Reads a description.
    ///
    /// # Errors
    ///
    /// [`FormatError::Unsupported`] for a newer version, [`FormatError::Damaged`] for anything else that is invalid.
    ///
    /// ```
    /// use tch_checkpoint::format::SavedModelInfo;
    /// let info = SavedModelInfo::new("cpu");
    /// assert_eq!(SavedModelInfo::from_bytes(&info.to_bytes()?), Ok(info));
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> Result<SavedModelInfo, FormatError> {
        #[derive(Deserialize)]
        struct Frame {
            format: String,
            version: u64,
        }
        check_length(bytes.len() as u64)?;
        check_memory(bytes)?;
        let frame: Frame = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if frame.format == FORMAT && frame.version > VERSION {
            let reason = format!("it is of version {}, this crate reads up to version {VERSION}", frame.version);
            return Err(FormatError::Unsupported(reason));
        }
        let info: SavedModelInfo = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if frame.format == FORMAT && frame.version == VERSION && !info.is_extended() {
            let reason = "it is of version 2 and has neither `same_lengths` nor `other_keys`".to_string();
            return Err(FormatError::Unsupported(reason));
        }
        info.check().map_err(damaged)?;
        Ok(info)
    }

    fn check(&self) -> Result<(), String> {
        let version = if self.is_extended() { VERSION } else { PLAIN };
        if self.format != FORMAT || self.version != version {
            return Err("it is not a saved-model description".to_string());
        }
        for (name, signature) in &self.signatures {
            let mut seen = HashSet::new();
            for (tensors, what) in [(&signature.inputs, "input"), (&signature.outputs, "output")] {
                seen.clear();
                for tensor in tensors {
                    if !is_identifier(&tensor.name) || !seen.insert(tensor.name.as_str()) {
                        return Err(format!(
                            "{:?} is not a valid name for an {what} of {name:?}, or appears twice",
                            tensor.name
                        ));
                    }
                }
                if tensors.is_empty() {
                    return Err(format!("the signature {name:?} has no {what}"));
                }
            }
            if !is_identifier(name) || signature.examples == 0 {
                return Err(format!("{name:?} is no name for a signature, or has no example"));
            }
        }
        if let Some((name, Variable { group, .. })) = self.variables.iter().find(|(_, one)| one.group > MAX_GROUP) {
            return Err(format!("{name:?} is in parameter group {group}; a saved model has groups up to {MAX_GROUP}"));
        }
        for (signature, classes) in &self.same_lengths {
            let inputs = self.signatures.get(signature).map_or(&[][..], |signature| &signature.inputs);
            // Every input counts once, so that a long list takes time in proportion.
            let shapes: HashMap<&str, &[Option<u64>]> =
                inputs.iter().map(|input| (input.name.as_str(), input.shape.as_slice())).collect();
            let mut seen = HashSet::new();
            let is_free = |length: &Length| {
                let place = usize::try_from(length.dim).ok();
                let known = shapes.get(length.input.as_str()).zip(place).and_then(|(shape, place)| shape.get(place));
                known == Some(&None)
            };
            for length in classes.iter().flatten() {
                if !is_free(length) || !seen.insert(length) {
                    return Err(format!("{length} of {signature:?} is not a free length, or appears twice"));
                }
            }
            if classes.is_empty() || classes.iter().any(|class| class.len() < 2) {
                return Err(format!("a length of {signature:?} is the same as no other one"));
            }
        }
        for (key, name) in &self.other_keys {
            if self.variables.get(name).is_none_or(|variable| variable.key == *key) {
                return Err(format!("{key:?} is no other key of a variable {name:?}"));
            }
        }
        Ok(())
    }
}

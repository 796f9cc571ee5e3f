//! What a saved model says of its program: its signatures, its variables, and its owner's notes.

use super::json::{Values, check_memory, unique_map};
use super::{FormatError, damaged, dtype_named};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// The program: TorchScript, with the variables.
pub const PROGRAM_FILE: &str = "program.pt";

/// What is said of the program.
pub const SAVED_MODEL_FILE: &str = "saved_model.json";

/// Example inputs and the outputs for them, in a safetensors file.
pub const EXAMPLES_FILE: &str = "examples.st";

/// The longest description.
const MAX_BYTES: u64 = 64 << 20;

/// Checks the length of a description, before it is read.
pub(crate) fn check_length(bytes: u64) -> Result<(), FormatError> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(FormatError::Unsupported(format!("it has {bytes} bytes, at most {MAX_BYTES} are allowed")))
}

const FORMAT: &str = "tch-checkpoint-saved-model";
const VERSION: u64 = 1;

/// What a saved model says of its program.
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
    /// What its owner says of it: a vocabulary, a licence.
    #[serde(deserialize_with = "values")]
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// What goes into a method, and what comes out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// In the order in which they are given.
    pub inputs: Vec<TensorInfo>,
    /// One is a tensor, several are a tuple.
    pub outputs: Vec<TensorInfo>,
    /// How many examples there are of it.
    pub examples: u64,
}

/// An input or output of a signature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(serialize_with = "write_dtype", deserialize_with = "read_dtype")]
    pub dtype: Dtype,
    /// Its shape; `None` for a length that may be any.
    pub shape: Vec<Option<u64>>,
}

/// A parameter or buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Under which key the checkpoint has it.
    pub key: String,
    /// Whether it is a parameter, else a buffer.
    pub trainable: bool,
    /// The parameter group that an optimizer has it in.
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

/// As in a signature: `F32 [?, 64]`.
impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |length: &Option<u64>| length.map_or_else(|| "?".to_string(), |length| length.to_string());
        let lengths: Vec<String> = self.shape.iter().map(length).collect();
        write!(f, "{}: {} [{}]", self.name, self.dtype, lengths.join(", "))
    }
}

#[cfg(feature = "torch")]
impl TensorInfo {
    /// Why a tensor of this type and shape is not what is asked for, if it is not.
    pub(crate) fn refuses(&self, dtype: Dtype, shape: &[u64]) -> Option<String> {
        let fits = |(asked, is): (&Option<u64>, &u64)| asked.is_none_or(|asked| asked == *is);
        let same = self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(fits);
        (dtype != self.dtype || !same).then(|| format!("`{self}` is asked for, {dtype} {shape:?} was given"))
    }
}

/// Words that mean something else in Python and TorchScript.
const RESERVED: [&str; 37] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "self", "training",
];

/// Whether a name cannot be one in a program.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// The name of an input, output or method: one that is a name in Python and TorchScript too.
pub(crate) fn is_identifier(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts = name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic());
    starts && name.len() <= 100 && name.bytes().all(plain) && !is_reserved(name)
}

impl SavedModelInfo {
    /// A description of nothing yet.
    pub fn new(device: impl Into<String>) -> SavedModelInfo {
        SavedModelInfo {
            format: FORMAT.to_string(),
            version: VERSION,
            device: device.into(),
            signatures: BTreeMap::new(),
            variables: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for everything that [`from_bytes`](SavedModelInfo::from_bytes) would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Usage(format!("{SAVED_MODEL_FILE}: {e}")))?;
        SavedModelInfo::from_bytes(&text).map_err(|e| e.unwritable(SAVED_MODEL_FILE))?;
        Ok(text)
    }

    /// Reads a description.
    ///
    /// # Errors
    ///
    /// [`FormatError::Unsupported`] for one of a newer version, [`FormatError::Damaged`] for all else that is not as it
    /// should be.
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
        info.check().map_err(damaged)?;
        Ok(info)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT || self.version != VERSION {
            return Err("it is no description of a saved model".to_string());
        }
        for (name, signature) in &self.signatures {
            let mut seen = HashSet::new();
            for (tensors, what) in [(&signature.inputs, "input"), (&signature.outputs, "output")] {
                seen.clear();
                for tensor in tensors {
                    if !is_identifier(&tensor.name) || !seen.insert(tensor.name.as_str()) {
                        return Err(format!(
                            "{:?} is no name for an {what} of {name:?}, or is there twice",
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
        Ok(())
    }
}

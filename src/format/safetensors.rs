//! [safetensors](https://github.com/huggingface/safetensors#format) files: laying one out, and reading a header.
//!
//! A file is 8 bytes (the length of the header, little-endian), the header (JSON, padded with spaces) and the data
//! section: the tensors' elements, row-major and little-endian, one after another without holes.
//!
//! Where this differs from the `safetensors` crate: [`layout`] always gives the same bytes for the same tensors and
//! starts the data on a multiple of 4096, [`parse_header`] refuses duplicate names, and neither ever panics.

use super::json::Unique;
use super::{FormatError, MAX_RANK, MAX_TENSOR_NAME, damaged, dtype_named, json};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The bytes before the header: its length.
pub const LENGTH_BYTES: usize = 8;

/// The maximum length of a header, without the 8 bytes before it: the limit of the `safetensors` crate.
pub const MAX_HEADER: u64 = 100_000_000;

/// [`layout`] starts the data section on a multiple of this, so that it can be mapped into memory page by page.
pub const DATA_ALIGNMENT: usize = 4096;

/// The name that a tensor cannot have.
pub const METADATA: &str = "__metadata__";

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// All bytes before the data section: the length, the JSON and the padding.
    pub header: Vec<u8>,
    /// The tensors in the order of their bytes in the file: those with the largest elements first (so that each is
    /// aligned to its element size), then by name.
    pub tensors: Vec<Placed>,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

/// A tensor's place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placed {
    /// Its name in the file.
    pub name: String,
    /// Type and shape.
    pub spec: TensorSpec,
    /// Its first byte, counted from the start of the file.
    pub begin: u64,
    /// The byte after its last one.
    pub end: u64,
    /// Its index in the argument of [`layout`].
    pub index: usize,
}

/// Lays out a file for these tensors. The same tensors produce the same bytes, in whatever order they are given.
///
/// # Errors
///
/// [`Error::InvalidName`] for a duplicate name, the name `__metadata__` and a name above 64 KiB; [`Error::Object`] for
/// more than 64 dimensions and for more bytes than a file can have; [`Error::InvalidArgument`] if the header would
/// exceed 100 MB.
///
/// ```
/// use tch_checkpoint::{Dtype, TensorSpec, format::safetensors::layout};
/// let file = layout(vec![
///     ("flag".to_string(), TensorSpec::new(Dtype::Bool, [])),
///     ("weight".to_string(), TensorSpec::new(Dtype::F32, [2, 3])),
/// ])?;
/// assert_eq!(file.header.len(), 4096);
/// assert_eq!((file.tensors[0].name.as_str(), file.tensors[0].begin, file.tensors[0].end), ("weight", 4096, 4120));
/// assert_eq!((file.tensors[1].name.as_str(), file.tensors[1].begin, file.tensors[1].end), ("flag", 4120, 4121));
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
pub fn layout(tensors: Vec<(String, TensorSpec)>) -> Result<Layout> {
    layout_within(tensors, MAX_HEADER)
}

/// Like [`layout`], with another limit for the header.
pub(super) fn layout_within(tensors: Vec<(String, TensorSpec)>, max_header: u64) -> Result<Layout> {
    let mut tensors: Vec<Placed> = tensors
        .into_iter()
        .enumerate()
        .map(|(index, (name, spec))| Placed { name, spec, begin: 0, end: 0, index })
        .collect();
    tensors.sort_by(|a, b| b.spec.dtype.size().cmp(&a.spec.dtype.size()).then_with(|| a.name.cmp(&b.name)));
    check_names(&tensors)?;

    let mut json = br#"{"__metadata__":{"format":"pt"}"#.to_vec();
    let mut end = 0u64;
    for tensor in &mut tensors {
        tensor.begin = end;
        let bytes = tensor.spec.bytes().filter(|_| tensor.spec.shape.len() <= MAX_RANK);
        // A file's length must fit an i64 on every system, including the header.
        let limit = i64::MAX as u64 - MAX_HEADER - 2 * DATA_ALIGNMENT as u64;
        end = bytes.and_then(|bytes| end.checked_add(bytes)).filter(|&end| end <= limit).ok_or_else(|| {
            let spec = &tensor.spec;
            Error::object(&tensor.name, format!("a file cannot hold a tensor of {spec}: too many dimensions or bytes"))
        })?;
        tensor.end = end;
        let info = Info {
            dtype: Cow::Borrowed(tensor.spec.dtype.name()),
            shape: Shape(tensor.spec.shape.clone()),
            data_offsets: [tensor.begin, tensor.end],
        };
        json.push(b',');
        let appended = json::append(&mut json, &tensor.name).and_then(|()| {
            json.push(b':');
            json::append(&mut json, &info)
        });
        appended.map_err(|reason| Error::object(&tensor.name, reason))?;
    }
    json.push(b'}');

    let data_start = (LENGTH_BYTES + json.len()).next_multiple_of(DATA_ALIGNMENT);
    json.resize(data_start - LENGTH_BYTES, b' ');
    let length = json.len() as u64;
    if length > max_header {
        return Err(Error::InvalidArgument(format!(
            "{} tensors in one safetensors file would need a header of {length} bytes, {max_header} are allowed; \
             track them as more than one component",
            tensors.len()
        )));
    }
    let mut header = Vec::with_capacity(data_start);
    header.extend_from_slice(&length.to_le_bytes());
    header.append(&mut json);
    for tensor in &mut tensors {
        tensor.begin += data_start as u64;
        tensor.end += data_start as u64;
    }
    Ok(Layout { header, tensors, file_bytes: data_start as u64 + end })
}

fn check_names(tensors: &[Placed]) -> Result<()> {
    if let Some(name) = first_twice(tensors.iter().map(|tensor| tensor.name.as_str())) {
        return Err(Error::name(name, "two tensors of a file have this name"));
    }
    for tensor in tensors {
        if tensor.name == METADATA {
            return Err(Error::name(METADATA, "safetensors files reserve it; choose another name"));
        }
        if tensor.name.len() > MAX_TENSOR_NAME {
            let short: String = tensor.name.chars().take(40).collect();
            return Err(Error::name(
                format!("{short}…"),
                format!("it has {} bytes, a tensor's name in a file has at most {MAX_TENSOR_NAME}", tensor.name.len()),
            ));
        }
    }
    Ok(())
}

/// Returns a duplicate name, if there is one.
fn first_twice<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// The content of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// The tensors in the order of their bytes in the file.
    pub tensors: Vec<TensorEntry>,
    /// The offset of the data section in the file.
    pub data_start: u64,
    /// The texts under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorEntry {
    /// Its name in the file.
    pub name: String,
    /// Type and shape.
    pub spec: TensorSpec,
    /// Its first byte, counted from the start of the data section.
    pub begin: u64,
    /// The byte after its last one.
    pub end: u64,
}

/// Returns the number of bytes of a file to pass to [`parse_header`]: all bytes before the data section.
///
/// `start` is the first [`LENGTH_BYTES`] bytes of the file, or more, or the whole file if it is shorter.
///
/// # Errors
///
/// [`FormatError::Damaged`] if there is no length, or if it exceeds [`MAX_HEADER`] or the file. Call this before
/// allocating memory for the header.
pub fn header_bytes(start: &[u8], file_bytes: u64) -> Result<usize, FormatError> {
    let length = start.first_chunk::<LENGTH_BYTES>().map(|bytes| u64::from_le_bytes(*bytes));
    let length = length.ok_or_else(|| damaged(format!("it has {file_bytes} bytes, too few for a safetensors file")))?;
    if length > MAX_HEADER {
        return Err(damaged(format!("its header would have {length} bytes, at most {MAX_HEADER} are allowed")));
    }
    let total = length + LENGTH_BYTES as u64;
    if total > file_bytes {
        return Err(damaged(format!("its header would take {total} bytes, the file has {file_bytes}")));
    }
    usize::try_from(total).map_err(|_| damaged("its header does not fit into memory"))
}

/// Reads a header.
///
/// `header` is the file's bytes before the data section, as many as [`header_bytes`] returns; `file_bytes` is the
/// length of the whole file.
///
/// # Errors
///
/// [`FormatError::Unsupported`] for an element type this version does not know; [`FormatError::Damaged`] for anything
/// else that is invalid: duplicate names, offsets that do not fit the shape, gaps, overlaps, a file that is longer or
/// shorter than its tensors.
///
/// ```
/// use tch_checkpoint::{Dtype, TensorSpec, format::safetensors::{header_bytes, layout, parse_header}};
/// let file = layout(vec![("weight".to_string(), TensorSpec::new(Dtype::F32, [2, 3]))])?;
/// assert_eq!(header_bytes(&file.header[..8], file.file_bytes).unwrap(), file.header.len());
/// let header = parse_header(&file.header, file.file_bytes).unwrap();
/// assert_eq!(header.tensors[0].spec.shape, [2, 3]);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
pub fn parse_header(header: &[u8], file_bytes: u64) -> Result<Header, FormatError> {
    let expected = header_bytes(header, file_bytes)?;
    if header.len() != expected {
        return Err(damaged(format!("its header has {expected} bytes, {} were read", header.len())));
    }
    let json = &header[LENGTH_BYTES..];
    if !json.starts_with(b"{") {
        return Err(damaged("its header does not begin with `{`"));
    }
    let Parsed { mut tensors, metadata, unknown } =
        serde_json::from_slice(json).map_err(|e| damaged(format!("its header is not right: {e}")))?;
    if let Some((name, dtype)) = unknown {
        return Err(FormatError::Unsupported(format!("the tensor {name:?} is of the unknown element type {dtype:?}")));
    }
    if let Some(name) = first_twice(tensors.iter().map(|tensor| tensor.name.as_str())) {
        return Err(damaged(format!("two tensors have the name {name:?}")));
    }
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
    let data_start = header.len() as u64;
    check_ranges(&tensors, file_bytes - data_start)?;
    Ok(Header { tensors, data_start, metadata: metadata.unwrap_or_default() })
}

/// Checks that every tensor has the bytes of its shape, and that they are contiguous from the first byte to the last.
fn check_ranges(tensors: &[TensorEntry], data_bytes: u64) -> Result<(), FormatError> {
    let mut end = 0;
    for tensor in tensors {
        let TensorEntry { name, spec, .. } = tensor;
        let range = format_args!("{} to {}", tensor.begin, tensor.end);
        if tensor.end.checked_sub(tensor.begin).is_none_or(|bytes| spec.bytes() != Some(bytes)) {
            return Err(damaged(format!("the tensor {name:?} of {spec} cannot have the bytes {range}")));
        }
        if tensor.begin != end {
            return Err(damaged(format!("the tensor {name:?} has the bytes {range}, those before it end at {end}")));
        }
        end = tensor.end;
    }
    if end != data_bytes {
        return Err(damaged(format!("its tensors take {end} bytes, there are {data_bytes}")));
    }
    Ok(())
}

/// A header's JSON.
struct Parsed {
    tensors: Vec<TensorEntry>,
    metadata: Option<BTreeMap<String, String>>,
    /// The name and element type of the first tensor whose element type is unknown.
    unknown: Option<(String, String)>,
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parsed, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Parsed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an entry for each tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Parsed, A::Error> {
                let mut parsed = Parsed { tensors: Vec::new(), metadata: None, unknown: None };
                while let Some(name) = access.next_key::<String>()? {
                    if name == METADATA {
                        if parsed.metadata.replace(access.next_value::<Unique<String>>()?.0).is_some() {
                            return Err(A::Error::custom(format!("{METADATA} appears twice")));
                        }
                        continue;
                    }
                    if name.len() > MAX_TENSOR_NAME {
                        return Err(A::Error::custom(format!("a name has {} bytes", name.len())));
                    }
                    let Info { dtype, shape, data_offsets: [begin, end] } = access.next_value()?;
                    match dtype_named(&dtype) {
                        Some(dtype) => {
                            parsed.tensors.push(TensorEntry {
                                name,
                                spec: TensorSpec { dtype, shape: shape.0 },
                                begin,
                                end,
                            });
                        }
                        None => parsed.unknown = parsed.unknown.or_else(|| Some((name, dtype.into_owned()))),
                    }
                }
                Ok(parsed)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A tensor's entry in the JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Info<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// The length of every dimension, of at most [`MAX_RANK`] dimensions.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Shape(pub Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct Lengths;
        impl<'de> Visitor<'de> for Lengths {
            type Value = Vec<u64>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_RANK} lengths")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<u64>, A::Error> {
                let mut lengths = Vec::new();
                while let Some(length) = access.next_element()? {
                    if lengths.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("a tensor has more than {MAX_RANK} dimensions")));
                    }
                    lengths.push(length);
                }
                Ok(lengths)
            }
        }
        deserializer.deserialize_seq(Lengths).map(Shape)
    }
}

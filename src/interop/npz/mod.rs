//! Archives of NumPy (`.npz`), which tch reads and writes too.

mod header;

use super::ReadOptions;
use super::blob::Blob;
use super::foreign::{Foreign, Found};
use super::input::Input;
use super::probe::Probe;
use super::view::{Change, Stored, View, column_major, row_major};
use super::zip::Archive;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::name;
use crate::source::TensorSource;
use header::Header;
use std::path::Path;
use std::sync::Arc;

const EXTENSION: &str = ".npy";

/// Opens an archive of NumPy. Arrays that are not numeric (objects, texts, records) are listed as
/// [`unreadable`](TensorSource::unreadable).
///
/// # Errors
/// [`Error::Unsupported`] if it is not such an archive; [`Error::Damaged`]; [`Error::NotFound`]; [`Error::Io`].
pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    let source = open_archive(Archive::open(Input::open(path.as_ref())?)?, options)?;
    Ok(Box::new(source))
}

fn is_npz(archive: &Archive) -> bool {
    !archive.records().is_empty() && archive.records().keys().all(|name| name.ends_with(EXTENSION))
}

pub(super) fn detect(probe: &Probe<'_>, options: &ReadOptions) -> Option<Result<Box<dyn TensorSource>>> {
    probe.start.as_ref().filter(|start| start.starts_with(b"PK\x03\x04"))?;
    // Errors in an archive are reported by the detectors before this one.
    let archive = Archive::open(Input::open(probe.path).ok()?).ok().filter(is_npz)?;
    Some(open_archive(archive, options).map(|source| Box::new(source) as Box<dyn TensorSource>))
}

fn open_archive(archive: Archive, options: &ReadOptions) -> Result<Foreign> {
    let input = archive.input();
    if !is_npz(&archive) {
        return Err(input.unsupported("it is a zip archive, but not one of NumPy"));
    }
    let mut found = Found { file_bytes: input.len(), ..Found::default() };
    for record in archive.order() {
        let Some(blob) = archive.get(record) else { continue };
        let key = name::key([record.strip_suffix(EXTENSION).unwrap_or(record)]);
        match array(blob)? {
            Ok(stored) => {
                found.order.push(key.clone());
                found.stored.insert(key, stored);
            }
            Err(reason) => drop(found.unreadable.insert(key, reason)),
        }
    }
    found.checks = archive.records().values().cloned().collect();
    Foreign::new("NumPy (npz)", input.path(), found, options)
}

/// Returns one array, or the reason why it cannot be represented.
fn array(blob: &Arc<Blob>) -> Result<Result<Stored, String>> {
    let damaged = |reason: String| -> Error { blob.damaged(reason) };
    let Header { begin, descr, fortran, shape } = Header::read(blob)?;
    let Some((torch_type, big_endian)) = descr.as_deref().and_then(header::number) else {
        let descr = descr.as_deref().unwrap_or("a record");
        return Ok(Err(format!("it is an array of {descr}, which safetensors cannot hold")));
    };
    let Some(dtype) = torch_type.dtype() else {
        return Ok(Err(format!("it is of the type {}, which safetensors cannot hold", torch_type.name())));
    };
    let spec = TensorSpec::new(dtype, shape);
    if spec.bytes().and_then(|bytes| bytes.checked_add(begin)) != Some(blob.len()) {
        return Err(damaged(format!(
            "an array of {spec} does not have the {} bytes after its header",
            blob.len() - begin
        )));
    }
    let part = (torch_type.size() / torch_type.parts()) as u8;
    let change = Change { swap: if big_endian && part > 1 { part } else { 0 }, ..Change::default() };
    let stride = if fortran { column_major(&spec.shape) } else { row_major(&spec.shape) };
    Ok(Ok(Stored::new(spec, View { blob: blob.clone(), begin, stride, change })))
}

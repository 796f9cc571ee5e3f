//! Files of PyTorch: `torch.save` (zip archives, the streams before 1.6, the tar files before 0.1.10), TorchScript
//! archives, directories of `torch.distributed.checkpoint`, and what tch writes (`.ot`).
//!
//! Pickles are read by a restricted unpickler: it knows a list of globals with a fixed meaning and rejects everything
//! else by name. Nothing is executed or imported.

mod archive;
mod bind;
mod distributed;
mod legacy;
mod numpy;
mod optimizer;
pub(crate) mod pickle;
mod rebuild;
mod rules;
mod tar;
mod tree;
mod types;
mod write;

use super::ReadOptions;
use super::foreign::{Foreign, Found};
use super::input::Input;
use super::probe::Probe;
use crate::error::{Error, Result};
use crate::source::TensorSource;
use pickle::{Arena, Id, PickleError};
use std::path::Path;
use tree::{Problem, Style};

pub use super::optimizer::OptimizerState;
pub use optimizer::{OptimizerOptions, optimizer_state};
pub(crate) use types::TorchType;
pub use write::{WriteOptions, write};

/// Returns the type of a numpy descriptor such as `<f4`, and whether it is big-endian.
pub(crate) fn numpy_type(descr: &str) -> Option<(TorchType, bool)> {
    let dtype = types::NumpyDtype::parse(descr)?;
    Some((dtype.torch_type()?, dtype.big_endian))
}

/// Opens a file of PyTorch, or a directory of `torch.distributed.checkpoint`.
///
/// # Errors
/// [`Error::Unsupported`] if it is not such a file, contains an object of an unknown class, or needs too much memory;
/// [`Error::Damaged`]; [`Error::NotFound`]; [`Error::Io`].
pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    let path = path.as_ref();
    let source =
        if path.is_dir() { distributed::open(path, options)? } else { open_input(Input::open(path)?, options)? };
    Ok(Box::new(source))
}

/// Returns the name of the format that the first bytes of a file indicate, if it is one of these.
fn kind(start: &[u8]) -> Option<Kind> {
    if start.starts_with(b"PK\x03\x04") {
        return Some(Kind::Zip);
    }
    if start.starts_with(&legacy::MAGIC) || start.starts_with(b"\x80\x02\x8a\n") {
        return Some(Kind::Legacy);
    }
    (start.get(257..262) == Some(b"ustar")).then_some(Kind::Tar)
}

enum Kind {
    Zip,
    Legacy,
    Tar,
}

pub(super) fn detect(probe: &Probe<'_>, options: &ReadOptions) -> Option<Result<Box<dyn TensorSource>>> {
    if probe.names.as_ref().is_some_and(|names| names.contains(distributed::METADATA)) {
        return Some(open(probe.path, options));
    }
    let kind = kind(probe.start.as_deref()?)?;
    if let Kind::Zip = kind {
        // Other formats are zip archives too.
        let archive = Input::open(probe.path).and_then(super::zip::Archive::open);
        return match archive {
            Ok(archive) if !archive::is_torch(&archive) => None,
            Ok(archive) => {
                Some(archive::open(archive, options).map(|source| Box::new(source) as Box<dyn TensorSource>))
            }
            Err(e) => Some(Err(e)),
        };
    }
    Some(open(probe.path, options))
}

/// Opens a file whose bytes are `input`.
pub(crate) fn open_input(input: Input, options: &ReadOptions) -> Result<Foreign> {
    let mut start = vec![0; input.len().min(512) as usize];
    input.read(0, &mut start)?;
    match kind(&start) {
        Some(Kind::Zip) => archive::open(super::zip::Archive::open(input)?, options),
        Some(Kind::Legacy) => legacy::open(input, options),
        Some(Kind::Tar) => tar::open(input, options),
        None => Err(input.unsupported("it is not a PyTorch file")),
    }
}

/// Opens bytes in memory, as a file.
pub(crate) fn open_bytes(bytes: Vec<u8>, options: &ReadOptions) -> Result<Foreign> {
    open_input(Input::memory(Path::new("bytes"), bytes), options)
}

/// An archive with these records.
pub(crate) fn archive_of(records: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut zip = super::zip::ZipWriter::new(&mut bytes, 1);
    records.iter().try_for_each(|(name, record)| zip.record(name, record))?;
    zip.finish()?;
    Ok(bytes)
}

/// Returns the pickle of an archive.
pub(crate) fn pickle_of(path: &Path) -> Result<Vec<u8>> {
    let input = Input::open(path)?;
    let archive = super::zip::Archive::open(input.clone())?;
    let pickle = archive.records().iter().find(|(name, _)| name.ends_with("/data.pkl"));
    pickle.ok_or_else(|| input.unsupported("no pickle"))?.1.read_vec(1 << 20)
}

/// Adds the file and the part of it to an error of the unpickler.
fn unpickle_failed(input: &Input, part: &str, e: PickleError) -> Error {
    match e {
        PickleError::Bad(reason) => input.unsupported(format!("{part}, {reason}")),
        PickleError::Read(e) => e,
    }
}

/// Rejects a pickle with a global that is not allowed, unless such objects are to be listed as unreadable.
fn check_refused(
    input: &Input,
    part: &str,
    arena: &Arena,
    root: Id,
    refused: Option<u32>,
    options: &ReadOptions,
) -> Result<()> {
    let Some(global) = refused.and_then(|place| arena.globals.get(place as usize)) else {
        return Ok(());
    };
    if options.unknown_objects {
        return Ok(());
    }
    let path = refused.and_then(|place| tree::find_refused(arena, root, place));
    let place = match path.as_deref() {
        Some("") | None => String::new(),
        Some(path) => format!(" (at `{path}`)"),
    };
    let reason = pickle::not_allowed(&global.text());
    Err(input.unsupported(format!(
        "{part}, at byte {}{place}: {reason}; `ReadOptions::unknown_objects` with `interop::open_with`, or `ckpt --unknown-objects`, reads the rest",
        global.offset
    )))
}

/// Collects all that is under `root`. Returns the bytes of keys and values.
fn collect(
    input: &Input,
    part: &str,
    arena: &Arena,
    root: Id,
    style: Style,
    binder: &mut dyn bind::Binder,
    found: &mut Found,
) -> Result<u64> {
    tree::collect(arena, root, style, binder, found).map_err(|problem| match problem {
        Problem::Refused(path, reason) => input.unsupported(format!("{part}, at `{path}`: {reason}")),
        Problem::Failed(e) => e,
    })
}

//! Detects the format of a path by its content.

use super::probe::{Probe, probe};
use super::{ReadOptions, ours};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::repository::path_of;
use crate::source::TensorSource;
use std::path::Path;

/// Opens a path if it has the detector's format; returns `None` otherwise.
pub(crate) type Detector = fn(&Probe<'_>, &ReadOptions) -> Option<Result<Box<dyn TensorSource>>>;

/// One or more detectors per format, tried in order.
const DETECTORS: &[Detector] = &[
    ours::detect,
    #[cfg(feature = "tensorflow")]
    super::tensorflow::detect,
    #[cfg(feature = "keras")]
    super::keras::detect,
    #[cfg(feature = "pytorch")]
    super::pytorch::detect,
    #[cfg(feature = "pytorch")]
    super::npz::detect,
    #[cfg(feature = "huggingface")]
    super::huggingface::detect,
];

pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    path_of(&Location::from(path))?;
    let probe = probe(path)?;
    if let Some(found) = DETECTORS.iter().find_map(|detect| detect(&probe, options)) {
        return found;
    }
    let reason = match &probe {
        Probe { names: Some(_), .. } => "the directory holds no checkpoint of a format this version reads",
        Probe { start: Some(start), .. } if start.is_empty() => "the file is empty",
        Probe { start: Some(start), .. } if start.trim_ascii_start().starts_with(b"<") => {
            "it is an HTML or XML text, perhaps the error page of a server it was downloaded from"
        }
        Probe { start: Some(start), .. } if start.starts_with(b"version https://git-lfs") => {
            "it is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"
        }
        Probe { start: Some(_), .. } => "the file is of no format this version reads",
        _ => {
            let reason = "nothing is there".to_string();
            return Err(Error::not_found(path, reason));
        }
    };
    Err(Error::unsupported(path, reason))
}

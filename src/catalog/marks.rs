//! The marks of a checkpoint together.

use crate::error::Result;
use crate::format::{Follows, Manifest, Mark, MarkKind};
use crate::repository::Directory;
use crate::rules::{Rule, Rules};
use std::collections::BTreeMap;

/// The marks of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Marks {
    /// This crate does not remove it.
    pub permanent: bool,
    /// The file of a mark that cannot be read. Because its content is unknown, the checkpoint is not removed as long as it
    /// is there.
    pub unknown: Option<String>,
    pub metrics: BTreeMap<String, f64>,
    /// Names and notes.
    pub pins: BTreeMap<String, String>,
    /// Names and texts.
    pub notes: BTreeMap<String, String>,
    rules: Rules,
}

impl Marks {
    /// Returns `true` if the checkpoint must not be removed.
    pub(crate) fn stays(&self) -> bool {
        self.permanent || self.unknown.is_some() || !self.pins.is_empty() && self.rules.hold(Rule::Pins)
    }

    /// Reads the marks of the checkpoint `name`, which has this manifest.
    pub(crate) fn read(directory: &Directory, name: &str, manifest: &Manifest) -> Result<Marks> {
        let of = Follows { run: manifest.run.clone(), sequence: manifest.sequence };
        Ok(Marks::among(&directory.marks(name)?, &of, directory.rules()))
    }

    /// Returns the marks of the checkpoint `of` among these files.
    pub(crate) fn among(files: &[(String, Vec<u8>)], of: &Follows, rules: Rules) -> Marks {
        let mut marks = Marks { rules, ..Marks::default() };
        for (file, bytes) in files {
            match Mark::from_bytes(bytes) {
                Ok(mark) if mark.of != *of => log::warn!("{file} is a mark of another checkpoint than it lies in"),
                Ok(Mark { kind: MarkKind::Metric { name, value }, .. }) => drop(marks.metrics.insert(name, value)),
                Ok(Mark { kind: MarkKind::Pin { name, note }, .. }) => drop(marks.pins.insert(name, note)),
                Ok(Mark { kind: MarkKind::Note { name, text }, .. }) => drop(marks.notes.insert(name, text)),
                // A source reads these marks together with the manifest.
                Ok(Mark { kind: MarkKind::Thinned { .. }, .. }) => {}
                Ok(Mark { kind: MarkKind::Permanent, .. }) => marks.permanent = rules.hold(Rule::Marks),
                Err(e) => {
                    log::warn!("the mark {file} cannot be read, so its checkpoint is kept: {e:#}");
                    marks.unknown = Some(file.clone());
                }
            }
        }
        marks
    }
}

/// Writes a mark into the checkpoint `name`, durably. Needs no lock.
///
/// # Errors
/// [`Error::Removed`](crate::Error::Removed) if the checkpoint was removed meanwhile.
pub(crate) fn write_mark(directory: &Directory, name: &str, of: Follows, kind: MarkKind) -> Result<()> {
    let mark = Mark::new(of, kind);
    directory.put_mark(name, &mark.of, &mark.file_name(), &mark.to_bytes()?)
}

/// Writes marks that a user gives into the checkpoint `name`, durably. Writes none if one of them cannot be represented.
///
/// # Errors
/// As for [`write_mark`].
pub(crate) fn write_marks(directory: &Directory, name: &str, of: Follows, kinds: Vec<MarkKind>) -> Result<()> {
    for (file, bytes) in check_marks(&of, kinds)? {
        directory.put_mark(name, &of, &file, &bytes)?;
    }
    Ok(())
}

/// Returns the names and the contents of the files of marks that a user gives.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if one of them cannot be represented.
pub(crate) fn check_marks(of: &Follows, kinds: Vec<MarkKind>) -> Result<Vec<(String, Vec<u8>)>> {
    kinds.iter().try_for_each(MarkKind::check)?;
    // A checkpoint that takes the place of this one takes them over, with a longer sequence.
    mark_files(&Follows { sequence: u64::MAX, ..of.clone() }, kinds.clone())?;
    mark_files(of, kinds)
}

/// Returns the names and the contents of the files of these marks. Of several of one name, the last counts.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if one of them cannot be represented.
pub(crate) fn mark_files(of: &Follows, kinds: Vec<MarkKind>) -> Result<Vec<(String, Vec<u8>)>> {
    let file = |kind: MarkKind| {
        let mark = Mark::new(of.clone(), kind);
        Ok((mark.file_name(), mark.to_bytes()?))
    };
    let files = kinds.into_iter().map(file).collect::<Result<BTreeMap<_, _>>>()?;
    Ok(files.into_iter().collect())
}

/// Removes a mark from the checkpoint `name`, durably. Returns whether there was one.
///
/// # Errors
/// As for [`write_mark`].
pub(crate) fn remove_mark(directory: &Directory, name: &str, of: Follows, kind: MarkKind) -> Result<bool> {
    let mark = Mark::new(of, kind);
    directory.remove_mark(name, &mark.of, &mark.file_name())
}

//! Decides what is ours in a directory: everything else belongs to other programs and is left alone.

use crate::format::{INDEX_FILE, Index};
use crate::name::COMPONENT_EXTENSION;
use crate::repository::{Directory, MANIFEST};
use std::collections::HashSet;
use std::ffi::OsString;

/// Returns the number of the checkpoint `name`, if that is the manager's name and a number in our notation.
pub(crate) fn number_of(manager: &str, name: &str) -> Option<u64> {
    numbered(name).filter(|(before, _)| *before == manager).map(|(_, number)| number)
}

/// Splits `name` into the manager's name and the number, if it has both.
pub(crate) fn numbered(name: &str) -> Option<(&str, u64)> {
    let (manager, digits) = name.rsplit_once('-')?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits && !manager.is_empty()).then_some((manager, number))
}

/// Returns the names in the index.
pub(super) fn indexed(index: Option<&Index>) -> HashSet<String> {
    index.iter().flat_map(|index| &index.checkpoints).map(|entry| entry.name.clone()).collect()
}

/// What a directory that cannot be opened as a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A checkpoint of ours: it has a manifest of any content, or the index lists it.
    Ours,
    /// It has the name of a checkpoint, and nothing else is known of it.
    Named,
    /// It has a component, as other programs' directories do. It is reported, but neither renamed nor removed.
    Doubtful,
    /// Of another program.
    Others,
}

/// Returns whose the directory `name` is. One that the index lists is ours, even if it cannot be listed. Another one
/// that cannot be listed, whatever the error, may be ours if it has the name of a checkpoint.
pub(super) fn whose(directory: &Directory, is_indexed: bool, name: &str) -> Whose {
    if is_indexed {
        return Whose::Ours;
    }
    let is_component = |name: &OsString| name.to_str().is_some_and(|name| name.ends_with(COMPONENT_EXTENSION));
    match directory.names_in(name) {
        Ok(names) if names.iter().any(|name| name == MANIFEST) => Whose::Ours,
        // The index of a directory of checkpoints below this one is not a component.
        Ok(names) if names.iter().any(|name| name == INDEX_FILE) => Whose::Others,
        Ok(names) if names.iter().any(is_component) => Whose::Doubtful,
        Err(_) if numbered(name).is_some() => Whose::Named,
        _ => Whose::Others,
    }
}

//! Decides what is ours in a directory: everything else belongs to other programs and is left alone.

use crate::format::{INDEX_FILE, Index};
use crate::name::COMPONENT_EXTENSION;
use crate::repository::{Directory, MANIFEST};
use std::collections::HashSet;

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

/// Returns `true` if the directory `name`, which cannot be opened as a checkpoint, is ours: it has a manifest of any
/// content or a component, or the index lists it. A directory that cannot be listed, whatever the error, is ours if the
/// index lists it or if it has the name of a checkpoint.
pub(super) fn is_ours(directory: &Directory, indexed: &HashSet<String>, name: &str) -> bool {
    if indexed.contains(name) {
        return true;
    }
    match directory.names_in(name) {
        // The index of a directory of checkpoints below this one is not a component.
        Ok(names) if names.iter().any(|name| name == INDEX_FILE) => names.iter().any(|name| name == MANIFEST),
        Ok(names) => names
            .iter()
            .any(|name| name == MANIFEST || name.to_str().is_some_and(|name| name.ends_with(COMPONENT_EXTENSION))),
        Err(_) => numbered(name).is_some(),
    }
}

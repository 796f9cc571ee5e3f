//! Removes components that only the newest checkpoints keep: they are durably marked as removed first, and removed
//! afterwards. After a crash in between, the next writer finds by the mark what remains to be removed.

use crate::catalog::{Found, look, remove_mark, write_mark};
use crate::format::MarkKind;
use crate::repository::Directory;
use std::collections::BTreeMap;

/// Marks the components of these checkpoints as removed, by the names of the checkpoints. A checkpoint that is pinned
/// meanwhile keeps all components.
pub(super) fn mark(directory: &Directory, known: &mut [Found], thin: &BTreeMap<String, Vec<String>>) {
    for found in known {
        let Some(components) = thin.get(&found.entry.name) else { continue };
        for component in components {
            let kind = MarkKind::Thinned { component: component.clone() };
            if let Err(e) = write_mark(directory, &found.entry.name, found.id(), kind) {
                // If only the sync failed, the mark exists, and is made durable before a file is removed.
                log::warn!("the component {component:?} of {} could not be marked: {e:#}", found.entry.name);
            }
        }
        let was_pinned = !found.pins.is_empty();
        look_again(directory, found);
        if found.has_unknown_mark || !found.pins.is_empty() && !was_pinned {
            components.iter().for_each(|component| unmark(directory, found, component));
            look_again(directory, found);
        }
    }
}

/// Completes what a writer that died had started. A pinned checkpoint keeps a component of which every file still
/// exists.
pub(super) fn resume(directory: &Directory, known: &mut [Found]) {
    for found in known.iter_mut().filter(|found| !found.leftover.is_empty() && !found.pins.is_empty()) {
        let is_there = |files: &Vec<String>| files.iter().all(|file| found.leftover.contains(file));
        let whole: Vec<String> =
            found.thinned.iter().filter(|(_, files)| is_there(files)).map(|(component, _)| component.clone()).collect();
        whole.iter().for_each(|component| unmark(directory, found, component));
        look_again(directory, found);
    }
    finish(directory, known);
}

/// Removes the files of components that are marked as removed.
pub(super) fn finish(directory: &Directory, known: &mut [Found]) {
    for found in known.iter_mut().filter(|found| !found.leftover.is_empty()) {
        let files: Vec<String> = found.leftover.iter().cloned().collect();
        match directory.remove_files(&found.entry.name, &found.id(), &files) {
            Ok(()) => found.leftover.clear(),
            Err(e) => {
                let name = &found.entry.name;
                log::warn!("components of {name} could not be removed: {e:#}; it is tried again later");
            }
        }
    }
}

fn unmark(directory: &Directory, found: &Found, component: &str) {
    let kind = MarkKind::Thinned { component: component.to_string() };
    if let Err(e) = remove_mark(directory, &found.entry.name, found.id(), kind) {
        log::warn!("{} stays without its component {component:?}: {e:#}", found.entry.name);
    }
}

/// Reads the present content of a checkpoint. If it cannot be read, nothing is removed from it.
fn look_again(directory: &Directory, found: &mut Found) {
    match look(directory, &found.entry.name) {
        Ok(mut now) if now.id() == found.id() => {
            now.entry.permanent |= found.entry.permanent;
            *found = now;
        }
        Ok(_) => {}
        Err(e) => log::warn!("{} cannot be read: {e:#}", found.entry.name),
    }
}

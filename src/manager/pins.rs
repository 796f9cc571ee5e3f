//! Pins that a checkpoint took over from the one that it replaced, with the same state: one copy of a state is kept.

use crate::catalog::{Found, remove_mark};
use crate::dtype::TensorSpec;
use crate::error::Result;
use crate::format::{Digest, Manifest, MarkKind};
use crate::repository::{Directory, before_aside};

/// Removes from these `superseded` checkpoints the pins that those that have their numbers now have too, with the same
/// state. The process that saved these may have ended before it did so. Returns the names of those that it changed.
pub(super) fn take_off(directory: &Directory, superseded: &[(String, Found)], known: &[Found]) -> Vec<String> {
    let mut changed = Vec::new();
    for (aside, old) in superseded {
        let Some((_, name)) = before_aside(aside) else { continue };
        let has_taken_over = |new: &&Found| new.entry.name == name && new.follows == old.follows;
        let Some(new) = known.iter().find(has_taken_over) else { continue };
        let pins = old.pins.iter().filter(|(pin, _)| new.pins.contains_key(*pin));
        let pins: Vec<MarkKind> =
            pins.map(|(pin, note)| MarkKind::Pin { name: pin.clone(), note: note.clone() }).collect();
        if pins.is_empty() || !has_same_state(directory, aside, new) {
            continue;
        }
        // A power cut must not leave the pin on neither.
        let taken = directory
            .sync_marks(name, &new.id())
            .and_then(|()| pins.into_iter().try_for_each(|pin| remove_mark(directory, aside, old.id(), pin).map(drop)));
        if let Err(error) = taken {
            log::warn!("{aside} stays pinned, as does {name}, which has replaced it: {error:#}");
        }
        changed.push(aside.clone());
    }
    changed
}

/// Whether the complete checkpoint `new` has the state of `aside`.
fn has_same_state(directory: &Directory, aside: &str, new: &Found) -> bool {
    let is_same = || -> Result<bool> {
        let [old, now] = [directory.manifest(aside)?, directory.manifest(&new.entry.name)?];
        let is_clean = !old.unclean && !now.unclean && now.id() == new.id();
        Ok(is_clean && old.values == now.values && tensors(&old).eq(tensors(&now)))
    };
    new.thinned.is_empty() && new.looks_whole(directory) && is_same().unwrap_or(false)
}

fn tensors(manifest: &Manifest) -> impl Iterator<Item = (&String, &TensorSpec, Digest)> {
    manifest.tensors.iter().map(|(key, record)| (key, &record.spec, record.digest))
}

//! Pins that a checkpoint took over from the one that it replaced, with the same state: one copy of a state is kept.

use crate::catalog::{Found, Marks, remove_mark};
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
        let has_taken_over = |new: &&Found| {
            new.entry.name == name
                && new.follows == old.follows
                && new.layout == old.layout
                && is_pinned_alike(old, new)
        };
        let Some(new) = known.iter().find(has_taken_over) else { continue };
        if !has_same_state(directory, aside, new) {
            continue;
        }
        // What is known of the pins may be old.
        let Ok(files) = directory.marks(name) else { continue };
        let now = Marks::among(&files, &new.id(), directory.rules()).pins;
        let pins = old.pins.iter().filter(|(pin, note)| now.get(*pin) == Some(note));
        let pins: Vec<MarkKind> =
            pins.map(|(pin, note)| MarkKind::Pin { name: pin.clone(), note: note.clone() }).collect();
        if pins.is_empty() {
            continue;
        }
        // A power cut must not leave the pin on neither.
        let taken = directory
            .sync_marks(name, &new.id())
            .and_then(|()| pins.into_iter().try_for_each(|pin| remove_mark(directory, aside, old.id(), pin).map(drop)));
        match taken {
            Ok(()) => log::info!("{name} has the state and the pins of {aside}, which is no longer pinned"),
            Err(error) => log::warn!("{aside} stays pinned, as does {name}, which has replaced it: {error:#}"),
        }
        changed.push(aside.clone());
    }
    changed
}

/// Whether `new` has a pin of `old`, with the same note.
fn is_pinned_alike(old: &Found, new: &Found) -> bool {
    old.pins.iter().any(|(pin, note)| new.pins.get(pin) == Some(note))
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

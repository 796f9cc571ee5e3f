//! Symbolic links to checkpoints: `latest`, `best`.

use super::ledger::{Ledger, infos};
use super::retention::Best;
use crate::catalog::number_of;
use crate::repository::Directory;
use crate::sync::{Mutex, PoisonError};

/// Updates the links, as far as possible. One for which there is no room is removed, unless it leads to a checkpoint that
/// stays. Returns whether there was room for all.
pub(super) fn update(ledger: &Mutex<Ledger>, directory: &Directory) -> bool {
    let ledger = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let links = ledger().links.clone();
    // Locked until all are updated: another thread must not replace them by what it found before.
    let links = links.lock().unwrap_or_else(PoisonError::into_inner);
    if links.is_empty() {
        return true;
    }
    let (known, name) = {
        let ledger = ledger();
        (infos(&ledger.known), ledger.name.clone())
    };
    let mut has_room = true;
    for link in &*links {
        let target = match &link.best {
            None => known.iter().rfind(|info| info.is_healthy()),
            Some((metric, goal)) => Best::new(metric, *goal, 1).choose(&known),
        };
        let target = target.map(|info| info.name.as_str());
        // One of our links leads to a checkpoint of this manager, even if that is gone.
        let is_ours = |target: &str| number_of(&name, target).is_some();
        let Err(e) = directory.put_link(&link.name, target, &is_ours) else { continue };
        log::warn!("the link {} could not be updated: {e:#}", link.name);
        if e.is_no_space() {
            has_room = false;
            let is_gone = |target: &str| is_ours(target) && known.iter().all(|info| info.name != target);
            if let Err(e) = directory.put_link(&link.name, None, &is_gone) {
                log::debug!("the link {} stays: {e:#}", link.name);
            }
        }
    }
    has_room
}

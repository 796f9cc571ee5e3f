//! Symbolic links to checkpoints: `latest`, `best`.

use super::ledger::{Ledger, infos};
use super::retention::Best;
use crate::catalog::number_of;
use crate::repository::Directory;
use crate::sync::{Mutex, PoisonError};

/// Updates the links, as far as possible.
pub(super) fn update(ledger: &Mutex<Ledger>, directory: &Directory) {
    let (links, known, name) = {
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.links.is_empty() {
            return;
        }
        (ledger.links.clone(), infos(&ledger.known), ledger.name.clone())
    };
    for link in links {
        let target = match link.best {
            None => known.iter().rfind(|info| info.is_healthy()),
            Some((metric, goal)) => Best::new(metric, goal, 1).choose(&known),
        };
        let target = target.map(|info| info.name.as_str());
        // One of our links leads to a checkpoint of this manager, even if that is gone.
        let is_ours = |target: &str| number_of(&name, target).is_some();
        if let Err(e) = directory.put_link(&link.name, target, &is_ours) {
            log::warn!("the link {} could not be updated: {e:#}", link.name);
        }
    }
}

//! The objects that a checkpoint tracks, shared with the statuses of its restores, which read them later.

use super::node::{Kind, Node, Unfinished};
use super::place::{component_stem, same_file};
use super::walk::check_component;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Named objects, in the order they were tracked.
#[derive(Clone, Default)]
pub(crate) struct Tracked(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    list: Vec<(String, Node)>,
    /// Distinguishes an object from one that was tracked under the same name before.
    ids: HashMap<String, u64>,
    last_id: u64,
    /// The names, by the stems of their files.
    stems: HashMap<String, String>,
}

impl Tracked {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current objects.
    pub(crate) fn list(&self) -> Vec<(String, Node)> {
        self.lock().list.clone()
    }

    /// Returns the numbers of the objects, by name. Another object under the same name has another number.
    pub(crate) fn ids(&self) -> HashMap<String, u64> {
        self.lock().ids.clone()
    }

    /// Returns the number of one object.
    pub(crate) fn id(&self, name: &str) -> Option<u64> {
        self.lock().ids.get(name).copied()
    }

    /// Adds an object. Examines only this object, so that tracking n objects takes time in proportion to n.
    pub(crate) fn add(&self, name: &str, node: Node) -> Result<()> {
        let stem = component_stem(name)?;
        check_component(name, &node)?;
        let mut objects = self.lock();
        match objects.stems.get(&stem) {
            Some(taken) if taken == name => {
                let reason = "an object of this name is tracked already; choose another, or `untrack` that one first";
                return Err(Error::name(name, reason));
            }
            Some(_) => return Err(same_file(name)),
            None => objects.stems.insert(stem, name.to_string()),
        };
        objects.last_id += 1;
        let id = objects.last_id;
        objects.ids.insert(name.to_string(), id);
        objects.list.push((name.to_string(), node));
        Ok(())
    }

    /// Returns an update that has started and is not complete, in an object that is tracked itself or in a group.
    pub(crate) fn unfinished(&self) -> Option<(String, Unfinished)> {
        self.list().into_iter().find_map(|(name, node)| Some((name, unfinished(&node)?)))
    }

    /// Removes an object. Returns `false` if there is none of that name.
    pub(crate) fn remove(&self, name: &str) -> bool {
        let mut objects = self.lock();
        let Some(place) = objects.list.iter().position(|(taken, _)| taken == name) else { return false };
        objects.list.remove(place);
        objects.ids.remove(name);
        objects.stems.retain(|_, taken| taken != name);
        true
    }
}

fn unfinished(node: &Node) -> Option<Unfinished> {
    match &node.0 {
        Kind::Group(children) => children.iter().find_map(|(_, child)| unfinished(child)),
        Kind::Collection(collection) => collection.unfinished(),
        Kind::Tensor(_) | Kind::Value(_) => None,
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.lock().list).finish()
    }
}

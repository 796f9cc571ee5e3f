//! Averages in the graph: one tensor per variable, under its name, and the number of updates.

use super::state::{IS_SWAPPED, Progress, Shared};
use crate::error::BoxError;
use crate::graph::{Child, Collection, Created, Guarded, Node, SavedTree, ValueApply, ValueLeaf};
use crate::torch::shim;
use crate::torch::tensor::Leaf;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The name of the value saved with the averages.
const PROGRESS: &str = "averaging";

pub(super) fn node(shared: &Shared) -> Node {
    Node::collection(shared.clone())
}

impl Collection for Shared {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        let mut state = self.lock();
        if state.is_swapped {
            return Err(IS_SWAPPED.into());
        }
        state.sync()?;
        if state.names.contains_key(PROGRESS) {
            return Err(format!(
                "a variable is called {PROGRESS:?}, which is the name of the count of updates; rename it"
            )
            .into());
        }
        let mut children = vec![Child::new(PROGRESS, Node::value(Count(self.clone())))];
        children.extend(state.names.iter().filter_map(|(name, named)| {
            let node = Node::tensor(Leaf::new(&state.entries.get(named.place)?.average));
            Some(Child { name_in_file: Some(named.full_name.clone()), ..Child::new(name, node) })
        }));
        Ok(children)
    }

    fn create(&self, name: &str, _: &SavedTree) -> Result<Option<Created>, BoxError> {
        // A variable that was selected when the checkpoint was saved and is frozen now. One that is frozen later keeps its
        // average, too.
        let Some((entry, full_name)) = self.lock().frozen(name)? else { return Ok(None) };
        let node = Node::tensor(Leaf::new(&entry.average));
        let shared = self.clone();
        let name_in_file = Some(full_name.clone());
        let created = Created::new(node, move || shared.lock().adopt(entry, full_name));
        Ok(Some(Created { name_in_file, ..created }))
    }

    fn may_lack(&self, name: &str) -> bool {
        name != PROGRESS && self.lock().may_be_frozen()
    }

    fn may_lack_beside(&self, name: &str, saved: &SavedTree) -> bool {
        // Without the count of updates, the checkpoint has no averages at all.
        saved.children.contains_key(PROGRESS) && self.may_lack(name)
    }

    fn remove(&self, names: &[String]) {
        self.lock().remove(names);
    }

    fn guarded(&self) -> Option<Guarded> {
        let state = self.lock();
        let address = |tensor| {
            let memory = shim::info(tensor).ok()?.memory.ok()?;
            memory.is_whole.then_some(memory.data as usize)
        };
        let averages = state.entries.iter().map(|entry| &entry.average);
        let changes = Some(state.changes.clone());
        Some(Guarded { changes, ..Guarded::new(state.gate.clone(), averages.filter_map(address)) })
    }

    fn generation(&self) -> Option<u64> {
        let mut state = self.lock();
        state.sync().ok()?;
        let mut hasher = DefaultHasher::new();
        (state.is_swapped, state.names.len()).hash(&mut hasher);
        shim::objects(state.entries.iter().map(|entry| &entry.average)).hash(&mut hasher);
        Some(hasher.finish())
    }
}

/// The number of updates.
struct Count(Shared);

impl ValueLeaf for Count {
    fn save(&self) -> Result<Value, BoxError> {
        let state = self.0.lock();
        if state.is_swapped {
            return Err(IS_SWAPPED.into());
        }
        Ok(serde_json::to_value(state.progress)?)
    }

    fn load(&self, saved: &Value) -> Result<ValueApply, BoxError> {
        let progress: Progress = serde_json::from_value(saved.clone())
            .map_err(|e| format!("the counts of updates are expected, not {saved}: {e}"))?;
        let shared = self.0.clone();
        Ok(Box::new(move || shared.lock().progress = progress))
    }
}

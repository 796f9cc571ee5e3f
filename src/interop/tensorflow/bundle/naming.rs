//! The names of a bundle's tensors: from their keys, from the paths of the object graph, and of what optimizers keep.

use super::{Bundle, GRAPH};
use crate::interop::Slot;
use crate::interop::room::Room;
use crate::interop::slot::torch_slot;
use crate::interop::tensorflow::graph::{self, TF1_SLOTS};
use crate::interop::tensorflow::messages::Object;
use crate::interop::tensorflow::names;
use std::collections::{BTreeMap, BTreeSet};

/// What a name takes beside its text, and how often its text is kept.
const NAME: usize = 96;
const NAMED: usize = 3;

/// A slot, by where its tensors are stored.
struct FoundSlot {
    optimizer: String,
    variable: usize,
    variable_key: Option<String>,
    name: String,
    slot: usize,
}

impl Bundle {
    /// Gives every tensor its names: from its key, and from the paths of the graph as far as there is room.
    pub(super) fn name_tensors(&mut self, room: &mut Room) {
        let based_on_names = self.graph.is_none();
        for at in 0..self.stored.len() {
            let Ok(name) = std::str::from_utf8(&self.stored[at].name) else {
                let key = String::from_utf8_lossy(&self.stored[at].name).into_owned();
                self.unreadable.insert(names::key(names::plain_path(&key)), "its name is not UTF-8".into());
                continue;
            };
            if name.as_bytes() == GRAPH {
                continue;
            }
            let path = if based_on_names { names::plain_path(name) } else { names::path(name) };
            let (key, whole) = (names::key(path), names::key([name]));
            if !self.offer(key.clone(), at) && !self.offer(whole.clone(), at) {
                self.unreadable.insert(whole, format!("another tensor has the name {key:?} too"));
            }
        }
        let graph = self.graph.take().unwrap_or_default();
        let found = graph::paths(&graph, |object| !graph[object as usize].attributes.is_empty());
        let by_name: BTreeMap<Vec<u8>, usize> =
            self.stored.iter().enumerate().map(|(at, stored)| (stored.name.clone(), at)).collect();
        'objects: for (object, paths) in graph.iter().zip(&found) {
            for attribute in &object.attributes {
                let Some(at) = by_name.get(attribute.key.as_bytes()).copied() else { continue };
                for path in paths {
                    let attribute = (attribute.name != names::VARIABLE_VALUE).then_some(&attribute.name);
                    let key = names::key(path.names.iter().chain(attribute));
                    if !room.take(NAME + NAMED * key.len() + 8 * self.stored[at].entry.shape.len()) {
                        break 'objects;
                    }
                    self.offer(key, at);
                }
            }
        }
        self.graph = (!based_on_names).then_some(graph);
    }

    /// Offers the tensor under a name, unless another has it.
    fn offer(&mut self, key: String, at: usize) -> bool {
        let own = *self.by_key.entry(key.clone()).or_insert(at) == at;
        if own {
            self.stored[at].keys.insert(key);
        }
        own
    }

    /// Gives what optimizers keep for variables its names, as far as there is room.
    pub(super) fn name_slots(&mut self, room: &mut Room) {
        let found = match &self.graph {
            Some(graph) => self.slots_of_graph(graph, room),
            None => self.slots_by_name(),
        };
        let names: BTreeSet<(usize, &str, &str)> =
            found.iter().map(|slot| (slot.variable, &*slot.optimizer, &*slot.name)).collect();
        for FoundSlot { optimizer, variable: at, variable_key, name, slot } in &found {
            let Some(variable) = variable_key.clone().or_else(|| self.stored[*at].keys.first().cloned()) else {
                continue;
            };
            let torch = torch_slot(name, |other| names.contains(&(*at, optimizer, other)));
            let mut key = format!("{optimizer}/{variable}/{}", names::key([torch.unwrap_or(name)]));
            if !room.take(NAME + (NAMED + 1) * key.len()) {
                break;
            }
            if !self.offer(key.clone(), *slot) {
                let Some(other) = self.stored[*slot].keys.first() else { continue };
                if !room.take(other.len()) {
                    break;
                }
                key = other.clone();
            }
            let (optimizer, name) = (optimizer.clone(), name.clone());
            self.slots.push(Slot { optimizer, variable, name, torch, key });
        }
        self.slots.sort_by(|a, b| (&a.optimizer, &a.variable, &a.name).cmp(&(&b.optimizer, &b.variable, &b.name)));
    }

    fn slots_of_graph(&self, graph: &[Object], room: &mut Room) -> Vec<FoundSlot> {
        let kept = graph::kept(graph);
        let optimizers: BTreeSet<u32> = kept.iter().map(|kept| kept.optimizer).collect();
        let variables: BTreeSet<u32> = kept.iter().map(|kept| kept.variable).collect();
        let paths = graph::paths(graph, |object| optimizers.contains(&object) || variables.contains(&object));
        let by_name: BTreeMap<&[u8], usize> =
            self.stored.iter().enumerate().map(|(at, stored)| (&*stored.name, at)).collect();
        let stored = |object: &Object| {
            let attribute = object.attributes.iter().find(|a| a.name == names::VARIABLE_VALUE)?;
            by_name.get(attribute.key.as_bytes()).copied()
        };
        let stored: Vec<Option<usize>> = graph.iter().map(stored).collect();
        let key_of_optimizer = |id: &u32| Some((*id, names::key(&paths[*id as usize].first()?.names)));
        let optimizer_keys: BTreeMap<u32, String> = optimizers.iter().filter_map(key_of_optimizer).collect();
        // The model's name for the variable, not the optimizer's.
        let key_of_variable = |id: &u32| {
            let own = paths[*id as usize].iter();
            let own = own.filter(|path| !path.objects.iter().any(|object| optimizers.contains(object)));
            Some((*id, own.map(|path| names::key(&path.names)).min()?))
        };
        let variable_keys: BTreeMap<u32, String> = variables.iter().filter_map(key_of_variable).collect();
        let mut found = Vec::new();
        for kept in kept {
            let Some(optimizer) = optimizer_keys.get(&kept.optimizer) else { continue };
            let places = stored[kept.variable as usize].zip(stored[kept.slot as usize]);
            let Some((variable, slot)) = places else { continue };
            let variable_key = variable_keys.get(&kept.variable);
            let length = optimizer.len() + variable_key.map_or(0, String::len) + kept.name.len();
            if !room.take(NAME + length) {
                break;
            }
            let (optimizer, variable_key, name) = (optimizer.clone(), variable_key.cloned(), kept.name.to_string());
            found.push(FoundSlot { optimizer, variable, variable_key, name, slot });
        }
        found
    }

    fn slots_by_name(&self) -> Vec<FoundSlot> {
        let mut found = Vec::new();
        for (key, at) in &self.by_key {
            let Some((variable, last)) = key.rsplit_once('/') else { continue };
            let slot = TF1_SLOTS.iter().find(|(name, _)| *name == last);
            let Some((name, variable)) = slot.map(|(_, name)| *name).zip(self.by_key.get(variable)) else { continue };
            if self.stored[*variable].entry.shape == self.stored[*at].entry.shape {
                let (optimizer, name) = ("optimizer".to_string(), name.to_string());
                found.push(FoundSlot { optimizer, variable: *variable, variable_key: None, name, slot: *at });
            }
        }
        found
    }
}

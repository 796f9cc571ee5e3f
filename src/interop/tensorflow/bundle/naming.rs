//! The names of a bundle's tensors: from their keys, from the paths of the object graph, and of what optimizers keep.

use super::{Bundle, GRAPH};
use crate::interop::Slot;
use crate::interop::slot::torch_slot;
use crate::interop::tensorflow::graph::{self, TF1_SLOTS};
use crate::interop::tensorflow::messages::Object;
use crate::interop::tensorflow::names;
use std::collections::{BTreeMap, BTreeSet};

/// A slot, by where its tensors are stored.
struct FoundSlot {
    optimizer: String,
    variable: usize,
    variable_key: Option<String>,
    name: String,
    slot: usize,
}

impl Bundle {
    /// Gives every tensor its names: from its key, and from the paths of the graph.
    pub(super) fn name_tensors(&mut self) {
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
        for (object, paths) in graph.iter().zip(&found) {
            for attribute in &object.attributes {
                let Some(at) = by_name.get(attribute.key.as_bytes()).copied() else { continue };
                for path in paths {
                    let attribute = (attribute.name != names::VARIABLE_VALUE).then_some(&attribute.name);
                    self.offer(names::key(path.names.iter().chain(attribute)), at);
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

    /// Gives what optimizers keep for variables its names.
    pub(super) fn name_slots(&mut self) {
        let found = match &self.graph {
            Some(graph) => self.slots_of_graph(graph),
            None => self.slots_by_name(),
        };
        let mut names: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
        for slot in &found {
            names.entry((slot.variable, slot.optimizer.clone())).or_default().push(slot.name.clone());
        }
        for slot in found {
            let Some(variable) = slot.variable_key.or_else(|| self.stored[slot.variable].keys.first().cloned()) else {
                continue;
            };
            let beside = names.get(&(slot.variable, slot.optimizer.clone())).map_or(&[][..], |names| names);
            let beside: Vec<&str> = beside.iter().map(String::as_str).collect();
            let torch = torch_slot(&slot.name, &beside);
            let name = names::key([torch.unwrap_or(&slot.name)]);
            let mut key = format!("{}/{variable}/{name}", slot.optimizer);
            if !self.offer(key.clone(), slot.slot) {
                let Some(other) = self.stored[slot.slot].keys.first() else { continue };
                key = other.clone();
            }
            self.slots.push(Slot { optimizer: slot.optimizer, variable, name: slot.name, torch, key });
        }
        self.slots.sort_by(|a, b| (&a.optimizer, &a.variable, &a.name).cmp(&(&b.optimizer, &b.variable, &b.name)));
    }

    fn slots_of_graph(&self, graph: &[Object]) -> Vec<FoundSlot> {
        let kept = graph::kept(graph);
        let optimizers: BTreeSet<u32> = kept.iter().map(|kept| kept.optimizer).collect();
        let variables: BTreeSet<u32> = kept.iter().map(|kept| kept.variable).collect();
        let paths = graph::paths(graph, |object| optimizers.contains(&object) || variables.contains(&object));
        let by_name: BTreeMap<&[u8], usize> =
            self.stored.iter().enumerate().map(|(at, stored)| (&*stored.name, at)).collect();
        let stored = |object: u32| {
            let attribute = graph[object as usize].attributes.iter().find(|a| a.name == names::VARIABLE_VALUE)?;
            by_name.get(attribute.key.as_bytes()).copied()
        };
        let found = kept.iter().filter_map(|kept| {
            // The model's name for the variable, not the optimizer's.
            let own = paths[kept.variable as usize].iter();
            let own = own.filter(|path| !path.objects.iter().any(|object| optimizers.contains(object)));
            let optimizer = paths[kept.optimizer as usize].first()?;
            Some(FoundSlot {
                optimizer: names::key(&optimizer.names),
                variable: stored(kept.variable)?,
                variable_key: own.map(|path| names::key(&path.names)).min(),
                name: kept.name.clone(),
                slot: stored(kept.slot)?,
            })
        });
        found.collect()
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

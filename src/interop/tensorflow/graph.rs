//! Paths through the object graph: by how many names each object can be reached, and what optimizers keep for
//! variables.

use super::messages::Object;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Names of one object that are offered, shortest first.
const MAX_ALIASES: usize = 64;
/// The deepest object that is named by its edges; TensorFlow's key names it all the same.
const MAX_DEPTH: usize = 128;
/// Edges that are followed in all, so that a hostile graph costs seconds, not years.
const MAX_STEPS: usize = 4 << 20;
/// Bytes of all names together.
const MAX_TEXT: usize = 16 << 20;

/// A way from the root to an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path {
    pub names: Vec<String>,
    /// The objects on the way, the root first, the object itself last.
    pub objects: Vec<u32>,
}

/// For each object that `wanted` names, the ways that lead to it. No object is passed twice on a way, so that cycles
/// end.
pub(super) fn paths(objects: &[Object], wanted: impl Fn(u32) -> bool) -> Vec<Vec<Path>> {
    struct Step<'a> {
        object: u32,
        parent: usize,
        name: &'a str,
        depth: usize,
    }
    let mut found: Vec<Vec<Path>> = vec![Vec::new(); objects.len()];
    if objects.is_empty() {
        return found;
    }
    let mut visits = vec![0usize; objects.len()];
    let mut steps = vec![Step { object: 0, parent: usize::MAX, name: "", depth: 0 }];
    let mut queue = VecDeque::from([0]);
    let (mut budget, mut text) = (MAX_STEPS, MAX_TEXT);
    while let Some(at) = queue.pop_front() {
        let (object, depth) = (steps[at].object, steps[at].depth);
        let mut way = Vec::new();
        let mut up = at;
        while let Some(step) = steps.get(up) {
            way.push((step.object, step.name));
            up = step.parent;
        }
        way.reverse();
        if wanted(object) {
            let names: Vec<String> = way.iter().skip(1).map(|(_, name)| name.to_string()).collect();
            let Some(left) = text.checked_sub(names.iter().map(|name| name.len() + 32).sum()) else {
                break;
            };
            text = left;
            found[object as usize].push(Path { names, objects: way.iter().map(|(object, _)| *object).collect() });
        }
        if depth >= MAX_DEPTH {
            continue;
        }
        for (child, name) in objects.get(object as usize).map_or(&[][..], |object| &object.children) {
            let Some(left) = budget.checked_sub(1) else {
                return found;
            };
            budget = left;
            let visited = &mut visits[*child as usize];
            if *visited >= MAX_ALIASES || way.iter().any(|(passed, _)| passed == child) {
                continue;
            }
            *visited += 1;
            steps.push(Step { object: *child, parent: at, name, depth: depth + 1 });
            queue.push_back(steps.len() - 1);
        }
    }
    found
}

/// What an optimizer keeps for a variable, by the numbers of the objects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept {
    pub optimizer: u32,
    pub variable: u32,
    /// The optimizer's name for it, such as `m` or `velocity`.
    pub name: Rc<str>,
    pub slot: u32,
}

/// Returns all that optimizers keep for variables: slot variables, and the lists of Keras' newer optimizers. A list
/// belongs to the first optimizer that has it, so that no edge counts twice.
pub(super) fn kept(objects: &[Object]) -> Vec<Kept> {
    let mut all = Vec::new();
    let by_full_name = by_full_name(objects);
    let mut lists = BTreeSet::new();
    // The variables of a list by position, and the variable of a slot: looked up once.
    let mut trainables = BTreeMap::new();
    let mut variables_of_slots = BTreeMap::new();
    for (id, object) in objects.iter().enumerate() {
        let optimizer = id as u32;
        for slot in &object.slots {
            let name = slot.name.as_str().into();
            all.push(Kept { optimizer, variable: slot.variable, name, slot: slot.slot });
        }
        let child = |name: &str| object.children.iter().find(|(_, found)| found == name).map(|(id, _)| *id);
        let Some(variables) = child("_variables").filter(|_| child("_iterations").is_some()) else {
            continue;
        };
        let trainable = child("_trainable_variables");
        let positions = trainable.map(|list| &*trainables.entry(list).or_insert_with(|| by_position(objects, list)));
        for (list, name) in &object.children {
            if *list == variables || Some(*list) == trainable || name == "_trainable_variables_indices" {
                continue;
            }
            if !lists.insert(*list) {
                continue;
            }
            let name: Rc<str> = singular(name.trim_start_matches('_')).into();
            for (slot, position) in items(objects, *list) {
                let variable = match positions {
                    // Keras 3 lists the model's variables in the same order.
                    Some(positions) => positions.get(&position).copied(),
                    // Keras 2 names the variable in the full name of the slot: `Adam/m/dense/kernel`.
                    None => *variables_of_slots
                        .entry(slot)
                        .or_insert_with(|| variable_of_slot(objects, slot, &by_full_name)),
                };
                if let Some(variable) = variable {
                    all.push(Kept { optimizer, variable, name: name.clone(), slot });
                }
            }
        }
    }
    all
}

/// Returns the variables of a list, with their positions.
fn items(objects: &[Object], list: u32) -> impl Iterator<Item = (u32, usize)> {
    let children = objects.get(list as usize).map_or(&[][..], |list| &list.children);
    children.iter().filter_map(|(id, name)| {
        let has_value = objects.get(*id as usize).is_some_and(|object| !object.attributes.is_empty());
        has_value.then_some((*id, name.parse().ok()?))
    })
}

/// Returns the variables of a list by their positions; of those in the same place, the first.
fn by_position(objects: &[Object], list: u32) -> BTreeMap<usize, u32> {
    let mut found = BTreeMap::new();
    for (id, position) in items(objects, list) {
        found.entry(position).or_insert(id);
    }
    found
}

/// Variables by full name; those that several have are left out.
fn by_full_name(objects: &[Object]) -> BTreeMap<&str, Option<u32>> {
    let mut found = BTreeMap::new();
    for (id, object) in objects.iter().enumerate() {
        for attribute in object.attributes.iter().filter(|attribute| !attribute.full_name.is_empty()) {
            found.entry(&*attribute.full_name).and_modify(|id| *id = None).or_insert(Some(id as u32));
        }
    }
    found
}

fn variable_of_slot(objects: &[Object], slot: u32, variables: &BTreeMap<&str, Option<u32>>) -> Option<u32> {
    let full_name = &objects.get(slot as usize)?.attributes.first()?.full_name;
    let (_, rest) = full_name.split_once('/')?;
    let (_, variable) = rest.split_once('/')?;
    variables.get(variable).copied().flatten().filter(|variable| *variable != slot)
}

/// `velocities` is a list of what is called a velocity.
fn singular(name: &str) -> String {
    match (name.strip_suffix("ies"), name.strip_suffix('s')) {
        (Some(stem), _) => format!("{stem}y"),
        (None, Some(stem)) => stem.to_string(),
        (None, None) => name.to_string(),
    }
}

/// The slots of TensorFlow 1 by their names: `enc/w/Adam` is what `Adam` keeps for `enc/w`.
pub(super) const TF1_SLOTS: [(&str, &str); 7] = [
    ("Adam", "m"),
    ("Adam_1", "v"),
    ("Momentum", "momentum"),
    ("RMSProp", "rms"),
    ("RMSProp_1", "momentum"),
    ("Adagrad", "accumulator"),
    ("ExponentialMovingAverage", "average"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(usize, u32, &str)], objects: usize) -> Vec<Object> {
        let mut graph = vec![Object::default(); objects];
        for (from, to, name) in edges {
            graph[*from].children.push((*to, name.to_string()));
        }
        graph
    }

    #[test]
    fn every_way_is_offered_and_cycles_end() {
        let graph = graph(&[(0, 1, "a"), (0, 2, "b"), (1, 2, "c"), (2, 0, "root"), (2, 1, "d"), (0, 0, "self")], 3);
        let found = paths(&graph, |object| object == 2);
        let names: Vec<String> = found[2].iter().map(|path| path.names.join("/")).collect();
        assert_eq!(names, ["b", "a/c"]);
    }

    #[test]
    fn graphs_with_more_ways_than_atoms_end_soon() {
        let ladder: Vec<(usize, u32, &str)> =
            (0..90).flat_map(|i| [(i, i as u32 + 1, "left"), (i, i as u32 + 1, "right")]).collect();
        let found = paths(&graph(&ladder, 91), |_| true);
        assert!(found.iter().skip(7).all(|paths| paths.len() == MAX_ALIASES));
        let all: Vec<(usize, u32, &str)> = (0..300).flat_map(|i| (0..300).map(move |j| (i, j, "x"))).collect();
        assert!(paths(&graph(&all, 300), |_| true).iter().all(|paths| !paths.is_empty()));
        let line: Vec<(usize, u32, &str)> = (0..100_000).map(|i| (i, i as u32 + 1, "x")).collect();
        assert_eq!(paths(&graph(&line, 100_001), |_| true).iter().flatten().count(), MAX_DEPTH + 1);
    }

    #[test]
    fn lists_are_called_for_what_they_hold() {
        for (list, item) in [("velocities", "velocity"), ("momentums", "momentum"), ("velocity_hats", "velocity_hat")] {
            assert_eq!(singular(list), item);
        }
    }
}

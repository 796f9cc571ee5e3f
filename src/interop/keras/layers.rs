//! Names of layers and of their variables.

use super::hdf5::{Attributes, File, text_of};
use crate::interop::room::Room;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Groups of a file, by path.
type Groups = BTreeMap<Vec<String>, Arc<Attributes>>;

/// The group of variables of an object in Keras 3.
const VARS: &str = "vars";

/// Other names for the datasets of a file: of layers as Keras calls them. `None` if there is no room for all of them.
pub(super) fn aliases(file: &File, room: &mut Room) -> Option<Vec<(Vec<String>, usize)>> {
    let counts = counts(file);
    let mut found = Vec::new();
    for (path, dataset) in &file.paths {
        let shape = &file.datasets[*dataset].shape;
        if let Some(alias) = keras3(&file.groups, path, &counts, shape.len()) {
            room.take(text_of(&alias)).then_some(())?;
            found.push((alias, *dataset));
        }
    }
    found.extend(keras2(file, room)?);
    Some(found)
}

/// Returns how many variables each `vars` group has.
fn counts(file: &File) -> BTreeMap<Vec<String>, usize> {
    let mut counts = BTreeMap::new();
    for (path, _) in &file.paths {
        if let [group @ .., number] = &path[..]
            && group.last().is_some_and(|last| last == VARS)
            && number.parse::<usize>().is_ok()
        {
            *counts.entry(group.to_vec()).or_default() += 1;
        }
    }
    counts
}

/// Returns the names of the layers on the way to `…/vars/N`, and the variable's.
fn keras3(groups: &Groups, path: &[String], counts: &BTreeMap<Vec<String>, usize>, rank: usize) -> Option<Vec<String>> {
    let [object @ .., vars, number] = path else {
        return None;
    };
    if vars != VARS || object.is_empty() || object[0] == "optimizer" {
        return None;
    }
    let number: usize = number.parse().ok()?;
    let name = |object: &[String]| {
        let vars = [object, &[VARS.to_string()]].concat();
        groups.get(&vars).and_then(|attributes| attributes.text("name")).filter(|name| !name.is_empty())
    };
    // The object itself must have a name, or the alias would be its parent's.
    name(object)?;
    let names = (1..=object.len()).filter_map(|end| name(&object[..end]));
    let mut alias: Vec<String> = names.flat_map(|name| name.split('/').map(str::to_string)).collect();
    let count = counts.get(&path[..path.len() - 1]).copied().unwrap_or_default();
    let own = object.last().map_or("", String::as_str);
    let known = variable(class(own), number, count, rank);
    let known = known.or_else(|| variable(class(name(object)?), number, count, rank));
    alias.push(known.map_or_else(|| number.to_string(), str::to_string));
    Some(alias)
}

/// A class's name in snake case, without the number behind it.
fn class(name: &str) -> &str {
    match name.rsplit_once('_') {
        Some((class, number)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => class,
        _ => name,
    }
}

/// Returns the name of a variable of a layer of this class that has `count` variables.
fn variable(class: &str, number: usize, count: usize, rank: usize) -> Option<&'static str> {
    let names: &[&str] = match (class, count) {
        ("cell" | "gru_cell" | "lstm_cell" | "simple_rnn_cell", 2 | 3) => &["kernel", "recurrent_kernel", "bias"],
        ("embedding", 1) => &["embeddings"],
        (
            "dense" | "conv1d" | "conv2d" | "conv3d" | "conv1d_transpose" | "conv2d_transpose" | "conv3d_transpose"
            | "depthwise_conv1d" | "depthwise_conv2d" | "einsum_dense" | "query_dense" | "key_dense" | "value_dense"
            | "output_dense",
            1 | 2,
        ) => &["kernel", "bias"],
        ("batch_normalization", 4) => &["gamma", "beta", "moving_mean", "moving_variance"],
        ("layer_normalization" | "group_normalization", 2) => &["gamma", "beta"],
        _ => return None,
    };
    // Kernels are matrices at least: a layer that is called so and is another one keeps its numbers.
    let name = names.get(number).copied()?;
    (!name.ends_with("kernel") || rank >= 2).then_some(name)
}

/// In Keras 2 the groups of layers list their weights by name. `None` if there is no room for all of the lists.
fn keras2(file: &File, room: &mut Room) -> Option<Vec<(Vec<String>, usize)>> {
    let by_path: BTreeMap<&[String], usize> = file.paths.iter().map(|(path, dataset)| (&path[..], *dataset)).collect();
    let mut found = Vec::new();
    for root in [&[][..], &["model_weights".to_string()][..]] {
        let layers = file.groups.get(root).and_then(|attributes| attributes.list("layer_names"));
        for layer in layers.unwrap_or_default() {
            let group = [root, &[layer.to_string()]].concat();
            let weights = file.groups.get(&group).and_then(|attributes| attributes.list("weight_names"));
            for weight in weights.unwrap_or_default() {
                let names: Vec<String> = weight.split('/').map(str::to_string).collect();
                room.take(text_of(&group) + text_of(&names)).then_some(())?;
                let Some(dataset) = by_path.get(&[&group[..], &names].concat()[..]) else { continue };
                let mut alias: Vec<String> = without_output(weight).split('/').map(str::to_string).collect();
                if alias.first().is_none_or(|first| first != layer) {
                    alias.insert(0, layer.to_string());
                }
                found.push((alias, *dataset));
            }
        }
    }
    Some(found)
}

/// TensorFlow 1 wrote which output of an operation a weight was: always the first.
pub(super) fn without_output(weight: &str) -> &str {
    weight.strip_suffix(":0").unwrap_or(weight)
}

/// Returns what a Keras 2 optimizer keeps: the names of the variable and of the slot, and the dataset.
pub(super) fn keras2_slots(file: &File) -> Vec<(String, String, usize)> {
    let mut found = Vec::new();
    for (path, dataset) in &file.paths {
        let Some((root, names)) = path.split_first().filter(|(root, _)| *root == "optimizer_weights") else { continue };
        let _ = root;
        let joined = names.join("/");
        let mut names: Vec<&str> = without_output(&joined).split('/').collect();
        // `Adam/m/dense/kernel:0`, and in the older form `training/Adam/dense/kernel/m:0`.
        names = names.strip_prefix(&["training"]).unwrap_or(&names).to_vec();
        let slot = |name: &str| matches!(name, "m" | "v" | "vhat" | "momentum" | "rms" | "velocity" | "accumulator");
        let (variable, name) = match &names[..] {
            [_, name, variable @ ..] if slot(name) && !variable.is_empty() => (variable, *name),
            [_, variable @ .., name] if slot(name) && !variable.is_empty() => (variable, *name),
            _ => continue,
        };
        found.push((variable.join("/"), name.to_string(), *dataset));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_by_class_and_number() {
        assert_eq!(variable(class("dense_12"), 1, 2, 1), Some("bias"));
        assert_eq!(variable(class("cell"), 1, 3, 2), Some("recurrent_kernel"));
        assert_eq!(variable(class("batch_normalization_1"), 3, 4, 1), Some("moving_variance"));
        assert_eq!(variable(class("batch_normalization"), 1, 3, 1), None, "without scale or center");
        assert_eq!(variable("dense", 0, 2, 1), None, "no kernel");
        assert_eq!(class("layer_normalization"), "layer_normalization");
    }
}

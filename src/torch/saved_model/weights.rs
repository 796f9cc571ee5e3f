//! The variables of a program: from a `VarStore` and back, and their keys in a checkpoint.

use crate::checkpoint::Checkpoint;
use crate::error::{BoxError, Error, Result};
use crate::format::{SavedModelInfo, Variable};
use crate::graph::{Child, Collection, Identity, Leaf as TrackedLeaf, LeafObject, Node, TensorLeaf};
use crate::name;
use crate::torch::program::ProgramVariable;
use crate::torch::shim;
use crate::torch::tensor::Leaf;
use crate::torch::variables::{Renamed, lock};
use std::collections::{BTreeMap, HashMap, HashSet};
use tch::nn::VarStore;
use tch::{Device, Tensor};

/// Returns libtorch's name of a device.
pub(super) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_string(),
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Mps => "mps".to_string(),
        Device::Vulkan => "vulkan".to_string(),
    }
}

/// Returns the variables of a store, by name.
pub(super) fn of_store(vs: &VarStore) -> Result<Vec<ProgramVariable>> {
    let table = lock(&vs.variables_);
    let object = |tensor: &Tensor| shim::info(tensor).map_or(0, |info| info.object);
    let trainable: Vec<usize> = table.trainable_variables.iter().map(|variable| object(&variable.tensor)).collect();
    let mut variables = Vec::new();
    for (name, tensor) in &table.named_variables {
        if let Some(reason) = Renamed::of(&vs.variables_, &table.named_variables).why(name) {
            return Err(Error::object(name, reason));
        }
        let is_parameter = trainable.contains(&object(tensor));
        variables.push(ProgramVariable { name: name.clone(), tensor: tensor.shallow_clone(), is_parameter });
    }
    variables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(variables)
}

/// Records the keys of each variable in the checkpoint.
pub(super) fn note_keys(
    vs: &VarStore,
    variables: &[ProgramVariable],
    checkpoint: &Checkpoint,
    info: &mut SavedModelInfo,
) -> Result<()> {
    let leaves = checkpoint.leaves()?;
    let mut by_identity: HashMap<Identity, Vec<&TrackedLeaf>> = HashMap::new();
    let mut without_memory: Vec<&TrackedLeaf> = Vec::new();
    for leaf in &leaves {
        let LeafObject::Tensor(tensor) = &leaf.object else { continue };
        match tensor.identity() {
            Some(identity) => by_identity.entry(identity).or_default().push(leaf),
            // A tensor without elements cannot be identified by its memory.
            None => without_memory.push(leaf),
        }
    }
    let memory = |variable: &ProgramVariable| match Leaf::new(&variable.tensor).identity() {
        Some(identity) => by_identity.get(&identity).map_or(&[][..], Vec::as_slice),
        None => &without_memory,
    };
    // Each tied variable gets a key of its own if there are enough: first the one of its name, then any free one.
    let mut keys: HashMap<&str, &str> = HashMap::new();
    let mut taken: HashSet<&str> = HashSet::new();
    let by_name = |leaf: &TrackedLeaf, variable: &ProgramVariable| is_named(&leaf.name_in_file, &variable.name);
    for any in [false, true] {
        for variable in variables.iter().filter(|one| !(any && one.tensor.numel() == 0)) {
            if keys.contains_key(variable.name.as_str()) {
                continue;
            }
            let fits = |leaf: &&&TrackedLeaf| !taken.contains(leaf.key.as_str()) && (any || by_name(leaf, variable));
            if let Some(leaf) = memory(variable).iter().find(fits) {
                taken.insert(&leaf.key);
                keys.insert(&variable.name, &leaf.key);
            }
        }
    }
    let groups = groups(vs);
    info.variables.clear();
    info.other_keys.clear();
    for variable in variables {
        let shared = || memory(variable).first().filter(|_| variable.tensor.numel() > 0).map(|leaf| leaf.key.as_str());
        let Some(key) = keys.get(variable.name.as_str()).copied().or_else(shared) else {
            return Err(Error::object(
                &variable.name,
                "the checkpoint does not track this variable of the store; track all of them, or omit the checkpoint",
            ));
        };
        let group = shim::info(&variable.tensor).ok().and_then(|info| groups.get(&info.object)).copied().unwrap_or(0);
        let entry = Variable { key: key.to_string(), trainable: variable.is_parameter, group };
        info.variables.insert(variable.name.clone(), entry);
        if variable.tensor.numel() > 0 {
            // Restores of the live model look for these keys, too.
            for leaf in memory(variable).iter().filter(|leaf| !taken.contains(leaf.key.as_str()) && leaf.key != key) {
                info.other_keys.entry(leaf.key.clone()).or_insert_with(|| variable.name.clone());
            }
        }
    }
    Ok(())
}

/// Returns `true` if a tensor's name in its file is that of the variable, with or without names of objects before it.
fn is_named(name_in_file: &str, variable: &str) -> bool {
    let rest = |name: &str| name_in_file.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    rest(variable) || rest(&name::key([variable]))
}

/// Returns the parameter groups of the trainable tensors, by tensor object. A tied variable is stepped with the options of
/// the first of its groups.
fn groups(vs: &VarStore) -> HashMap<usize, u64> {
    let mut groups = HashMap::new();
    for variable in &lock(&vs.variables_).trainable_variables {
        groups.entry(shim::object(&variable.tensor)).or_insert(variable.group as u64);
    }
    groups
}

/// Returns a store of a program's variables: the tensors themselves, not copies.
pub(super) fn into_store(
    program: Vec<ProgramVariable>,
    known: &BTreeMap<String, Variable>,
    device: Device,
) -> Result<VarStore, String> {
    let vs = VarStore::new(device);
    let mut added = HashSet::new();
    if program.len() != known.len() {
        return Err(format!("the program has {} variables, its description {}", program.len(), known.len()));
    }
    for ProgramVariable { name, tensor, .. } in program {
        let info =
            known.get(&name).ok_or_else(|| format!("the program has a variable {name:?} that is not described"))?;
        let group = usize::try_from(info.group).map_err(|e| e.to_string())?;
        let (path, last) = match name.rsplit_once('.') {
            Some((path, last)) => (path.split('.').fold(vs.root(), |path, part| path.sub(part)), last),
            None => (vs.root(), name.as_str()),
        };
        let requires_grad = tensor.requires_grad();
        // A tied variable is one parameter and is trained once.
        let is_first = added.insert(shim::info(&tensor)?.object);
        let tensor = path.set_group(group).add(last, tensor, info.trainable && is_first);
        let _ = tensor.set_requires_grad(requires_grad);
    }
    Ok(vs)
}

/// Returns the variables as objects of a checkpoint, under the keys that they were saved with.
pub(super) fn objects(vs: &VarStore, known: &SavedModelInfo) -> Vec<(String, Node)> {
    let table = lock(&vs.variables_);
    let mut root = Tree::default();
    let own = known.variables.iter().map(|(name, info)| (name, &info.key, Some(name.clone())));
    let others = known.other_keys.iter().map(|(key, name)| (name, key, None));
    for (name, key, name_in_file) in own.chain(others) {
        let (Some(tensor), Some(path)) = (table.named_variables.get(name), name::path(key)) else { continue };
        let at = path.into_iter().fold(&mut root, |tree, part| tree.children.entry(part).or_default());
        at.variable = Some((name_in_file, tensor.shallow_clone()));
    }
    root.children.into_iter().map(|(name, tree)| (name, tree.into_node())).collect()
}

/// Variables by the parts of their keys.
#[derive(Default)]
struct Tree {
    children: BTreeMap<String, Tree>,
    /// The variable, with its name in the file if that differs from its path.
    variable: Option<(Option<String>, Tensor)>,
}

impl Tree {
    fn into_node(self) -> Node {
        if let Some((_, tensor)) = self.variable {
            return Node::tensor(Leaf::variable(&tensor));
        }
        let child = |(name, tree): (String, Tree)| {
            // In its file, a variable has the full name of the `VarStore`.
            let name_in_file = tree.variable.as_ref().and_then(|(name, _)| name.clone());
            Child { name_in_file, ..Child::new(name, tree.into_node()) }
        };
        Node::collection(Fixed(self.children.into_iter().map(child).collect()))
    }
}

/// Fixed children.
struct Fixed(Vec<Child>);

impl Collection for Fixed {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::optim::Sgd;
    use tch::Kind;

    #[test]
    fn a_tied_variable_has_the_group_that_it_is_stepped_with() {
        let vs = VarStore::new(Device::Cpu);
        let first = vs.root().set_group(2).ones("a", &[2]);
        let _ = vs.root().set_group(1).add("b", first.shallow_clone(), true);
        let mut optimizer = Sgd::default().build(&vs, 0.0).unwrap();
        optimizer.set_lr_group(2, 0.5);
        optimizer.backward_step(&first.sum(Kind::Float));
        assert_eq!(first.double_value(&[0]), 0.5);
        assert_eq!(groups(&vs), HashMap::from([(shim::object(&first), 2)]));
    }
}

//! The variables of a program: from a `VarStore` and back into one, and under which keys a checkpoint has them.

use crate::error::{Error, Result};
use crate::format::Variable;
use crate::graph::{Child, Collection, Identity, Node, TensorLeaf, Trackable};
use crate::name;
use crate::save::Plan;
use crate::torch::program::ProgramVariable;
use crate::torch::shim;
use crate::torch::tensor::Leaf;
use crate::torch::variables::{lock, renamed};
use std::collections::{BTreeMap, HashMap, HashSet};
use tch::nn::VarStore;
use tch::{Device, Tensor};

/// libtorch's name of a device.
pub(super) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_string(),
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Mps => "mps".to_string(),
        Device::Vulkan => "vulkan".to_string(),
    }
}

/// The variables of a store, by name.
pub(super) fn of_store(vs: &VarStore) -> Result<Vec<ProgramVariable>> {
    let table = lock(&vs.variables_);
    let object = |tensor: &Tensor| shim::info(tensor).map(|info| info.object).unwrap_or(0);
    let trainable: Vec<usize> = table.trainable_variables.iter().map(|variable| object(&variable.tensor)).collect();
    let mut variables = Vec::new();
    for (name, tensor) in &table.named_variables {
        if let Some(reason) = renamed(name, &table.named_variables) {
            return Err(Error::object(name, reason));
        }
        let is_parameter = trainable.contains(&object(tensor));
        variables.push(ProgramVariable { name: name.clone(), tensor: tensor.shallow_clone(), is_parameter });
    }
    variables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(variables)
}

/// Under which key the planned checkpoint has each of the variables.
pub(super) fn keys(vs: &VarStore, variables: &[ProgramVariable], plan: &Plan) -> Result<BTreeMap<String, Variable>> {
    let mut by_identity: HashMap<Identity, Vec<&str>> = HashMap::new();
    let own = plan.tensors.iter().map(|tensor| (tensor.key.as_str(), tensor));
    let aliases = plan.aliases.iter().map(|(key, place)| (key.as_str(), &plan.tensors[*place]));
    for (key, tensor) in own.chain(aliases) {
        if let Some(identity) = tensor.leaf.identity() {
            by_identity.entry(identity).or_default().push(key);
        }
    }
    let groups = groups(vs);
    let mut keys = BTreeMap::new();
    for variable in variables {
        let known = Leaf::new(&variable.tensor).identity().and_then(|identity| by_identity.get(&identity));
        // Of tied variables each has a key of its own: the one that looks like it.
        let looks_like = |key: &&&str| name::path(key).is_some_and(|path| ends_like(&path.join("."), &variable.name));
        let key = known.and_then(|keys| keys.iter().find(looks_like).or(keys.first()).copied());
        // A variable without elements has no memory to be known by.
        let empty =
            || plan.tensors.iter().find(|tensor| tensor.name_in_file == variable.name).map(|one| one.key.as_str());
        let Some(key) = key.or_else(empty) else {
            return Err(Error::object(
                &variable.name,
                "the checkpoint does not track this variable of the store; track all of them, or leave the checkpoint away",
            ));
        };
        let group = shim::info(&variable.tensor).ok().and_then(|info| groups.get(&info.object)).copied().unwrap_or(0);
        let entry = Variable { key: key.to_string(), trainable: variable.is_parameter, group };
        keys.insert(variable.name.clone(), entry);
    }
    Ok(keys)
}

/// Whether a key is that of the variable: it has its name, with or without a component before it.
fn ends_like(key: &str, variable: &str) -> bool {
    key.ends_with(variable) || variable.ends_with(key)
}

/// The parameter groups of the trainable tensors, by tensor object.
fn groups(vs: &VarStore) -> HashMap<usize, u64> {
    let table = lock(&vs.variables_);
    let trainable = table.trainable_variables.iter();
    trainable.filter_map(|one| Some((shim::info(&one.tensor).ok()?.object, one.group as u64))).collect()
}

/// A store of a program's variables: the tensors themselves, not copies.
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
        // A tied variable is one parameter, and trained once.
        let is_first = added.insert(shim::info(&tensor)?.object);
        let tensor = path.set_group(group).add(last, tensor, info.trainable && is_first);
        let _ = tensor.set_requires_grad(requires_grad);
    }
    Ok(vs)
}

/// The variables as objects of a checkpoint, under the keys that they were saved with.
pub(super) fn objects(vs: &VarStore, known: &BTreeMap<String, Variable>) -> Vec<(String, Node)> {
    let table = lock(&vs.variables_);
    let mut root = Tree::default();
    for (name, info) in known {
        let (Some(tensor), Some(path)) = (table.named_variables.get(name), name::path(&info.key)) else { continue };
        let at = path.into_iter().fold(&mut root, |tree, part| tree.children.entry(part).or_default());
        at.variable = Some((name.clone(), tensor.shallow_clone()));
    }
    root.children.into_iter().map(|(name, tree)| (name, tree.into_node())).collect()
}

/// Variables by the parts of their keys.
#[derive(Default)]
struct Tree {
    children: BTreeMap<String, Tree>,
    variable: Option<(String, Tensor)>,
}

impl Tree {
    fn into_node(self) -> Node {
        if let Some((_, tensor)) = self.variable {
            return tensor.node();
        }
        let child = |(name, tree): (String, Tree)| {
            // In its file a variable has its full name, as a `VarStore` gives it.
            let name_in_file = tree.variable.as_ref().map(|(variable, _)| variable.clone());
            Child { name, node: tree.into_node(), name_in_file }
        };
        Node::collection(Fixed(self.children.into_iter().map(child).collect()))
    }
}

/// Children that stay.
struct Fixed(Vec<Child>);

impl Collection for Fixed {
    fn children(&self) -> Result<Vec<Child>, String> {
        Ok(self.0.clone())
    }
}

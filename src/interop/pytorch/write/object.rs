//! What is written: the keys of a source as nested dictionaries, and the state of an optimizer as torch has it.

use super::WriteOptions;
use super::plain::{make_plain, plain};
use crate::error::{Error, Result};
use crate::graph::decode;
use crate::interop::Written;
use crate::name;
use crate::source::TensorSource;
use ciborium::Value;
use std::collections::BTreeMap;

/// A Python object.
#[derive(Debug)]
pub(super) enum Object {
    /// By its key in the source.
    Tensor(String),
    Value(Value),
    Dict(Vec<(Key, Object)>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Int(u64),
    Text(String),
}

/// Returns the root of the file, and what is not in it.
pub(super) fn plan(source: &dyn TensorSource, options: &WriteOptions) -> Result<(Object, Written)> {
    let mut written = Written::default();
    let inside = |key: &str| -> Option<String> {
        match options.only.as_deref() {
            None => Some(key.to_string()),
            Some(only) if key == only => Some(String::new()),
            Some(only) => key.strip_prefix(only)?.strip_prefix('/').map(str::to_string),
        }
    };
    if let Some(only) = &options.only {
        let mut keys = source.tensors().keys().chain(source.values().keys());
        if !keys.any(|key| inside(key).is_some()) {
            return Err(Error::InvalidArgument(format!(
                "{} has nothing under the key {only:?}",
                source.path().display()
            )));
        }
    }
    let optimizer = |key: &str| {
        options.optimizers.keys().find(|optimizer| {
            key == optimizer.as_str() || key.strip_prefix(optimizer.as_str()).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    let mut root = Branch::default();
    for key in source.order().into_iter().chain(source.values().keys().map(String::as_str)) {
        let Some(place) = inside(key).filter(|_| optimizer(key).is_none()) else { continue };
        let is_tensor = source.tensors().contains_key(key);
        let object = match source.values().get(key).filter(|_| !is_tensor) {
            Some(_) if options.flat => Err("it is a value, and a flat file holds tensors only".to_string()),
            Some(value) => plain(value).map(Object::Value),
            None => Ok(Object::Tensor(key.to_string())),
        };
        let object = match object {
            Ok(object) => object,
            Err(reason) => {
                written.left_out.insert(key.to_string(), reason);
                continue;
            }
        };
        let path =
            name::path(&place).unwrap_or_else(|| if place.is_empty() { Vec::new() } else { vec![place.clone()] });
        let path = if options.flat && !path.is_empty() { vec![path.join(".")] } else { path };
        if !root.insert(&path, object) {
            return Err(Error::InvalidArgument(format!(
                "{key:?} would have the same name as another object of the file"
            )));
        }
        written.tensors += usize::from(is_tensor);
    }
    for (key, groups) in &options.optimizers {
        let Some(place) = inside(key) else { continue };
        let object = optimizer_state(source, key, groups, &mut written)?;
        let path = name::path(&place).unwrap_or_default();
        if !root.insert(&path, object) {
            return Err(Error::InvalidArgument(format!(
                "{key:?} would have the same name as another object of the file"
            )));
        }
    }
    for (key, reason) in source.unreadable() {
        if inside(key).is_some() {
            written.left_out.insert(key.clone(), reason.clone());
        }
    }
    Ok((root.object(), written))
}

/// A dictionary being made, in the order in which entries came.
#[derive(Debug, Default)]
struct Branch {
    object: Option<Object>,
    places: BTreeMap<String, usize>,
    entries: Vec<(String, Branch)>,
}

impl Branch {
    /// `false` when something is there already.
    fn insert(&mut self, path: &[String], object: Object) -> bool {
        let mut at = self;
        for part in path {
            if at.object.is_some() {
                return false;
            }
            let next = at.entries.len();
            let place = *at.places.entry(part.clone()).or_insert(next);
            if place == next {
                at.entries.push((part.clone(), Branch::default()));
            }
            at = &mut at.entries[place].1;
        }
        let is_free = at.object.is_none() && at.entries.is_empty();
        at.object = Some(object);
        is_free
    }

    fn object(self) -> Object {
        self.object.unwrap_or_else(|| {
            Object::Dict(self.entries.into_iter().map(|(part, branch)| (Key::Text(part), branch.object())).collect())
        })
    }
}

/// `Optimizer.state_dict()`: slots by number of the parameter, and the groups with the numbers of theirs.
fn optimizer_state(
    source: &dyn TensorSource,
    key: &str,
    groups: &[Vec<String>],
    written: &mut Written,
) -> Result<Object> {
    let usage = |reason: String| Error::InvalidArgument(format!("the optimizer {key:?}: {reason}"));
    let options = source.values().get(&format!("{key}/param_groups"));
    let options = options.and_then(|options| decode::<Vec<BTreeMap<String, Value>>>(options).ok());
    let options = options.ok_or_else(|| usage("the source has no `param_groups` of it".to_string()))?;
    if options.len() != groups.len() {
        let (own, given) = (options.len(), groups.len());
        return Err(usage(format!("it has {own} parameter groups, parameters of {given} were given")));
    }
    let algorithm = source.values().get(&format!("{key}/algorithm")).and_then(|name| name.as_str()).unwrap_or_default();
    let prefix = format!("{key}/state/");
    let mut state: BTreeMap<&str, Vec<(Key, Object)>> = BTreeMap::new();
    for tensor in source.tensors().keys() {
        let Some((variable, slot)) = tensor.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once('/')) else {
            continue;
        };
        // SGD's of torch has no count.
        if algorithm == "SGD" && slot == "step" {
            continue;
        }
        state.entry(variable).or_default().push((Key::Text(slot.to_string()), Object::Tensor(tensor.clone())));
        written.tensors += 1;
    }
    let (mut numbered, mut torch_groups, mut next) = (Vec::new(), Vec::new(), 0u64);
    for (names, mut group) in groups.iter().zip(options) {
        let first = next;
        for variable in names {
            if let Some(slots) = state.remove(name::key([variable]).as_str()) {
                numbered.push((Key::Int(next), Object::Dict(slots)));
            }
            next += 1;
        }
        defaults(algorithm).into_iter().for_each(|(name, value)| {
            group.entry(name.to_string()).or_insert(value);
        });
        group.insert("params".to_string(), Value::Array((first..next).map(Value::from).collect()));
        let mut group = Value::Map(group.into_iter().map(|(name, value)| (name.into(), value)).collect());
        make_plain(&mut group).map_err(usage)?;
        torch_groups.push(group);
    }
    if let Some(variable) = state.keys().next() {
        return Err(usage(format!("its variable {variable:?} is in none of the given parameter groups")));
    }
    Ok(Object::Dict(vec![
        (Key::Text("state".to_string()), Object::Dict(numbered)),
        (Key::Text("param_groups".to_string()), Object::Value(torch_groups.into())),
    ]))
}

/// Returns the options that torch's optimizer expects to find, in addition to those that ours has.
fn defaults(algorithm: &str) -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    for name in ["maximize", "differentiable", "capturable"] {
        if !(algorithm == "SGD" && name == "capturable") {
            all.push((name, false.into()));
        }
    }
    all.push(("foreach", Value::Null));
    if algorithm != "RMSprop" {
        all.push(("fused", Value::Null));
    }
    if algorithm == "AdamW" || algorithm == "Adam" {
        all.push(("decoupled_weight_decay", (algorithm == "AdamW").into()));
    }
    all
}

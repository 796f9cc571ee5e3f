//! An optimizer in the graph: its options as values, its slots as tensors that come and go.

use super::options::{self, Slot};
use super::state::{MAX_GROUPS, Shared, State, VALUES, Waiting, check_spec, fits};
use crate::dtype::TensorSpec;
use crate::error::BoxError;
use crate::graph::{Child, Collection, Created, Guarded, Node, SavedTree, Unfinished, ValueApply, ValueLeaf};
use crate::torch::shim::{self, StepOptions};
use crate::torch::tensor::{Leaf, examine, scalar_type};
use serde_json::Value;
use std::collections::HashSet;
use tch::Tensor;

/// Returns the optimizer's part of the graph.
pub(super) fn node(shared: &Shared) -> Node {
    let setting = |save, load| Node::value(Setting { shared: shared.clone(), save, load, load_partly: None });
    let groups =
        Setting { shared: shared.clone(), save: save_groups, load: load_groups, load_partly: Some(load_known_groups) };
    let [algorithm, defaults, param_groups, steps] = VALUES;
    Node::group([
        (algorithm, setting(save_algorithm, load_algorithm)),
        (defaults, setting(save_defaults, load_defaults)),
        (param_groups, Node::value(groups)),
        (steps, setting(save_steps, load_steps)),
        ("state", Node::collection(AllSlots(shared.clone()))),
    ])
}

/// The change that a checked value makes.
type Change = Box<dyn FnOnce(&mut State) + Send>;
type Save = fn(&mut State) -> Result<Value, BoxError>;
type Load = fn(&mut State, &Value) -> Result<Change, BoxError>;
type LoadPartly = fn(&mut State, &Value) -> Option<Change>;

/// A value of the optimizer.
struct Setting {
    shared: Shared,
    save: Save,
    load: Load,
    load_partly: Option<LoadPartly>,
}

impl Setting {
    fn apply(&self, change: Change) -> ValueApply {
        let shared = self.shared.clone();
        Box::new(move || change(&mut shared.lock()))
    }
}

impl ValueLeaf for Setting {
    fn save(&self) -> Result<Value, BoxError> {
        (self.save)(&mut self.shared.lock())
    }

    fn load(&self, saved: &Value) -> Result<ValueApply, BoxError> {
        let change = (self.load)(&mut self.shared.lock(), saved)?;
        Ok(self.apply(change))
    }

    fn load_partly(&self, saved: &Value) -> Option<ValueApply> {
        let change = self.load_partly?(&mut self.shared.lock(), saved)?;
        Some(self.apply(change))
    }
}

fn save_algorithm(state: &mut State) -> Result<Value, BoxError> {
    state.sync()?;
    state.usable()?;
    Ok(options::name(state.algorithm).into())
}

fn load_algorithm(state: &mut State, saved: &Value) -> Result<Change, BoxError> {
    let own = options::name(state.algorithm);
    if saved.as_str() == Some(own) {
        return Ok(Box::new(State::restored));
    }
    let saved = saved.as_str().map_or_else(|| saved.to_string(), str::to_string);
    Err(format!(
        "the checkpoint is of the optimizer {saved}, this one is {own}; restore it into {saved}, or leave the optimizer \
         out with `RestoreOptions::skip` and its name, so that it begins as it was built"
    )
    .into())
}

fn save_defaults(state: &mut State) -> Result<Value, BoxError> {
    Ok(options::to_json(&state.defaults)?)
}

fn load_defaults(state: &mut State, saved: &Value) -> Result<Change, BoxError> {
    let defaults = options::from_json(state.algorithm, saved)?;
    Ok(Box::new(move |state| state.defaults = defaults))
}

fn save_groups(state: &mut State) -> Result<Value, BoxError> {
    state.sync()?;
    Ok(state.groups.iter().map(options::to_json).collect::<Result<_, _>>()?)
}

fn load_groups(state: &mut State, saved: &Value) -> Result<Change, BoxError> {
    state.sync()?;
    let groups = groups_of(state, saved)?;
    if groups.len() < state.groups.len() {
        return Err(format!(
            "the checkpoint has {} parameter groups, the optimizer {}; allowing it to differ gives these their saved \
             options, and leaves the additional ones those they have",
            groups.len(),
            state.groups.len()
        )
        .into());
    }
    Ok(set_groups(groups))
}

/// Loads the groups of the checkpoint if the optimizer has more.
fn load_known_groups(state: &mut State, saved: &Value) -> Option<Change> {
    state.sync().ok()?;
    Some(set_groups(groups_of(state, saved).ok()?))
}

fn groups_of(state: &State, saved: &Value) -> Result<Vec<StepOptions>, String> {
    let saved = saved.as_array().ok_or_else(|| format!("a list of parameter groups is expected, not {saved}"))?;
    if saved.len() > MAX_GROUPS {
        return Err(format!("the checkpoint has {} parameter groups; at most {MAX_GROUPS} are allowed", saved.len()));
    }
    saved.iter().map(|group| options::from_json(state.algorithm, group)).collect()
}

fn set_groups(groups: Vec<StepOptions>) -> Change {
    Box::new(move |state| {
        let known = groups.len().min(state.groups.len());
        state.groups.splice(..known, groups);
    })
}

fn save_steps(state: &mut State) -> Result<Value, BoxError> {
    Ok(state.steps.into())
}

fn load_steps(_: &mut State, saved: &Value) -> Result<Change, BoxError> {
    let steps = saved.as_u64().ok_or_else(|| format!("a number of steps is expected, not {saved}"))?;
    Ok(Box::new(move |state| {
        state.steps = steps;
        // The saved algorithm may be another one, which an exception allows.
        state.restored();
    }))
}

/// The node `state`: the variables that have slots, by name.
struct AllSlots(Shared);

impl Collection for AllSlots {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        let mut state = self.0.lock();
        state.sync()?;
        let mut children = Vec::new();
        for (place, parameter) in state.parameters.iter().enumerate() {
            if parameter.has_state() {
                // Under every name that the variable has, so that a model with any one of them finds its slots.
                for name in parameter.names.clone()? {
                    let node = Node::collection(VariableSlots { shared: self.0.clone(), place });
                    children.push(Child::new(name, node));
                }
            }
        }
        children.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    fn create(&self, variable: &str, saved: &SavedTree) -> Result<Option<Created>, BoxError> {
        self.create_or_discard(variable, saved, false)
    }

    fn create_or_discard(
        &self,
        variable: &str,
        saved: &SavedTree,
        may_mismatch: bool,
    ) -> Result<Option<Created>, BoxError> {
        let mut state = self.0.lock();
        state.sync()?;
        let missing = options::slots(state.algorithm)
            .iter()
            .find(|slot| is_stepped(saved) && !slot.is_optional && !saved.children.contains_key(slot.name));
        if let Some(slot) = missing {
            return Err(format!("the checkpoint has no slot `{}` of it", slot.name).into());
        }
        let slots = saved.children.iter().map(|(name, saved)| new_slot(&mut state, variable, name, saved));
        let slots = slots.collect::<Result<Vec<NewSlot>, String>>()?;
        let node = Node::group(slots.iter().map(|slot| (slot.name, Node::tensor(slot.leaf.clone()))));
        let (shared, variable) = (self.0.clone(), variable.to_string());
        Ok(Some(Created::new(node, move || {
            let mut state = shared.lock();
            match state.place(&variable) {
                Some(place) => {
                    let parameter = &mut state.parameters[place];
                    parameter.clear_slots();
                    parameter.take(restored(slots));
                }
                None => {
                    let waiting = Waiting { slots: restored(slots), may_mismatch };
                    state.pending.insert(variable, waiting);
                }
            }
        })))
    }

    fn may_lack(&self, _: &str) -> bool {
        // The variable had not been stepped when the checkpoint was saved.
        true
    }

    fn guarded(&self) -> Option<Guarded> {
        let mut state = self.0.lock();
        // Errors are reported by `children`.
        let _ = state.sync();
        Some(state.guarded())
    }

    fn generation_covers_collections(&self) -> bool {
        true
    }

    fn generation(&self) -> Option<u64> {
        let mut state = self.0.lock();
        state.sync().ok()?;
        Some(state.generation())
    }

    fn unfinished(&self) -> Option<Unfinished> {
        let mut state = self.0.lock();
        let _ = state.sync();
        let (count, first) = state.unused_gradients()?;
        let reason = format!(
            "{count} variables, the first is {first:?}, have gradients that no step has used; save right after `step`, or \
             discard them with `zero_grad`"
        );
        Some(Unfinished::new(reason, state.steps))
    }

    fn waiting(&self) -> Vec<String> {
        let mut state = self.0.lock();
        // Errors are reported by `children`.
        let _ = state.sync();
        state.pending.keys().cloned().collect()
    }

    fn keep_waiting(&self) -> Option<Box<dyn FnOnce()>> {
        let mut state = self.0.lock();
        // Errors are reported by `children`.
        let _ = state.sync();
        let (kept, shared) = (state.pending.clone(), self.0.clone());
        (!kept.is_empty()).then(|| Box::new(move || shared.lock().pending.extend(kept)) as Box<dyn FnOnce()>)
    }

    fn remove(&self, variables: &[String]) {
        let mut state = self.0.lock();
        let dropped: HashSet<&String> = variables.iter().collect();
        for variable in &dropped {
            let Some(place) = state.place(variable) else { continue };
            // A checkpoint may have it under another of its names.
            let names = state.parameters[place].names.as_ref().map_or(&[][..], Vec::as_slice);
            if names.iter().all(|name| dropped.contains(name)) {
                let parameter = &mut state.parameters[place];
                parameter.clear_slots();
                if parameter.has_unused_gradient() {
                    parameter.set_gradient(None);
                }
            }
        }
    }
}

/// The node `state/<variable>`: its slots.
struct VariableSlots {
    shared: Shared,
    place: usize,
}

impl Collection for VariableSlots {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        let state = self.shared.lock();
        let Some(parameter) = state.parameters.get(self.place) else { return Ok(Vec::new()) };
        let slots = options::slots(state.algorithm).iter().zip(parameter.slots());
        let mut children = Vec::new();
        // A variable that cannot be saved at all is refused where it is tracked itself.
        let variable = examine(&parameter.tensor).map(|(spec, ..)| spec);
        for (slot, tensor) in slots {
            let Some(tensor) = tensor else { continue };
            if let Ok(variable) = &variable {
                check_slot(*slot, tensor, variable)?;
            }
            children.push(Child::new(slot.name, Node::tensor(Leaf::exclusive(tensor, &state.exclusive))));
        }
        if parameter.has_unused_gradient() {
            let gradient = shim::gradient(&parameter.tensor)?;
            check_gradient(&gradient, &parameter.tensor).map_err(|reason| {
                format!("it has a gradient that no step has used: {reason}. Save after the step, or after `zero_grad`")
            })?;
            children.push(Child::new(options::GRADIENT.name, Node::tensor(Leaf::new(&gradient))));
        }
        Ok(children)
    }

    fn create(&self, slot: &str, saved: &SavedTree) -> Result<Option<Created>, BoxError> {
        let mut state = self.shared.lock();
        let Some(parameter) = state.parameters.get(self.place) else { return Ok(None) };
        let Some(variable) = parameter.names.clone()?.into_iter().next() else { return Ok(None) };
        let slot = new_slot(&mut state, &variable, slot, saved)?;
        let node = Node::tensor(slot.leaf.clone());
        let (shared, place) = (self.shared.clone(), self.place);
        Ok(Some(Created::new(node, move || {
            if let Some(parameter) = shared.lock().parameters.get_mut(place) {
                parameter.take(restored(vec![slot]));
            }
        })))
    }

    fn may_lack(&self, name: &str) -> bool {
        // Options can be set during training, which may have added a slot.
        let state = self.shared.lock();
        options::slot_named(state.algorithm, name).is_some_and(|(_, slot)| slot.is_optional)
    }

    fn is_one_state(&self) -> bool {
        true
    }

    fn may_lack_beside(&self, name: &str, saved: &SavedTree) -> bool {
        // With only a gradient, it had not been stepped.
        !is_stepped(saved) || self.may_lack(name)
    }

    fn generation(&self) -> Option<u64> {
        // Its slots are part of the generation of all slots.
        Some(0)
    }

    fn remove(&self, slots: &[String]) {
        let mut state = self.shared.lock();
        let algorithm = state.algorithm;
        let Some(parameter) = state.parameters.get_mut(self.place) else { return };
        for (place, _) in slots.iter().filter_map(|name| options::slot_named(algorithm, name)) {
            if !parameter.remove_slot(place) {
                parameter.set_gradient(None);
            }
        }
    }
}

/// Returns `true` if a checkpoint has slots of a variable. Before its first step there is at most a gradient.
fn is_stepped(saved: &SavedTree) -> bool {
    saved.children.is_empty() || saved.children.keys().any(|name| name != options::GRADIENT.name)
}

/// A slot for a restore to fill.
struct NewSlot {
    name: &'static str,
    /// Among those of its variable.
    place: usize,
    leaf: Leaf,
}

/// Returns the tensors of slots that were filled, by place.
fn restored(slots: Vec<NewSlot>) -> Vec<(usize, Tensor)> {
    slots.into_iter().map(|slot| (slot.place, slot.leaf.tensor())).collect()
}

/// Checks that a slot still belongs to its variable, as a step does. It could not be restored otherwise.
fn check_slot(slot: Slot, tensor: &Tensor, variable: &TensorSpec) -> Result<(), String> {
    let found = examine(tensor)?.0;
    match fits(slot, &found, variable) {
        true => Ok(()),
        false if slot.is_count => Err(format!(
            "its slot `{}` is {found}, and no longer one number of type F32; change it in place with `fill_`, or build a new \
             optimizer",
            slot.name
        )),
        false => Err(format!(
            "its shape has changed since the last step, or from real to complex numbers: its slot `{}` is {found}, and it is \
             {variable}; build a new optimizer",
            slot.name
        )),
    }
}

/// Checks that a gradient could be restored into a variable like this one.
fn check_gradient(gradient: &Tensor, variable: &Tensor) -> Result<(), String> {
    let (found, wanted) = (examine(gradient)?.0, examine(variable)?.0);
    match found == wanted {
        true => Ok(()),
        false => Err(format!("it is {found}, and the variable has become {wanted}")),
    }
}

/// Makes a slot of the saved type: in the layout and on the device of the variable if there is one, else row-major on the
/// CPU. Under all names of a tied variable it is the same one.
fn new_slot(state: &mut State, variable: &str, name: &str, saved: &SavedTree) -> Result<NewSlot, String> {
    let algorithm = options::name(state.algorithm);
    let (place, slot) = options::slot_named(state.algorithm, name)
        .ok_or_else(|| format!("{algorithm} keeps no slot `{name}`; is the checkpoint of another optimizer?"))?;
    let spec = saved.tensor.as_ref().ok_or_else(|| format!("the slot `{name}` is not a tensor in the checkpoint"))?;
    let of_variable = state.place(variable);
    let parameter = of_variable.map(|place| &state.parameters[place]);
    let wanted = match parameter {
        Some(parameter) => examine(&parameter.tensor)?.0,
        None => spec.clone(),
    };
    check_spec(slot, spec, &wanted)?;
    let is_tied = parameter.is_some_and(|parameter| parameter.names.as_ref().is_ok_and(|names| names.len() > 1));
    let tied = of_variable.filter(|_| is_tied).map(|of_variable| (of_variable, place));
    let made = tied.and_then(|tied| Leaf::upgrade(state.made_for_tied.get(&tied)?));
    let number = scalar_type(spec.dtype).ok_or_else(|| format!("libtorch has no type {}", spec.dtype))?;
    let leaf = match (made, parameter) {
        (Some(leaf), _) => leaf,
        (None, Some(parameter)) if !slot.is_count => Leaf::new(&shim::zeros_of(number, &parameter.tensor)?),
        _ => {
            let shape: Result<Vec<i64>, _> = spec.shape.iter().map(|&length| i64::try_from(length)).collect();
            Leaf::new(&shim::zeros(number, &shape.map_err(|_| format!("the slot `{name}` is too large: {spec}"))?)?)
        }
    };
    state.made_for_tied.extend(tied.map(|tied| (tied, leaf.downgrade())));
    Ok(NewSlot { name: slot.name, place, leaf })
}

#[cfg(test)]
mod tests;

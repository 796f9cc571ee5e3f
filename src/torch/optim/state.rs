//! The state of an optimizer: options of groups, parameters and their slots. Everything is behind one lock.

use super::options::{self, Slot};
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::graph::{Exclusive, Gate, Guarded};
use crate::name;
use crate::torch::shim::{self, Algorithm, SLOTS, StepOptions, Stepped, UsedGradient};
use crate::torch::tensor::{Held, can_convert, examine, mark_torn, touched};
use crate::torch::variables::{self, Renamed, Table};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::iter::once;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tch::Tensor;

/// The tensors kept for a variable, in the order of [`options::slots`].
pub(super) type Slots = [Option<Tensor>; SLOTS];

/// The handle that an optimizer and its nodes in the graph share.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub(super) fn new(state: State) -> Shared {
        Shared(Arc::new(Mutex::new(state)))
    }

    pub(super) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of the optimizer's values.
pub(super) const VALUES: [&str; 4] = ["algorithm", "defaults", "param_groups", "steps"];

/// The maximum number of parameter groups, so that a large number in a file or a program does not allocate as many
/// options.
pub(super) const MAX_GROUPS: usize = 10_000;

/// A variable that is stepped.
pub(super) struct Parameter {
    /// Its names in the `VarStore`, sorted, under which its state is saved; or the reason why it has no reliable name.
    pub names: Result<Vec<String>, String>,
    /// The tensor object, which a shallow clone shares.
    object: usize,
    pub tensor: Tensor,
    pub group: usize,
    slots: Slots,
    /// The access to the slots.
    exclusive: Arc<Exclusive>,
    /// The gradient of its last step, by whichever optimizer.
    used: Arc<UsedGradient>,
}

/// The used gradients, shared by all optimizers of a variable.
static USED: Mutex<BTreeMap<usize, Weak<UsedGradient>>> = Mutex::new(BTreeMap::new());

/// Returns the entry of a variable, which the caller keeps alive.
fn used_gradient(object: usize) -> Arc<UsedGradient> {
    let mut all = USED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(used) = all.get(&object).and_then(Weak::upgrade) {
        return used;
    }
    let used = Arc::new(UsedGradient::none());
    all.insert(object, Arc::downgrade(&used));
    used
}

/// Removes the variables that no optimizer has anymore.
fn forget_used_gradients() {
    USED.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, used| used.strong_count() > 0);
}

impl Parameter {
    /// Returns `true` if a step would use the gradient for the first time.
    pub(super) fn has_unused_gradient(&self) -> bool {
        shim::unused_gradients(std::iter::once((&self.tensor, &*self.used)))[0]
    }

    /// Returns `true` if it has anything to save.
    pub(super) fn has_state(&self) -> bool {
        self.slots.iter().any(Option::is_some) || self.has_unused_gradient()
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Returns every tensor that a step changes.
    fn written(&self) -> impl Iterator<Item = &Tensor> {
        once(&self.tensor).chain(self.slots.iter().flatten())
    }

    /// Removes all slots.
    pub(super) fn clear_slots(&mut self) {
        self.slots = Slots::default();
        self.exclusive.moved();
    }

    /// Removes the slot at a place. Returns `false` if there is no such place.
    pub(super) fn remove_slot(&mut self, place: usize) -> bool {
        self.exclusive.moved();
        self.slots.get_mut(place).map(|slot| *slot = None).is_some()
    }

    /// Sets the slots that a restore has filled, by place.
    pub(super) fn take(&mut self, restored: Vec<(usize, Tensor)>) {
        self.exclusive.moved();
        for (place, tensor) in restored {
            match self.slots.get_mut(place) {
                Some(slot) => *slot = Some(tensor),
                None => self.set_gradient(Some(&tensor)),
            }
        }
    }

    /// Sets the slots that a restore has kept for it. Backward passes since then have added to the saved gradient.
    fn take_waiting(&mut self, restored: Vec<(usize, Tensor)>) -> Result<(), String> {
        let own = self.has_unused_gradient().then(|| shim::gradient(&self.tensor)).transpose()?;
        self.take(restored);
        match own.filter(|_| self.has_unused_gradient()) {
            Some(own) => self.add_gradient(&own),
            None => Ok(()),
        }
    }

    /// Adds to the gradient, unless it is this one.
    fn add_gradient(&self, more: &Tensor) -> Result<(), String> {
        let mut gradient = shim::gradient(&self.tensor)?;
        if shim::info(&gradient)?.object == shim::info(more)?.object {
            return Ok(());
        }
        tch::no_grad(|| gradient.f_add_(more)).map(drop).map_err(|e| e.to_string())
    }

    /// Exchanges the gradient for one that no step has used.
    pub(super) fn set_gradient(&mut self, gradient: Option<&Tensor>) {
        // The shape was checked, so libtorch cannot refuse it.
        if let Err(reason) = shim::set_gradient(&self.tensor, gradient) {
            log::error!("a gradient could not be restored: {reason}");
        }
        self.used.forget();
    }
}

/// Restored slots of a variable that is not in the store yet.
pub(super) struct Waiting {
    /// With their places.
    pub slots: Vec<(usize, Tensor)>,
    /// Whether an exception of the restore allows that they do not fit the variable.
    pub may_mismatch: bool,
}

impl Clone for Waiting {
    fn clone(&self) -> Waiting {
        let slots = self.slots.iter().map(|(place, tensor)| (*place, tensor.shallow_clone())).collect();
        Waiting { slots, ..*self }
    }
}

impl Waiting {
    /// Checks that the slots fit the variable that they are for.
    fn check(&self, algorithm: Algorithm, variable: &Tensor) -> Result<(), String> {
        let wanted = examine(variable)?.0;
        self.slots.iter().try_for_each(|(place, tensor)| {
            let slot = options::slots(algorithm).get(*place).copied().unwrap_or(options::GRADIENT);
            check_spec(slot, &examine(tensor)?.0, &wanted)
        })
    }

    /// Returns the slots, on the device of the variable that they are for.
    fn on_device_of(&self, variable: &Tensor) -> Result<Vec<(usize, Tensor)>, String> {
        let device = shim::info(variable)?.device;
        let moved = self.slots.iter().map(|(place, tensor)| match shim::info(tensor)?.device == device {
            true => Ok((*place, tensor.shallow_clone())),
            false => Ok((*place, tensor.f_to_device(variable.device()).map_err(|e| e.to_string())?)),
        });
        moved.collect()
    }
}

pub(super) struct State {
    pub algorithm: Algorithm,
    /// The initial options of a new group.
    pub defaults: StepOptions,
    pub groups: Vec<StepOptions>,
    pub parameters: Vec<Parameter>,
    /// Restored slots of variables that are not in the store yet, by name.
    pub pending: BTreeMap<String, Waiting>,
    /// Why it can be neither stepped nor saved until a restore, and the object that this is about.
    unusable: Option<(String, String)>,
    /// The number of restores.
    pub restores: u64,
    /// The slots that a restore is filling of variables with several names, by the places of variable and slot.
    pub made_for_tied: HashMap<(usize, usize), Weak<Held>>,
    pub steps: u64,
    pub fused: bool,
    /// The gate to pass before parameters and slots change.
    pub gate: Gate,
    /// The access to the slots: [`Optimizer::state`](super::Optimizer::state) shares it.
    pub exclusive: Arc<Exclusive>,
    table: Table,
    /// Places in `parameters`, by name.
    places: HashMap<String, usize>,
    /// The numbers of trainable and named variables of the store that have been examined, and whether its numbered names
    /// were allowed.
    seen: (usize, usize, bool),
}

impl State {
    pub(super) fn new(table: Table, options: StepOptions) -> State {
        let gate = Gate::new();
        let exclusive = Exclusive::new(gate.clone());
        State {
            algorithm: options.algorithm,
            defaults: options,
            groups: vec![options],
            parameters: Vec::new(),
            pending: BTreeMap::new(),
            unusable: None,
            restores: 0,
            made_for_tied: HashMap::new(),
            steps: 0,
            fused: true,
            gate,
            exclusive,
            table,
            places: HashMap::new(),
            seen: (0, 0, false),
        }
    }

    /// Returns why it can be neither stepped nor saved, if that is so.
    pub(super) fn usable(&self) -> Result<()> {
        match &self.unusable {
            Some((name, reason)) => Err(Error::object(name, reason.clone())),
            None => Ok(()),
        }
    }

    /// Forgets what belongs to the state before a restore.
    pub(super) fn restored(&mut self) {
        // Slots that an earlier restore has kept for later variables do not belong to this checkpoint.
        self.pending.clear();
        self.unusable = None;
        self.restores += 1;
    }

    pub(super) fn place(&self, variable: &str) -> Option<usize> {
        self.places.get(variable).copied()
    }

    /// Adds the variables that were added to the store since the last call, with the slots that a restore has kept for
    /// them.
    pub(super) fn sync(&mut self) -> Result<()> {
        let table = self.table.clone();
        let table = variables::lock(&table);
        let allowed = variables::are_numbered_names_allowed(&self.table);
        let seen = (table.trainable_variables.len(), table.named_variables.len(), allowed);
        if seen == self.seen {
            return Ok(());
        }
        let failed = |reason| Error::object("optimizer", reason);
        if let Some(group) = table.trainable_variables.iter().map(|variable| variable.group).max()
            && group >= MAX_GROUPS
        {
            let reason =
                format!("a variable is in the parameter group {group}; the highest number is {}", MAX_GROUPS - 1);
            return Err(failed(reason));
        }
        let mut names: HashMap<usize, Vec<&str>> = HashMap::new();
        for (name, tensor) in &table.named_variables {
            names.entry(shim::info(tensor).map_err(failed)?.object).or_default().push(name);
        }
        let renamed = Renamed::of(&self.table, &table.named_variables);
        let names_of = |object: usize| {
            let all = names.get(&object).ok_or(
                "a trainable variable is not among the VarStore's named variables, so its state has no name; \
                 add it with `Path::add`",
            )?;
            let mut reliable: Vec<String> =
                all.iter().filter(|name| renamed.why(name).is_none()).map(|name| name.to_string()).collect();
            reliable.sort_unstable();
            match (reliable.is_empty(), all.iter().find_map(|name| renamed.why(name))) {
                (true, Some(reason)) => Err(reason),
                _ => Ok(reliable),
            }
        };
        forget_used_gradients();
        let mut objects = HashSet::new();
        for parameter in &mut self.parameters {
            parameter.names = names_of(parameter.object);
            objects.insert(parameter.object);
        }
        for variable in table.trainable_variables.iter().skip(self.seen.0) {
            let object = shim::info(&variable.tensor).map_err(failed)?.object;
            if !objects.insert(object) {
                continue;
            }
            let names = names_of(object);
            let restored = match &names {
                Ok(names) => self.take_pending(names, &variable.tensor)?,
                Err(_) => Vec::new(),
            };
            while self.groups.len() <= variable.group {
                self.groups.push(self.defaults);
            }
            let tensor = variable.tensor.shallow_clone();
            let (group, slots, used) = (variable.group, Slots::default(), used_gradient(object));
            let exclusive = self.exclusive.clone();
            let mut parameter = Parameter { names, object, tensor, group, slots, exclusive, used };
            parameter.take_waiting(restored).map_err(failed)?;
            self.parameters.push(parameter);
        }
        self.give_to_named()?;
        self.places = self
            .parameters
            .iter()
            .enumerate()
            .filter_map(|(place, parameter)| Some((parameter.names.as_ref().ok()?, place)))
            .flat_map(|(names, place)| names.iter().map(move |name| (name.clone(), place)))
            .collect();
        self.seen = seen;
        Ok(())
    }

    /// Gives slots that a restore has kept to variables that had no reliable name then, and have not been stepped.
    fn give_to_named(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        for place in 0..self.parameters.len() {
            let parameter = &self.parameters[place];
            let Ok(names) = parameter.names.clone() else { continue };
            let is_stepped = parameter.slots.iter().any(Option::is_some);
            if is_stepped || !names.iter().any(|name| self.pending.contains_key(name)) {
                continue;
            }
            let tensor = parameter.tensor.shallow_clone();
            let restored = self.take_pending(&names, &tensor)?;
            let given = self.parameters[place].take_waiting(restored);
            given.map_err(|reason| Error::object("optimizer", reason))?;
        }
        Ok(())
    }

    /// Returns the slots that a restore has kept for a new variable. If they do not fit, the variable has none, and unless an
    /// exception allows that, the optimizer is unusable. If they cannot be moved to the variable's device, that is an
    /// error, and they are kept.
    fn take_pending(&mut self, names: &[String], variable: &Tensor) -> Result<Vec<(usize, Tensor)>> {
        let kept = names.iter().find_map(|name| Some((name, self.pending.get(name)?)));
        let Some((name, waiting)) = kept else { return Ok(Vec::new()) };
        let (may_mismatch, fits) = (waiting.may_mismatch, waiting.check(self.algorithm, variable));
        let slots = match &fits {
            Ok(()) => waiting.on_device_of(variable).map_err(|reason| Error::object(name, reason))?,
            Err(_) => Vec::new(),
        };
        if let Err(reason) = fits {
            let key = name::key([name]);
            if may_mismatch {
                log::warn!("{key}: {reason}; as the restore allows, the optimizer's state of the variable starts over");
            } else {
                let reason = format!(
                    "{reason}. Restore again; with `RestoreOptions::allow_mismatch(\"*/state/{key}/*\")`, the optimizer's \
                     state of the variable starts over"
                );
                self.unusable = Some((name.clone(), reason));
            }
        }
        // The slots under its other names are the same.
        self.pending.retain(|kept, _| !names.contains(kept));
        Ok(slots)
    }

    fn slots(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters.iter().flat_map(|parameter| parameter.slots.iter().flatten())
    }

    /// Returns every tensor that a step changes.
    fn written(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters.iter().flat_map(Parameter::written)
    }

    /// Returns the tensors that only steps change, with the gate that a step passes before: slots, and the variables
    /// that require a gradient now. Frozen variables are not included, because anything may change them (a momentum
    /// encoder, for example), and neither are views of a larger memory.
    pub(super) fn guarded(&self) -> Guarded {
        let place = |tensor| {
            let info = shim::info(tensor).ok()?;
            let memory = info.memory.ok()?;
            memory.is_whole.then_some((memory.data as usize, info.object))
        };
        let parameters = self.parameters.iter().map(|parameter| &parameter.tensor);
        let stepped = parameters.filter(|tensor| tensor.requires_grad());
        let (addresses, objects): (_, Vec<usize>) = stepped.chain(self.slots()).filter_map(place).unzip();
        let objects = Some(objects.into_iter().collect());
        Guarded { gate: self.gate.clone(), addresses, objects, values_beside: &VALUES, changes: None }
    }

    /// Returns a number that changes when a variable or a slot is added or removed, or when a slot changes its type,
    /// device or memory. A variable that does, or is frozen, is noticed where it is tracked itself.
    pub(super) fn generation(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seen.hash(&mut hasher);
        self.exclusive.generation().hash(&mut hasher);
        for (place, parameter) in self.unused() {
            let gradient = shim::gradient(&parameter.tensor);
            (place, gradient.map_or(0, |gradient| shim::fingerprint(&gradient))).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Returns the tensors of all parameters.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        self.parameters.iter().map(|parameter| &parameter.tensor).collect()
    }

    /// Makes one step. Waits before the first write for all background saves that are still copying what it changes. A
    /// save that starts during the step and tracks this optimizer waits for the end of the step.
    pub(super) fn step(&mut self) -> Result<()> {
        self.sync()?;
        self.usable()?;
        let gate = self.gate.clone();
        let _gated = gate.write(|| touched(self.written()));
        let options: Vec<StepOptions> =
            self.groups.iter().map(|group| StepOptions { fused: self.fused, ..*group }).collect();
        let _writing = self.exclusive.write();
        let mut stepped: Vec<Stepped<'_>> = self
            .parameters
            .iter_mut()
            .map(|parameter| Stepped { group: parameter.group, param: &parameter.tensor, slots: &mut parameter.slots })
            .collect();
        let mut moved = false;
        let result = shim::step(&options, &mut stepped, &mut moved);
        if moved {
            self.exclusive.moved();
        }
        if let Err(failure) = result {
            let parameter = failure.place.and_then(|place| self.parameters.get(place));
            let name = parameter.and_then(|parameter| parameter.names.as_ref().ok()?.first());
            let name = name.map_or("optimizer", String::as_str);
            if failure.begun {
                let reason = format!(
                    "a step failed when some variables had changed and others had not ({}); restore a checkpoint with the \
                     variables and the optimizer. To continue from the variables as they are, build a new optimizer, and \
                     call `Checkpoint::reinitialized` with their name",
                    failure.reason
                );
                let is_stepped =
                    |one: &&Parameter| shim::gradient(&one.tensor).is_ok_and(|gradient| gradient.defined());
                let stepped = self.parameters.iter().filter(is_stepped);
                mark_torn(stepped.flat_map(Parameter::written));
                self.unusable = Some((name.to_string(), reason));
                return self.usable();
            }
            return Err(Error::object(name, failure.reason));
        }
        self.steps += 1;
        let gradients = self.parameters.iter().map(|parameter| (&parameter.tensor, &*parameter.used));
        shim::note_gradients(gradients).map_err(|reason| Error::object("optimizer", reason))
    }

    /// Returns the parameters with a gradient that no step has used, with their places.
    fn unused(&self) -> impl Iterator<Item = (usize, &Parameter)> {
        let unused =
            shim::unused_gradients(self.parameters.iter().map(|parameter| (&parameter.tensor, &*parameter.used)));
        self.parameters
            .iter()
            .zip(unused)
            .enumerate()
            .filter_map(|(place, (parameter, is_unused))| is_unused.then_some((place, parameter)))
    }

    /// Returns the number of variables with a nonzero gradient that no step has used, and the name of the first.
    pub(super) fn unused_gradients(&self) -> Option<(usize, String)> {
        // A gradient that cannot be read is not known to be zero.
        let waits = |parameter: &&Parameter| !shim::gradient_is_zero(&parameter.tensor).unwrap_or(false);
        let mut waiting = self.unused().map(|(_, parameter)| parameter).filter(waits);
        let first = waiting.next()?;
        let name = first.names.as_ref().ok().and_then(|names| names.first()).map_or("without a name", String::as_str);
        Some((1 + waiting.count(), name.to_string()))
    }
}

/// Returns `true` if a slot of this type and shape fits a variable of type and shape `variable`. The slots of a variable that
/// was converted to another type stay as they are until its next step, and are saved so. A gradient has the variable's type.
pub(super) fn fits(slot: Slot, found: &TensorSpec, variable: &TensorSpec) -> bool {
    let is_exact = slot.is_count || slot == options::GRADIENT;
    found == &wanted(slot, variable)
        || (!is_exact && found.shape == variable.shape && can_convert(found.dtype, variable.dtype))
}

/// Returns the type and shape of a new slot.
fn wanted(slot: Slot, variable: &TensorSpec) -> TensorSpec {
    if slot.is_count { TensorSpec::new(Dtype::F32, []) } else { variable.clone() }
}

/// Checks that a saved slot fits a variable of type and shape `variable`.
pub(super) fn check_spec(slot: Slot, saved: &TensorSpec, variable: &TensorSpec) -> Result<(), String> {
    if fits(slot, saved, variable) {
        return Ok(());
    }
    let wanted = wanted(slot, variable);
    Err(format!("the checkpoint's slot `{}` is {saved}, the variable needs {wanted}", slot.name))
}

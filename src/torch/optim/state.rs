//! What an optimizer holds: options of groups, parameters and their slots. Everything behind one lock.

use super::options::{self, Slot};
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::graph::{Area, Gate, Guarded, Touched};
use crate::torch::shim::{self, Algorithm, SLOTS, StepOptions, Stepped};
use crate::torch::tensor::{Held, examine};
use crate::torch::variables::{self, Table};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::iter;
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

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A variable that is stepped.
pub(super) struct Parameter {
    /// Its name in the `VarStore`, by which its state is saved; or why it has none that can be relied on.
    pub name: Result<String, String>,
    /// The tensor object, which a shallow clone shares.
    object: usize,
    pub tensor: Tensor,
    pub group: usize,
    pub slots: Slots,
}

/// Slots that a restore fills and that are not in use yet: they become a variable's when the restore has succeeded,
/// and vanish with it otherwise.
pub(super) struct Detached {
    pub variable: String,
    pub slots: Vec<(usize, Weak<Held>)>,
}

pub(super) struct State {
    pub algorithm: Algorithm,
    /// What a new group begins with.
    pub defaults: StepOptions,
    pub groups: Vec<StepOptions>,
    pub parameters: Vec<Parameter>,
    /// Restored slots of variables that are not in the store yet, by name.
    pub pending: BTreeMap<String, Slots>,
    pub detached: Vec<Detached>,
    pub steps: u64,
    pub fused: bool,
    /// What has to be passed before parameters and slots change.
    pub gate: Gate,
    /// A restore has set the options, and is about to exchange the slots.
    pub restoring: bool,
    table: Table,
    /// Places in `parameters`, by name.
    places: HashMap<String, usize>,
    /// How many trainable and named variables of the store have been looked at.
    seen: (usize, usize),
}

impl State {
    pub(super) fn new(table: Table, options: StepOptions) -> State {
        State {
            algorithm: options.algorithm,
            defaults: options,
            groups: vec![options],
            parameters: Vec::new(),
            pending: BTreeMap::new(),
            detached: Vec::new(),
            steps: 0,
            fused: true,
            gate: Gate::new(),
            restoring: false,
            table,
            places: HashMap::new(),
            seen: (0, 0),
        }
    }

    pub(super) fn place(&self, variable: &str) -> Option<usize> {
        self.places.get(variable).copied()
    }

    /// Takes in the variables that were added to the store since the last time, and their slots where a restore has
    /// left some for them.
    pub(super) fn sync(&mut self) -> Result<()> {
        let table = self.table.clone();
        let table = variables::lock(&table);
        let counts = (table.trainable_variables.len(), table.named_variables.len());
        if counts == self.seen {
            return Ok(());
        }
        let failed = |reason| Error::object("optimizer", reason);
        // Under several names the first in the alphabet counts, whatever the order in which they were given.
        let mut names: HashMap<usize, &str> = HashMap::new();
        for (name, tensor) in &table.named_variables {
            let known = names.entry(shim::info(tensor).map_err(failed)?.object).or_insert(name);
            *known = (*known).min(name);
        }
        let name_of = |object: usize| match names.get(&object) {
            Some(name) => variables::renamed(name, &table.named_variables).map_or(Ok(name.to_string()), Err),
            None => Err("a trainable variable is not among the VarStore's named variables, so its state has no name; \
                         add it with `Path::add`"
                .to_string()),
        };
        let mut objects = HashSet::new();
        for parameter in &mut self.parameters {
            parameter.name = name_of(parameter.object);
            objects.insert(parameter.object);
        }
        for variable in table.trainable_variables.iter().skip(self.seen.0) {
            let object = shim::info(&variable.tensor).map_err(failed)?.object;
            if !objects.insert(object) {
                continue;
            }
            let name = name_of(object);
            let slots = match &name {
                Ok(name) => take_pending(&mut self.pending, name, self.algorithm, &variable.tensor)?,
                Err(_) => Slots::default(),
            };
            while self.groups.len() <= variable.group {
                self.groups.push(self.defaults);
            }
            let tensor = variable.tensor.shallow_clone();
            self.parameters.push(Parameter { name, object, tensor, group: variable.group, slots });
        }
        self.places = self
            .parameters
            .iter()
            .enumerate()
            .filter_map(|(place, parameter)| Some((parameter.name.as_ref().ok()?.clone(), place)))
            .collect();
        self.seen = counts;
        Ok(())
    }

    /// Every tensor that a step changes.
    fn written(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters
            .iter()
            .flat_map(|parameter| iter::once(&parameter.tensor).chain(parameter.slots.iter().flatten()))
    }

    /// What only steps change: slots, and the variables that require a gradient now, with the gate that a step passes
    /// before. A variable that is frozen may be changed by anyone, as a momentum encoder is; so may a part of a larger
    /// memory by the rest of it.
    pub(super) fn guarded(&self) -> Guarded {
        let address = |tensor| {
            let memory = shim::info(tensor).ok()?.memory.ok()?;
            memory.is_whole.then_some(memory.data as usize)
        };
        let slots = self.parameters.iter().flat_map(|parameter| parameter.slots.iter().flatten());
        let parameters = self.parameters.iter().map(|parameter| &parameter.tensor);
        let stepped = parameters.filter(|tensor| tensor.requires_grad());
        Guarded { gate: self.gate.clone(), addresses: stepped.chain(slots).filter_map(address).collect() }
    }

    /// Moves when a variable or a slot comes or goes, gets another type, device or memory, or is frozen.
    pub(super) fn generation(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seen.hash(&mut hasher);
        self.written().for_each(|tensor| shim::fingerprint(tensor).hash(&mut hasher));
        hasher.finish()
    }

    /// The tensors of all parameters.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        self.parameters.iter().map(|parameter| &parameter.tensor).collect()
    }

    /// One step. Saves in the background that are still copying what it changes, whoever makes them, are waited for
    /// before the first write; one that begins during the step waits for its end, where it tracks this optimizer.
    pub(super) fn step(&mut self) -> Result<()> {
        self.sync()?;
        let gate = self.gate.clone();
        let _writing = gate.write(|| {
            let mut touched = Touched::default();
            for info in self.written().filter_map(|tensor| shim::info(tensor).ok()) {
                touched.add_variable(Some(info.object));
                let memory = info.memory.ok();
                let area = memory.map(|memory| Area::new(&info.device, memory.data as usize, memory.span));
                area.into_iter().for_each(|area| touched.add_area(area));
            }
            touched
        });
        let options: Vec<StepOptions> =
            self.groups.iter().map(|group| StepOptions { fused: self.fused, ..*group }).collect();
        let mut stepped: Vec<Stepped<'_>> = self
            .parameters
            .iter_mut()
            .map(|parameter| Stepped { group: parameter.group, param: &parameter.tensor, slots: &mut parameter.slots })
            .collect();
        shim::step(&options, &mut stepped).map_err(|failure| {
            let parameter = failure.place.and_then(|place| self.parameters.get(place));
            let name = parameter.and_then(|parameter| parameter.name.as_deref().ok()).unwrap_or("optimizer");
            Error::object(name, failure.reason)
        })?;
        self.steps += 1;
        Ok(())
    }
}

/// The slots that a restore has left for a variable that is new, in the variable's layout and on its device after
/// the first step.
fn take_pending(
    pending: &mut BTreeMap<String, Slots>,
    name: &str,
    algorithm: Algorithm,
    tensor: &Tensor,
) -> Result<Slots> {
    let Some(slots) = pending.get(name) else { return Ok(Slots::default()) };
    let failed = |reason| Error::object(name, reason);
    let wanted = examine(tensor).map_err(failed)?.0;
    for (slot, tensor) in options::slots(algorithm).iter().zip(slots) {
        if let Some(tensor) = tensor {
            check_spec(*slot, &examine(tensor).map_err(failed)?.0, &wanted).map_err(failed)?;
        }
    }
    Ok(pending.remove(name).unwrap_or_default())
}

/// Whether a saved slot is that of a variable of type and shape `variable`.
pub(super) fn check_spec(slot: Slot, saved: &TensorSpec, variable: &TensorSpec) -> Result<(), String> {
    let count = TensorSpec::new(Dtype::F32, []);
    let wanted = if slot.is_count { &count } else { variable };
    if saved == wanted {
        return Ok(());
    }
    Err(format!("the checkpoint's slot `{}` is {saved}, the variable needs {wanted}", slot.name))
}

//! The state of averages: the average of every variable. Everything is behind one lock.

use crate::error::{Error, Result};
use crate::graph::{Collection, Gate};
use crate::torch::shim::{self, Averaged, WriteError};
use crate::torch::tensor::{examine, mark_torn, touched};
use crate::torch::undone;
use crate::torch::variables::{Listed, Variables};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch::{Kind, Tensor};

/// libtorch's numbers of the types that are too coarse for averages: half precision, bfloat16, and floating-point types of 8
/// bits.
const COARSE: [i32; 7] = [5, 15, 23, 24, 25, 26, 44];
/// libtorch's number of `Float`.
const FLOAT: i32 = 6;

/// The handle that averages and their nodes in the graph share.
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

/// A variable and its average.
pub(super) struct Entry {
    /// The first of its names.
    name: String,
    /// The variable's tensor object, which a shallow clone shares.
    object: usize,
    variable: Tensor,
    pub average: Tensor,
    is_trainable: bool,
    /// The variable's fingerprint when the average was last adapted to it.
    fingerprint: u64,
}

/// The target of a name.
pub(super) struct Named {
    /// The index in `State::entries`.
    pub place: usize,
    /// The name in the store.
    pub full_name: String,
}

/// The number of updates, saved with the averages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Progress {
    /// Calls of `update`.
    pub calls: u64,
    /// Calls that changed the averages.
    pub updates: u64,
}

pub(super) struct State {
    variables: Variables,
    /// The averages are these variables, of another store.
    target: Option<Variables>,
    pub entries: Vec<Entry>,
    pub names: BTreeMap<String, Named>,
    /// That of the variables when they were examined last.
    generation: Option<u64>,
    /// What the present restore has asked for.
    restoring: Option<Restoring>,
    pub progress: Progress,
    pub average_buffers: bool,
    /// The gate to pass before averages change.
    pub gate: Gate,
    /// Whether the variables have the values of the averages at the moment.
    pub is_swapped: bool,
    /// Counts changes of averages and, by averages, of variables.
    pub changes: Arc<AtomicU64>,
}

/// New averages for variables that are frozen.
struct Restoring {
    /// The parameters of the store, as tensor objects.
    parameters: HashSet<usize>,
    /// The averages, by the tensor objects of the variables.
    averages: HashMap<usize, Tensor>,
}

fn failed(reason: String) -> Error {
    Error::object("averages", reason)
}

impl State {
    pub(super) fn new(variables: Variables, target: Option<Variables>) -> Result<State> {
        let mut state = State {
            variables,
            target,
            entries: Vec::new(),
            names: BTreeMap::new(),
            generation: None,
            restoring: None,
            progress: Progress::default(),
            average_buffers: false,
            gate: Gate::new(),
            is_swapped: false,
            changes: Arc::default(),
        };
        state.sync()?;
        Ok(state)
    }

    /// Adds the variables that were added to the store or selected since the last call, with their values as averages. A
    /// variable that is no longer selected keeps its average. Averages follow a variable to another type or device.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.restoring = None;
        let generation = self.variables.generation();
        if generation.is_none() || self.generation != generation {
            self.take_in()?;
            self.generation = generation;
        }
        let fingerprints = shim::fingerprints(self.entries.iter().map(|entry| &entry.variable));
        for (entry, now) in self.entries.iter_mut().zip(fingerprints) {
            if entry.fingerprint != now {
                entry.follow(self.target.is_none()).map_err(|reason| Error::object(&entry.name, reason))?;
                entry.fingerprint = now;
            }
        }
        Ok(())
    }

    fn take_in(&mut self) -> Result<()> {
        let listed = self.variables.list().map_err(failed)?;
        let targets: Option<HashMap<String, Tensor>> = match &self.target {
            Some(target) => {
                Some(target.list().map_err(failed)?.into_iter().map(|one| (one.name, one.tensor)).collect())
            }
            None => None,
        };
        let mut places: HashMap<usize, usize> =
            self.entries.iter().enumerate().map(|(place, entry)| (entry.object, place)).collect();
        let mut names = BTreeMap::new();
        let mut new = Vec::new();
        for variable in listed {
            let object = shim::object(&variable.tensor);
            let next = self.entries.len() + new.len();
            let place = *places.entry(object).or_insert(next);
            if place == next {
                let average = match &targets {
                    None => new_average(&variable.tensor),
                    Some(targets) => found(targets.get(&variable.name).map(Tensor::shallow_clone)),
                };
                let entry = average.and_then(|average| Entry::new(&variable, average));
                new.push(entry.map_err(|reason| Error::object(&variable.name, reason))?);
            }
            names.insert(variable.name, Named { place, full_name: variable.full_name });
        }
        // Averages that are the tensors of another store may be in a save at the moment.
        let writing = self.write(new.iter().map(|entry| &entry.average));
        if !new.is_empty() {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
        copy_all(&new, |entry| (&entry.average, &entry.variable))?;
        drop(writing);
        self.entries.extend(new);
        let known = std::mem::replace(&mut self.names, names);
        for (name, named) in known {
            self.names.entry(name).or_insert(named);
        }
        Ok(())
    }

    /// Returns the average of a variable that is not selected because it is frozen, with the variable's name in the store.
    /// It is a new one unless the variable has one under another name. `None` if there is no such variable.
    pub(super) fn frozen(&mut self, name: &str) -> Result<Option<(Entry, String)>, String> {
        if self.names.contains_key(name) || !self.may_be_frozen() {
            return Ok(None);
        }
        let new = || Restoring { parameters: self.variables.parameters(), averages: HashMap::new() };
        let restoring = self.restoring.get_or_insert_with(new);
        let Some(variable) = self.variables.frozen(name, &restoring.parameters)? else { return Ok(None) };
        let object = shim::object(&variable.tensor);
        let known = self.entries.iter().find(|entry| entry.object == object).map(|entry| &entry.average);
        let average = match known.or(restoring.averages.get(&object)) {
            Some(average) => average.shallow_clone(),
            None => match &self.target {
                None => new_average(&variable.tensor)?,
                Some(target) => found(target.named(name))?,
            },
        };
        restoring.averages.insert(object, average.shallow_clone());
        Ok(Some((Entry::new(&variable, average)?, variable.full_name)))
    }

    /// Returns `true` if a checkpoint may have been saved while variables were frozen that have averages now.
    pub(super) fn may_be_frozen(&self) -> bool {
        self.variables.are_trainable()
    }

    /// Removes averages that a checkpoint lacks. Those of variables that are selected begin anew.
    pub(super) fn remove(&mut self, names: &[String]) {
        self.names.retain(|name, _| !names.contains(name));
        let mut kept: Vec<usize> = self.names.values().map(|named| named.place).collect();
        kept.sort_unstable();
        kept.dedup();
        let mut place = 0;
        self.entries.retain(|_| {
            place += 1;
            kept.binary_search(&(place - 1)).is_ok()
        });
        for named in self.names.values_mut() {
            named.place = kept.partition_point(|&place| place < named.place);
        }
        self.generation = None;
    }

    /// Adds an average that a restore has set.
    pub(super) fn adopt(&mut self, entry: Entry, full_name: String) {
        let name = entry.name.clone();
        let known = self.entries.iter().position(|known| known.object == entry.object);
        let place = known.unwrap_or_else(|| {
            self.entries.push(entry);
            self.entries.len() - 1
        });
        self.names.insert(name, Named { place, full_name });
    }

    /// Like [`sync`](State::sync), before the averages are used.
    pub(super) fn ready(&mut self) -> Result<()> {
        if self.is_swapped {
            return Err(Error::InvalidArgument(IS_SWAPPED.to_string()));
        }
        self.sync()
    }

    /// Waits for unfinished captures of these tensors. No capture that tracks these averages starts before the result
    /// is dropped.
    fn write<'a>(&self, tensors: impl Iterator<Item = &'a Tensor>) -> MutexGuard<'_, ()> {
        self.gate.write(|| touched(tensors))
    }

    /// Moves the averages towards the variables by `weight` of the difference. Buffers are copied unless they are
    /// averaged.
    pub(super) fn update(&mut self, weight: f64) -> Result<()> {
        self.ready()?;
        let _writing = self.write(self.entries.iter().map(|entry| &entry.average));
        self.changes.fetch_add(1, Ordering::SeqCst);
        let all = self.entries.iter().map(|entry| Averaged {
            average: &entry.average,
            tensor: &entry.variable,
            is_copied: !(entry.is_trainable || self.average_buffers),
        });
        let all: Vec<Averaged<'_>> = all.collect();
        shim::average(&all, weight).map_err(|failure| {
            let entry = failure.place.and_then(|place| self.entries.get(place));
            let tensors = || self.entries.iter().map(|entry| &entry.average);
            stopped(entry.map_or("averages", |entry| entry.name.as_str()), failure, tensors)
        })
    }

    /// Sets the variables to the values of the averages permanently.
    pub(super) fn apply(&mut self) -> Result<()> {
        self.ready()?;
        let _writing = self.write(self.entries.iter().map(|entry| &entry.variable));
        self.changes.fetch_add(1, Ordering::SeqCst);
        copy_all(&self.entries, |entry| (&entry.variable, &entry.average))
    }

    /// Returns the average of a variable.
    pub(super) fn average(&self, name: &str) -> Option<Tensor> {
        Some(self.entries.get(self.names.get(name)?.place)?.average.shallow_clone())
    }
}

pub(super) const IS_SWAPPED: &str = "the averages are swapped in: the variables have their values, and they have the variables'; update, \
     save and restore after `with_averaged` has returned";

/// Returns the error of what was to write `tensors`. If it has begun, they are neither as before nor as they were to be:
/// none of them is saved any more.
fn stopped<'a, T: Iterator<Item = &'a Tensor>>(name: &str, failure: WriteError, tensors: impl FnOnce() -> T) -> Error {
    if !failure.begun {
        return Error::object(name, failure.reason);
    }
    mark_torn(tensors());
    let reason = format!(
        "{}. Some variables or averages have changed and others have not, and they are not saved as they are: restore a checkpoint \
         that has both, or give them new values and call `Checkpoint::reinitialized`",
        failure.reason
    );
    Error::object(name, reason)
}

/// Copies one tensor of each entry into another, given as (to, from).
fn copy_all(entries: &[Entry], tensors: fn(&Entry) -> (&Tensor, &Tensor)) -> Result<()> {
    entries.iter().enumerate().try_for_each(|(place, entry)| {
        let (to, from) = tensors(entry);
        shim::copy(to, from).map_err(|failure| {
            let failure = WriteError { begun: failure.begun || place > 0, ..failure };
            stopped(&entry.name, failure, || entries.iter().map(|entry| tensors(entry).0))
        })
    })
}

/// Returns the average that is the variable of another store, if that store has it.
fn found(target: Option<Tensor>) -> Result<Tensor, String> {
    let missing = "the target has no variable of this name; build the same model in both stores";
    target.ok_or_else(|| missing.to_string())
}

/// Allocates an average. Half precision is averaged in single precision, because it is too coarse for the small steps
/// of an average.
fn new_average(variable: &Tensor) -> Result<Tensor, String> {
    let info = examine(variable)?.1;
    let average = shim::zeros_like(variable)?;
    match COARSE.contains(&info.scalar_type) {
        true => average.f_to_kind(Kind::Float).map_err(|e| e.to_string()),
        false => Ok(average),
    }
}

impl Entry {
    fn new(variable: &Listed, average: Tensor) -> Result<Entry, String> {
        let tensor = &variable.tensor;
        let entry = Entry {
            name: variable.name.clone(),
            object: shim::object(tensor),
            fingerprint: shim::fingerprint(tensor),
            variable: tensor.shallow_clone(),
            average,
            is_trainable: variable.is_trainable,
        };
        entry.check_shape()?;
        Ok(entry)
    }

    fn check_shape(&self) -> Result<(), String> {
        let (variable, average) = (examine(&self.variable)?.0, examine(&self.average)?.0);
        match variable.shape == average.shape {
            true => Ok(()),
            false => Err(format!("the variable is {variable} and its average is {average}; make new averages")),
        }
    }

    /// Adapts the average to the variable. An average that is a variable itself keeps its own type and device.
    fn follow(&mut self, is_own: bool) -> Result<(), String> {
        self.check_shape()?;
        if !is_own {
            return Ok(());
        }
        let (variable, average) = (shim::info(&self.variable)?, shim::info(&self.average)?);
        let wanted = if COARSE.contains(&variable.scalar_type) { FLOAT } else { variable.scalar_type };
        if average.scalar_type == wanted && average.device == variable.device {
            return Ok(());
        }
        let moved = new_average(&self.variable)?;
        shim::copy(&moved, &self.average).map_err(|failure| failure.reason)?;
        // It stays the same tensor object, so that existing handles follow.
        self.average.f_set_data(&moved).map_err(|e| e.to_string())
    }

    fn both(&self) -> [&Tensor; 2] {
        [&self.variable, &self.average]
    }

    /// Returns the variable's version and the average's, as far as libtorch counts their changes.
    fn versions(&self) -> [Option<u64>; 2] {
        self.both().map(shim::version)
    }

    fn swap(&self) -> Result<Option<Tensor>, WriteError> {
        if shim::info(&self.variable)?.scalar_type == shim::info(&self.average)?.scalar_type {
            return shim::exchange(&self.variable, &self.average).map(|()| None);
        }
        // The average would lose precision by passing through the variable.
        let kept = shim::zeros_like(&self.variable)?;
        shim::copy(&kept, &self.variable).map_err(|failure| failure.reason)?;
        shim::copy(&self.variable, &self.average)?;
        Ok(Some(kept))
    }

    fn swap_back(&self, kept: Option<&Tensor>) -> Result<(), WriteError> {
        match kept {
            Some(kept) => shim::copy(&self.variable, kept),
            None => shim::exchange(&self.variable, &self.average),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        undone::forget(self.object);
        undone::forget(shim::object(&self.average));
    }
}

/// A guard while the variables have the values of the averages. Dropping it swaps them back.
pub(super) struct Swapped {
    shared: Shared,
    /// By entry.
    exchanged: Vec<Exchanged>,
}

/// A variable and an average that were exchanged.
struct Exchanged {
    /// The variable's own values, if its type differs from that of the average.
    kept: Option<Tensor>,
    /// The versions before and after.
    before: [Option<u64>; 2],
    after: [Option<u64>; 2],
}

impl Swapped {
    pub(super) fn begin(shared: &Shared) -> Result<Swapped> {
        let mut state = shared.lock();
        state.ready()?;
        state.is_swapped = true;
        let mut swapped = Swapped { shared: shared.clone(), exchanged: Vec::new() };
        let result = {
            let _writing = state.write(state.entries.iter().flat_map(Entry::both));
            state.changes.fetch_add(1, Ordering::SeqCst);
            state.entries.iter().try_for_each(|entry| {
                let before = entry.versions();
                let kept =
                    entry.swap().map_err(|failure| stopped(&entry.name, failure, || entry.both().into_iter()))?;
                swapped.exchanged.push(Exchanged { kept, before, after: entry.versions() });
                Ok(())
            })
        };
        // On an error, dropping `swapped` undoes the exchange.
        drop(state);
        result.map(|()| swapped)
    }

    /// Restores the variables' own values.
    pub(super) fn end(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        let mut state = self.shared.lock();
        let mut first = Ok(());
        {
            let swapped = self.exchanged.len();
            let entries = state.entries.get(..swapped).unwrap_or_default();
            let _writing = state.write(entries.iter().flat_map(Entry::both));
            state.changes.fetch_add(1, Ordering::SeqCst);
            // In reverse order, because variables may share memory.
            for (entry, Exchanged { kept, before, after }) in entries.iter().zip(&self.exchanged).rev() {
                // Otherwise, the evaluation has changed them.
                let is_exact = entry.versions() == *after;
                let undone = entry.swap_back(kept.as_ref()).map_err(|failure| {
                    // It is still exchanged, whether this has begun or not.
                    let failure = WriteError { begun: true, ..failure };
                    stopped(&entry.name, failure, || entry.both().into_iter())
                });
                if is_exact && undone.is_ok() {
                    let objects =
                        [entry.object, shim::object(&entry.average)].into_iter().zip(before).zip(entry.versions());
                    undone::record(objects.filter_map(|((object, before), now)| Some((object, (*before)?, now?))));
                }
                first = first.and(undone);
            }
        }
        self.exchanged.clear();
        state.is_swapped = false;
        first
    }
}

impl Drop for Swapped {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            log::error!("the variables could not be given their own values back: {error:#}");
        }
    }
}

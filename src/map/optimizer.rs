//! The state of an optimizer, under the names and in the layouts that a map gives the variables.

use super::NameMap;
use super::bound::Bound;
use super::computed::Computed;
use super::mapped;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name;
use crate::source::{TensorSource, VerifiedBy, check_range, check_target};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// The slot that counts steps: one number, whatever the shape of the variable.
const STEP: &str = "step";

/// Kinds of slots that an optimizer has at most: the map is applied to each of them.
const MAX_KINDS: usize = 64;

/// The state of an optimizer under the names and in the layouts that a map gives its variables: see
/// [`NameMap::apply_to_optimizer`].
#[derive(Debug)]
pub struct MappedOptimizer<'a> {
    state: &'a dyn TensorSource,
    slots: Vec<SlotOfAll<'a>>,
    /// The index in `slots`, and how it is computed.
    tensors: BTreeMap<String, (usize, Arc<Bound>)>,
    specs: BTreeMap<String, TensorSpec>,
    left_out: BTreeMap<String, String>,
    computed: Computed,
}

impl NameMap {
    /// Applies the map to the state of an optimizer: each slot of a variable gets the name and the layout that the map
    /// gives the variable.
    ///
    /// `state` has the layout of `optim`, such as
    /// [`tensorflow::optimizer_state`](crate::interop::tensorflow::optimizer_state) returns. Its variables have the
    /// names of tensors in `weights`, the source for which the map is made. `model` is the name under which the
    /// `VarStore` is tracked, such as `model`; variables that the map puts elsewhere, or that have no state, are left
    /// out.
    ///
    /// Only elements that are moved keep their meaning: `transpose`, `reshape`, `slice`, `blocks`, `concat`, `stack`,
    /// `truncate`, padding with 0, and `cast`. A variable that is computed in any other way starts with new state and
    /// is listed by [`left_out`](MappedOptimizer::left_out): Keras' LSTM has one bias where PyTorch has two, of which
    /// [`Preset::KerasLstm`](super::Preset::KerasLstm) makes `bias_hh` of zeros. Freeze it for steps equal to those of
    /// Keras.
    ///
    /// # Errors
    /// Those of [`apply`](NameMap::apply); [`Error::Object`] if `state` is not the state of one optimizer, or has a slot
    /// with another shape than its variable.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// # let mut checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::RestoreOptions;
    /// use tch_checkpoint::interop::{KerasOptimizer, tensorflow};
    /// use tch_checkpoint::map::{Merged, NameMap, Preset};
    /// let bundle = tensorflow::Bundle::open("training/ckpt-5")?;
    /// let map = NameMap::new().only(["encoder"]).layer("model/encoder.gru", Preset::KerasGru, "encoder/rnn");
    /// let weights = map.apply(&bundle)?;
    /// let state = tensorflow::optimizer_state(&bundle, &KerasOptimizer::adam())?;
    /// let state = map.apply_to_optimizer(&bundle, &state, "model")?;
    /// checkpoint.restore_source(&Merged::new([&weights as _, &state as _])?, &RestoreOptions::new())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_to_optimizer<'a>(
        &self,
        weights: &'a dyn TensorSource,
        state: &'a dyn TensorSource,
        model: &str,
    ) -> Result<MappedOptimizer<'a>> {
        let optimizer = optimizer_of(state)?;
        let model = name::path(model)
            .ok_or_else(|| Error::InvalidArgument(format!("{} is no key of a model", name::shown(model))))?;
        let mut by_slot = slots_of(state, &optimizer);
        if by_slot.len() > MAX_KINDS {
            let reason = format!("it has {} kinds of slots, at most {MAX_KINDS} are supported", by_slot.len());
            return Err(Error::object(name::key(&optimizer), reason));
        }
        let mut counts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (variable, key) in by_slot.remove(STEP).unwrap_or_default() {
            if let Some((variable, _)) = weights.tensors().get_key_value(&variable) {
                counts.entry(weights.first_alias(variable)).or_default().push(key);
            }
        }
        let mut mapped = MappedOptimizer {
            state,
            slots: Vec::new(),
            tensors: BTreeMap::new(),
            specs: BTreeMap::new(),
            left_out: BTreeMap::new(),
            computed: Computed::default(),
        };
        for (slot, keys) in by_slot {
            let view = SlotOfAll::new(weights, state, keys)?;
            let tensors = mapped::apply(&self.statements, &view)?.into_tensors();
            let place = mapped.slots.len();
            for (key, bound) in tensors {
                let Some(variable) = variable_of(&key, &model) else { continue };
                let mut from = BTreeSet::new();
                bound.keys(&mut from);
                let with_state = from.iter().filter(|key| view.key_of(key).is_some()).count();
                if with_state == 0 {
                    continue;
                }
                let step = match with_state == from.len() {
                    false => Err("only a part of what it is made of has a state".to_string()),
                    true => bound.moves_elements().and_then(|()| step_of(&counts, weights, &from, state)),
                };
                let own = |slot: &str| {
                    name::key(optimizer.iter().map(String::as_str).chain(["state", variable.as_str(), slot]))
                };
                match step {
                    Ok(step) => {
                        if let Some(step) = step {
                            let bound = Bound::source(&step, &state.tensors()[&step]);
                            mapped.specs.insert(own(STEP), bound.spec.clone());
                            mapped.tensors.insert(own(STEP), (usize::MAX, bound));
                        }
                        mapped.specs.insert(own(&slot), bound.spec.clone());
                        mapped.tensors.insert(own(&slot), (place, bound));
                    }
                    Err(reason) => drop(mapped.left_out.insert(variable, reason)),
                }
            }
            mapped.slots.push(view);
        }
        // A variable has all of its slots or none.
        let of =
            |variable: &String| name::key(optimizer.iter().map(String::as_str).chain(["state", variable.as_str()]));
        let left_out: BTreeSet<String> = mapped.left_out.keys().map(of).collect();
        let is_kept = |key: &String| key.rsplit_once('/').is_none_or(|(variable, _)| !left_out.contains(variable));
        mapped.specs.retain(|key, _| is_kept(key));
        mapped.tensors.retain(|key, _| is_kept(key));
        Ok(mapped)
    }
}

/// Returns the path of the optimizer whose state a source is.
fn optimizer_of(state: &dyn TensorSource) -> Result<Vec<String>> {
    let has = |path: &[String], value: &str| {
        let key = name::key(path.iter().map(String::as_str).chain([value]));
        state.values().contains_key(&key)
    };
    let paths = state.values().keys().filter_map(|key| {
        let mut path = name::path(key)?;
        (path.pop()? == "algorithm" && has(&path, "param_groups") && has(&path, "steps")).then_some(path)
    });
    let mut paths = paths.collect::<Vec<_>>().into_iter();
    let (found, another) = (paths.next(), paths.next());
    match (found, another) {
        (Some(found), None) => Ok(found),
        (Some(one), Some(other)) => Err(Error::object(
            name::key(&one),
            format!(
                "{} has the state of {}, too; choose one of them with `NameMap::new().only([…]).apply(…)`",
                state.path().display(),
                name::shown(&name::key(&other))
            ),
        )),
        (None, _) => {
            Err(Error::object("algorithm", format!("{} is not the state of an optimizer", state.path().display())))
        }
    }
}

/// Returns the keys of the tensors, by slot and variable.
fn slots_of(state: &dyn TensorSource, optimizer: &[String]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for key in state.tensors().keys() {
        let Some(path) = name::path(key) else { continue };
        if let Some([of, variable, slot]) = path.strip_prefix(optimizer)
            && of == "state"
        {
            found.entry(slot.clone()).or_default().insert(variable.clone(), key.clone());
        }
    }
    found
}

/// Returns the name in the `VarStore` of what the map calls `key`.
fn variable_of(key: &str, model: &[String]) -> Option<String> {
    let path = name::path(key)?;
    match path.strip_prefix(model) {
        Some([variable]) => Some(variable.clone()),
        _ => None,
    }
}

/// Returns the key of the count of steps that all these variables have.
fn step_of(
    counts: &BTreeMap<&str, Vec<String>>,
    weights: &dyn TensorSource,
    variables: &BTreeSet<&str>,
    state: &dyn TensorSource,
) -> std::result::Result<Option<String>, String> {
    let first: BTreeSet<&str> = variables.iter().map(|key| weights.first_alias(key)).collect();
    let keys = first.iter().filter_map(|variable| counts.get(variable)).flatten();
    let mut found: Option<(&String, [u8; 4])> = None;
    for key in keys {
        let mut count = [0; 4];
        state.read(key, &mut count).map_err(|e| e.to_string())?;
        match found {
            Some((_, other)) if other != count => {
                return Err("what it is made of has made different numbers of steps".to_string());
            }
            _ => found = Some((key, count)),
        }
    }
    Ok(found.map(|(key, _)| key.clone()))
}

/// One slot of all variables, under the names of the variables.
#[derive(Debug)]
struct SlotOfAll<'a> {
    weights: &'a dyn TensorSource,
    state: &'a dyn TensorSource,
    /// The key in the state, by the first name of the variable.
    keys: BTreeMap<String, String>,
    specs: BTreeMap<String, TensorSpec>,
}

impl<'a> SlotOfAll<'a> {
    fn new(
        weights: &'a dyn TensorSource,
        state: &'a dyn TensorSource,
        by_variable: BTreeMap<String, String>,
    ) -> Result<SlotOfAll<'a>> {
        let mut keys = BTreeMap::new();
        for (variable, key) in by_variable {
            if !weights.tensors().contains_key(&variable) {
                let near = name::nearest_hint(&variable, weights.tensors().keys().map(String::as_str));
                let reason = format!("{} has no variable {variable:?}{near}", weights.path().display());
                return Err(Error::object(key, reason));
            }
            keys.insert(weights.first_alias(&variable).to_string(), key);
        }
        let mut specs = weights.tensors().clone();
        for (variable, spec) in &mut specs {
            let Some(key) = keys.get(weights.first_alias(variable)) else { continue };
            let own = &state.tensors()[key];
            if own.shape != spec.shape {
                return Err(Error::object(key, format!("it is {own}, its variable {variable:?} is {spec}")));
            }
            *spec = own.clone();
        }
        Ok(SlotOfAll { weights, state, keys, specs })
    }

    /// Returns the key in the state of a variable's slot.
    fn key_of(&self, variable: &str) -> Option<&str> {
        self.keys.get(self.weights.first_alias(variable)).map(String::as_str)
    }

    fn known(&self, variable: &str) -> Result<&str> {
        self.key_of(variable).ok_or_else(|| Error::object(variable, "the optimizer has no state of it"))
    }
}

impl TensorSource for SlotOfAll<'_> {
    fn format(&self) -> &'static str {
        self.state.format()
    }

    fn path(&self) -> &Location {
        self.weights.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        self.weights.values()
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        self.weights.unreadable()
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.weights.first_alias(key)
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.key_of(key).map_or(VerifiedBy::Nothing, |key| self.state.verified_by(key))
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.state.read(self.known(key)?, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        self.state.read_range(self.known(key)?, range, target)
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        self.state.ensure_readable(self.known(key)?)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.state.verify_tensor(self.known(key)?)
    }

    fn verify(&self) -> Result<()> {
        self.state.verify()
    }
}

impl MappedOptimizer<'_> {
    /// Returns the variables that have a state which does not carry over, with the reasons, by their names in the
    /// `VarStore`. They start with new state.
    pub fn left_out(&self) -> &BTreeMap<String, String> {
        &self.left_out
    }

    /// Returns the source that a tensor is computed from, and how.
    fn of(&self, key: &str) -> Result<(&dyn TensorSource, &Bound)> {
        let (place, bound) =
            self.tensors.get(key).ok_or_else(|| Error::object(key, "the state of the optimizer has no such tensor"))?;
        let source = self.slots.get(*place).map_or(self.state, |slot| slot as &dyn TensorSource);
        Ok((source, bound))
    }
}

impl TensorSource for MappedOptimizer<'_> {
    fn format(&self) -> &'static str {
        self.state.format()
    }

    fn path(&self) -> &Location {
        self.state.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        self.state.values()
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.of(key).map_or(VerifiedBy::Nothing, |(source, bound)| bound.verified_by(source))
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let (source, bound) = self.of(key)?;
        check_target(key, &bound.spec, target.len())?;
        match bound.plain() {
            Some(from) => source.read(from, target),
            None => {
                target.copy_from_slice(&bound.read(key, source)?);
                Ok(())
            }
        }
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let (source, bound) = self.of(key)?;
        check_range(key, &bound.spec, &range, target.len())?;
        if let Some(from) = bound.plain() {
            return source.read_range(from, range, target);
        }
        if bound.streams() {
            target.copy_from_slice(&bound.read_range(key, source, range)?);
            return Ok(());
        }
        self.computed.read_range(key, &bound.spec, range, target, || bound.read(key, source))
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        let (source, bound) = self.of(key)?;
        bound.ensure_readable(key, source)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        let (source, bound) = self.of(key)?;
        bound.verify(key, source)
    }

    fn verify(&self) -> Result<()> {
        self.state.verify()
    }
}

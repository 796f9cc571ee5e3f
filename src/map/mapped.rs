//! A source under the names of a map.

use super::bound::{Bound, PIECE};
use super::computed::Computed;
use super::pattern::Pattern;
use super::preset::{self, Layer, Preset};
use super::statement::{Definition, Kind, Statement};
use super::text::check_stars;
use super::transform::Expr;
use crate::dtype::TensorSpec;
use crate::error::{Error, Loss, Mapping, Result};
use crate::location::Location;
use crate::name;
use crate::source::{SourceAttributes, TensorSource, VerifiedBy, check_range, check_target};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// A source under the names that a [`NameMap`](super::NameMap) assigns.
///
/// Tensors are computed when they are read. A tensor that is only renamed, cast, reshaped or added is read in pieces.
/// Any other (transposed, sliced, concatenated, stacked, repeated, padded, or made by a function) needs memory for the
/// complete tensor and for its inputs.
#[derive(Debug)]
pub struct Mapped<'a> {
    source: &'a dyn TensorSource,
    specs: BTreeMap<String, TensorSpec>,
    tensors: BTreeMap<String, Arc<Bound>>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
    /// Keys that are equal to another key, which is the first of them.
    aliases: BTreeMap<String, String>,
    order: Vec<String>,
    mappings: Vec<Mapping>,
    left_out: Vec<String>,
    computed: Computed,
}

impl Mapped<'_> {
    /// Returns the entries that are renamed or transformed, by key.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Returns the keys of the source that are not used.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Returns how each tensor is computed, by key.
    pub(super) fn into_tensors(self) -> BTreeMap<String, Arc<Bound>> {
        self.tensors
    }

    fn bound(&self, key: &str) -> Result<&Arc<Bound>> {
        self.tensors.get(key).ok_or_else(|| {
            let reason = match self.unreadable.get(key) {
                Some(reason) => format!("cannot be read from {}: {reason}", self.path().display()),
                None => format!("{} has no such tensor under the names of the map", self.path().display()),
            };
            Error::object(key, reason)
        })
    }
}

impl TensorSource for Mapped<'_> {
    fn format(&self) -> &'static str {
        self.source.format()
    }

    fn path(&self) -> &Location {
        self.source.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn order(&self) -> Vec<&str> {
        self.order.iter().map(String::as_str).collect()
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.aliases.get(key).map_or(key, String::as_str)
    }

    fn lacks(&self, key: &str) -> Option<(String, String)> {
        let lacking = self.source.lacks(key)?;
        // The map may make it of something else.
        let is_made = name::has_at(&self.specs, &lacking.0) || name::has_at(&self.values, &lacking.0);
        (!is_made).then_some(lacking)
    }

    fn requires_grad(&self, key: &str) -> Option<bool> {
        let mut keys = BTreeSet::new();
        self.tensors.get(key)?.keys(&mut keys);
        let mut flags = keys.into_iter().map(|key| self.source.requires_grad(key));
        let first = flags.next()?;
        if flags.all(|flag| flag == first) { first } else { None }
    }

    fn attributes(&self) -> Result<SourceAttributes> {
        let mut attributes = self.source.attributes()?;
        let is_unchanged = |key: &str| self.tensors.get(key).is_some_and(|bound| bound.plain() == Some(key));
        attributes.fit_saved_model(self.source, is_unchanged);
        Ok(attributes)
    }

    fn read_asset(&self, name: &str, with: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.source.read_asset(name, with)
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.tensors.get(key).map_or(VerifiedBy::Nothing, |bound| bound.verified_by(self.source))
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let bound = self.bound(key)?;
        check_target(key, &bound.spec, target.len())?;
        if let Some(from) = bound.plain() {
            return self.source.read(from, target);
        }
        if bound.streams() && target.len() as u64 > PIECE {
            bound.verify_inputs(self.source)?;
            return bound.for_each_piece(key, self.source, &mut |at, piece| {
                target[at..at + piece.len()].copy_from_slice(piece);
                Ok(())
            });
        }
        target.copy_from_slice(&bound.read(key, self.source)?);
        Ok(())
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let bound = self.bound(key)?;
        check_range(key, &bound.spec, &range, target.len())?;
        if let Some(from) = bound.plain() {
            return self.source.read_range(from, range, target);
        }
        if bound.streams() {
            target.copy_from_slice(&bound.read_range(key, self.source, range)?);
            return Ok(());
        }
        self.computed.read_range(key, &bound.spec, range, target, || bound.read(key, self.source))
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        self.bound(key)?.ensure_readable(key, self.source)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.bound(key)?.verify(key, self.source)
    }

    fn verify(&self) -> Result<()> {
        self.source.verify()
    }
}

/// The entries between two statements.
#[derive(Clone)]
enum Entry {
    Tensor(Arc<Bound>),
    /// The value of this key in the source.
    Value(String),
    Unreadable(String),
}

struct State<'a> {
    source: &'a dyn TensorSource,
    entries: BTreeMap<String, Entry>,
    /// The entries that consecutive definitions have used.
    used: BTreeSet<String>,
    /// The maximum number of entries. A definition with stars can double them.
    most: usize,
}

/// The maximum number of names that definitions with stars make, as a multiple of those of the source.
const MOST_COPIES: usize = 16;

/// The maximum number of tensors that a definition with stars takes for all of its names, as a multiple of
/// [`State::most`].
const MOST_SOURCES: usize = 64;

/// As many names may always be made.
const ALWAYS: usize = 1 << 16;

pub(super) fn apply<'a>(statements: &[Statement], source: &'a dyn TensorSource) -> Result<Mapped<'a>> {
    let mut entries = BTreeMap::new();
    entries.extend(source.unreadable().iter().map(|(key, reason)| (key.clone(), Entry::Unreadable(reason.clone()))));
    entries.extend(source.values().keys().map(|key| (key.clone(), Entry::Value(key.clone()))));
    entries.extend(source.tensors().iter().map(|(key, spec)| (key.clone(), Entry::Tensor(Bound::source(key, spec)))));
    let most = entries.len().saturating_mul(MOST_COPIES).max(ALWAYS);
    let mut state = State { source, entries, used: BTreeSet::new(), most };
    for statement in statements {
        state.run(&statement.kind).map_err(|reason| {
            let reason = name::short_message(format!("{}: {reason}", source.path().display()));
            Error::Map { path: None, line: statement.line, column: statement.column, reason }
        })?;
    }
    state.forget_used();
    state.finish()
}

type Step<T> = std::result::Result<T, String>;

impl<'a> State<'a> {
    fn run(&mut self, kind: &Kind) -> Step<()> {
        match kind {
            Kind::Define(definition) => return self.define(definition),
            Kind::Layer(name, preset, from) => return self.layer(name, *preset, from),
            _ => {}
        }
        self.forget_used();
        match kind {
            Kind::Only(names) => {
                let is_below = |name: &Pattern, key: &str| {
                    name.plain()
                        .and_then(|name| key.strip_prefix(name))
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
                        || name.captures(key).is_some()
                };
                self.keep(names, is_below)
            }
            Kind::Include(patterns) => self.keep(patterns, |pattern, key| pattern.captures(key).is_some()),
            Kind::Exclude(patterns) => {
                self.entries.retain(|key, _| !patterns.iter().any(|pattern| pattern.captures(key).is_some()));
                Ok(())
            }
            Kind::Weights => {
                let optimizers = optimizers(self.entries.keys());
                self.entries.retain(|key, _| !is_of_optimizer(key, &optimizers));
                Ok(())
            }
            Kind::AddPrefix(prefix) => self.rename(|key| format!("{prefix}{key}")),
            Kind::RemovePrefix(prefix) => {
                let has_it = self.entries.keys().any(|key| key.len() > prefix.len() && key.starts_with(prefix));
                if !has_it {
                    return Err(self.unknown("no name starts with", prefix));
                }
                self.rename(|key| match key.strip_prefix(prefix.as_str()) {
                    Some(rest) if !rest.is_empty() => rest.to_string(),
                    _ => key.to_string(),
                })
            }
            Kind::Define(_) | Kind::Layer(..) => Ok(()),
        }
    }

    /// Removes the entries that definitions have used.
    fn forget_used(&mut self) {
        for key in std::mem::take(&mut self.used) {
            self.entries.remove(&key);
        }
    }

    /// Keeps the entries that match one of the patterns. Each pattern must match something.
    fn keep(&mut self, patterns: &[Pattern], fits: impl Fn(&Pattern, &str) -> bool) -> Step<()> {
        for pattern in patterns {
            if !self.entries.keys().any(|key| fits(pattern, key)) {
                return Err(self.unknown("there is nothing for", &pattern.to_string()));
            }
        }
        self.entries.retain(|key, _| patterns.iter().any(|pattern| fits(pattern, key)));
        Ok(())
    }

    fn rename(&mut self, to: impl Fn(&str) -> String) -> Step<()> {
        let mut renamed = BTreeMap::new();
        for (key, entry) in std::mem::take(&mut self.entries) {
            let name = to(&key);
            if renamed.insert(name.clone(), entry).is_some() {
                return Err(format!("two would be called {}", name::shown(&name)));
            }
        }
        self.entries = renamed;
        Ok(())
    }

    /// Returns the message for an unknown name.
    fn unknown(&self, what: &str, name: &str) -> String {
        let near = name::nearest_hint(name, self.entries.keys().map(String::as_str));
        format!("{what} {}{near}", name::shown(name))
    }

    fn define(&mut self, definition: &Definition) -> Step<()> {
        let Definition { name, expr, optional } = definition;
        check_stars(name, expr)?;
        let driver = expr.sources().into_iter().find(|source| source.stars() > 0);
        let Some(driver) = driver else {
            let is_there = |source: &&Pattern| source.plain().is_some_and(|name| self.entries.contains_key(name));
            if *optional && !expr.sources().iter().all(is_there) {
                return Ok(());
            }
            let (made, used) = self.make(expr, &[])?;
            return self.insert(name.fill(&[]), made, used);
        };
        let fitting: Vec<String> = self.entries.keys().filter(|key| driver.captures(key).is_some()).cloned().collect();
        if fitting.is_empty() && !optional {
            return Err(self.unknown("there is nothing for", &driver.to_string()));
        }
        if self.entries.len() + fitting.len() > self.most {
            return Err(format!(
                "there would be more than {} names; a definition with stars also takes the names that earlier ones \
                 define: write more of the name on its right side",
                self.most
            ));
        }
        let sources = fitting.len().saturating_mul(expr.sources().len());
        if sources > self.most.saturating_mul(MOST_SOURCES) {
            return Err(format!("{} names would be made of {sources} tensors, which is too many", fitting.len()));
        }
        // All are computed from the entries before.
        let mut all = Vec::new();
        for key in &fitting {
            let captures = driver.captures(key).unwrap_or_default();
            let is_there = |source: &&Pattern| self.entries.contains_key(&source.fill(&captures));
            if *optional && !expr.sources().iter().all(is_there) {
                continue;
            }
            let (made, used) = self.make(expr, &captures)?;
            all.push((name.fill(&captures), made, used));
        }
        let mut used_by_all: BTreeSet<String> = all.iter().flat_map(|(.., used)| used.iter().cloned()).collect();
        let mut defined = BTreeSet::new();
        for (key, made, _) in all {
            let is_free = used_by_all.contains(&key) || self.used.contains(&key) || !self.entries.contains_key(&key);
            if !is_free || !defined.insert(key.clone()) {
                return Err(taken(&key));
            }
            self.entries.insert(key, made);
        }
        used_by_all.retain(|key| !defined.contains(key));
        self.used.retain(|key| !defined.contains(key));
        self.used.extend(used_by_all);
        Ok(())
    }

    /// Defines the variables of every layer that matches.
    fn layer(&mut self, name: &Pattern, preset: Preset, from: &Pattern) -> Step<()> {
        if from.stars() != name.stars() {
            return Err(format!("{from} has {} stars, {name} has {}", from.stars(), name.stars()));
        }
        // The text before each separator may be the layer.
        let ends = |key: &str| key.match_indices(['/', '.']).map(|(end, _)| end).collect::<Vec<_>>();
        let mut layers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in self.entries.keys() {
            let fits = ends(key).into_iter().find_map(|end| Some((&key[..end], from.captures(&key[..end])?)));
            if let Some((layer, captures)) = fits {
                layers.entry(layer.to_string()).or_insert_with(|| captures.into_iter().map(str::to_string).collect());
            }
        }
        if layers.is_empty() {
            return Err(self.unknown("there is no layer", &from.to_string()));
        }
        for (layer, captures) in layers {
            let of = |reason| format!("{preset}({}): {reason}", name::shown(&layer));
            let found = LayerOf { state: self, layer: &layer };
            let definitions = preset::definitions(preset, &found).map_err(of)?;
            let captures: Vec<&str> = captures.iter().map(String::as_str).collect();
            let to = name.fill(&captures);
            let mut made = Vec::new();
            for (variable, expr) in definitions {
                made.push((format!("{to}.{variable}"), self.make(&expr, &[]).map_err(of)?));
            }
            for (key, (entry, used)) in made {
                self.insert(key, entry, used)?;
            }
            // The whole layer was used.
            let rest = self.entries.range(below(&layer)).map(|(key, _)| key);
            let is_other = |key: &&String| !key.starts_with(&format!("{to}."));
            let rest: Vec<String> = rest.filter(is_other).cloned().collect();
            self.used.extend(rest);
        }
        Ok(())
    }

    fn insert(&mut self, key: String, made: Entry, used: BTreeSet<String>) -> Step<()> {
        if self.entries.contains_key(&key) && !used.contains(&key) && !self.used.contains(&key) {
            return Err(taken(&key));
        }
        self.used.extend(used);
        self.used.remove(&key);
        self.entries.insert(key, made);
        Ok(())
    }

    /// Evaluates an expression on the present entries. Returns the result and the names it used.
    fn make(&self, expr: &Expr, captures: &[&str]) -> Step<(Entry, BTreeSet<String>)> {
        let mut used = BTreeSet::new();
        if let Expr::Source(name) = expr {
            let key = name.fill(captures);
            let entry = self.entries.get(&key).ok_or_else(|| self.unknown("there is no", &key))?;
            used.insert(key);
            return Ok((entry.clone(), used));
        }
        let bound = Bound::of(expr, &mut |name| {
            let key = name.fill(captures);
            let found = match self.entries.get(&key) {
                Some(Entry::Tensor(bound)) => bound.clone(),
                Some(Entry::Value(_)) => {
                    return Err(format!("{} is a value, no tensor: it can only be renamed", name::shown(&key)));
                }
                Some(Entry::Unreadable(reason)) => {
                    return Err(format!("{} cannot be read: {reason}", name::shown(&key)));
                }
                None => return Err(self.unknown("there is no", &key)),
            };
            used.insert(key);
            Ok(found)
        })?;
        Ok((Entry::Tensor(bound), used))
    }

    fn finish(self) -> Result<Mapped<'a>> {
        let source = self.source;
        let places: BTreeMap<&str, usize> = source.order().into_iter().enumerate().map(|(at, key)| (key, at)).collect();
        let mut went_in = BTreeSet::new();
        let (mut specs, mut tensors) = (BTreeMap::new(), BTreeMap::new());
        let (mut values, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        let (mut aliases, mut first) = (BTreeMap::new(), BTreeMap::new());
        let (mut order, mut mappings) = (Vec::new(), Vec::new());
        for (key, entry) in self.entries {
            if name::path(&key).is_none() {
                let reason = format!("{} is no key: a name is empty or badly escaped", name::shown(&key));
                return Err(Error::InvalidArgument(format!("{}: {reason}", source.path().display())));
            }
            match entry {
                Entry::Unreadable(reason) => drop(unreadable.insert(key, reason)),
                Entry::Value(from) => {
                    if let Some(value) = source.values().get(&from) {
                        values.insert(key.clone(), value.clone());
                    }
                    went_in.insert(from.clone());
                    if from != key {
                        let (from, transform) = (vec![from], String::new());
                        mappings.push(Mapping { key, from, transform, loss: Loss::Nothing });
                    }
                }
                Entry::Tensor(bound) => {
                    let mut keys = BTreeSet::new();
                    bound.keys(&mut keys);
                    order.push((keys.iter().filter_map(|key| places.get(key)).min().copied(), key.clone()));
                    let known: &String = first.entry(bound.signature(source)).or_insert_with(|| key.clone());
                    if *known != key {
                        aliases.insert(key.clone(), known.clone());
                    }
                    if bound.plain() != Some(&key) {
                        let from = keys.iter().map(|key| key.to_string()).collect();
                        let transform = if bound.plain().is_some() { String::new() } else { bound.shown() };
                        mappings.push(Mapping { key: key.clone(), from, transform, loss: bound.loss });
                    }
                    went_in.extend(keys.iter().map(|key| key.to_string()));
                    specs.insert(key.clone(), bound.spec.clone());
                    tensors.insert(key, bound);
                }
            }
        }
        order.sort();
        let keys = source.tensors().keys().chain(source.values().keys());
        let mut left_out: Vec<String> = keys.filter(|key| !went_in.contains(*key)).cloned().collect();
        left_out.sort_unstable();
        let order = order.into_iter().map(|(_, key)| key).collect();
        let computed = Computed::default();
        Ok(Mapped { source, specs, tensors, values, unreadable, aliases, order, mappings, left_out, computed })
    }
}

/// A layer among the entries.
struct LayerOf<'s, 'a> {
    state: &'s State<'a>,
    layer: &'s str,
}

impl Layer for LayerOf<'_, '_> {
    fn find(&self, part: &str, name: &str, number: usize) -> Step<Option<String>> {
        let leads_there = |path: &[&str]| {
            // Keras prefixes some parts with an underscore.
            part.is_empty() || path.iter().any(|name| name.trim_start_matches('_').starts_with(part))
        };
        let names = self.names();
        let with = |fits: &dyn Fn(&[&str], &str) -> bool| {
            let mut found: BTreeMap<String, &String> = BTreeMap::new();
            for (below, key) in &names {
                let mut path: Vec<&str> = below.split('/').collect();
                let last = path.pop().unwrap_or_default();
                let Some(Entry::Tensor(bound)) = self.state.entries.get(key) else { continue };
                if leads_there(&path) && fits(&path, last) {
                    found.entry(bound.signature(self.state.source)).or_insert(key);
                }
            }
            let found: Vec<&String> = found.into_values().collect();
            match found.as_slice() {
                [] => Ok(None),
                [key] => Ok(Some((*key).clone())),
                [a, b, ..] => {
                    Err(format!("it has several variables {name}: {} and {}", name::shown(a), name::shown(b)))
                }
            }
        };
        let by_name = with(&|_, last| last.trim_start_matches('_').trim_end_matches(":0") == name)?;
        let number = number.to_string();
        match by_name {
            Some(key) => Ok(Some(key)),
            None => with(&|path, last| path.last() == Some(&"vars") && last == number),
        }
    }

    fn shape(&self, key: &str) -> Vec<u64> {
        match self.state.entries.get(key) {
            Some(Entry::Tensor(bound)) => bound.spec.shape.clone(),
            _ => Vec::new(),
        }
    }

    fn names(&self) -> Vec<(String, String)> {
        let name = |key: &String| Some((key.get(self.layer.len() + 1..)?.to_string(), key.clone()));
        self.state.entries.range(below(self.layer)).filter_map(|(key, _)| name(key)).collect()
    }
}

/// Returns the range of the keys below a layer, which continue its name with `.` or `/`: in order, these two are next
/// to one another.
fn below(layer: &str) -> Range<String> {
    format!("{layer}.")..format!("{layer}0")
}

fn taken(key: &str) -> String {
    format!("there is a {} already; exclude it or give one of the two another name", name::shown(key))
}

/// Names of optimizers.
const OPTIMIZERS: [&str; 8] = [
    "optimizer",
    "optimizers",
    "optim",
    "opt",
    "optimizer_state",
    "optimizer_state_dict",
    "optimizer_states",
    "optimizer_weights",
];

/// Returns the keys of objects that have parameter groups, with a `/` behind.
fn optimizers<'k>(keys: impl Iterator<Item = &'k String>) -> BTreeSet<String> {
    let groups = |key: &str| {
        let at = key.find("param_groups")?;
        let is_name = key[..at].is_empty() || key[..at].ends_with('/');
        let ends = matches!(key.as_bytes().get(at + "param_groups".len()), None | Some(b'/'));
        (is_name && ends).then(|| key[..at].to_string())
    };
    keys.filter_map(|key| groups(key)).collect()
}

fn is_of_optimizer(key: &str, optimizers: &BTreeSet<String>) -> bool {
    // A key without a name above it belongs to the whole file.
    key.split('/').any(|name| OPTIMIZERS.contains(&name) || name == ".OPTIMIZER_SLOT")
        || key.match_indices('/').any(|(at, _)| optimizers.contains(&key[..=at]))
        || optimizers.contains("")
}

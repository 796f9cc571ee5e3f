//! From a graph of Python objects to keys: dictionaries become a tree, other data JSON values.

use super::bind::Binder;
use super::pickle::{Arena, Id, Node};
use crate::error::Result;
use crate::interop::foreign::Found;
use crate::name;
use serde_json::{Map, Number, Value};
use std::collections::HashMap;

/// The deepest nesting.
const MAX_DEPTH: usize = 100;

/// Bytes of keys and values that are allowed, in addition to some for each object of the pickle. Objects can be shared,
/// so that a few of them make any number of paths.
pub(super) const FREE: u64 = 16 << 20;
pub(super) const PER_OBJECT: u64 = 400;

/// How the names of attributes become keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Each dictionary is a level.
    Tree,
    /// Objects are modules, whose names are joined by dots to one name, as torch does.
    Modules,
}

/// Walks from `root`. Returns the bytes of keys and values.
pub(super) fn collect(
    arena: &Arena,
    root: Id,
    style: Style,
    binder: &mut dyn Binder,
    found: &mut Found,
) -> Result<u64, Problem> {
    let all = FREE + PER_OBJECT * arena.len() as u64;
    let mut walk = Walk { arena, style, binder, found, holds: HashMap::new(), inner: 0, left: all };
    walk.visit(&mut Vec::new(), root)?;
    Ok(all - walk.left)
}

/// Why an object is not taken.
#[derive(Debug)]
pub(super) enum Problem {
    /// The path, and what is wrong.
    Refused(String, String),
    /// The file could not be read, or is damaged.
    Failed(crate::error::Error),
}

impl From<crate::error::Error> for Problem {
    fn from(e: crate::error::Error) -> Self {
        Problem::Failed(e)
    }
}

struct Walk<'a> {
    arena: &'a Arena,
    style: Style,
    binder: &'a mut dyn Binder,
    found: &'a mut Found,
    /// Whether there is a tensor under an object.
    holds: HashMap<Id, bool>,
    /// Objects around the one that is visited whose state it is, or is in: they add nothing to the path.
    inner: usize,
    left: u64,
}

impl Walk<'_> {
    fn charge(&mut self, path: &[String], bytes: usize) -> Result<(), Problem> {
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(refuse(
                path,
                "names and values would take more memory than its objects account for, as when they contain one another \
                 again and again; save the tensors alone (`torch.save(model.state_dict(), path)`)",
            )),
        }
    }

    fn visit(&mut self, path: &mut Vec<String>, id: Id) -> Result<(), Problem> {
        if path.len() + self.inner > MAX_DEPTH {
            return Err(refuse(path, "it nests deeper than 100 levels"));
        }
        let arena = self.arena;
        self.charge(path, 64)?;
        match arena.node(id) {
            Node::Tensor(_) | Node::Array(_) => self.tensor(path, id),
            Node::Dict(entries) if entries.is_empty() => self.value(path, id),
            Node::Dict(entries) => {
                for (part, value) in self.named(path, entries)? {
                    self.descend(path, part, value)?;
                }
                Ok(())
            }
            Node::List(items) if self.holds(path, id, 0)? => self.items(path, items),
            Node::Tuple(items) if self.holds(path, id, 0)? => self.items(path, items),
            Node::Object(object) if self.holds(path, id, 0)? => {
                let Some(state) = object.state else { return self.items(path, &[object.args]) };
                match arena.dict(state) {
                    Some(entries) => {
                        // Attributes first, so that a tensor in a list that is one too does not get another name.
                        let mut entries = self.named(path, entries)?;
                        entries.sort_by_key(|(_, id)| self.rank(*id));
                        entries.into_iter().try_for_each(|(part, value)| self.descend(path, part, value))
                    }
                    None => {
                        self.inner += 1;
                        let result = self.visit(path, state);
                        self.inner -= 1;
                        result
                    }
                }
            }
            Node::Refused(place) => {
                let name = self.global(path, *place)?;
                self.unreadable(path, format!("it is an object made by `{name}`, which is not allowed"))
            }
            Node::Unreadable(reason) => {
                self.charge(path, reason.len())?;
                self.unreadable(path, reason.to_string())
            }
            Node::Storage(_) => self.unreadable(path, "it is a storage without dtype or shape, no tensor".to_string()),
            _ => self.value(path, id),
        }
    }

    /// Returns the name of a global.
    fn global(&mut self, path: &[String], place: u32) -> Result<String, Problem> {
        let Some(global) = self.arena.globals.get(place as usize) else { return Ok(String::new()) };
        self.charge(path, global.module.len() + global.name.len())?;
        Ok(global.text())
    }

    fn rank(&self, id: Id) -> u8 {
        match self.arena.node(id) {
            Node::Tensor(_) => 0,
            Node::Object(_) => 1,
            _ => 2,
        }
    }

    fn items(&mut self, path: &mut Vec<String>, items: &[Id]) -> Result<(), Problem> {
        items.iter().enumerate().try_for_each(|(i, item)| self.descend(path, i.to_string(), *item))
    }

    fn descend(&mut self, path: &mut Vec<String>, part: String, id: Id) -> Result<(), Problem> {
        self.charge(path, part.len())?;
        path.push(part);
        let result = self.visit(path, id);
        path.pop();
        result
    }

    /// Returns the entries of a dictionary by the text of their key, the last of each.
    fn named(&mut self, path: &[String], entries: &[(Id, Id)]) -> Result<Vec<(String, Id)>, Problem> {
        self.charge(path, 24 * entries.len())?;
        let mut named: Vec<(String, Id)> = Vec::with_capacity(entries.len());
        let mut places: HashMap<String, (usize, Id)> = HashMap::with_capacity(entries.len());
        for &(key, value) in entries {
            let text = self.key_text(path, key)?;
            self.charge(path, text.len())?;
            match places.get(&text) {
                Some(&(place, other)) => {
                    let is_same =
                        std::mem::discriminant(self.arena.node(key)) == std::mem::discriminant(self.arena.node(other));
                    if !is_same {
                        return Err(refuse(
                            path,
                            format!("two of its keys are written {text:?}, and are not the same"),
                        ));
                    }
                    named[place].1 = value;
                }
                None => {
                    places.insert(text.clone(), (named.len(), key));
                    named.push((text, value));
                }
            }
        }
        Ok(named)
    }

    fn key_text(&mut self, path: &[String], key: Id) -> Result<String, Problem> {
        let arena = self.arena;
        Ok(match arena.node(key) {
            Node::Text(text) if text.is_empty() => "''".to_string(),
            Node::Text(text) => {
                self.charge(path, text.len())?;
                text.to_string()
            }
            Node::Int(value) => value.to_string(),
            Node::Bool(value) => if *value { "True" } else { "False" }.to_string(),
            Node::None => "None".to_string(),
            Node::Float(value) => format!("{value:?}"),
            Node::Dtype(dtype) => format!("torch.{}", dtype.name()),
            Node::Bytes(bytes) => {
                // Up to four characters for each.
                self.charge(path, 4 * bytes.len())?;
                bytes.escape_ascii().to_string()
            }
            Node::Tuple(items) if items.len() <= 16 => {
                let parts: Result<Vec<_>, _> = items
                    .iter()
                    .map(|&item| match arena.node(item) {
                        Node::Tuple(_) => Err(refuse(path, "a key of it is a tuple of tuples")),
                        _ => self.key_text(path, item),
                    })
                    .collect();
                format!("({})", parts?.join(", "))
            }
            _ => return Err(refuse(path, "a key of it is neither a text nor a number")),
        })
    }

    /// Returns `true` if there is a tensor, or what cannot be held, anywhere under a node.
    fn holds(&mut self, path: &[String], id: Id, depth: usize) -> Result<bool, Problem> {
        if depth > MAX_DEPTH {
            return Err(refuse(path, "it nests deeper than 100 levels"));
        }
        if let Some(&known) = self.holds.get(&id) {
            return Ok(known);
        }
        let arena = self.arena;
        let mut any = |ids: &mut dyn Iterator<Item = Id>| -> Result<bool, Problem> {
            // In a cycle nothing is found that is not found elsewhere.
            self.holds.insert(id, false);
            for id in ids {
                if self.holds(path, id, depth + 1)? {
                    self.holds.insert(id, true);
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let found = match arena.node(id) {
            Node::Tensor(_) | Node::Array(_) | Node::Unreadable(_) | Node::Refused(_) | Node::Storage(_) => true,
            Node::Tuple(items) => any(&mut items.iter().copied())?,
            Node::List(items) | Node::Set(items) => any(&mut items.iter().copied())?,
            Node::Dict(entries) => any(&mut entries.iter().map(|entry| entry.1))?,
            Node::Object(object) => any(&mut [Some(object.args), object.state].into_iter().flatten())?,
            _ => return Ok(false),
        };
        self.holds.insert(id, found);
        Ok(found)
    }

    fn key(&mut self, path: &[String]) -> Result<String, Problem> {
        let key = match self.style {
            Style::Tree => name::key(path),
            Style::Modules if path.is_empty() => String::new(),
            Style::Modules => name::key([path.join(".")]),
        };
        self.charge(path, 2 * key.len() + 200)?;
        let is_taken = self.found.stored.contains_key(&key)
            || self.found.values.contains_key(&key)
            || self.found.unreadable.contains_key(&key);
        if is_taken { Err(refuse(path, "two objects would have this name")) } else { Ok(key) }
    }

    fn tensor(&mut self, path: &[String], id: Id) -> Result<(), Problem> {
        if self.style == Style::Modules
            && self.binder.is_known(id)
            && path.last().is_some_and(|last| last.parse::<u64>().is_ok())
        {
            // The list of weights that a recurrent module keeps in addition to its attributes.
            return Ok(());
        }
        let key = self.key(path)?;
        let rank = match self.arena.node(id) {
            Node::Tensor(place) => self.arena.tensors.get(*place as usize).map_or(0, |tensor| tensor.shape.len()),
            Node::Array(place) => self.arena.arrays.get(*place as usize).map_or(0, |array| array.shape.len()),
            _ => 0,
        };
        // Its shape, begin and strides, some of them twice.
        self.charge(path, 64 * rank)?;
        match self.binder.bind(self.arena, id)? {
            Ok(stored) => {
                self.found.order.push(key.clone());
                self.found.stored.insert(key, stored);
            }
            Err(reason) => drop(self.found.unreadable.insert(key, reason)),
        }
        Ok(())
    }

    fn unreadable(&mut self, path: &[String], reason: String) -> Result<(), Problem> {
        let key = self.key(path)?;
        self.found.unreadable.insert(key, reason);
        Ok(())
    }

    fn value(&mut self, path: &[String], id: Id) -> Result<(), Problem> {
        let key = self.key(path)?;
        match self.json(path, id, path.len() + self.inner)? {
            Ok(value) => drop(self.found.values.insert(key, value)),
            Err(reason) => drop(self.found.unreadable.insert(key, reason)),
        }
        Ok(())
    }

    /// An object as JSON, or why it cannot be.
    fn json(&mut self, path: &[String], id: Id, depth: usize) -> Result<Result<Value, String>, Problem> {
        if depth > MAX_DEPTH {
            return Err(refuse(path, "it nests deeper than 100 levels"));
        }
        self.charge(path, 80)?;
        let arena = self.arena;
        Ok(Ok(match arena.node(id) {
            Node::None => Value::Null,
            Node::Bool(value) => (*value).into(),
            Node::Int(value) => (*value).into(),
            Node::BigInt(bytes) => {
                self.charge(path, bytes.len())?;
                match big_int(bytes) {
                    Some(value) => value.into(),
                    None => {
                        return Ok(Err(format!("it is an integer of {} bytes, which JSON cannot hold", bytes.len())));
                    }
                }
            }
            Node::Float(value) => float(*value),
            Node::Text(text) => {
                self.charge(path, text.len())?;
                Value::String(text.to_string())
            }
            Node::Bytes(bytes) => return Ok(Err(format!("it is {} bytes, which JSON cannot hold", bytes.len()))),
            Node::Tuple(items) => return self.json_list(path, items, depth),
            Node::List(items) | Node::Set(items) => return self.json_list(path, items, depth),
            Node::Dict(entries) => return self.json_object(path, entries, depth),
            Node::Object(object) => {
                let class = self.global(path, object.class)?;
                if class.starts_with("pathlib.") {
                    let parts = arena.tuple(object.args).unwrap_or_default();
                    let length = |&part: &Id| arena.text(part).map_or(0, str::len) + 16;
                    self.charge(path, parts.iter().map(length).sum())?;
                    let parts: Option<Vec<&str>> = parts.iter().map(|&part| arena.text(part)).collect();
                    return Ok(parts
                        .map(|parts| joined(&parts).into())
                        .ok_or_else(|| "it is a path of what is no text".to_string()));
                }
                return match object.state.map(|state| arena.node(state)) {
                    Some(Node::Dict(entries)) => self.json_object(path, entries, depth),
                    _ => Ok(Err(format!("it is an object of the class `{class}`"))),
                };
            }
            Node::Dtype(dtype) => format!("torch.{}", dtype.name()).into(),
            Node::NumpyDtype(_) => return Ok(Err("it is a dtype of numpy".to_string())),
            Node::Global(place) => self.global(path, *place)?.into(),
            Node::Unreadable(reason) => {
                self.charge(path, reason.len())?;
                return Ok(Err(reason.to_string()));
            }
            Node::Storage(_) | Node::Tensor(_) | Node::Array(_) | Node::Refused(_) => {
                return Ok(Err("it holds what is no plain data".to_string()));
            }
        }))
    }

    fn json_list(&mut self, path: &[String], items: &[Id], depth: usize) -> Result<Result<Value, String>, Problem> {
        let mut list = Vec::new();
        for &item in items {
            match self.json(path, item, depth + 1)? {
                Ok(value) => list.push(value),
                Err(reason) => return Ok(Err(format!("of its items one cannot be held: {reason}"))),
            }
        }
        Ok(Ok(Value::Array(list)))
    }

    fn json_object(
        &mut self,
        path: &[String],
        entries: &[(Id, Id)],
        depth: usize,
    ) -> Result<Result<Value, String>, Problem> {
        let mut object = Map::new();
        for (key, value) in self.named(path, entries)? {
            match self.json(path, value, depth + 1)? {
                Ok(value) => drop(object.insert(key, value)),
                Err(reason) => return Ok(Err(format!("its entry {key:?} cannot be held: {reason}"))),
            }
        }
        Ok(Ok(Value::Object(object)))
    }
}

fn refuse(path: &[String], reason: impl Into<String>) -> Problem {
    // A path as deep as the limit is of no use to anybody.
    Problem::Refused(name::key(path.iter().take(10)), reason.into())
}

/// JSON has no such numbers: they become the texts that manifests of this crate have for them.
fn float(value: f64) -> Value {
    match Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

/// An integer that fits a `u64` after all.
fn big_int(bytes: &[u8]) -> Option<u64> {
    let (low, high) = bytes.split_at_checked(8)?;
    let is_positive = high.iter().all(|&byte| byte == 0) && !high.is_empty();
    low.first_chunk().filter(|_| is_positive).map(|low| u64::from_le_bytes(*low))
}

/// Returns the parts of a path as Python joins them: the first may be a root.
fn joined(parts: &[&str]) -> String {
    let text = parts.join("/");
    match text.strip_prefix("//") {
        Some(rest) => format!("/{rest}"),
        None => text,
    }
}

/// How an object leads to another.
#[derive(Clone, Copy)]
enum Edge {
    Key(Id),
    Item(usize),
    /// The key of an entry, or a part of an object.
    Inner,
}

impl Edge {
    /// Returns what it adds to a path in a message: the start of a long text.
    fn text(self, arena: &Arena) -> String {
        match self {
            Edge::Key(key) => {
                let text = arena.text(key).map(|text| text.chars().take(100).collect());
                text.or_else(|| arena.int(key).map(|key| key.to_string())).unwrap_or_else(|| "?".to_string())
            }
            Edge::Item(i) => i.to_string(),
            Edge::Inner => String::new(),
        }
    }
}

/// Where in the tree an object is that was made with the global `place`.
pub(super) fn find_refused(arena: &Arena, root: Id, place: u32) -> Option<String> {
    let mut parents: HashMap<Id, (Id, Edge)> = HashMap::new();
    let mut waiting = std::collections::VecDeque::from([root]);
    while let Some(id) = waiting.pop_front() {
        if matches!(arena.node(id), Node::Refused(own) if *own == place) {
            let mut path = Vec::new();
            let mut at = id;
            while let Some((parent, edge)) = parents.get(&at).filter(|_| at != root && path.len() < 100) {
                path.push(*edge);
                at = *parent;
            }
            let parts = path.iter().rev().map(|edge| edge.text(arena));
            return Some(name::key(parts.filter(|part| !part.is_empty())));
        }
        let mut lead = |child: Id, edge: Edge| {
            parents.entry(child).or_insert_with(|| {
                waiting.push_back(child);
                (id, edge)
            });
        };
        match arena.node(id) {
            Node::Dict(entries) => entries.iter().for_each(|&(key, value)| {
                lead(value, Edge::Key(key));
                lead(key, Edge::Inner);
            }),
            Node::Tuple(items) => items.iter().enumerate().for_each(|(i, &item)| lead(item, Edge::Item(i))),
            Node::List(items) | Node::Set(items) => {
                items.iter().enumerate().for_each(|(i, &item)| lead(item, Edge::Item(i)));
            }
            Node::Object(object) => {
                [Some(object.args), object.state].into_iter().flatten().for_each(|id| lead(id, Edge::Inner));
            }
            _ => {}
        }
    }
    None
}

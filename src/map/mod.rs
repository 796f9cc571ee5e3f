//! One language for names and layouts: what of a source is wanted, under which names, and made of what.
//!
//! A [`NameMap`] is a list of statements that a [`TensorSource`] goes through one after the other. It is written
//! as Rust calls or as a text; `docs/maps.md` in the repository specifies the text. [`Mapped`] is the source as the map
//! shows it, and a `TensorSource` itself: what restores, writes or compares sources takes it.

mod average;
mod bound;
mod cast;
mod mapped;
mod pattern;
mod preset;
mod propose;
mod statement;
mod text;
mod transform;

pub use crate::error::{Loss, Mapping};
pub use average::Average;
pub use mapped::Mapped;
pub use preset::Preset;
pub use propose::{Proposal, Proposed, Sureness, propose};
pub use text::Functions;
pub use transform::{TensorFunction, Transform};

pub(crate) use pattern::Pattern;
use statement::{Definition, Kind, Statement};

use crate::error::Result;
use crate::source::TensorSource;
use std::fmt;
use std::path::Path;

/// Which tensors and values of a source are wanted, and under which names.
///
/// Without statements all come out as they are. Each statement changes what the ones before it have left. Patterns are
/// names in which `*` stands for any text, `/` included.
///
/// ```
/// use tch_checkpoint::map::{NameMap, Transform};
/// let map = NameMap::new()
///     .weights()
///     .exclude(["*.num_batches_tracked"])
///     .rename("layers.*.attn.weight", "blocks.*.attention.weight")
///     .define("head.weight", Transform::of("logits/kernel").transpose())
///     .add_prefix("model/");
/// let text = "map 1
/// weights
/// exclude *.num_batches_tracked
/// blocks.*.attention.weight = layers.*.attn.weight
/// head.weight = transpose(logits/kernel)
/// add_prefix model/
/// ";
/// assert_eq!(map, text.parse()?);
/// assert_eq!(map.to_string(), text);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use]
pub struct NameMap {
    statements: Vec<Statement>,
}

impl NameMap {
    /// A map that changes nothing.
    pub fn new() -> NameMap {
        NameMap::default()
    }

    fn with(mut self, kind: Kind) -> NameMap {
        // Where it stands in the text.
        self.statements.push(Statement::new(kind, self.statements.len() + 2, 1));
        self
    }

    /// Keeps these objects and what is below them: names that are one of `names`, or go on behind it with `/` or `.`.
    pub fn only<N: AsRef<str>>(self, names: impl IntoIterator<Item = N>) -> NameMap {
        self.with(Kind::Only(names.into_iter().map(|name| Pattern::new(name.as_ref())).collect()))
    }

    /// Keeps what fits one of `patterns`.
    pub fn include<N: AsRef<str>>(self, patterns: impl IntoIterator<Item = N>) -> NameMap {
        self.with(Kind::Include(patterns.into_iter().map(|name| Pattern::new(name.as_ref())).collect()))
    }

    /// Leaves out what fits one of `patterns`. It is no error if nothing does.
    pub fn exclude<N: AsRef<str>>(self, patterns: impl IntoIterator<Item = N>) -> NameMap {
        self.with(Kind::Exclude(patterns.into_iter().map(|name| Pattern::new(name.as_ref())).collect()))
    }

    /// Leaves out optimizers: what is at or below a name `optimizer`, `optimizers`, `optim`, `opt`, `optimizer_state`,
    /// `optimizer_state_dict`, `optimizer_states` or `optimizer_weights`, or below an object that has `param_groups`,
    /// whatever it is called; and TensorFlow's slot variables.
    pub fn weights(self) -> NameMap {
        self.with(Kind::Weights)
    }

    /// Puts `prefix` before every name: with its `/` or `.`, `model/` say.
    pub fn add_prefix(self, prefix: &str) -> NameMap {
        self.with(Kind::AddPrefix(prefix.to_string()))
    }

    /// Takes `prefix` from the names that begin with it. The others stay as they are.
    pub fn remove_prefix(self, prefix: &str) -> NameMap {
        self.with(Kind::RemovePrefix(prefix.to_string()))
    }

    /// Calls `from` `to`. With as many `*` in `to` as in `from`, these stand for the same texts, in order.
    pub fn rename(self, from: &str, to: &str) -> NameMap {
        self.define(to, Transform::of(from))
    }

    /// Defines the tensor `name`. What it is made of does not come out under its own name, but definitions that follow
    /// at once can use it as well. A pattern defines a tensor for each name that fits the first pattern in `transform`.
    pub fn define(self, name: &str, transform: Transform) -> NameMap {
        self.with(Kind::Define(Definition { name: Pattern::new(name), expr: transform.0, optional: false }))
    }

    /// Like [`define`](NameMap::define), of a name that has no stars, whatever characters it has.
    pub(crate) fn define_literal(self, name: &str, transform: Transform) -> NameMap {
        let name = Pattern::from_parts(vec![name.to_string()]);
        self.with(Kind::Define(Definition { name, expr: transform.0, optional: false }))
    }

    /// Like [`define`](NameMap::define), but without an error where the source has none of what it is made of.
    pub fn define_optional(self, name: &str, transform: Transform) -> NameMap {
        self.with(Kind::Define(Definition { name: Pattern::new(name), expr: transform.0, optional: true }))
    }

    /// Defines all variables of the layer `name` from the layer `from` of another tool: `NAME.weight` and so on, as
    /// tch's modules call them. A layer's name is what stands before the `.` or `/`. With stars, of every such layer.
    ///
    /// ```
    /// use tch_checkpoint::map::{NameMap, Preset};
    /// let map = NameMap::new().layer("model/encoder.gru", Preset::KerasGru, "encoder/rnn");
    /// assert_eq!(map, "map 1\nmodel/encoder.gru = keras.gru(encoder/rnn)\n".parse()?);
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    pub fn layer(self, name: &str, preset: Preset, from: &str) -> NameMap {
        self.with(Kind::Layer(Pattern::new(name), preset, Pattern::new(from)))
    }

    /// The statements of `other` after those of this map.
    pub fn then(mut self, other: NameMap) -> NameMap {
        for statement in other.statements {
            self = self.with(statement.kind);
        }
        self
    }

    /// Reads the map in the file `path`.
    ///
    /// # Errors
    /// [`Error::Map`](crate::Error::Map) with line and column; [`Error::Io`](crate::Error::Io).
    pub fn open(path: impl AsRef<Path>) -> Result<NameMap> {
        Functions::new().open(path)
    }

    /// Shows `source` under these names. All that can be known without reading elements is checked.
    ///
    /// # Errors
    /// [`Error::Map`](crate::Error::Map): a name that is not there, with the nearest; shapes that do not fit; two
    /// tensors of one name.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// use tch_checkpoint::{Checkpoint, Counter, TensorSource, interop, map::NameMap};
    /// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(folder.path().join("seven"))?;
    /// let source = interop::open(&path)?;
    /// let mapped = NameMap::new().rename("step", "epoch").apply(&*source)?;
    /// assert_eq!(mapped.values()["epoch"], 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply<'a>(&self, source: &'a dyn TensorSource) -> Result<Mapped<'a>> {
        mapped::apply(&self.statements, source)
    }
}

/// The text form.
impl fmt::Display for NameMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", text::HEADER)?;
        self.statements.iter().try_for_each(|statement| writeln!(f, "{}", statement.kind))
    }
}

impl std::str::FromStr for NameMap {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<NameMap> {
        Functions::new().parse(text)
    }
}

//! A language for names and layouts: selects, renames and transforms the tensors and values of a source.
//!
//! A [`NameMap`] is a list of statements that are applied to a [`TensorSource`] in order. It is written as Rust calls
//! or as text; `docs/maps.md` in the repository specifies the text. [`NameMap::apply`] returns a [`Mapped`] source,
//! which is a `TensorSource` itself, so that it can be restored, written and compared.

mod attributes;
mod average;
mod bound;
mod cast;
mod computed;
#[cfg(feature = "huggingface")]
pub(crate) use cast::cast;
mod inverse;
mod mapped;
mod merged;
mod optimizer;
mod pattern;
mod preset;
mod propose;
mod rows;
mod statement;
mod text;
mod transform;

pub use crate::error::{Loss, Mapping};
pub use average::Average;
pub use inverse::Inverse;
pub use mapped::Mapped;
pub use merged::Merged;
pub use optimizer::MappedOptimizer;
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

/// Selects, renames and transforms the tensors and values of a source.
///
/// Without statements, everything is kept unchanged. Each statement changes the result of the ones before it. Patterns
/// are names in which `*` matches any text, including `/`.
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
    /// Creates a map that changes nothing.
    pub fn new() -> NameMap {
        NameMap::default()
    }

    fn with(mut self, kind: Kind) -> NameMap {
        // The position in the text.
        self.statements.push(Statement::new(kind, self.statements.len() + 2, 1));
        self
    }

    /// Keeps these objects and everything below them: names that equal one of `names`, or continue it with `/` or `.`.
    pub fn only<N: AsRef<str>>(self, names: impl IntoIterator<Item = N>) -> NameMap {
        self.with(Kind::Only(names.into_iter().map(|name| Pattern::new(name.as_ref())).collect()))
    }

    /// Keeps the names that match one of `patterns`.
    pub fn include<N: AsRef<str>>(self, patterns: impl IntoIterator<Item = N>) -> NameMap {
        self.with(Kind::Include(patterns.into_iter().map(|name| Pattern::new(name.as_ref())).collect()))
    }

    /// Leaves out the names that match one of `patterns`. It is not an error if none does.
    pub fn exclude<N: AsRef<str>>(self, patterns: impl IntoIterator<Item = N>) -> NameMap {
        self.with(Kind::Exclude(patterns.into_iter().map(|name| Pattern::new(name.as_ref())).collect()))
    }

    /// Leaves out optimizers: everything at or below a name `optimizer`, `optimizers`, `optim`, `opt`,
    /// `optimizer_state`, `optimizer_state_dict`, `optimizer_states` or `optimizer_weights`, or below an object that
    /// has `param_groups`, whatever its name; and TensorFlow's slot variables.
    pub fn weights(self) -> NameMap {
        self.with(Kind::Weights)
    }

    /// Adds `prefix` to every name. Include the separator, as in `model/`.
    pub fn add_prefix(self, prefix: &str) -> NameMap {
        self.with(Kind::AddPrefix(prefix.to_string()))
    }

    /// Removes `prefix` from the names that start with it. The others are unchanged.
    pub fn remove_prefix(self, prefix: &str) -> NameMap {
        self.with(Kind::RemovePrefix(prefix.to_string()))
    }

    /// Renames `from` to `to`. Each `*` in `to` is replaced by the text that the `*` at the same place in `from`
    /// matched.
    pub fn rename(self, from: &str, to: &str) -> NameMap {
        self.define(to, Transform::of(from))
    }

    /// Defines the tensor `name`. Its inputs are no longer kept under their own names, but definitions that follow
    /// immediately can use them as well. A pattern defines a tensor for each name that matches the first pattern in
    /// `transform`.
    pub fn define(self, name: &str, transform: Transform) -> NameMap {
        self.with(Kind::Define(Definition { name: Pattern::new(name), expr: transform.0, optional: false }))
    }

    /// Like [`define`](NameMap::define), for a name in which `*` is an ordinary character.
    pub(crate) fn define_literal(self, name: &str, transform: Transform) -> NameMap {
        let name = Pattern::from_parts(vec![name.to_string()]);
        self.with(Kind::Define(Definition { name, expr: transform.0, optional: false }))
    }

    /// Like [`define`](NameMap::define), but it is not an error if the source has none of the inputs.
    pub fn define_optional(self, name: &str, transform: Transform) -> NameMap {
        self.with(Kind::Define(Definition { name: Pattern::new(name), expr: transform.0, optional: true }))
    }

    /// Defines all variables of the layer `name` from the layer `from` of another tool, with the names of tch's
    /// modules: `NAME.weight` and so on. A layer's name is the text before the `.` or `/`. With stars, defines every
    /// matching layer.
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

    /// Appends the statements of `other`.
    pub fn then(mut self, other: NameMap) -> NameMap {
        for statement in other.statements {
            self = self.with(statement.kind);
        }
        self
    }

    /// Reads a map from the file `path`.
    ///
    /// # Errors
    /// [`Error::Map`](crate::Error::Map) with line and column; [`Error::Io`](crate::Error::Io).
    pub fn open(path: impl AsRef<Path>) -> Result<NameMap> {
        Functions::new().open(path)
    }

    /// Applies the map to `source`. Checks everything that can be checked without reading elements.
    ///
    /// # Errors
    /// [`Error::Map`](crate::Error::Map): an unknown name, with the nearest one; shapes that do not fit; two tensors of
    /// the same name.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// use tch_checkpoint::{Checkpoint, Counter, TensorSource, interop, map::NameMap};
    /// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(temp.path().join("seven"))?;
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

/// Writes the text form.
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

//! The content of the next save, or of a checkpoint, as a tree.

use crate::checkpoint::Checkpoint;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::graph::{LeafObject, Node, walk};
use crate::name;
use crate::source::TensorSource;
use std::collections::HashMap;
use std::fmt;

/// The content of tracked objects at one moment: names, types, shapes and sizes of all tensors, all values, and which
/// tensors share memory. Returned by [`Checkpoint::contents`] and by
/// [`inspect::Target::contents`](crate::inspect::Target::contents). Its [`Display`](fmt::Display) form is a tree.
///
/// ```
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{Checkpoint, Counter, Value};
/// let step = Counter::new(12);
/// let checkpoint = Checkpoint::new().track("step", &step)?.track("best_loss", Value::new(0.25))?;
/// let contents = checkpoint.contents()?;
/// assert_eq!(contents.entries().len(), 2);
/// assert_eq!(contents.bytes(), 0);
/// assert_eq!(
///     contents.to_string(),
///     "0 tensors (0 B), 2 values\n\
///      ├── best_loss: 0.25\n\
///      └── step: 12"
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    entries: Vec<ContentsEntry>,
}

/// A tensor or a value of [`Contents`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ContentsEntry {
    /// Its key in the manifest, such as `encoder/weight`.
    pub key: String,
    /// The tensor or value.
    pub content: Content,
}

/// What an entry of [`Contents`] is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Content {
    /// A tensor.
    #[non_exhaustive]
    Tensor {
        /// Type and shape.
        spec: TensorSpec,
        /// Whether it is a variable that requires a gradient; `None` if that has no meaning.
        requires_grad: Option<bool>,
        /// The key of an earlier entry with the same memory. Both are saved once, under that key.
        same_as: Option<String>,
    },
    /// A value.
    #[non_exhaustive]
    Value {
        /// The value as it would be saved.
        json: serde_json::Value,
    },
}

impl Contents {
    /// Returns the content of these objects.
    pub(crate) fn of(objects: &[(String, Node)]) -> Result<Contents> {
        let mut seen = HashMap::new();
        let mut entries = Vec::new();
        for leaf in walk(objects)?.leaves {
            let failed = |reason| Error::object(&leaf.key, reason);
            let content = match &leaf.object {
                LeafObject::Value(value) => Content::Value { json: value.save().map_err(failed)? },
                LeafObject::Tensor(tensor) => {
                    let first =
                        tensor.identity().map(|identity| seen.entry(identity).or_insert(leaf.key.clone()).clone());
                    Content::Tensor {
                        spec: tensor.spec().map_err(failed)?,
                        requires_grad: tensor.requires_grad(),
                        same_as: first.filter(|first| *first != leaf.key),
                    }
                }
            };
            entries.push(ContentsEntry { key: leaf.key, content });
        }
        entries.sort_by(|a, b| a.key.split('/').cmp(b.key.split('/')));
        Ok(Contents { entries })
    }

    /// Returns the content of a checkpoint, as far as the keys match `filter`.
    pub(crate) fn of_source(source: &dyn TensorSource, filter: Option<&str>) -> Contents {
        let fits = |key: &String| filter.is_none_or(|pattern| name::matches(pattern, key));
        // Of the remaining entries that share memory, the first represents the others.
        let mut seen = HashMap::new();
        let tensors = source.tensors().iter().filter(|(key, _)| fits(key)).map(|(key, spec)| {
            let first = *seen.entry(source.first_alias(key)).or_insert(key);
            let same_as = (first != key).then(|| first.clone());
            (key, Content::Tensor { spec: spec.clone(), requires_grad: None, same_as })
        });
        let values = source.values().iter().filter(|(key, _)| fits(key));
        let values = values.map(|(key, json)| (key, Content::Value { json: json.clone() }));
        let entries = tensors.chain(values).map(|(key, content)| ContentsEntry { key: key.clone(), content });
        let mut entries: Vec<ContentsEntry> = entries.collect();
        entries.sort_by(|a, b| a.key.split('/').cmp(b.key.split('/')));
        Contents { entries }
    }

    /// Returns all tensors and values, in order of key.
    #[must_use]
    pub fn entries(&self) -> &[ContentsEntry] {
        &self.entries
    }

    /// Returns the number of bytes of all tensors. Tensors that share memory count once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        bytes(&self.entries)
    }
}

impl ContentsEntry {
    /// Returns the number of bytes that a save writes for it: 0 for a value, and for a tensor that another entry saves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::Tensor { spec, same_as: None, .. } => spec.bytes().unwrap_or(u64::MAX),
            _ => 0,
        }
    }
}

fn bytes(entries: &[ContentsEntry]) -> u64 {
    entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes()))
}

/// Returns the number of tensors, their bytes, and the number of values as text.
fn summary(entries: &[ContentsEntry]) -> String {
    let tensors = entries.iter().filter(|entry| matches!(entry.content, Content::Tensor { .. })).count();
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!("{} ({}), {}", count(tensors, "tensor"), size(bytes(entries)), count(entries.len() - tensors, "value"))
}

/// Formats a size with three digits and SI units.
fn size(bytes: u64) -> String {
    let (mut value, mut units) = (bytes as f64, ["B", "kB", "MB", "GB", "TB", "PB", "EB"].iter());
    let mut unit = units.next();
    while value >= 999.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1000.0, Some(next));
    }
    let digits = usize::from(bytes >= 1000 && value < 99.95);
    format!("{value:.digits$} {}", unit.unwrap_or(&"B"))
}

/// Writes one line per object, tensor and value, indented with the lines of the tree.
impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&summary(&self.entries))?;
        branches(f, &self.entries, 0, "")
    }
}

/// The maximum depth of the tree, in names. Deeper entries are shown under the rest of their key.
const DEPTH: usize = name::MAX_NAMES;

/// Writes the children of an object; `entries` are all entries below it, and `depth` is the number of its names.
fn branches(f: &mut fmt::Formatter<'_>, entries: &[ContentsEntry], depth: usize, indent: &str) -> fmt::Result {
    let name_of = |entry: &ContentsEntry| entry.key.splitn(DEPTH, '/').nth(depth).unwrap_or_default().to_string();
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let key = name_of(first);
        let count = rest.iter().take_while(|entry| name_of(entry) == key).count();
        let (own, others) = rest.split_at(count);
        rest = others;
        let (branch, below) = if rest.is_empty() { ("└── ", "    ") } else { ("├── ", "│   ") };
        let name = name::path(&key).filter(|path| path.len() == 1).and_then(|mut path| path.pop()).unwrap_or(key);
        write!(f, "\n{indent}{branch}{}", name.escape_debug())?;
        match own {
            [leaf] if leaf.key.splitn(DEPTH, '/').count() == depth + 1 => describe(f, &leaf.content)?,
            _ => {
                write!(f, ": {}", summary(own))?;
                branches(f, own, depth + 1, &format!("{indent}{below}"))?;
            }
        }
    }
    Ok(())
}

/// The longest value that is shown in full, in characters.
const SHOWN: usize = 60;

fn describe(f: &mut fmt::Formatter<'_>, content: &Content) -> fmt::Result {
    match content {
        Content::Tensor { spec, requires_grad, same_as } => {
            write!(f, ": {spec}")?;
            match same_as {
                Some(key) => write!(f, ", the same as {key}")?,
                None => write!(f, ", {}", size(spec.bytes().unwrap_or(u64::MAX)))?,
            }
            if *requires_grad == Some(false) {
                write!(f, ", frozen")?;
            }
            Ok(())
        }
        Content::Value { json } => {
            let text = json.to_string();
            match text.char_indices().nth(SHOWN) {
                Some((end, _)) => write!(f, ": {}…", &text[..end]),
                None => write!(f, ": {text}"),
            }
        }
    }
}

impl Checkpoint {
    /// Returns what a save would write now. Reads no elements.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// println!("{}", checkpoint.contents()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] if an object cannot be saved.
    pub fn contents(&self) -> Result<Contents> {
        Contents::of(&self.objects())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_940, "99.9 kB"),
            (99_960, "100 kB"),
            (999_600, "1.0 MB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18.4 EB");
    }
}

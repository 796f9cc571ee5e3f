//! The statements of a map.

use super::pattern::Pattern;
use super::preset::Preset;
use super::transform::Expr;
use std::fmt;

/// A statement and its place in the text.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub kind: Kind,
    pub line: usize,
    pub column: usize,
}

/// Statements are equal independent of their position.
impl PartialEq for Statement {
    fn eq(&self, other: &Statement) -> bool {
        self.kind == other.kind
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Only(Vec<Pattern>),
    Include(Vec<Pattern>),
    Exclude(Vec<Pattern>),
    Weights,
    AddPrefix(String),
    RemovePrefix(String),
    Define(Definition),
    /// All variables of a layer: the layer's name here, and in the source.
    Layer(Pattern, Preset, Pattern),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Definition {
    pub name: Pattern,
    pub expr: Expr,
    /// Whether the source may lack its inputs.
    pub optional: bool,
}

impl Statement {
    pub(crate) fn new(kind: Kind, line: usize, column: usize) -> Statement {
        Statement { kind, line, column }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |f: &mut fmt::Formatter<'_>, word: &str, names: &[Pattern]| {
            f.write_str(word)?;
            names.iter().try_for_each(|name| write!(f, " {name}"))
        };
        match self {
            Kind::Only(all) => names(f, "only", all),
            Kind::Include(all) => names(f, "include", all),
            Kind::Exclude(all) => names(f, "exclude", all),
            Kind::Weights => f.write_str("weights"),
            Kind::AddPrefix(prefix) => write!(f, "add_prefix {}", literal(prefix)),
            Kind::RemovePrefix(prefix) => write!(f, "remove_prefix {}", literal(prefix)),
            Kind::Layer(name, preset, from) => write!(f, "{name} = {preset}({from})"),
            Kind::Define(Definition { name, expr, optional }) => {
                write!(f, "{}{name} = {expr}", if *optional { "optional " } else { "" })
            }
        }
    }
}

/// Returns a pattern of a text without stars.
fn literal(text: &str) -> Pattern {
    Pattern::from_parts(vec![text.to_string()])
}

//! Conditions on a checkpoint, as text: the language of [`bisect`](super::bisect).

mod parse;
#[cfg(test)]
mod tests;

use crate::error::Error;
use serde::{Serialize, Serializer};
use std::fmt;

/// A condition on a checkpoint, such as `nonfinite or norm("decoder/*") > 100`.
///
/// ```text
/// condition   = conjunction { "or" conjunction }
/// conjunction = term { "and" term }
/// term        = "not" term | "(" condition ")" | "nonfinite" [ "(" PATTERN ")" ] | "unclean" | comparison
/// comparison  = quantity ( "<" | "<=" | ">" | ">=" | "==" | "!=" ) NUMBER
/// quantity    = "step" | "metric" "(" NAME ")" | ( "norm" | "min" | "max" | "mean" | "zeros" ) "(" PATTERN ")"
/// ```
///
/// NAME and PATTERN are in double quotes, in which `\"` and `\\` stand for `"` and `\`. In a pattern, `*` matches any
/// text. NUMBER is a decimal number such as `-2`, `0.5` or `1e-3`.
///
/// * `nonfinite`: a tensor that matches has a value that is NaN or infinite.
/// * `unclean`: it was saved after an error, and its state may be inconsistent.
/// * `norm`, `min`, `max`, `mean`: of the finite values of all tensors that match, taken together. `zeros` is the share
///   of zeros among their values, from 0 to 1.
///
/// A comparison with something that a checkpoint does not have (the metric, a step, a tensor that matches, a finite
/// value) is false, and so is one with NaN, except that `!=` is true for NaN.
///
/// A condition has at most 4096 bytes, and at most 64 nested parentheses or `not`.
///
/// ```
/// use tch_checkpoint::inspect::Condition;
/// let condition: Condition = "not(metric(\"loss\") <= 2) or nonfinite".parse()?;
/// assert_eq!(condition.to_string(), "not metric(\"loss\") <= 2 or nonfinite");
/// let wrong = "metric(loss) > 2".parse::<Condition>().unwrap_err();
/// assert_eq!(wrong.column, 8);
/// assert_eq!(wrong.to_string(), "the condition is wrong at column 8: a name in double quotes belongs here, not `loss`");
/// # Ok::<(), tch_checkpoint::inspect::ConditionError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Term);

/// An error in the text of a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the condition is wrong at column {column}: {reason}")]
#[non_exhaustive]
pub struct ConditionError {
    /// The place, in characters, from 1 on.
    pub column: usize,
    /// What is wrong there.
    pub reason: String,
}

impl From<ConditionError> for Error {
    fn from(error: ConditionError) -> Error {
        Error::InvalidArgument(error.to_string())
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Term {
    Any(Vec<Term>),
    All(Vec<Term>),
    Not(Box<Term>),
    NonFinite(Option<String>),
    Unclean,
    Compare(Quantity, Operator, f64),
}

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Quantity {
    Step,
    Metric(String),
    Tensors(Statistic, String),
}

/// A number that the values of tensors have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    Norm,
    Min,
    Max,
    Mean,
    Zeros,
}

const STATISTICS: [(&str, Statistic); 5] = [
    ("norm", Statistic::Norm),
    ("min", Statistic::Min),
    ("max", Statistic::Max),
    ("mean", Statistic::Mean),
    ("zeros", Statistic::Zeros),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Greater,
    AtLeast,
    Equal,
    Unequal,
}

/// Those of two characters first.
const OPERATORS: [(&str, Operator); 6] = [
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl Operator {
    fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Operator::Less => a < b,
            Operator::AtMost => a <= b,
            Operator::Greater => a > b,
            Operator::AtLeast => a >= b,
            Operator::Equal => a == b,
            Operator::Unequal => a != b,
        }
    }
}

/// What a condition asks of a checkpoint.
pub(super) trait Facts {
    type Error;

    /// Returns whether a tensor that matches has values that are not finite.
    fn non_finite(&mut self, pattern: Option<&str>) -> Result<bool, Self::Error>;

    /// Returns whether it was saved after an error.
    fn unclean(&mut self) -> Result<bool, Self::Error>;

    /// Returns a number, if the checkpoint has it.
    fn number(&mut self, quantity: &Quantity) -> Result<Option<f64>, Self::Error>;
}

impl Condition {
    /// Returns whether it holds. Evaluates only what the result depends on.
    pub(super) fn holds<F: Facts>(&self, facts: &mut F) -> Result<bool, F::Error> {
        self.0.holds(facts)
    }
}

impl Term {
    fn holds<F: Facts>(&self, facts: &mut F) -> Result<bool, F::Error> {
        Ok(match self {
            Term::Any(terms) => {
                for term in terms {
                    if term.holds(facts)? {
                        return Ok(true);
                    }
                }
                false
            }
            Term::All(terms) => {
                for term in terms {
                    if !term.holds(facts)? {
                        return Ok(false);
                    }
                }
                true
            }
            Term::Not(term) => !term.holds(facts)?,
            Term::NonFinite(pattern) => facts.non_finite(pattern.as_deref())?,
            Term::Unclean => facts.unclean()?,
            Term::Compare(quantity, operator, number) => {
                facts.number(quantity)?.is_some_and(|found| operator.holds(found, *number))
            }
        })
    }
}

/// Returns the name of one of those that are listed.
fn name_of<T: PartialEq>(all: &[(&'static str, T)], one: &T) -> &'static str {
    all.iter().find(|(_, known)| known == one).map_or("", |(name, _)| name)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The text from which it is read again.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, terms: &[Term], word: &str, inside: fn(&Term) -> bool| {
            terms.iter().enumerate().try_for_each(|(n, term)| {
                f.write_str(if n > 0 { word } else { "" })?;
                if inside(term) { write!(f, "({term})") } else { term.fmt(f) }
            })
        };
        match self {
            Term::Any(terms) => joined(f, terms, " or ", |term| matches!(term, Term::Any(_))),
            Term::All(terms) => joined(f, terms, " and ", |term| matches!(term, Term::Any(_) | Term::All(_))),
            Term::Not(term) if matches!(**term, Term::Any(_) | Term::All(_)) => write!(f, "not ({term})"),
            Term::Not(term) => write!(f, "not {term}"),
            Term::NonFinite(None) => f.write_str("nonfinite"),
            Term::NonFinite(Some(pattern)) => write!(f, "nonfinite({})", quoted(pattern)),
            Term::Unclean => f.write_str("unclean"),
            Term::Compare(quantity, operator, number) => {
                let operator = name_of(&OPERATORS, operator);
                // With an exponent where a number would have many digits.
                let number = format!("{number:?}");
                write!(f, "{quantity} {operator} {}", number.strip_suffix(".0").unwrap_or(&number))
            }
        }
    }
}

impl Condition {
    /// Returns the condition that a tensor that matches has a value that is not finite.
    pub(super) fn non_finite(pattern: &str) -> Condition {
        Condition(Term::NonFinite(Some(pattern.to_string())))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantity::Step => f.write_str("step"),
            Quantity::Metric(name) => write!(f, "metric({})", quoted(name)),
            Quantity::Tensors(statistic, pattern) => {
                write!(f, "{}({})", name_of(&STATISTICS, statistic), quoted(pattern))
            }
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

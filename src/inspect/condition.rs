//! Conditions on a checkpoint, as text: the language of [`bisect`](super::bisect).

use crate::error::Error;
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The maximum length of a condition in bytes.
const MAX_BYTES: usize = 4096;

/// The maximum depth of parentheses and `not`.
const MAX_DEPTH: usize = 64;

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
                let operator = OPERATORS.iter().find(|(_, known)| known == operator).map_or("", |(text, _)| text);
                // With an exponent where a number would have many digits.
                let number = format!("{number:?}");
                write!(f, "{quantity} {operator} {}", number.strip_suffix(".0").unwrap_or(&number))
            }
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantity::Step => f.write_str("step"),
            Quantity::Metric(name) => write!(f, "metric({})", quoted(name)),
            Quantity::Tensors(statistic, pattern) => {
                let name = STATISTICS.iter().find(|(_, known)| known == statistic).map_or("", |(name, _)| name);
                write!(f, "{name}({})", quoted(pattern))
            }
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    /// Reads a condition.
    ///
    /// # Errors
    /// [`ConditionError`], with the place.
    fn from_str(text: &str) -> Result<Condition, ConditionError> {
        if text.len() > MAX_BYTES {
            let reason = format!("it has {} bytes, at most {MAX_BYTES} are allowed", text.len());
            return Err(ConditionError { column: 1, reason });
        }
        let mut parser = Parser { text, at: 0, depth: 0 };
        let term = parser.disjunction()?;
        match parser.rest() {
            "" => Ok(Condition(term)),
            _ => Err(parser.expected("`and`, `or` or the end")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// Returns what follows, after spaces.
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let next = rest.trim_start();
        self.at += rest.len() - next.len();
        next
    }

    fn wrong(&self, reason: impl Into<String>) -> ConditionError {
        ConditionError { column: self.text[..self.at].chars().count() + 1, reason: reason.into() }
    }

    fn expected(&mut self, what: &str) -> ConditionError {
        let rest = self.rest();
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let word: String = rest.chars().take_while(|c| is_word(*c)).take(20).collect();
        let found = match (word.as_str(), rest.chars().next()) {
            ("", None) => "the end".to_string(),
            ("", Some(other)) => format!("`{other}`"),
            (word, _) => format!("`{word}`"),
        };
        self.wrong(format!("{what} belongs here, not {found}"))
    }

    /// Returns the word that follows, if one does.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())]
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is_it = self.word() == word;
        self.at += if is_it { word.len() } else { 0 };
        is_it
    }

    fn take(&mut self, text: &str) -> bool {
        let is_it = self.rest().starts_with(text);
        self.at += if is_it { text.len() } else { 0 };
        is_it
    }

    fn disjunction(&mut self) -> Result<Term, ConditionError> {
        let mut terms = vec![self.conjunction()?];
        while self.take_word("or") {
            terms.push(self.conjunction()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::Any(terms) })
    }

    fn conjunction(&mut self) -> Result<Term, ConditionError> {
        let mut terms = vec![self.term()?];
        while self.take_word("and") {
            terms.push(self.term()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::All(terms) })
    }

    fn term(&mut self) -> Result<Term, ConditionError> {
        self.rest();
        // The innermost condition is inside of them all.
        if self.depth > MAX_DEPTH {
            return Err(self.wrong(format!("at most {MAX_DEPTH} parentheses and `not` can be nested")));
        }
        self.depth += 1;
        let term = self.inner();
        self.depth -= 1;
        term
    }

    fn inner(&mut self) -> Result<Term, ConditionError> {
        if self.take_word("not") {
            return Ok(Term::Not(Box::new(self.term()?)));
        }
        if self.take("(") {
            let term = self.disjunction()?;
            return if self.take(")") { Ok(term) } else { Err(self.expected("`and`, `or` or `)`")) };
        }
        if self.take_word("unclean") {
            return Ok(Term::Unclean);
        }
        if self.take_word("nonfinite") {
            let pattern = if self.rest().starts_with('(') { Some(self.argument("a pattern")?) } else { None };
            return Ok(Term::NonFinite(pattern));
        }
        let quantity = self.quantity()?;
        let operator = OPERATORS.iter().find(|(text, _)| self.take(text));
        let Some((_, operator)) = operator else { return Err(self.expected("<, <=, >, >=, == or !=")) };
        Ok(Term::Compare(quantity, *operator, self.number()?))
    }

    fn quantity(&mut self) -> Result<Quantity, ConditionError> {
        if self.take_word("step") {
            return Ok(Quantity::Step);
        }
        if self.take_word("metric") {
            return Ok(Quantity::Metric(self.argument("a name")?));
        }
        match STATISTICS.iter().find(|(name, _)| self.take_word(name)) {
            Some((_, statistic)) => Ok(Quantity::Tensors(*statistic, self.argument("a pattern")?)),
            None => {
                Err(self
                    .expected("nonfinite, unclean, step, metric, norm, min, max, mean, zeros, `not` or a parenthesis"))
            }
        }
    }

    /// Reads a text in double quotes and parentheses.
    fn argument(&mut self, what: &str) -> Result<String, ConditionError> {
        if !self.take("(") {
            return Err(self.expected("`(`"));
        }
        if !self.rest().starts_with('"') {
            return Err(self.expected(&format!("{what} in double quotes")));
        }
        let start = self.at;
        let mut characters = self.text[start + 1..].char_indices();
        let mut text = String::new();
        loop {
            match characters.next() {
                None => return Err(self.wrong("the double quote is not closed")),
                Some((end, '"')) => {
                    self.at = start + 1 + end + 1;
                    break;
                }
                Some((at, '\\')) => match characters.next() {
                    Some((_, c @ ('"' | '\\'))) => text.push(c),
                    _ => {
                        self.at = start + 1 + at;
                        return Err(self.wrong(r#"after `\` belongs `"` or `\`"#));
                    }
                },
                Some((_, c)) => text.push(c),
            }
        }
        if self.take(")") { Ok(text) } else { Err(self.expected("`)`")) }
    }

    fn number(&mut self) -> Result<f64, ConditionError> {
        let rest = self.rest();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let text = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        let is_decimal = text.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'+' | b'-' | b'.' | b'e' | b'E'));
        let number = text.parse::<f64>().ok().filter(|number| is_decimal && number.is_finite());
        let number = number.ok_or_else(|| self.expected("a number"))?;
        self.at += text.len();
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn wrong(text: &str) -> (usize, String) {
        let ConditionError { column, reason } = text.parse::<Condition>().unwrap_err();
        (column, reason)
    }

    #[test]
    fn errors_point_at_the_place() {
        for (text, column, reason) in [
            ("", 1, "not the end"),
            ("   ", 4, "not the end"),
            ("loss > 2", 1, "not `loss`"),
            ("metric(\"loss\") 2", 16, "<, <=, >, >=, == or != belongs here, not `2`"),
            ("metric(\"loss\") > two", 18, "a number belongs here, not `two`"),
            ("metric(\"loss\") > 1e999", 18, "a number belongs here, not `1e999`"),
            ("metric(\"loss\") > nan", 18, "a number"),
            ("metric(\"loss\") > ++1", 18, "a number"),
            ("metric(\"loss\") > 1e", 18, "a number belongs here, not `1e`"),
            ("metric(\"loss\") > 0x10", 18, "a number belongs here, not `0x10`"),
            ("metric(\"loss) > 2", 8, "not closed"),
            ("metric(\"lo\\ss\") > 2", 11, "after `\\`"),
            ("metric(\"ü\", 2) > 2", 11, "`)` belongs here, not `,`"),
            ("norm > 2", 6, "`(` belongs here, not `>`"),
            ("nonfinite nonfinite", 11, "`and`, `or` or the end"),
            ("(nonfinite", 11, "`and`, `or` or `)` belongs here, not the end"),
            ("nonfinite or", 13, "not the end"),
            ("not", 4, "not the end"),
            ("nonfinite)", 10, "`and`, `or` or the end belongs here, not `)`"),
            ("android", 1, "not `android`"),
        ] {
            let (found, told) = wrong(text);
            assert!(found == column && told.contains(reason), "{text:?}: {found}: {told}");
        }
    }

    #[test]
    fn depth_and_length_have_limits() {
        let nested = |depth: usize| format!("{}nonfinite{}", "(".repeat(depth), ")".repeat(depth));
        assert!(nested(MAX_DEPTH).parse::<Condition>().is_ok());
        assert!(format!("{}nonfinite", "not ".repeat(MAX_DEPTH)).parse::<Condition>().is_ok());
        assert_eq!(wrong(&nested(MAX_DEPTH + 1)).0, MAX_DEPTH + 2);
        assert!(wrong(&nested(MAX_DEPTH + 1)).1.contains("nested"));
        assert!(wrong(&format!("{}nonfinite", "not ".repeat(1000))).1.contains("nested"));
        assert!(wrong(&" ".repeat(5000)).1.contains("at most 4096"));
        assert!(format!("unclean{}", " or unclean".repeat(300)).parse::<Condition>().is_ok());
    }

    /// A condition as the oracle knows it: how it is written, and whether it holds.
    #[derive(Debug, Clone)]
    struct Known {
        text: String,
        holds: bool,
        /// 0: `or` at the top; 1: `and`; 2: neither.
        binds: u8,
    }

    /// A checkpoint of a few numbers.
    struct Table {
        numbers: BTreeMap<String, f64>,
        non_finite: Vec<&'static str>,
    }

    fn table() -> Table {
        let numbers =
            [("step", 100.0), ("metric loss", 0.5), ("metric nan", f64::NAN), ("norm a", 3.0), ("min a", -2.0)];
        let numbers = numbers.into_iter().map(|(name, number)| (name.to_string(), number)).collect();
        Table { numbers, non_finite: vec!["b"] }
    }

    impl Facts for Table {
        type Error = ();
        fn non_finite(&mut self, pattern: Option<&str>) -> Result<bool, ()> {
            Ok(pattern.is_none_or(|pattern| self.non_finite.contains(&pattern)))
        }
        fn unclean(&mut self) -> Result<bool, ()> {
            Ok(false)
        }
        fn number(&mut self, quantity: &Quantity) -> Result<Option<f64>, ()> {
            let name = match quantity {
                Quantity::Step => "step".to_string(),
                Quantity::Metric(name) => format!("metric {name}"),
                Quantity::Tensors(statistic, pattern) => format!("{statistic:?} {pattern}").to_lowercase(),
            };
            Ok(self.numbers.get(&name).copied())
        }
    }

    /// A comparison, decided by the ordering of the two numbers.
    fn comparison() -> impl Strategy<Value = Known> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let quantity = prop_oneof![
            Just(("step", Some(100.0))),
            Just(("metric(\"loss\")", Some(0.5))),
            Just(("metric( \"nan\" )", Some(f64::NAN))),
            Just(("metric(\"other\")", None)),
            Just(("norm(\"a\")", Some(3.0))),
            Just(("min (\"a\")", Some(-2.0))),
            Just(("zeros(\"a\")", None::<f64>)),
        ];
        let operator = proptest::sample::select(vec![
            ("<", vec![Some(Less)]),
            ("<=", vec![Some(Less), Some(Equal)]),
            (">", vec![Some(Greater)]),
            (">=", vec![Some(Greater), Some(Equal)]),
            ("==", vec![Some(Equal)]),
            ("!=", vec![Some(Less), Some(Greater), None]),
        ]);
        let number =
            proptest::sample::select(vec![("100", 100.0), ("5e-1", 0.5), ("-2.0", -2.0), ("3", 3.0), ("+0", 0.0)]);
        (quantity, operator, number).prop_map(|((name, value), (operator, orders), (text, number))| Known {
            text: format!("{name}{operator}{text}"),
            holds: value.is_some_and(|value| orders.contains(&value.partial_cmp(&number))),
            binds: 2,
        })
    }

    fn known() -> impl Strategy<Value = Known> {
        let plain = |text: &str, holds| Just(Known { text: text.to_string(), holds, binds: 2 });
        let leaf = prop_oneof![
            4 => comparison(),
            1 => plain("nonfinite", true),
            1 => plain("nonfinite(\"a\")", false),
            1 => plain("nonfinite (\"b\")", true),
            1 => plain("unclean", false),
        ];
        leaf.prop_recursive(6, 40, 3, |inner| {
            // What binds less than its place is put into parentheses, the rest as it comes.
            let within = |known: &Known, least: u8, also: bool| match known.binds < least || also {
                true => format!("( {})", known.text),
                false => known.text.clone(),
            };
            let many = || (proptest::collection::vec((inner.clone(), any::<bool>()), 2..4), any::<bool>());
            prop_oneof![
                (inner.clone(), any::<bool>()).prop_map(move |(known, also)| Known {
                    text: format!("not {}", within(&known, 2, also)),
                    holds: !known.holds,
                    binds: 2,
                }),
                many().prop_map(move |(parts, any)| {
                    let (word, binds) = if any { (" or ", 0) } else { ("\tand  ", 1) };
                    let texts: Vec<String> =
                        parts.iter().map(|(known, also)| within(known, binds + 1, *also)).collect();
                    let count = parts.iter().filter(|(known, _)| known.holds).count();
                    let holds = if any { count > 0 } else { count == parts.len() };
                    Known { text: texts.join(word), holds, binds }
                }),
            ]
        })
    }

    proptest! {
        /// The truth of a condition is that of the tree from which its text was made, and it comes back from its own text.
        #[test]
        fn conditions_mean_what_they_say(known in known()) {
            prop_assume!(known.text.len() <= MAX_BYTES);
            let condition: Condition = known.text.parse().map_err(|e| TestCaseError::fail(format!("{}: {e}", known.text)))?;
            prop_assert_eq!(condition.holds(&mut table()), Ok(known.holds), "{}", known.text);
            let again: Condition = condition.to_string().parse().unwrap();
            prop_assert_eq!(&again, &condition);
        }

        /// Whatever the text, there is no panic, and an error is inside of it.
        #[test]
        fn any_text_is_a_condition_or_wrong_somewhere(text in "[a-z()\"\\\\<>=!. 0-9üé-]{0,60}|\\PC{0,40}") {
            match text.parse::<Condition>() {
                Ok(condition) => prop_assert_eq!(condition.to_string().parse::<Condition>(), Ok(condition)),
                Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{}", error),
            }
        }
    }
}

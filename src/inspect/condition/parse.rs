//! Parses conditions.

use super::{Condition, ConditionError, OPERATORS, Quantity, STATISTICS, Term};
use std::str::FromStr;

/// The maximum length of a condition in bytes.
pub(super) const MAX_BYTES: usize = 4096;

/// The maximum depth of parentheses and `not`.
pub(super) const MAX_DEPTH: usize = 64;

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

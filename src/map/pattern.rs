//! Names with stars, and the texts that the stars match.

use std::fmt;

/// A name in which `*` matches any text, including `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The texts before, between and after the stars.
    parts: Vec<String>,
}

impl Pattern {
    /// Creates a pattern in which every `*` of `text` is a star.
    pub(crate) fn new(text: &str) -> Pattern {
        Pattern { parts: text.split('*').map(str::to_string).collect() }
    }

    /// Creates a pattern from the texts around the stars.
    pub(crate) fn from_parts(parts: Vec<String>) -> Pattern {
        Pattern { parts }
    }

    pub(crate) fn stars(&self) -> usize {
        self.parts.len().saturating_sub(1)
    }

    /// Returns the name if it has no star.
    pub(crate) fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }

    /// Returns the texts that the stars match: each as short as possible, from left to right; the last one matches the
    /// rest.
    pub(crate) fn captures<'t>(&self, text: &'t str) -> Option<Vec<&'t str>> {
        let (first, parts) = self.parts.split_first()?;
        let mut rest = text.strip_prefix(first.as_str())?;
        let Some((last, middle)) = parts.split_last() else {
            return rest.is_empty().then(Vec::new);
        };
        let mut captures = Vec::with_capacity(parts.len());
        for part in middle {
            let at = rest.find(part.as_str())?;
            captures.push(&rest[..at]);
            rest = &rest[at + part.len()..];
        }
        captures.push(rest.strip_suffix(last.as_str())?);
        Some(captures)
    }

    /// Replaces the stars with `captures`. A name without stars is unchanged.
    pub(crate) fn fill(&self, captures: &[&str]) -> String {
        let mut parts = self.parts.iter();
        let mut name = parts.next().cloned().unwrap_or_default();
        for (part, capture) in parts.zip(captures) {
            name.push_str(capture);
            name.push_str(part);
        }
        name
    }
}

/// Writes the text form.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.parts.concat();
        let is_bare = |c: char| !c.is_whitespace() && !c.is_control() && !"()[],=#\"\\*".contains(c);
        let is_arrow = self.parts.len() == 1 && all == "->";
        if all.chars().all(is_bare) && !is_arrow && (!all.is_empty() || self.stars() > 0) {
            return f.write_str(&self.parts.join("*"));
        }
        f.write_str("\"")?;
        for (i, part) in self.parts.iter().enumerate() {
            if i > 0 {
                f.write_str("*")?;
            }
            for c in part.chars() {
                match c {
                    '"' | '\\' | '*' => write!(f, "\\{c}")?,
                    c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                    c => write!(f, "{c}")?,
                }
            }
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns all ways in which the stars can stand for something, in the order of the shortest first.
    fn ways(parts: &[String], text: &str) -> Vec<Vec<String>> {
        let Some((first, rest)) = parts.split_first() else { return Vec::new() };
        let Some(text) = text.strip_prefix(first.as_str()) else { return Vec::new() };
        if rest.is_empty() {
            return if text.is_empty() { vec![Vec::new()] } else { Vec::new() };
        }
        let mut all = Vec::new();
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            for mut way in ways(rest, &text[end..]) {
                way.insert(0, text[..end].to_string());
                all.push(way);
            }
        }
        all
    }

    proptest! {
        #[test]
        fn stars_stand_for_as_little_as_possible(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            let pattern = Pattern::new(&pattern);
            let wanted = ways(&pattern.parts, &text).into_iter().next();
            let found = pattern.captures(&text);
            prop_assert_eq!(found.clone().map(|all| all.iter().map(|one| one.to_string()).collect::<Vec<_>>()), wanted);
            if let Some(found) = found {
                prop_assert_eq!(pattern.fill(&found), text);
            }
        }
    }
}

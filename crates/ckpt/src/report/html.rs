//! HTML text in which nothing from files can become markup.

use crate::{escape, human};
use std::fmt::{Display, Write};

/// The maximum length of a name or a text from a file, in characters.
const LONGEST: usize = 300;

/// A piece of a page. Markup is written with [`raw`](Html::raw), which takes only texts of this program; everything
/// else is escaped.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    pub fn new() -> Html {
        Html::default()
    }

    /// Adds markup.
    pub fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Adds another piece.
    pub fn piece(&mut self, piece: &Html) -> &mut Html {
        self.0.push_str(&piece.0);
        self
    }

    /// Adds text, escaped, shortened if it is very long.
    pub fn text(&mut self, text: impl AsRef<str>) -> &mut Html {
        let short = human::excerpt(text.as_ref(), 0, LONGEST);
        for c in escape::line(&short).chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Not allowed in HTML.
                '\u{fdd0}'..='\u{fdef}' => self.0.push('\u{fffd}'),
                c if u32::from(c) & 0xfffe == 0xfffe => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        self
    }

    /// Adds a number.
    pub fn number(&mut self, number: impl Display) -> &mut Html {
        self.text(number.to_string())
    }

    /// Adds a space and an attribute, inside of a tag.
    pub fn attribute(&mut self, name: &'static str, value: impl AsRef<str>) -> &mut Html {
        self.raw(" ").raw(name).raw("=\"").text(value).raw("\"")
    }

    /// Adds attributes with numbers, with at most one digit after the point.
    pub fn numbers<const N: usize>(&mut self, attributes: [(&'static str, f64); N]) -> &mut Html {
        for (name, value) in attributes {
            let rounded = (value * 10.0).round() / 10.0;
            // Writing to a String cannot fail.
            let _ = write!(self.0, " {name}=\"{}\"", if rounded.is_finite() { rounded } else { 0.0 });
        }
        self
    }

    /// Adds a name from a file, set apart from the text around it.
    pub fn name(&mut self, name: impl AsRef<str>) -> &mut Html {
        self.raw("<bdi class=\"name\">").text(name).raw("</bdi>")
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_files_becomes_markup() {
        let mut html = Html::new();
        html.raw("<b").attribute("title", "\"><script>alert(1)</script>").raw(">").text("a<b>&'\u{202e}\u{1b}\u{ffff}");
        let text = html.into_string();
        assert_eq!(
            text,
            "<b title=\"&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\">a&lt;b&gt;&amp;&#39;\\u{202e}\\u{1b}\u{fffd}"
        );
    }

    #[test]
    fn long_texts_are_shortened() {
        let mut html = Html::new();
        html.text("x".repeat(100_000));
        assert!(html.len() < 400);
    }

    #[test]
    fn numbers_are_always_numbers() {
        let mut html = Html::new();
        html.numbers([("x", 1.26), ("y", f64::NAN), ("z", -3.0)]);
        assert_eq!(html.into_string(), " x=\"1.3\" y=\"0\" z=\"-3\"");
    }
}

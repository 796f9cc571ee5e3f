//! Escapes text for the terminal: names come from files that anyone may have written, and must not control the terminal
//! or change the direction of text.

use std::borrow::Cow;
use std::fmt::Write;

/// Control characters, invisible characters, and those that change the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes a line of text for a terminal: unsafe characters are written as `\n`, `\u{1b}` and so on.
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unsafe(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    escaped.into()
}

/// Escapes a JSON document for a terminal. Unsafe characters can only be inside its strings, where `\u001b` is
/// equivalent.
pub fn json(document: &str) -> Cow<'_, str> {
    if !document.contains(is_unsafe) {
        return document.into();
    }
    let mut escaped = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    const HOSTILE: &str = "a\u{1b}[2Jb\nc\rd\u{9b}31me\u{202e}f\u{7f}g\u{e0041}h\\ü";

    #[test]
    fn a_line_has_no_character_that_does_anything() {
        assert_eq!(super::line(HOSTILE), r"a\u{1b}[2Jb\nc\rd\u{9b}31me\u{202e}f\u{7f}g\u{e0041}h\ü");
        assert_eq!(super::line("plain, größer"), "plain, größer");
    }

    #[test]
    fn json_means_the_same_after_escaping() {
        let document = serde_json::to_string(HOSTILE).unwrap();
        let escaped = super::json(&document);
        assert!(escaped.chars().all(|c| !super::is_unsafe(c)));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), HOSTILE);
    }
}

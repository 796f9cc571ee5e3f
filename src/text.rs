//! How messages show names and texts from files, which can have any length: shortened, and by component.

use std::fmt;

/// Returns the key of the component that `key` is in.
pub(crate) fn component(key: &str) -> &str {
    key.split('/').next().unwrap_or_default()
}

/// Quotes a name for a message, shortened to [`MAX_SHOWN`] bytes.
pub(crate) fn shown(name: &str) -> impl fmt::Display {
    struct Shown<'a>(&'a str);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let short = start_of(self.0, MAX_SHOWN);
            write!(f, "{short:?}")?;
            if short.len() < self.0.len() { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
        }
    }
    Shown(name)
}

/// The maximum length of a name in a message, in bytes.
const MAX_SHOWN: usize = 300;

/// Returns at most the first `bytes` bytes of a text.
fn start_of(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

/// Returns a message of at most about [`MAX_MESSAGE`] bytes, because messages of other libraries may quote a file
/// completely.
pub(crate) fn short_message(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let length = message.len();
        message.truncate(start_of(&message, MAX_MESSAGE).len());
        message.push_str(&format!("… ({length} bytes)"));
    }
    message
}

/// The maximum length of a message about a file, in bytes.
const MAX_MESSAGE: usize = 2000;

/// The maximum number of names per kind in a message.
pub(crate) const SHOWN: usize = 10;

/// Returns the first of several names, for a message.
pub(crate) fn listed<'a>(mut names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = names.len();
    let shown: Vec<_> = names.by_ref().take(SHOWN).map(|name| shown(name).to_string()).collect();
    let more = count - shown.len();
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

//! The file `checkpoint`, which names the newest checkpoint of a directory.

use super::wire::Parsed;
use crate::error::{Error, Result};
use std::fmt;
use std::path::Path;

/// The longest state file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// The content of a directory's file `checkpoint`: which checkpoints there are, as TensorFlow's manager wrote it.
///
/// ```
/// use tch_checkpoint::interop::tensorflow::CheckpointState;
/// let state: CheckpointState = "model_checkpoint_path: \"ckpt-5\"\nall_model_checkpoint_paths: \"ckpt-5\"\n".parse()?;
/// assert_eq!(state.model_checkpoint_path, "ckpt-5");
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct CheckpointState {
    /// The newest checkpoint: a prefix, usually relative to the directory.
    pub model_checkpoint_path: String,
    /// All checkpoints that are kept, oldest first.
    pub all_model_checkpoint_paths: Vec<String>,
    /// The time at which each of them was written, in seconds since 1970; empty if that is not recorded.
    pub all_model_checkpoint_timestamps: Vec<f64>,
    /// The time at which the newest of the permanently kept ones was written, in seconds since 1970.
    pub last_preserved_timestamp: Option<f64>,
}

impl CheckpointState {
    /// Creates a state that names one checkpoint, as `tf.train.Checkpoint.save` writes it.
    pub fn new(model_checkpoint_path: impl Into<String>) -> CheckpointState {
        let path = model_checkpoint_path.into();
        CheckpointState {
            all_model_checkpoint_paths: vec![path.clone()],
            model_checkpoint_path: path,
            ..Default::default()
        }
    }

    /// Reads the state file `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such file, [`Error::Io`], and [`Error::Damaged`] if it is not readable or
    /// names no checkpoint.
    pub fn read(path: impl AsRef<Path>) -> Result<CheckpointState> {
        let path = path.as_ref();
        let file = crate::interop::input::Input::open(path)?;
        let bytes = file.read_vec(0..file.len(), MAX_BYTES)?;
        parse(&bytes).map_err(|reason| Error::damaged(path, reason))
    }
}

impl std::str::FromStr for CheckpointState {
    type Err = Error;

    fn from_str(text: &str) -> Result<CheckpointState> {
        parse(text.as_bytes()).map_err(|reason| Error::damaged("checkpoint", reason))
    }
}

impl fmt::Display for CheckpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model_checkpoint_path: {}", quoted(&self.model_checkpoint_path))?;
        for path in &self.all_model_checkpoint_paths {
            writeln!(f, "all_model_checkpoint_paths: {}", quoted(path))?;
        }
        for time in &self.all_model_checkpoint_timestamps {
            writeln!(f, "all_model_checkpoint_timestamps: {time:?}")?;
        }
        match self.last_preserved_timestamp {
            Some(time) => writeln!(f, "last_preserved_timestamp: {time:?}"),
            None => Ok(()),
        }
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\{:03o}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn parse(text: &[u8]) -> Parsed<CheckpointState> {
    let mut state = CheckpointState::default();
    let mut tokens = Tokens { rest: text, line: 1 };
    while let Some(field) = tokens.next()? {
        let Token::Word(field) = field else {
            return Err(tokens.wrong("a field's name is missing"));
        };
        let known = ["model_checkpoint_path", "all_model_checkpoint_paths"].contains(&&*field)
            || ["all_model_checkpoint_timestamps", "last_preserved_timestamp"].contains(&&*field);
        if !known {
            return Err(tokens.wrong(&format!("there is no field {field:?}")));
        }
        if tokens.next()? != Some(Token::Sign(b':')) {
            return Err(tokens.wrong("a colon is missing"));
        }
        match tokens.next()? {
            Some(Token::Sign(b'[')) => loop {
                match tokens.next()? {
                    Some(Token::Sign(b']')) => break,
                    Some(Token::Sign(b',')) => {}
                    Some(value) => tokens.set(&mut state, &field, value)?,
                    None => return Err(tokens.wrong("a list has no end")),
                }
            },
            Some(value) => tokens.set(&mut state, &field, value)?,
            None => return Err(tokens.wrong("a value is missing")),
        }
    }
    if state.model_checkpoint_path.is_empty() {
        return Err("the state file names no checkpoint".into());
    }
    Ok(state)
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(u8),
}

struct Tokens<'a> {
    rest: &'a [u8],
    line: usize,
}

impl Tokens<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("line {} of the state file: {what}", self.line)
    }

    fn set(&mut self, state: &mut CheckpointState, field: &str, value: Token) -> Parsed<()> {
        match (field, value) {
            ("model_checkpoint_path", Token::Text(path)) => state.model_checkpoint_path = path,
            ("all_model_checkpoint_paths", Token::Text(path)) => state.all_model_checkpoint_paths.push(path),
            ("all_model_checkpoint_timestamps", Token::Word(number)) => {
                state.all_model_checkpoint_timestamps.push(self.number(&number)?);
            }
            ("last_preserved_timestamp", Token::Word(number)) => {
                state.last_preserved_timestamp = Some(self.number(&number)?);
            }
            _ => return Err(self.wrong(&format!("{field} has a value of another kind"))),
        }
        Ok(())
    }

    fn number(&self, text: &str) -> Parsed<f64> {
        let plain = text.strip_suffix(['f', 'F']).unwrap_or(text);
        plain.parse().map_err(|_| self.wrong(&format!("{text:?} is no number")))
    }

    fn next(&mut self) -> Parsed<Option<Token>> {
        loop {
            match self.rest {
                [] => return Ok(None),
                [b'#', ..] => {
                    let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                [byte, tail @ ..] if byte.is_ascii_whitespace() => {
                    self.line += usize::from(*byte == b'\n');
                    self.rest = tail;
                }
                // Separators that the text format allows between fields.
                [b';', tail @ ..] => self.rest = tail,
                [b',', tail @ ..] => {
                    self.rest = tail;
                    return Ok(Some(Token::Sign(b',')));
                }
                [sign @ (b':' | b'[' | b']'), tail @ ..] => {
                    self.rest = tail;
                    return Ok(Some(Token::Sign(*sign)));
                }
                [quote @ (b'"' | b'\''), tail @ ..] => {
                    let quote = *quote;
                    self.rest = tail;
                    return self.text(quote).map(|text| Some(Token::Text(text)));
                }
                [byte, ..] if is_word(*byte) => {
                    let end = self.rest.iter().position(|byte| !is_word(*byte)).unwrap_or(self.rest.len());
                    let (word, tail) = self.rest.split_at(end);
                    self.rest = tail;
                    return Ok(Some(Token::Word(String::from_utf8_lossy(word).into_owned())));
                }
                _ => return Err(self.wrong("it is not readable")),
            }
        }
    }

    /// Returns the text up to the closing quote.
    fn text(&mut self, quote: u8) -> Parsed<String> {
        let mut bytes = Vec::new();
        loop {
            let Some((byte, tail)) = self.rest.split_first() else {
                return Err(self.wrong("a text has no end"));
            };
            self.rest = tail;
            match byte {
                byte if *byte == quote => break,
                b'\n' => return Err(self.wrong("a text has no end")),
                b'\\' => bytes.push(self.escaped()?),
                byte => bytes.push(*byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("a path is not UTF-8"))
    }

    fn escaped(&mut self) -> Parsed<u8> {
        let Some((byte, tail)) = self.rest.split_first() else {
            return Err(self.wrong("a text has no end"));
        };
        self.rest = tail;
        let plain = match byte {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            b'\\' | b'"' | b'\'' | b'?' => *byte,
            b'x' | b'X' => return self.digits(16, 2, 0),
            b'0'..=b'7' => return self.digits(8, 2, u32::from(byte - b'0')),
            _ => return Err(self.wrong("an unknown escape")),
        };
        Ok(plain)
    }

    /// Up to `most` more digits behind `value`.
    fn digits(&mut self, radix: u32, most: usize, mut value: u32) -> Parsed<u8> {
        let digit = |byte: &u8| char::from(*byte).to_digit(radix);
        let mut count = 0;
        while let Some(digit) = self.rest.first().and_then(digit).filter(|_| count < most) {
            value = value * radix + digit;
            self.rest = &self.rest[1..];
            count += 1;
        }
        let value = if radix == 16 && count == 0 { None } else { u8::try_from(value).ok() };
        value.ok_or_else(|| self.wrong("an escape is not readable"))
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'+')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_of_the_text_are_understood() {
        let text = concat!(
            "# written by hand\r\n",
            "model_checkpoint_path: \"f\\303\\274r \\\"x\\\" \\x41\\n\" ",
            "all_model_checkpoint_paths: ['a', \"b\"]\nall_model_checkpoint_paths:\"c\"\r\n",
            "all_model_checkpoint_timestamps: 1e3\nall_model_checkpoint_timestamps: 1\n",
            "last_preserved_timestamp: 1795330287.5031343\n"
        );
        let state = parse(text.as_bytes()).unwrap();
        assert_eq!(state.model_checkpoint_path, "für \"x\" A\n");
        assert_eq!(state.all_model_checkpoint_paths, ["a", "b", "c"]);
        assert_eq!(state.all_model_checkpoint_timestamps, [1000.0, 1.0]);
        assert_eq!(state.last_preserved_timestamp, Some(1_795_330_287.503_134_3));
        assert_eq!(parse(state.to_string().as_bytes()), Ok(state));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, reason) in [
            ("", "names no checkpoint"),
            ("model_checkpoint_path: \"\"", "names no checkpoint"),
            ("model_checkpoint_path: \"a\"\nother: 1", "line 2 of the state file: there is no field \"other\""),
            ("model_checkpoint_path: \"a", "a text has no end"),
            ("model_checkpoint_path: 5", "another kind"),
            ("model_checkpoint_path: \"\\xzz\"", "escape"),
            ("model_checkpoint_path: \"\\777\"", "escape"),
            ("all_model_checkpoint_paths: [\"a\"", "a list has no end"),
            ("last_preserved_timestamp: x", "is no number"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: Vec<u8>) {
            let _ = parse(&text);
        }

        #[test]
        fn any_path_goes_there_and_back(path in "\\PC{1,20}|[\"\\\\\n\t\u{1}]{1,5}") {
            let state = CheckpointState::new(path);
            prop_assert_eq!(parse(state.to_string().as_bytes()), Ok(state));
        }
    }
}

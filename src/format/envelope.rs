//! The common form of the manifest, the index and marks in every version: a first line with the format and the version,
//! and a last line with the digest of all bytes before it.

use super::json::check_memory;
use super::{Digest, FormatError, damaged};

/// A kind of text.
pub(super) struct Envelope {
    /// The `format` in the first line.
    pub format: &'static str,
    /// The newest version this crate reads.
    pub version: u64,
    /// The maximum length of a text in bytes.
    pub max_bytes: usize,
    /// Its name in messages.
    pub what: &'static str,
}

const LAST_LINE_START: &[u8] = b"\"xxh3_128\":\"";
const LAST_LINE_END: &[u8] = b"\"}\n";
const LAST_LINE: usize = LAST_LINE_START.len() + 32 + LAST_LINE_END.len();

impl Envelope {
    fn first_line_start(&self) -> String {
        format!("{{\"format\":\"{}\",\"version\":", self.format)
    }

    /// Returns the first line of a text of `version`.
    pub(super) fn open(&self, version: u64) -> Vec<u8> {
        format!("{}{version},\n", self.first_line_start()).into_bytes()
    }

    /// Adds the last line to the lines before it.
    pub(super) fn close(&self, mut text: Vec<u8>) -> Result<Vec<u8>, FormatError> {
        let digest = Digest::of(&text).to_string();
        text.reserve_exact(LAST_LINE);
        text.extend_from_slice(LAST_LINE_START);
        text.extend_from_slice(digest.as_bytes());
        text.extend_from_slice(LAST_LINE_END);
        self.check_length(text.len())?;
        check_memory(&text)?;
        Ok(text)
    }

    /// Checks length, first line, digest and version. Returns the version. Does not parse the content.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<u64, FormatError> {
        self.check_length(bytes.len())?;
        let what = self.what;
        let Some(rest) = bytes.strip_prefix(self.first_line_start().as_bytes()) else {
            return Err(damaged(format!("it does not begin as a {what} does")));
        };
        let digest = bytes.len().checked_sub(LAST_LINE).and_then(|at| {
            let (before, last) = bytes.split_at(at);
            let hex = last.strip_prefix(LAST_LINE_START)?.strip_suffix(LAST_LINE_END)?;
            let written: Digest = std::str::from_utf8(hex).ok()?.parse().ok()?;
            before.ends_with(b"\n").then_some((written, Digest::of(before)))
        });
        match digest {
            None => return Err(damaged(format!("it does not end as a {what} does; was it cut off?"))),
            Some((written, actual)) if written != actual => {
                return Err(damaged(format!("its digest is {actual}, its last line has {written}")));
            }
            Some(_) => {}
        }
        // The bytes are as they were written: from here on, any difference is due to the version.
        let digits = rest.split(|&byte| byte == b',').next().unwrap_or_default();
        let canonical = digits.first() != Some(&b'0') && digits.iter().all(u8::is_ascii_digit);
        match std::str::from_utf8(digits).ok().filter(|_| canonical).and_then(|digits| digits.parse::<u64>().ok()) {
            Some(version) if (1..=self.version).contains(&version) => check_memory(bytes).map(|()| version),
            Some(version) if version > self.version => Err(FormatError::Unsupported(format!(
                "it is a {what} of version {version}, this crate reads up to version {}; use a newer crate",
                self.version
            ))),
            _ => Err(damaged(format!("its first line has no version of a {what}"))),
        }
    }

    fn check_length(&self, length: usize) -> Result<(), FormatError> {
        if length > self.max_bytes {
            let (what, most) = (self.what, self.max_bytes);
            return Err(FormatError::Unsupported(format!("a {what} has at most {most} bytes, this one has {length}")));
        }
        Ok(())
    }
}

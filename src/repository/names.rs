//! The meaning of names in a directory of checkpoints.

use crate::error::{Error, Result};
use crate::location::Location;

/// The file that makes a directory a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The index: a hint, never the truth.
pub(crate) const INDEX: &str = "checkpoint.json";
/// A checkpoint being written.
pub(crate) const STAGING: &str = ".tmp-";
/// A checkpoint being removed.
const TRASH: &str = ".trash-";

/// How long a [`nonce`] is.
pub(crate) const NONCE_DIGITS: usize = 32;

/// Why a checkpoint left the numbering, shown by the first part of its new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Aside {
    /// It was found damaged. A manager removes all but the newest few.
    Damaged,
    /// It could not be read, and an older one was restored in its place. Never removed by this crate.
    PassedOver,
    /// An older one was restored and the run continued from there. Removed when enough newer ones are complete.
    Superseded,
}

pub(crate) const SUPERSEDED: &str = "superseded-";

const PASSED_OVER: &str = "passed-over-";

/// Each with its prefix, and with the shorter one that is added to [`TRASH`] while such a checkpoint is being removed. No
/// checkpoint has a name that begins with a dot.
const PREFIXES: [(Aside, &str, &str); 3] = [
    (Aside::Damaged, "damaged-", ".d-"),
    (Aside::PassedOver, PASSED_OVER, ".p-"),
    (Aside::Superseded, SUPERSEDED, ".s-"),
];

/// The length of the longest prefix that the name of a checkpoint is ever given.
pub(crate) const LONGEST_PREFIX: usize = PASSED_OVER.len();

impl Aside {
    /// Returns a new name for the checkpoint `name` that shows why it left the numbering. If it left it before, only the
    /// new reason is shown.
    #[must_use]
    pub fn new_name(self, name: &str) -> String {
        self.name_with(name, &nonce())
    }

    pub(crate) fn name_with(self, name: &str, nonce: &str) -> String {
        let prefix = PREFIXES.iter().find(|(aside, ..)| *aside == self).map_or("", |(_, prefix, _)| prefix);
        let name = before_aside(name).map_or(name, |(_, before)| before);
        format!("{prefix}{name}-{nonce}")
    }
}

/// Returns why the directory `name` left the numbering, and its former name; `None` for all others.
#[must_use]
pub fn before_aside(name: &str) -> Option<(Aside, &str)> {
    PREFIXES.iter().find_map(|(aside, prefix, _)| Some((*aside, without_mark(name, prefix)?)))
}

/// Returns `true` if this module made the name for something that is being written or removed. All other names are the
/// user's.
pub(crate) fn is_leftover(name: &str) -> bool {
    without_mark(name, STAGING).is_some() || before_trash(name).is_some()
}

/// Returns a new name for a checkpoint that is being removed. One that left the numbering keeps its nonce.
pub(crate) fn trash_name(name: &str) -> String {
    let is_aside = before_aside(name).is_some();
    let short = PREFIXES.iter().find_map(|(_, prefix, short)| Some(format!("{short}{}", name.strip_prefix(prefix)?)));
    match short.filter(|_| is_aside) {
        Some(short) => format!("{TRASH}{short}"),
        None => format!("{TRASH}{name}-{}", nonce()),
    }
}

/// Returns the name that a checkpoint had before it was being removed; `None` for all others.
pub(crate) fn before_trash(name: &str) -> Option<String> {
    let before = without_mark(name, TRASH)?;
    let mut asides = PREFIXES.iter().filter(|(_, _, short)| before.starts_with(short));
    Some(match asides.next() {
        Some((_, prefix, short)) => format!("{prefix}{}", &name[TRASH.len() + short.len()..]),
        None => before.to_string(),
    })
}

/// Returns the name to which a prefix and a nonce were added; `None` for all others.
pub(crate) fn without_mark<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (name, nonce) = name.strip_prefix(prefix)?.rsplit_once('-')?;
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (nonce.len() == NONCE_DIGITS && nonce.bytes().all(digit)).then_some(name)
}

/// Returns the nonce of a name that this module made with `prefix`.
pub(crate) fn nonce_of<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    without_mark(name, prefix)?;
    name.rsplit_once('-').map(|(_, nonce)| nonce)
}

/// Returns the parent directory of a path.
pub(crate) fn parent_of(path: &Location) -> Location {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| ".".into())
}

/// Returns the name of the checkpoint at `path`.
pub(crate) fn checkpoint_name(path: &Location) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
    // What this crate itself calls so.
    let name = name.filter(|name| ![INDEX, MANIFEST].contains(name) && before_aside(name).is_none());
    name.ok_or_else(|| {
        Error::InvalidArgument(format!(
            "{} does not end in a name for a checkpoint, such as `checkpoints/ckpt`",
            path.display()
        ))
    })
}

/// Returns a unique name: 128 random bits in hexadecimal.
pub(crate) fn nonce() -> String {
    let mut bits = [0; NONCE_DIGITS / 2];
    if !random(&mut bits) {
        // Each `RandomState` has its own keys from the system's random source, except in a forked process.
        use std::hash::{BuildHasher, Hasher, RandomState};
        let draw = || (RandomState::new().build_hasher().finish() ^ u64::from(std::process::id())).to_ne_bytes();
        bits[..8].copy_from_slice(&draw());
        bits[8..].copy_from_slice(&draw());
    }
    bits.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(target_os = "linux")]
fn random(bits: &mut [u8]) -> bool {
    rustix::rand::getrandom(&mut *bits, rustix::rand::GetRandomFlags::empty()).is_ok_and(|got| got == bits.len())
}

#[cfg(not(target_os = "linux"))]
fn random(bits: &mut [u8]) -> bool {
    use std::io::Read;
    std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(bits)).is_ok()
}

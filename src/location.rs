//! The location of a checkpoint or a directory of checkpoints: a path, or a URL.

use serde::{Deserialize, Serialize, Serializer};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Debug, Display};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// The location of a checkpoint, a directory of checkpoints or a file: a path, or a URL such as `s3://bucket/run`.
///
/// Functions take `impl Into<Location>`, so that a path or a text can be passed directly. Text that starts with a
/// scheme and `://` is a URL, whichever type it is converted from; everything else is a path. A
/// [`Storage`](crate::repository::Storage) that knows their scheme serves URLs; the default storage serves only paths
/// and rejects URLs.
///
/// A location dereferences to the [`Path`] of its text, so that results can be used as paths. For a URL, parents, names
/// and joining work on that path as well, but it does not exist in the file system: opening it fails with "not found".
/// [`as_path`](Location::as_path) returns `None` then.
///
/// ```
/// use std::path::Path;
/// use tch_checkpoint::Location;
///
/// let location = Location::from("checkpoints").join("ckpt-7");
/// assert_eq!(location, Path::new("checkpoints/ckpt-7"));
/// assert_eq!(location.as_path(), Some(Path::new("checkpoints/ckpt-7")));
///
/// let location = Location::from("s3://bucket/run").join("ckpt-7");
/// assert_eq!(location.to_string(), "s3://bucket/run/ckpt-7");
/// assert_eq!((location.scheme(), location.as_path()), (Some("s3"), None));
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct Location(PathBuf);

impl Location {
    /// Returns the path, or `None` for a URL.
    #[must_use]
    pub fn as_path(&self) -> Option<&Path> {
        self.scheme().is_none().then_some(&self.0)
    }

    /// Returns the scheme of a URL (`s3` of `s3://bucket/run`), or `None` for a path.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        self.url().map(|(scheme, _)| scheme)
    }

    /// Returns the location of `name` in this directory.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> Location {
        Location(self.0.join(name))
    }

    /// Returns the parent directory, or `None` for a root, for a location without a name, and for a URL without a path.
    ///
    /// ```
    /// use tch_checkpoint::Location;
    ///
    /// assert_eq!(Location::from("s3://bucket/run").parent(), Some("s3://bucket".into()));
    /// assert_eq!(Location::from("s3://bucket").parent(), None);
    /// assert_eq!(Location::from("run").parent(), Some("".into()));
    /// ```
    #[must_use]
    pub fn parent(&self) -> Option<Location> {
        match self.url() {
            Some((_, rest)) if !rest.trim_end_matches('/').contains('/') => None,
            _ => self.0.parent().map(Location::from),
        }
    }

    /// Returns the scheme of a URL, and what follows the slashes.
    fn url(&self) -> Option<(&str, &str)> {
        let (scheme, rest) = self.0.to_str()?.split_once("://")?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        is_scheme.then_some((scheme, rest))
    }
}

impl Deref for Location {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for Location {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<OsStr> for Location {
    fn as_ref(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

impl Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0.display(), f)
    }
}

impl Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.0, f)
    }
}

/// Serializes as text. Bytes that are not Unicode become `U+FFFD`.
impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Location> for PathBuf {
    fn from(location: Location) -> PathBuf {
        location.0
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Location {
        location.clone()
    }
}

macro_rules! from {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Location {
            fn from(path: $kind) -> Location {
                Location(path.into())
            }
        }
    )*};
}

from!(PathBuf, &PathBuf, &Path, &&Path, String, &String, &str, OsString, &OsStr, Box<Path>);

macro_rules! equals {
    ($($kind:ty),*) => {$(
        impl PartialEq<$kind> for Location {
            fn eq(&self, path: &$kind) -> bool {
                self.0 == AsRef::<Path>::as_ref(path)
            }
        }

        impl PartialEq<Location> for $kind {
            fn eq(&self, location: &Location) -> bool {
                location == self
            }
        }
    )*};
}

equals!(PathBuf, &PathBuf, Path, &Path, str, &str, String);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_url_is_told_by_its_scheme() {
        for (text, scheme) in [
            ("s3://bucket/run", Some("s3")),
            ("mem://run", Some("mem")),
            ("git+ssh://host/run", Some("git+ssh")),
            ("file:///run", Some("file")),
            ("run", None),
            ("/run/ckpt-7", None),
            ("", None),
            ("://run", None),
            ("3s://bucket", None),
            ("a/b://c", None),
            ("./s3://bucket", None),
            ("s3:/bucket", None),
        ] {
            for location in [Location::from(text), Location::from(Path::new(text)), Location::from(text.to_string())] {
                assert_eq!(location.scheme(), scheme, "{text}");
                assert_eq!(location.as_path(), scheme.is_none().then_some(Path::new(text)), "{text}");
                assert_eq!(location.to_string(), text);
            }
        }
        let bytes = OsStr::from_bytes(b"s3://\xff");
        assert_eq!(Location::from(bytes).as_path(), Some(Path::new(bytes)));
    }

    #[test]
    fn names_are_joined_and_taken_apart() {
        for root in ["run", "/data/run", "s3://bucket/run", "s3://bucket"] {
            let location = Location::from(root).join("ckpt-7");
            assert_eq!(location, format!("{root}/ckpt-7"));
            assert_eq!(location.file_name(), Some("ckpt-7".as_ref()));
            assert_eq!(location.parent(), Some(root.into()));
        }
        let [path, url] = ["run", "s3://bucket"].map(|root| Location::from(root).parent());
        assert_eq!((path, url), (Some(Location::default()), None));
        assert_eq!(Location::from("s3://bucket/").parent(), None);
        assert_eq!(Location::from("/").parent(), None);
    }

    #[test]
    fn it_is_text_in_json() {
        let locations = ["run/ckpt-7", "s3://bucket/run"].map(Location::from);
        let text = serde_json::to_string(&locations).unwrap();
        assert_eq!(text, r#"["run/ckpt-7","s3://bucket/run"]"#);
        assert_eq!(serde_json::from_str::<Vec<Location>>(&text).unwrap(), locations);
    }

    #[test]
    fn it_is_used_as_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::from(dir.path()).join("file");
        std::fs::write(&location, b"bytes").unwrap();
        assert!(location.exists() && location == dir.path().join("file"));
        let missing = std::fs::read(Location::from("mem://run")).unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    }
}

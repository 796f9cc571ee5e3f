//! The origin of a checkpoint: when its run started, and with which versions of the code.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The origin of a run, recorded in every checkpoint on request
/// ([`Checkpoint::provenance`](crate::Checkpoint::provenance)), as the metadata `provenance`.
///
/// Nothing else is recorded: no environment, host name, user or path.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let dir = directory.path();
/// use tch_checkpoint::{Checkpoint, CheckpointReader, Counter, Provenance};
/// let mut checkpoint =
///     Checkpoint::new().track("step", &Counter::new(7))?.provenance(&Provenance::new().git("."))?;
/// let path = checkpoint.write(dir.join("seven"))?;
/// let provenance: Option<Provenance> = CheckpointReader::open(path)?.metadata("provenance")?;
/// assert_eq!(provenance.ok_or("none")?.crate_version, env!("CARGO_PKG_VERSION"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[must_use = "it is recorded only by `Checkpoint::provenance`"]
pub struct Provenance {
    /// The time at which [`new`](Provenance::new) was called; call it at the start of the program.
    pub started_at: DateTime<Utc>,
    /// The version of this crate.
    pub crate_version: String,
    /// The version of `tch`; `None` without the feature `torch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tch_version: Option<String>,
    /// The version of libtorch that the program was built with; `None` without the feature `torch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libtorch_version: Option<String>,
    /// The commit that was checked out in the git repository, if [`git`](Provenance::git) found one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
    /// Whether the program was built with changes that were not committed, if set with [`dirty`](Provenance::dirty).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_dirty: Option<bool>,
    /// The arguments of the program, if requested with [`arguments`](Provenance::arguments).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
}

impl Provenance {
    /// Creates a record of the time and the versions.
    #[expect(clippy::new_without_default, reason = "each one records the time of the call")]
    pub fn new() -> Provenance {
        Provenance {
            started_at: Utc::now(),
            crate_version: env!("CARGO_PKG_VERSION").to_string(),
            tch_version: cfg!(feature = "torch").then(|| TCH_VERSION.to_string()),
            libtorch_version: option_env!("TCH_CHECKPOINT_LIBTORCH_VERSION").map(str::to_string),
            git_commit: None,
            git_dirty: None,
            arguments: None,
        }
    }

    /// Returns the record in the `metadata` of a checkpoint, if there is one.
    pub(crate) fn of(metadata: &BTreeMap<String, Value>) -> Option<Provenance> {
        Provenance::deserialize(metadata.get(PROVENANCE)?).ok()
    }

    /// Adds the commit of the git repository that contains the directory `path`. Reads the repository's files without
    /// running git. Adds nothing if there is no repository, or if it stores its references in another form than loose
    /// and packed files.
    ///
    /// This is the commit that is checked out now. For the commit that the program was built from, call this in the
    /// build script and pass the commit on.
    pub fn git(mut self, path: impl AsRef<Path>) -> Provenance {
        self.git_commit = std::path::absolute(path).ok().and_then(|path| commit_of(&path));
        self
    }

    /// Adds whether the program was built with uncommitted changes. Only the build can determine this: a build script
    /// can run `git status --porcelain` and set an environment variable of the compiler.
    ///
    /// ```
    /// use tch_checkpoint::Provenance;
    /// let provenance = Provenance::new().git(".").dirty(option_env!("BUILD_DIRTY") == Some("1"));
    /// # let _ = provenance;
    /// ```
    pub fn dirty(mut self, dirty: bool) -> Provenance {
        self.git_dirty = Some(dirty);
        self
    }

    /// Adds all arguments of the program. They may contain paths, names and secrets, which everyone who can read the
    /// checkpoint can then read.
    pub fn arguments(mut self) -> Provenance {
        self.arguments = Some(std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect());
        self
    }
}

/// The name of the metadata in which it is recorded.
pub(crate) const PROVENANCE: &str = "provenance";

/// The version of `tch` that this version of the crate is built on.
const TCH_VERSION: &str = "0.26";

/// Returns the commit that is checked out in the repository around `directory`.
fn commit_of(directory: &Path) -> Option<String> {
    let git = directory.ancestors().find_map(|above| git_directory(&above.join(".git")))?;
    let head = read(&git.join("HEAD"), SMALL)?;
    let Some(reference) = head.trim().strip_prefix("ref: ") else { return commit(&head) };
    // Names that lead out of the directory are not valid in git.
    let is_plain = reference.starts_with("refs/") && reference.split('/').all(|part| !["", ".", ".."].contains(&part));
    if !is_plain {
        return None;
    }
    // A linked worktree has the branches of the main one.
    let common = read(&git.join("commondir"), SMALL).map_or_else(|| git.clone(), |path| git.join(path.trim()));
    let loose = [&git, &common].into_iter().find_map(|git| commit(&read(&git.join(reference), SMALL)?));
    loose.or_else(|| {
        let packed = read(&common.join("packed-refs"), LARGE)?;
        let mut lines = packed.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(_, name)| *name == reference).and_then(|(id, _)| commit(id))
    })
}

/// Returns the directory of a repository's files: `.git` itself, or the one that the file `.git` of a worktree or
/// submodule names.
fn git_directory(git: &Path) -> Option<PathBuf> {
    if git.is_dir() {
        return Some(git.to_path_buf());
    }
    let text = read(git, SMALL)?;
    let path = text.trim().strip_prefix("gitdir: ")?;
    Some(git.parent()?.join(path))
}

/// Parses a complete commit hash, SHA-1 or SHA-256.
fn commit(text: &str) -> Option<String> {
    let id = text.trim();
    (matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_string())
}

/// The maximum length of a file with one line, in bytes.
const SMALL: u64 = 64 << 10;

/// The maximum length of a file with all references of a repository, in bytes.
const LARGE: u64 = 256 << 20;

fn read(path: &Path, most: u64) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.is_file() && file.metadata().ok()?.len() <= most).then_some(())?;
    file.take(most).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";
    const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

    fn repository() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let git = dir.path().join(".git");
        fs::create_dir_all(git.join("refs/heads/feature")).unwrap();
        fs::create_dir_all(dir.path().join("src/deep")).unwrap();
        (dir, git)
    }

    fn found(dir: &Path) -> Option<String> {
        Provenance::new().git(dir.join("src/deep")).git_commit
    }

    #[test]
    fn the_commit_is_read_from_files_wherever_git_keeps_it() {
        let (dir, git) = repository();
        assert_eq!(found(dir.path()), None);
        // A branch in a file of its own.
        fs::write(git.join("HEAD"), "ref: refs/heads/feature/x\n").unwrap();
        assert_eq!(found(dir.path()), None);
        fs::write(git.join("refs/heads/feature/x"), format!("{ID}\n")).unwrap();
        assert_eq!(found(dir.path()).as_deref(), Some(ID));
        // The file counts, not the packed reference.
        let packed = format!("# pack-refs with: peeled fully-peeled sorted\n{OTHER} refs/heads/feature/x\n^{ID}\n");
        fs::write(git.join("packed-refs"), packed).unwrap();
        assert_eq!(found(dir.path()).as_deref(), Some(ID));
        fs::remove_file(git.join("refs/heads/feature/x")).unwrap();
        assert_eq!(found(dir.path()).as_deref(), Some(OTHER));
        // No branch at all.
        fs::write(git.join("HEAD"), format!("{ID}\n")).unwrap();
        assert_eq!(found(dir.path()).as_deref(), Some(ID));
        for head in ["", "ref: ", "ref: refs/../../x", "ref: /etc/passwd", "0123", "not a commit at all"] {
            fs::write(git.join("HEAD"), head).unwrap();
            assert_eq!(found(dir.path()), None, "{head}");
        }
    }

    #[test]
    fn a_linked_worktree_has_a_head_of_its_own_and_the_branches_of_the_main_one() {
        let (main, git) = repository();
        fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(git.join("refs/heads/side"), OTHER).unwrap();
        let own = git.join("worktrees/side");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("HEAD"), "ref: refs/heads/side\n").unwrap();
        fs::write(own.join("commondir"), "../..\n").unwrap();
        let worktree = main.path().join("elsewhere");
        fs::create_dir_all(&worktree).unwrap();
        fs::write(worktree.join(".git"), format!("gitdir: {}\n", own.display())).unwrap();
        assert_eq!(Provenance::new().git(&worktree).git_commit.as_deref(), Some(OTHER));
    }

    #[test]
    fn only_what_is_asked_for_is_recorded() {
        let json = serde_json::to_value(Provenance::new()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert!(keys.iter().all(|key| key.ends_with("_version") || *key == "started_at"), "{keys:?}");
        let more = Provenance::new().dirty(true).arguments();
        assert_eq!(more.git_dirty, Some(true));
        assert_eq!(more.arguments.as_ref().map(Vec::len), Some(std::env::args().count()));
        assert_eq!(serde_json::from_value::<Provenance>(serde_json::to_value(&more).unwrap()).unwrap(), more);
        // The workspace requires the same version of tch.
        let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("\ntch = \"{TCH_VERSION}\"")));
        assert_eq!(more.libtorch_version.is_some(), cfg!(all(feature = "torch", not(feature = "doc-only"))));
    }
}

//! Where checkpoints live.
//!
//! `posix` is a directory of a file system, over [`Disk`]: narrow traits of file operations, so that the same protocol
//! runs on the operating system and on a simulated disk.

mod posix;

pub use posix::{
    Aside, Dir, Directory, Disk, Durability, Entry, FileId, Kind, LocalDisk, LockFile, NewFile, OldFile, PAGE, Scan,
    Staging, Stat, Stays, before_aside, hold_lease,
};
pub(crate) use posix::{
    DIRECT, Finished, Lock, MANIFEST, StagedFile, TRASH, checkpoint_failed, link_met, nonce, open_failed, parent_of,
    read_manifest,
};

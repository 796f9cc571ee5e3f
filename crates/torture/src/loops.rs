//! A real file system in a file, whose power can be cut.
//!
//! The file is in another file system, which is in a file too. What the inner file system has not flushed to its device
//! is in the cache of the outer one. When the power of the outer one is cut, any part of that may be lost, as from the
//! cache of a device.

use super::random::Random;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The file system that is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, with its default options.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

    /// Returns the name that `mount` uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    /// Returns how its power can be cut. btrfs cannot be shut down.
    fn cuts(self) -> &'static [Cut] {
        match self {
            FileSystem::Btrfs => &[Cut::Device],
            _ => &[Cut::NoFlush, Cut::LogFlush, Cut::Device],
        }
    }
}

/// What happens at a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The file system writes nothing more.
    NoFlush,
    /// It writes its journal and then nothing more, so that names are newer than the files.
    LogFlush,
    /// Its device accepts nothing more, and loses what was not flushed.
    Device,
}

/// A mounted file system in a file.
pub(super) struct Loop {
    kind: FileSystem,
    outer: PathBuf,
    inner: PathBuf,
}

/// Returns why power cannot be cut here, as far as is known without trying.
pub(super) fn why_not(kind: FileSystem) -> Option<String> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !root {
        return Some("only root may mount".into());
    }
    let mkfs = format!("mkfs.{}", kind.name());
    let tools = [mkfs.as_str(), "mkfs.ext4", "xfs_io", "mount"];
    let missing = tools.into_iter().find(|tool| Command::new(tool).arg("-V").output().is_err())?;
    Some(format!("there is no {missing} (packages: e2fsprogs, xfsprogs, btrfs-progs)"))
}

impl Loop {
    /// Creates an empty file system below the directory `scratch`, and mounts it.
    pub(super) fn make(kind: FileSystem, scratch: &Path) -> io::Result<Loop> {
        let made = Loop { kind, outer: scratch.join("outer"), inner: scratch.join("inner") };
        for directory in [&made.outer, &made.inner] {
            std::fs::create_dir_all(directory)?;
        }
        // XFS has at least 300 MiB. Both files are sparse.
        for (kind, file, bytes) in
            [(FileSystem::Ext4, made.outer_image(), 1400u64 << 20), (kind, made.inner_image(), 1000 << 20)]
        {
            std::fs::File::create(&file)?.set_len(bytes)?;
            let force = if kind == FileSystem::Ext4 { "-F" } else { "-f" };
            run(Command::new(format!("mkfs.{}", kind.name())).args(["-q", force]).arg(&file))?;
            if file == made.outer_image() {
                mount(&file, &made.outer)?;
            }
        }
        run(Command::new("sync").arg("-f").arg(&made.outer))?;
        mount(&made.inner_image(), &made.inner)?;
        Ok(made)
    }

    fn outer_image(&self) -> PathBuf {
        self.outer.with_extension("img")
    }

    fn inner_image(&self) -> PathBuf {
        self.outer.join("inner.img")
    }

    /// Returns its mount point.
    pub(super) fn directory(&self) -> &Path {
        &self.inner
    }

    /// Cuts the power. Whoever has files open must end before [`restart`](Loop::restart).
    pub(super) fn cut(&self, random: &mut Random) -> io::Result<Cut> {
        let ways = self.kind.cuts();
        let cut = ways[random.below(ways.len())];
        let (directory, how) = match cut {
            Cut::NoFlush => (&self.inner, "shutdown"),
            Cut::LogFlush => (&self.inner, "shutdown -f"),
            Cut::Device => (&self.outer, "shutdown"),
        };
        // Opens nothing by this path: a cut must not wait for operations in progress.
        run(Command::new("xfs_io").args(["-x", "-c", how]).arg(directory))?;
        Ok(cut)
    }

    /// Mounts it again, so that the file system recovers.
    pub(super) fn restart(&self, cut: Cut) -> io::Result<()> {
        unmount(&self.inner)?;
        if cut == Cut::Device {
            unmount(&self.outer)?;
            mount(&self.outer_image(), &self.outer)?;
        }
        mount(&self.inner_image(), &self.inner)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = unmount(&self.inner).and_then(|()| unmount(&self.outer));
    }
}

fn mount(image: &Path, directory: &Path) -> io::Result<()> {
    patiently(|| run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(directory)))
}

fn unmount(directory: &Path) -> io::Result<()> {
    patiently(|| run(Command::new("umount").arg(directory)))
}

/// Tries for a while: a killed process may still hold its files.
fn patiently(mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut result = act();
    for _ in 0..50 {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        result = act();
    }
    result
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(io::Error::other(format!("{} failed: {said}", command.get_program().display())))
}

//! Read errors of one checkpoint, from bad sectors and from file systems that are not reachable: which are damage, and
//! which are errors that name the remedy.

use super::memory::Memory;
use std::any::Any;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tch_checkpoint::Counter;
use tch_checkpoint::Error;
use tch_checkpoint::internal::{Dir, Disk, Entry, LocalDisk, LockFile, OpenDir, ReadFile, Stat, WriteFile};
use tch_checkpoint::{CheckpointManager, CheckpointManagerBuilder};

/// Where reading fails: in which directory, which of its files (all, and the directory itself, if none), and how.
type Bad = Arc<Mutex<Option<(&'static str, Option<&'static str>, i32)>>>;

#[derive(Debug, Clone)]
struct BadDisk(Bad);

#[derive(Debug)]
struct BadDir {
    dir: Arc<dyn Dir>,
    name: String,
    bad: Bad,
}

struct BadFile {
    file: Box<dyn ReadFile>,
    error: Option<i32>,
}

impl Disk for BadDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        LocalDisk.absolute(path)
    }

    fn least_recycled(&self) -> u64 {
        1
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let dir = BadDir { dir: LocalDisk.open_dir(path)?, name, bad: self.0.clone() };
        dir.is_good(None)?;
        Ok(Arc::new(dir))
    }
}

impl BadDir {
    fn error(&self, file: Option<&OsStr>) -> Option<i32> {
        let (name, bad, errno) = (*self.bad.lock().unwrap())?;
        let here = self.name == name && bad.is_none_or(|bad| file.is_some_and(|file| file == bad));
        here.then_some(errno)
    }

    fn is_good(&self, file: Option<&OsStr>) -> io::Result<()> {
        self.error(file).map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl OpenDir for BadDir {
    fn stat(&self) -> io::Result<Stat> {
        self.dir.stat()
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        self.dir.stat_of(name)
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.is_good(None).and_then(|()| self.dir.list())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(BadFile { file: self.dir.open(name)?, error: self.error(Some(name)) }))
    }
}

impl Dir for BadDir {
    fn as_any(&self) -> &dyn Any {
        self.dir.as_any()
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let (dir, name, bad) = (self.dir.open_dir(name)?, name.to_string_lossy().into_owned(), self.bad.clone());
        Ok(Arc::new(BadDir { dir, name, bad }))
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        self.dir.create_dir(name)
    }

    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>> {
        self.dir.create(name, direct)
    }

    fn recycle(&self, _: &OsStr, _: &dyn Dir, _: &OsStr, _: bool) -> io::Result<Option<Box<dyn WriteFile>>> {
        Ok(None)
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        self.dir.link(name, to, new)
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.dir.rename_new(from, to)
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.dir.replace(from, to)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        self.dir.remove_file(name)
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        self.dir.remove_dir(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.sync()
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        self.dir.free_space()
    }

    fn is_local(&self) -> bool {
        false
    }

    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        self.dir.lock(name, holder)
    }
}

impl ReadFile for BadFile {
    fn stat(&self) -> io::Result<Stat> {
        self.file.stat()
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.error {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.file.read_exact_at(offset, buffer),
        }
    }
}

struct Run {
    step: Counter,
    part: Memory,
    bad: Bad,
    dir: tempfile::TempDir,
}

impl Run {
    /// Three checkpoints.
    fn new() -> Run {
        let (step, part) = (Counter::new(0), Memory::new(vec![0; 64]));
        let run = Run { step, part, bad: Arc::default(), dir: tempfile::tempdir().unwrap() };
        let mut manager = run.builder().open().unwrap();
        for step in 1..=3 {
            run.save(&mut manager, step);
        }
        manager.close().unwrap();
        run
    }

    fn builder(&self) -> CheckpointManagerBuilder {
        let checkpoint = tch_checkpoint::internal::checkpoint_on(Arc::new(BadDisk(self.bad.clone())));
        let checkpoint = checkpoint.track("step", &self.step).unwrap().track("part", self.part.clone()).unwrap();
        CheckpointManager::builder(checkpoint, self.dir.path())
    }

    fn save(&self, manager: &mut CheckpointManager, step: u64) {
        self.step.set(step);
        self.part.set(vec![step as u8; 64]);
        manager.save_at(step).unwrap();
    }
}

const IO: i32 = 5;
const AWAY: [i32; 6] = [107, 116, 112, 19, 121, 13]; // ENOTCONN, ESTALE, EHOSTDOWN, ENODEV, EREMOTEIO, EACCES

#[test]
fn a_bad_sector_in_a_component_is_damage_and_its_step_can_be_saved() {
    for errno in [IO, 74, 117] {
        let run = Run::new();
        *run.bad.lock().unwrap() = Some(("ckpt-3", Some("part.safetensors"), errno));
        let mut manager = run.builder().open().unwrap();
        let started = manager.restore_or_initialize().unwrap();
        assert_eq!((run.step.get(), started.passed_over.len()), (2, 1));
        assert!(started.passed_over[0].reason.contains("the device cannot read it"), "{started:?}");
        run.save(&mut manager, 3);
        // Again and again.
        manager.close().unwrap();
        let mut manager = run.builder().open().unwrap();
        *run.bad.lock().unwrap() = None;
        manager.restore_or_initialize().unwrap();
        assert_eq!(run.step.get(), 3);
    }
}

#[test]
fn what_may_be_there_again_later_is_an_error_that_names_the_way_on() {
    let files = [None, Some("manifest.json"), Some("part.safetensors")];
    let cases = files.iter().flat_map(|file| AWAY.iter().map(move |errno| (*file, *errno)));
    for (file, errno) in cases.chain([(None, IO), (Some("manifest.json"), IO)]) {
        let run = Run::new();
        *run.bad.lock().unwrap() = Some(("ckpt-3", file, errno));
        let mut manager = run.builder().open().unwrap();
        for _ in 0..2 {
            let error = manager.restore_or_initialize().unwrap_err();
            assert!(matches!(&error, Error::Io { .. }), "{file:?} {errno}: {error}");
            assert!(error.to_string().contains("CheckpointManager::pass_over"), "{file:?} {errno}: {error}");
            assert_eq!(run.step.get(), 3, "nothing was restored");
        }
        assert!(manager.save_at(4).is_err());
        match errno {
            // It comes back.
            107 => *run.bad.lock().unwrap() = None,
            _ => drop(manager.pass_over(run.dir.path().join("ckpt-3")).unwrap()),
        }
        run.step.set(0);
        let started = manager.restore_or_initialize().unwrap();
        match errno {
            107 => assert_eq!((run.step.get(), started.passed_over.len()), (3, 0)),
            _ => assert_eq!((run.step.get(), started.passed_over.len()), (2, 1)),
        }
        run.save(&mut manager, if errno == 107 { 4 } else { 3 });
        manager.close().unwrap();
    }
}

/// Another user's mark, which this one may not read, keeps its checkpoint and stops nothing.
#[test]
fn a_mark_that_may_not_be_read_is_unknown() {
    let run = Run::new();
    let beside = tch_checkpoint::CheckpointDirectory::new(run.dir.path());
    beside.add_metrics("ckpt-3", [("loss", 1.0)]).unwrap();
    let names = std::fs::read_dir(run.dir.path().join("ckpt-3")).unwrap().flatten();
    let mark = names.map(|entry| entry.file_name().into_string().unwrap()).find(|name| name.starts_with("mark-"));
    let mark: &'static str = Box::leak(mark.unwrap().into_boxed_str());
    for errno in [13, 1] {
        *run.bad.lock().unwrap() = Some(("ckpt-3", Some(mark), errno));
        let mut manager = run.builder().open().unwrap();
        manager.restore_or_initialize().unwrap();
        assert_eq!(run.step.get(), 3);
    }
}

/// The only checkpoint is a superseded one that cannot be read now.
#[test]
fn a_superseded_checkpoint_that_cannot_be_read_now_is_no_empty_directory() {
    const ASIDE: &str = "superseded-ckpt-3-0123456789abcdef0123456789abcdef";
    for errno in [IO, 24] {
        let run = Run::new();
        for name in ["ckpt-1", "ckpt-2"] {
            std::fs::remove_dir_all(run.dir.path().join(name)).unwrap();
        }
        std::fs::rename(run.dir.path().join("ckpt-3"), run.dir.path().join(ASIDE)).unwrap();
        *run.bad.lock().unwrap() = Some((ASIDE, None, errno));
        let mut manager = run.builder().open().unwrap();
        let error = manager.restore_or_initialize().unwrap_err().to_string();
        assert!(error.contains(ASIDE) && error.contains("fresh_start"), "{error}");
        assert!(manager.save_at(1).is_err());
        assert!(run.dir.path().join(ASIDE).exists());
    }
}

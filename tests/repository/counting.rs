//! A storage around another one that counts what is asked of it, and cannot read what it is told.

use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tch_checkpoint::format::Follows;
use tch_checkpoint::repository::{
    Aside, FileId, Finished, Lock, OpenDir, OpenOptions, Repository, Scan, StagedFile, Stays, Storage, Transaction,
};
use tch_checkpoint::{Error, Location, Result};

/// Clones share the counts.
#[derive(Debug, Clone)]
pub struct Counting {
    storage: Arc<dyn Storage>,
    counts: Counts,
    unreadable: Names,
    slow_links: Arc<AtomicBool>,
}

/// Names of directories.
type Names = Arc<Mutex<BTreeSet<String>>>;

#[derive(Debug, Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Counts {
    fn add(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }
}

impl Counting {
    pub fn new(storage: Arc<dyn Storage>) -> Counting {
        Counting { storage, counts: Counts::default(), unreadable: Names::default(), slow_links: Arc::default() }
    }

    /// From now on, what has one of these names can be neither read nor renamed.
    pub fn cannot_read<const N: usize>(&self, names: [&str; N]) {
        *self.unreadable.lock().unwrap() = names.map(String::from).into();
    }

    /// From now on, a background save takes its time to update a link.
    pub fn slow_links(&self) {
        self.slow_links.store(true, Ordering::SeqCst);
    }

    /// How often each function was called since the last time.
    pub fn take(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut *self.counts.0.lock().unwrap())
    }
}

impl Storage for Counting {
    fn absolute(&self, location: &Location) -> Result<Location> {
        self.storage.absolute(location)
    }

    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>> {
        let inner = self.storage.repository(root, options)?;
        let (counts, unreadable, slow_links) = (self.counts.clone(), self.unreadable.clone(), self.slow_links.clone());
        Ok(Arc::new(Counted { inner, counts, unreadable, slow_links }))
    }

    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>> {
        self.counts.add("open");
        self.storage.open(location)
    }
}

#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Repository>,
    counts: Counts,
    unreadable: Names,
    slow_links: Arc<AtomicBool>,
}

impl Counted {
    fn reach(&self, name: &str) -> io::Result<()> {
        match self.unreadable.lock().unwrap().contains(name) {
            true => Err(io::Error::from_raw_os_error(5)), // EIO
            false => Ok(()),
        }
    }
}

/// Functions that are counted and handed on.
macro_rules! counted {
    ($(fn $name:ident(&self $(, $argument:ident: $kind:ty)*) $(-> $result:ty)?;)*) => {$(
        fn $name(&self $(, $argument: $kind)*) $(-> $result)? {
            self.counts.add(stringify!($name));
            self.inner.$name($($argument),*)
        }
    )*};
}

impl Repository for Counted {
    fn root(&self) -> &Location {
        self.inner.root()
    }

    fn begin(&self, name: &str, bytes: u64) -> Result<Box<dyn Transaction + '_>> {
        self.counts.add("begin");
        Ok(Box::new(CountedTransaction { inner: self.inner.begin(name, bytes)?, counts: self.counts.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenDir>> {
        self.counts.add("open");
        self.reach(name).and_then(|()| self.inner.open(name))
    }

    fn quarantine(&self, name: &str, aside: Aside) -> Result<String> {
        self.counts.add("quarantine");
        self.reach(name).map_err(|e| Error::io("rename", self.root().join(name), e))?;
        self.inner.quarantine(name, aside)
    }

    fn put_link(&self, name: &str, target: Option<&str>, is_ours: &dyn Fn(&str) -> bool) -> Result<()> {
        self.counts.add("put_link");
        if self.slow_links.load(Ordering::SeqCst) && thread::current().name() == Some("tch-checkpoint") {
            thread::sleep(Duration::from_millis(200));
        }
        self.inner.put_link(name, target, is_ours)
    }

    counted! {
        fn id(&self) -> Option<FileId>;
        fn now(&self) -> DateTime<Utc>;
        fn dir(&self) -> Result<Arc<dyn OpenDir>>;
        fn scan(&self) -> Result<Scan>;
        fn scan_for_writing(&self) -> Result<Scan>;
        fn create(&self) -> Result<()>;
        fn lock(&self) -> Result<Lock>;
        fn check_process(&self) -> Result<()>;
        fn check(&self) -> Result<()>;
        fn check_name(&self, name: &str) -> Result<()>;
        fn remove(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool>;
        fn discard(&self, aside: &str, stays: Stays<'_>) -> Result<bool>;
        fn release(&self, aside: &str, name: &str) -> Result<()>;
        fn put_small(&self, file: &str, bytes: &[u8]) -> Result<()>;
        fn remove_small(&self, file: &str);
        fn put_mark(&self, checkpoint: &str, of: &Follows, file: &str, bytes: &[u8]) -> Result<()>;
        fn remove_mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<bool>;
        fn sync_marks(&self, checkpoint: &str, of: &Follows) -> Result<()>;
        fn remove_files(&self, checkpoint: &str, of: &Follows, files: &[String]) -> Result<()>;
        fn sweep_marks(&self, checkpoint: &str);
        fn sweep(&self, leftovers: &[String]);
        fn free_space(&self) -> Option<u64>;
        fn clear_spares(&self);
    }
}

struct CountedTransaction<'a> {
    inner: Box<dyn Transaction + 'a>,
    counts: Counts,
}

impl Transaction for CountedTransaction<'_> {
    counted! {
        fn make_room(&self, lengths: &[u64]);
        fn create(&self, file: &str, bytes: u64) -> Result<Box<dyn StagedFile + '_>>;
        fn reuse(&self, file: &str, earlier: &str, finished: &Finished) -> Result<()>;
    }

    fn commit(
        self: Box<Self>,
        manifest: &[u8],
        threads: usize,
        supersedes: &[String],
    ) -> Result<Vec<(String, String)>> {
        self.counts.add("commit");
        self.inner.commit(manifest, threads, supersedes)
    }
}

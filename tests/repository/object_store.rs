//! A repository over what every object store can do: put, multipart upload, conditional create, ranged get, list by
//! prefix, delete; no rename, no link, no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tch_checkpoint::format::{Follows, Manifest, is_mark_file};
use tch_checkpoint::repository::{
    Aside, Entry, FileId, Finished, Kind, Lock, OpenDir, OpenOptions, ReadFile, Repository, Scan, StagedFile, Stat,
    Stays, Storage, Transaction, before_aside, not_served,
};
use tch_checkpoint::{Error, Location};

type Result<T, E = Error> = std::result::Result<T, E>;

const MANIFEST: &str = "manifest.json";
const INDEX: &str = "checkpoint.json";
/// The least that a part of a multipart upload may have, but for the last.
const LEAST_PART: usize = 5 << 20;
/// Bytes of a part.
pub const PART: usize = 6 << 20;

/// What an object store can do.
#[derive(Debug, Default)]
pub struct Bucket {
    objects: Mutex<BTreeMap<String, Object>>,
    tags: AtomicU64,
    /// Reads of files.
    pub reads: AtomicU64,
    /// Parts that were uploaded.
    pub parts: AtomicU64,
}

#[derive(Debug, Clone)]
struct Object {
    bytes: Arc<Vec<u8>>,
    /// Differs for every object that was ever put.
    tag: u64,
}

impl Bucket {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap()
    }

    fn object(&self, bytes: &[u8]) -> Object {
        Object { bytes: Arc::new(bytes.to_vec()), tag: self.tags.fetch_add(1, Ordering::SeqCst) }
    }

    pub fn put(&self, key: &str, bytes: &[u8]) -> u64 {
        let object = self.object(bytes);
        self.objects().insert(key.to_string(), object.clone());
        object.tag
    }

    /// Puts an object if there is none of this key (`If-None-Match: *`).
    fn create(&self, key: &str, bytes: &[u8]) -> bool {
        let object = self.object(bytes);
        let mut objects = self.objects();
        let is_free = !objects.contains_key(key);
        if is_free {
            objects.insert(key.to_string(), object);
        }
        is_free
    }

    fn complete(&self, key: &str, parts: &[Vec<u8>]) -> u64 {
        let (_, others) = parts.split_last().expect("an upload has a part");
        assert!(others.iter().all(|part| part.len() >= LEAST_PART), "the store refuses parts that are too small");
        self.parts.fetch_add(parts.len() as u64, Ordering::SeqCst);
        self.put(key, &parts.concat())
    }

    pub fn head(&self, key: &str) -> Option<(u64, u64)> {
        self.objects().get(key).map(|object| (object.bytes.len() as u64, object.tag))
    }

    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.objects().get(key).map(|object| object.bytes.to_vec())
    }

    /// Bytes of an object, if it is still the one with this tag (`If-Match`).
    fn get_range(&self, key: &str, tag: u64, from: u64, length: usize) -> Option<Vec<u8>> {
        let object = self.objects().get(key).filter(|object| object.tag == tag).cloned()?;
        object.bytes.get(from as usize..)?.get(..length).map(<[u8]>::to_vec)
    }

    pub fn list(&self, prefix: &str) -> Vec<String> {
        self.objects().keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn delete(&self, key: &str) {
        self.objects().remove(key);
    }
}

#[derive(Debug, Clone, Default)]
pub struct Store(pub Arc<Bucket>);

impl Store {
    /// What the keys of a checkpoint's files start with.
    pub fn files(&self, location: &Location) -> Option<String> {
        let (root, name) = location.parent().zip(location.file_name())?;
        Some(self.prefix(&root)?.committed(name.to_str()?)?.files)
    }

    /// The objects below `mem://BUCKET/KEY`.
    fn prefix(&self, root: &Location) -> Option<Prefix> {
        let key = root.to_str()?.strip_prefix("mem://")?.trim_end_matches('/');
        Some(Prefix { bucket: self.0.clone(), root: root.clone(), key: format!("{key}/") })
    }
}

impl Storage for Store {
    fn absolute(&self, location: &Location) -> Result<Location> {
        Ok(location.clone())
    }

    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>> {
        assert!(options.lock);
        Ok(Arc::new(self.prefix(root).ok_or_else(|| not_served(root, "what begins with mem://"))?))
    }

    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>> {
        let prefix = location.parent().and_then(|root| self.prefix(&root));
        let prefix = prefix.ok_or_else(|| not_served(location, "what begins with mem://"))?;
        let name = location.file_name().and_then(OsStr::to_str).unwrap_or_default();
        prefix.open(name).map_err(|_| Error::not_found(location, "there is no such object"))
    }
}

/// So many bytes of a commit say where its files are; the rest is the manifest.
const AT: usize = 32;

fn file(tag: u64, length: u64) -> Stat {
    Stat::new(FileId { device: 0, inode: tag }, Kind::File, length)
}

fn directory(tag: u64) -> Stat {
    Stat::new(FileId { device: 1, inode: tag }, Kind::Directory, 0)
}

/// A checkpoint: the object of its name is its commit.
#[derive(Debug)]
struct Committed {
    bucket: Arc<Bucket>,
    commit: String,
    tag: u64,
    /// What the keys of its files start with.
    files: String,
}

impl Committed {
    /// The object that a file is in, and where it starts there.
    fn place(&self, name: &OsStr) -> (String, u64) {
        match name.to_str().unwrap() {
            MANIFEST => (self.commit.clone(), AT as u64),
            name => (format!("{}{name}", self.files), 0),
        }
    }
}

impl OpenDir for Committed {
    fn stat(&self) -> io::Result<Stat> {
        Ok(directory(self.tag))
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        let (key, begin) = self.place(name);
        Ok(self.bucket.head(&key).map(|(length, tag)| file(tag, length - begin)))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let names = self.bucket.list(&self.files).into_iter().map(|key| key[self.files.len()..].to_string());
        Ok(names.chain([MANIFEST.into()]).map(|name| Entry::new(name, Kind::File)).collect())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        let (key, begin) = self.place(name);
        let (length, tag) = self.bucket.head(&key).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Reading { bucket: self.bucket.clone(), key, begin, stat: file(tag, length - begin) }))
    }
}

/// The objects of a directory of checkpoints.
#[derive(Debug)]
struct Top {
    bucket: Arc<Bucket>,
    key: String,
}

impl Top {
    fn is_commit(name: &str) -> bool {
        !name.starts_with('.') && name != INDEX
    }
}

impl OpenDir for Top {
    fn stat(&self) -> io::Result<Stat> {
        Ok(directory(0))
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        let name = name.to_str().unwrap();
        let stat = |(length, tag)| if Top::is_commit(name) { directory(tag) } else { file(tag, length) };
        Ok(self.bucket.head(&format!("{}{name}", self.key)).map(stat))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let names = self.bucket.list(&self.key).into_iter().map(|key| key[self.key.len()..].to_string());
        let names = names.filter(|name| !name.contains('/'));
        let kind = |name: &str| if Top::is_commit(name) { Kind::Directory } else { Kind::File };
        Ok(names.map(|name| Entry::new(&name, kind(&name))).collect())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        let key = format!("{}{}", self.key, name.to_str().unwrap());
        let (length, tag) = self.bucket.head(&key).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Reading { bucket: self.bucket.clone(), key, begin: 0, stat: file(tag, length) }))
    }
}

struct Reading {
    bucket: Arc<Bucket>,
    key: String,
    begin: u64,
    stat: Stat,
}

impl ReadFile for Reading {
    fn stat(&self) -> io::Result<Stat> {
        Ok(self.stat)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.bucket.reads.fetch_add(1, Ordering::SeqCst);
        if offset + buffer.len() as u64 > self.stat.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = self.bucket.get_range(&self.key, self.stat.id.inode, self.begin + offset, buffer.len());
        buffer.copy_from_slice(&bytes.ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
}

/// A directory of checkpoints: `ROOT/NAME` is a commit, `ROOT/.files/NONCE/FILE` a file of one.
#[derive(Debug)]
struct Prefix {
    bucket: Arc<Bucket>,
    root: Location,
    key: String,
}

/// The lock object; it goes when the lock does.
struct Held(Arc<Bucket>, String);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.delete(&self.1);
    }
}

impl Prefix {
    fn commit(&self, name: &str) -> String {
        format!("{}{name}", self.key)
    }

    fn files(&self, at: &str) -> String {
        format!("{}.files/{at}/", self.key)
    }

    fn committed(&self, name: &str) -> Option<Committed> {
        let (commit, bucket) = (self.commit(name), self.bucket.clone());
        let (_, tag) = bucket.head(&commit).filter(|_| Top::is_commit(name))?;
        let at = String::from_utf8(bucket.get_range(&commit, tag, 0, AT)?).ok()?;
        Some(Committed { bucket, commit, tag, files: self.files(&at) })
    }

    /// The key of a mark of the checkpoint `of`.
    fn mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<String> {
        let removed = || Error::removed(self.root.join(checkpoint));
        let found = self.committed(checkpoint).ok_or_else(removed)?;
        let commit = self.bucket.get(&found.commit).unwrap_or_default();
        match Manifest::from_bytes(&commit[AT.min(commit.len())..]) {
            Ok(manifest) if (&manifest.run, manifest.sequence) == (&of.run, of.sequence) => {
                Ok(format!("{}{file}", found.files))
            }
            _ => Err(removed()),
        }
    }

    fn marks(&self, checkpoint: &Committed) -> Vec<(String, Vec<u8>)> {
        let keys = self.bucket.list(&checkpoint.files);
        let name = |key: &String| key[checkpoint.files.len()..].to_string();
        let marks = keys.iter().map(|key| (name(key), self.bucket.get(key).unwrap_or_default()));
        marks.filter(|(name, _)| is_mark_file(name)).collect()
    }

    /// Gives a commit another name. Its files stay where they are.
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let path = self.root.join(from);
        let missing = |path| Error::io("move", path, io::ErrorKind::NotFound.into());
        let commit = self.bucket.get(&self.commit(from)).ok_or_else(|| missing(path))?;
        assert!(self.bucket.create(&self.commit(to), &commit));
        self.bucket.delete(&self.commit(from));
        Ok(())
    }

    /// Removes a checkpoint whose commit has these bytes, unless it stays.
    fn delete(&self, checkpoint: &Committed, commit: &[u8], stays: Stays<'_>) -> bool {
        if stays(&self.marks(checkpoint)) {
            return false;
        }
        self.bucket.delete(&checkpoint.commit);
        // A mark may have been written meanwhile.
        if stays(&self.marks(checkpoint)) {
            assert!(self.bucket.create(&checkpoint.commit, commit));
            return false;
        }
        self.delete_files(&checkpoint.files);
        true
    }

    fn delete_files(&self, files: &str) {
        self.bucket.list(files).iter().for_each(|key| self.bucket.delete(key));
    }
}

impl Repository for Prefix {
    fn root(&self) -> &Location {
        &self.root
    }

    fn id(&self) -> Option<FileId> {
        let hash = self.key.bytes().fold(0, |hash: u64, byte| hash * 31 % 1_000_003 + u64::from(byte));
        Some(FileId { device: 2, inode: hash })
    }

    fn dir(&self) -> Result<Arc<dyn OpenDir>> {
        Ok(Arc::new(Top { bucket: self.bucket.clone(), key: self.key.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenDir>> {
        Ok(Arc::new(self.committed(name).ok_or(io::ErrorKind::NotFound)?))
    }

    fn scan(&self) -> Result<Scan> {
        let mut scan = Scan::default();
        for entry in self.dir()?.list().unwrap() {
            let name = entry.name.into_string().unwrap();
            match (entry.kind, before_aside(&name)) {
                (Kind::Directory, Some((aside, _))) => scan.aside.push((aside, name.clone())),
                (Kind::Directory, None) => scan.checkpoints.push(name.clone()),
                _ => {}
            }
            scan.names.insert(name);
        }
        let used: BTreeSet<String> =
            scan.names.iter().filter_map(|name| Some(self.committed(name)?.files.clone())).collect();
        let all = self.files("");
        let files = self.bucket.list(all.trim_end_matches('/'));
        let at = |key: &String| key[all.len() - 1..].split('/').find(|part| !part.is_empty()).map(str::to_string);
        let leftovers: BTreeSet<String> = files.iter().filter_map(at).collect();
        scan.leftovers = leftovers.into_iter().filter(|at| !used.contains(&self.files(at))).collect();
        Ok(scan)
    }

    fn scan_for_writing(&self) -> Result<Scan> {
        self.scan()
    }

    fn create(&self) -> Result<()> {
        Ok(())
    }

    fn check_process(&self) -> Result<()> {
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn check_name(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Lock> {
        let key = format!("{}.lock", self.key);
        match self.bucket.create(&key, b"held") {
            true => Ok(Lock::new(Arc::new(Held(self.bucket.clone(), key)))),
            false => Err(Error::locked(&self.root, "another writer")),
        }
    }

    fn begin(&self, name: &str, _bytes: u64) -> Result<Box<dyn Transaction + '_>> {
        let at = format!("{:032x}", self.bucket.tags.fetch_add(1, Ordering::SeqCst));
        Ok(Box::new(Writing { prefix: self, name: name.to_string(), at, done: false }))
    }

    fn remove(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool> {
        let Some(checkpoint) = self.committed(name) else { return Ok(true) };
        let commit = self.bucket.get(&checkpoint.commit).unwrap_or_default();
        match Manifest::from_bytes(&commit[AT.min(commit.len())..]) {
            Ok(manifest) if (&manifest.run, manifest.sequence) == (&id.run, id.sequence) => {}
            Ok(_) => return Ok(true),
            Err(_) => return self.quarantine(name, Aside::Damaged).map(|_| true),
        }
        Ok(self.delete(&checkpoint, &commit, stays))
    }

    fn discard(&self, aside: &str, stays: Stays<'_>) -> Result<bool> {
        if !matches!(before_aside(aside), Some((Aside::Damaged, _))) {
            return Ok(false);
        }
        let Some(checkpoint) = self.committed(aside) else { return Ok(true) };
        let commit = self.bucket.get(&checkpoint.commit).unwrap_or_default();
        Ok(self.delete(&checkpoint, &commit, stays))
    }

    fn quarantine(&self, name: &str, aside: Aside) -> Result<String> {
        let new = aside.new_name(name);
        self.rename(name, &new).map(|()| new)
    }

    fn release(&self, aside: &str, name: &str) -> Result<()> {
        self.rename(aside, name)
    }

    fn put_small(&self, file: &str, bytes: &[u8]) -> Result<()> {
        self.bucket.put(&self.commit(file), bytes);
        Ok(())
    }

    fn put_mark(&self, checkpoint: &str, of: &Follows, file: &str, bytes: &[u8]) -> Result<()> {
        let key = self.mark(checkpoint, of, file)?;
        self.bucket.put(&key, bytes);
        // Whoever removes it reads the marks after its commit is gone: one of the two sees the other.
        self.mark(checkpoint, of, file).map(drop)
    }

    fn remove_mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<bool> {
        let key = self.mark(checkpoint, of, file)?;
        let was_there = self.bucket.get(&key).is_some();
        self.bucket.delete(&key);
        Ok(was_there)
    }

    fn sync_marks(&self, _checkpoint: &str, _of: &Follows) -> Result<()> {
        Ok(())
    }

    fn remove_files(&self, checkpoint: &str, of: &Follows, files: &[String]) -> Result<()> {
        for file in files {
            self.bucket.delete(&self.mark(checkpoint, of, file)?);
        }
        Ok(())
    }

    fn sweep_marks(&self, _checkpoint: &str) {}

    fn remove_small(&self, file: &str) {
        self.bucket.delete(&self.commit(file));
    }

    fn sweep(&self, leftovers: &[String]) {
        leftovers.iter().for_each(|at| self.delete_files(&self.files(at)));
    }
}

struct Writing<'a> {
    prefix: &'a Prefix,
    name: String,
    /// Where its files are.
    at: String,
    done: bool,
}

impl Transaction for Writing<'_> {
    fn create(&self, file: &str, _bytes: u64) -> Result<Box<dyn StagedFile + '_>> {
        let key = format!("{}{file}", self.prefix.files(&self.at));
        Ok(Box::new(Upload { bucket: &self.prefix.bucket, key, parts: Mutex::default() }))
    }

    fn reuse(&self, file: &str, _earlier: &str, _finished: &Finished) -> Result<()> {
        Err(Error::object(file, "a store has no links"))
    }

    fn commit(
        mut self: Box<Self>,
        manifest: &[u8],
        _threads: usize,
        supersedes: &[String],
    ) -> Result<Vec<(String, String)>> {
        let mut superseded: Vec<(String, String)> = Vec::new();
        for name in supersedes {
            let aside = Aside::Superseded.new_name(name);
            if self.prefix.rename(name, &aside).is_ok() {
                superseded.push((name.clone(), aside));
            }
        }
        let commit = [self.at.as_bytes(), manifest].concat();
        self.done = self.prefix.bucket.create(&self.prefix.commit(&self.name), &commit);
        if self.done {
            return Ok(superseded);
        }
        superseded.iter().try_for_each(|(name, aside)| self.prefix.rename(aside, name))?;
        Err(Error::already_exists(self.prefix.root.join(&self.name)))
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.prefix.delete_files(&self.prefix.files(&self.at));
        }
    }
}

/// A file whose bytes come in any order, and are uploaded in parts.
struct Upload<'a> {
    bucket: &'a Bucket,
    key: String,
    /// The bytes of each part, and how many of them are there.
    parts: Mutex<BTreeMap<usize, (Vec<u8>, usize)>>,
}

impl StagedFile for Upload<'_> {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let (part, begin) = (at / PART, at % PART);
            let (now, later) = rest.split_at(rest.len().min(PART - begin));
            let mut parts = self.parts.lock().unwrap();
            let (bytes, written) = parts.entry(part).or_default();
            bytes.resize(bytes.len().max(begin + now.len()), 0);
            bytes[begin..begin + now.len()].copy_from_slice(now);
            *written += now.len();
            (at, rest) = (at + now.len(), later);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, bytes: u64) -> Result<Finished> {
        let parts: Vec<(Vec<u8>, usize)> = self.parts.into_inner().unwrap().into_values().collect();
        // Every byte was written once, and none is missing.
        assert!(parts.iter().all(|(part, written)| part.len() == *written), "{}", self.key);
        let parts: Vec<Vec<u8>> = parts.into_iter().map(|(part, _)| part).collect();
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>() as u64, bytes, "{}", self.key);
        let tag = match &parts[..] {
            [] => self.bucket.put(&self.key, &[]),
            [whole] => self.bucket.put(&self.key, whole),
            parts => self.bucket.complete(&self.key, parts),
        };
        Ok(Finished::from(file(tag, bytes)))
    }
}

//! Options of a save.

use crate::name::matches;
use crate::parallel;
use crate::progress::{Observer, Progress};
use crate::repository::{Durability, OpenOptions, PAGE};

/// Options of a save: durability, threads, sizes, and what is recorded about values. Passed to
/// [`Checkpoint::save_with`](crate::Checkpoint::save_with), [`Checkpoint::write_with`](crate::Checkpoint::write_with)
/// and [`CheckpointManagerBuilder::save_options`](crate::CheckpointManagerBuilder::save_options).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let dir = directory.path();
/// use tch_checkpoint::{Checkpoint, Counter, Durability, Health, SaveOptions};
///
/// let options = SaveOptions::new().durability(Durability::ProcessCrash).health(Health::Statistics).threads(2);
/// let mut checkpoint = Checkpoint::new().track("step", Counter::new(1))?;
/// checkpoint.save_with(dir.join("ckpt"), &options)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use = "options have no effect until they are given to a save"]
pub struct SaveOptions {
    pub(crate) durability: Durability,
    /// Whether the lock of the directory is taken.
    pub(crate) lock: bool,
    /// Threads that write.
    pub(crate) threads: usize,
    /// Bytes gathered, digested and written at a time, in whole pages; `None` depends on the length of the file.
    pub(crate) chunk_bytes: Option<usize>,
    /// A component larger than this is split into several files.
    pub(crate) max_file_bytes: u64,
    /// What is recorded about the values of float tensors.
    pub(crate) health: Health,
    /// Patterns of keys of tensors of which nothing is recorded.
    health_exceptions: Vec<String>,
    pub(crate) observer: Observer,
}

impl Default for SaveOptions {
    fn default() -> Self {
        SaveOptions {
            durability: Durability::default(),
            lock: true,
            threads: parallel::default_threads(),
            chunk_bytes: None,
            max_file_bytes: 16 << 30,
            health: Health::default(),
            health_exceptions: Vec::new(),
            observer: Observer::default(),
        }
    }
}

impl SaveOptions {
    /// Returns the defaults.
    pub fn new() -> SaveOptions {
        SaveOptions::default()
    }

    /// Sets what a finished save survives. Defaults to [`Durability::PowerLoss`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Takes no lock, for file systems without locks (`ENOLCK`, `ENOSYS`). Nothing then prevents two writers, in this
    /// process or another, from writing to the directory at the same time and removing each other's checkpoints.
    pub fn without_lock(mut self) -> Self {
        self.lock = false;
        self
    }

    /// Sets how many threads write. Defaults to one per processor, at most 8.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sets how many bytes a thread gathers, digests and writes at a time, rounded up to pages of 4 KiB, at most 1 GiB.
    /// Defaults to 4 MiB, and to 64 KiB for files under 8 MiB. Every writing thread needs memory for one such chunk.
    pub fn chunk_bytes(mut self, bytes: usize) -> Self {
        self.chunk_bytes = Some(bytes.clamp(1, 1 << 30).next_multiple_of(PAGE));
        self
    }

    /// Splits components of more than `bytes` bytes into several files (`encoder-00001-of-00003.safetensors`). Defaults
    /// to 16 GiB. A single tensor is never split.
    pub fn max_file_bytes(mut self, bytes: u64) -> Self {
        self.max_file_bytes = bytes.max(1);
        self
    }

    /// Sets what is recorded about the values of tensors of float types (F64, F32, F16, BF16, the F8 types except
    /// `F8_E8M0`, and C64). Defaults to [`Health::Finite`].
    pub fn health(mut self, health: Health) -> Self {
        self.health = health;
        self
    }

    /// Records nothing about the values of tensors whose key matches `pattern`, so that they never make a checkpoint
    /// unhealthy: for constants that hold infinite values on purpose, such as an attention mask. In a pattern, `*`
    /// matches any text, including `/`. Can be called several times. By default, every tensor counts, including
    /// buffers: a NaN in the statistics of batch normalization spoils an evaluation just like one in a weight.
    ///
    /// ```
    /// use tch_checkpoint::SaveOptions;
    /// let options = SaveOptions::new().health_except("model/*.attention_mask");
    /// # let _ = options;
    /// ```
    pub fn health_except(mut self, pattern: impl Into<String>) -> Self {
        self.health_exceptions.push(pattern.into());
        self
    }

    /// Sets a function that is called after every few megabytes of a save, on the threads that write, which it delays.
    pub fn on_progress(mut self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(report);
        self
    }

    /// Returns what is recorded about each of the tensors whose keys and places are given, `count` in all. A tensor
    /// with several keys is excepted under each of them.
    pub(crate) fn health_of<'a>(&self, keys: impl Iterator<Item = (&'a str, usize)>, count: usize) -> Vec<Health> {
        let mut each = vec![self.health; count];
        if !self.health_exceptions.is_empty() {
            let is_excepted = |key: &str| self.health_exceptions.iter().any(|pattern| matches(pattern, key));
            keys.filter(|(key, _)| is_excepted(key)).for_each(|(_, place)| each[place] = Health::Off);
        }
        each
    }

    /// Returns how the directory of checkpoints is opened.
    pub(crate) fn open_options(&self) -> OpenOptions {
        OpenOptions { durability: self.durability, lock: self.lock, ..OpenOptions::default() }
    }

    /// Returns how the bytes are divided.
    pub(crate) fn layout(&self) -> Layout {
        Layout { threads: self.threads, chunk_bytes: self.chunk_bytes, max_file_bytes: self.max_file_bytes }
    }
}

/// The options that determine how the bytes of a save are divided into files and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub threads: usize,
    pub chunk_bytes: Option<usize>,
    pub max_file_bytes: u64,
}

impl Default for Layout {
    fn default() -> Layout {
        SaveOptions::default().layout()
    }
}

/// What a save records about the values of tensors of float types, in the pass that digests them.
///
/// ```
/// use tch_checkpoint::{Health, SaveOptions};
/// let options = SaveOptions::new().health(Health::Statistics).health_except("model/*mask");
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Health {
    /// Records nothing. No checkpoint counts as unhealthy.
    Off,
    /// Records which tensors have values that are NaN or infinite: how many, and the norm of the others.
    #[default]
    Finite,
    /// Records the norm, the minimum, the maximum and the number of non-finite values of every tensor. Adds about 60
    /// bytes per tensor to the manifest.
    Statistics,
}

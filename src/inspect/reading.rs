//! Reading the elements of tensors in pieces, on several threads.

use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::format::Hasher;
use crate::parallel;
use crate::source::{TensorSource, VerifiedBy, no_such_tensor};
use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// The length of a piece in bytes: whole elements of every type, and few enough to stay in the core's cache.
pub(super) const CHUNK: u64 = 512 << 10;

/// A tensor that is to be read: of one source, or of several, where it has one type and shape.
pub(super) struct Wanted<'a, const N: usize> {
    pub(super) key: &'a str,
    pub(super) sources: [&'a dyn TensorSource; N],
}

impl<const N: usize> Wanted<'_, N> {
    /// Returns type and shape, if there is such a tensor.
    pub(super) fn spec(&self) -> Option<&TensorSpec> {
        self.sources.first().and_then(|source| source.tensors().get(self.key))
    }

    /// Returns the number of bytes of the tensor in one source.
    pub(super) fn bytes(&self) -> u64 {
        self.spec().and_then(TensorSpec::bytes).unwrap_or(u64::MAX)
    }
}

/// What is computed from the elements of a tensor, piece by piece.
pub(super) trait Part: Default + Send {
    /// Adds what was computed from the next piece.
    fn append(&mut self, next: Self);
}

/// Reads tensors in pieces, and verifies them as far as each source allows. Calls `piece` with the number of the
/// tensor, its type and the elements of a piece in each source, little-endian; then `finish` with the number of the
/// tensor and the parts of all its pieces, which were appended in order. Returns the results in the order of `wanted`.
///
/// Each thread begins with a tensor of its own. When none is left, it helps with those that the others read, so that a
/// single large tensor takes all threads too. The pieces of a tensor do not depend on the number of threads, and
/// neither does the result.
///
/// # Errors
/// The first error that a thread meets ends all of them.
pub(super) fn fold<T: Part, R: Send, const N: usize>(
    wanted: &[Wanted<'_, N>],
    threads: usize,
    piece: impl Fn(usize, Dtype, [&[u8]; N]) -> T + Sync,
    finish: impl Fn(usize, T) -> R + Sync,
) -> Result<Vec<R>> {
    let tensors = wanted.iter().map(Tensor::new).collect();
    let fold = Fold { tensors, begun: AtomicUsize::new(0), failed: AtomicBool::new(false), piece, finish };
    let workers: Vec<usize> = (0..threads.max(1)).collect();
    parallel::for_each(
        &workers,
        threads,
        || array::from_fn(|_| Vec::new()),
        |_, buffers| {
            let _ends_all = Panics(&fold.failed);
            fold.run(buffers).inspect_err(|_| fold.failed.store(true, Ordering::Relaxed))
        },
    )?;
    // Without an error there is a result for every tensor.
    Ok(fold.tensors.into_iter().filter_map(Tensor::result).collect())
}

/// Ends the other threads, too, if this one panics.
struct Panics<'a>(&'a AtomicBool);

impl Drop for Panics<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The tensors that several threads read.
struct Fold<'a, T, R, P, F, const N: usize> {
    tensors: Vec<Tensor<'a, T, R, N>>,
    /// How many tensors were begun.
    begun: AtomicUsize,
    /// Set by the first thread that fails.
    failed: AtomicBool,
    piece: P,
    finish: F,
}

impl<T: Part, R, P, F, const N: usize> Fold<'_, T, R, P, F, N>
where
    P: Fn(usize, Dtype, [&[u8]; N]) -> T,
    F: Fn(usize, T) -> R,
{
    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Reads until there is nothing left to read.
    fn run(&self, buffers: &mut [Vec<u8>; N]) -> Result<()> {
        while !self.has_failed() {
            let begun = self.begun.fetch_add(1, Ordering::Relaxed);
            match self.tensors.get(begun) {
                Some(tensor) => self.read(begun, tensor, buffers)?,
                None => break,
            }
        }
        while !self.has_failed() {
            let of_others = self.tensors.iter().enumerate();
            let of_others = of_others.filter(|(_, tensor)| tensor.left().is_none_or(|left| left > 0));
            // One that is still being opened is the last choice.
            match of_others.max_by_key(|(_, tensor)| tensor.left()) {
                Some((number, tensor)) => self.read(number, tensor, buffers)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Reads pieces of the tensor `number` until none is left to begin.
    fn read(&self, number: usize, tensor: &Tensor<'_, T, R, N>, buffers: &mut [Vec<u8>; N]) -> Result<()> {
        let Some(opened) = tensor.open()? else { return Ok(()) };
        let Wanted { key, sources } = tensor.wanted;
        while !self.has_failed() {
            let next = tensor.next.fetch_add(1, Ordering::Relaxed);
            if next >= opened.pieces {
                break;
            }
            let mut taken = Taken { tensor, failed: &self.failed, is_done: false };
            let begin = next * opened.in_piece;
            let range = begin..(begin + opened.in_piece).min(opened.count);
            let bytes = (range.end - range.start) as usize * opened.dtype.size();
            for (source, buffer) in sources.iter().zip(buffers.iter_mut()) {
                if buffer.len() < bytes {
                    buffer.resize(bytes, 0);
                }
                if bytes > 0 {
                    source.read_range(key, range.clone(), &mut buffer[..bytes])?;
                }
            }
            let read = array::from_fn(|i| &buffers[i][..bytes]);
            let part = (self.piece)(number, opened.dtype, read);
            let Some(mut turn) = tensor.wait_for(next, &self.failed) else { break };
            for (hasher, read) in turn.hashers.iter_mut().zip(read) {
                if let Some(hasher) = hasher {
                    hasher.update(read);
                }
            }
            turn.part.get_or_insert_default().append(part);
            turn.done += 1;
            if turn.done == opened.pieces {
                tensor.check(&mut turn)?;
                let part = turn.part.take().unwrap_or_default();
                turn.result = Some((self.finish)(number, *part));
            }
            taken.is_done = true;
            drop(turn);
            tensor.turned.notify_all();
        }
        Ok(())
    }
}

/// A tensor that several threads may read.
struct Tensor<'a, T, R, const N: usize> {
    wanted: &'a Wanted<'a, N>,
    /// `None` inside if it could not be opened.
    opened: OnceLock<Option<Opened>>,
    /// The first piece that no thread has taken.
    next: AtomicU64,
    turn: Mutex<Turn<T, R, N>>,
    turned: Condvar,
}

/// What is known of a tensor before its elements are read.
#[derive(Clone, Copy)]
struct Opened {
    dtype: Dtype,
    /// The number of elements, and that of each piece but the last.
    count: u64,
    in_piece: u64,
    /// At least one, even if there are no elements.
    pieces: u64,
}

/// What the pieces of a tensor add up to, one after the other.
struct Turn<T, R, const N: usize> {
    /// The number of pieces that were added.
    done: u64,
    hashers: [Option<Box<Hasher>>; N],
    part: Option<Box<T>>,
    result: Option<R>,
}

impl<'a, T: Part, R, const N: usize> Tensor<'a, T, R, N> {
    fn new(wanted: &'a Wanted<'a, N>) -> Tensor<'a, T, R, N> {
        let turn = Turn { done: 0, hashers: array::from_fn(|_| None), part: None, result: None };
        let (opened, next) = (OnceLock::new(), AtomicU64::new(0));
        Tensor { wanted, opened, next, turn: Mutex::new(turn), turned: Condvar::new() }
    }

    fn result(self) -> Option<R> {
        self.turn.into_inner().unwrap_or_else(PoisonError::into_inner).result
    }

    fn turn(&self) -> MutexGuard<'_, Turn<T, R, N>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many pieces no thread has taken; `None` if the tensor was not opened.
    fn left(&self) -> Option<u64> {
        let pieces = self.opened.get()?.map_or(0, |opened| opened.pieces);
        Some(pieces.saturating_sub(self.next.load(Ordering::Relaxed)))
    }

    /// Prepares for reading, if no thread has done that, and waits for the one that is doing it. Returns `None` if
    /// another thread met an error.
    fn open(&self) -> Result<Option<&Opened>> {
        let mut error = None;
        let opened = self.opened.get_or_init(|| self.try_open().map_err(|own| error = Some(own)).ok());
        error.map_or(Ok(opened.as_ref()), Err)
    }

    /// Prepares for reading. A checksum of a container is over more than the elements, so it is verified first.
    fn try_open(&self) -> Result<Opened> {
        let key = self.wanted.key;
        let mut turn = self.turn();
        // Without a source there are no elements.
        let (mut dtype, mut bytes) = (Dtype::U8, 0);
        for (source, hasher) in self.wanted.sources.iter().zip(&mut turn.hashers) {
            let spec = source.tensors().get(key).ok_or_else(|| no_such_tensor(*source, key))?;
            let too_large = || Error::out_of_memory(format!("the tensor {key}"), None::<u64>);
            bytes = spec.bytes().ok_or_else(too_large)?;
            dtype = spec.dtype;
            *hasher = source.digest(key).map(|_| Box::new(Hasher::new()));
            if hasher.is_none() && source.verified_by(key) != VerifiedBy::Nothing {
                source.verify_tensor(key)?;
            }
        }
        let size = dtype.size() as u64;
        let count = bytes / size;
        let in_piece = CHUNK / size;
        Ok(Opened { dtype, count, in_piece, pieces: count.div_ceil(in_piece).max(1) })
    }

    /// Waits until all pieces before `piece` were added. Returns `None` if that will not come to be.
    fn wait_for(&self, piece: u64, failed: &AtomicBool) -> Option<MutexGuard<'_, Turn<T, R, N>>> {
        let mut turn = self.turn();
        while turn.done != piece {
            if failed.load(Ordering::Relaxed) {
                return None;
            }
            turn = self.turned.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        Some(turn)
    }

    /// Compares the digests of all that was read.
    fn check(&self, turn: &mut Turn<T, R, N>) -> Result<()> {
        let key = self.wanted.key;
        for (source, hasher) in self.wanted.sources.iter().zip(&mut turn.hashers) {
            let Some(hasher) = hasher.take() else { continue };
            if source.digest(key) != Some(hasher.finish()) {
                // Returns the error, unless it was temporary.
                source.verify_tensor(key)?;
                return Err(Error::damaged(source.path(), format!("the tensor {key:?} changed while it was read")));
            }
        }
        Ok(())
    }
}

/// A piece that a thread has taken. The others do not wait for it any longer when it is given up, for whatever reason.
struct Taken<'a, T: Part, R, const N: usize> {
    tensor: &'a Tensor<'a, T, R, N>,
    failed: &'a AtomicBool,
    is_done: bool,
}

impl<T: Part, R, const N: usize> Drop for Taken<'_, T, R, N> {
    fn drop(&mut self) {
        if !self.is_done {
            self.failed.store(true, Ordering::Relaxed);
            // Whoever has looked at the flag is waiting by then.
            drop(self.tensor.turn());
            self.tensor.turned.notify_all();
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

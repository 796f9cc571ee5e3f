//! A tensor in plain memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch_checkpoint::{Dtype, TensorSpec};
use tch_checkpoint::{Identity, Node, TensorBytes, TensorLeaf, TensorTarget, Trackable};

/// Bytes that are saved and restored as a tensor, with a version counter. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Mutex<Bytes>>);

#[derive(Debug)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
    dtype: Dtype,
    is_plain: bool,
    version: u64,
}

impl std::ops::Deref for Bytes {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl Memory {
    pub(super) fn new(bytes: Vec<u8>) -> Memory {
        Memory::of(Dtype::U8, bytes)
    }

    /// Returns a tensor with elements of this type.
    pub(super) fn of(dtype: Dtype, bytes: Vec<u8>) -> Memory {
        Memory(Arc::new(Mutex::new(Bytes { bytes, dtype, is_plain: false, version: 0 })))
    }

    /// Returns a tensor whose memory is read in place, like that of large ones.
    pub(super) fn plain(bytes: Vec<u8>) -> Memory {
        let memory = Memory::new(bytes);
        memory.get().is_plain = true;
        memory
    }

    pub(super) fn get(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the bytes. The version increases only if they differ.
    pub(super) fn set(&self, bytes: Vec<u8>) {
        let mut memory = self.get();
        if memory.bytes != bytes {
            memory.bytes = bytes;
            memory.version += 1;
        }
    }
}

impl Trackable for Memory {
    fn node(&self) -> Node {
        Node::tensor(self.clone())
    }
}

impl TensorLeaf for Memory {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        let memory = self.get();
        Ok(TensorSpec::new(memory.dtype, [(memory.len() / memory.dtype.size()) as u64]))
    }

    fn identity(&self) -> Option<Identity> {
        let address = Arc::as_ptr(&self.0) as usize;
        let spec = self.spec().ok()?;
        Some(Identity::new("memory", address, spec, Vec::new()))
    }

    fn is_plain_memory(&self) -> bool {
        self.get().is_plain
    }

    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn version(&self) -> Option<u64> {
        Some(self.get().version)
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        Ok(Box::new(self.get().bytes.clone()))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        Ok(Box::new(Target { tensor: self.clone(), buffer: vec![0; self.get().len()] }))
    }
}

struct Target {
    tensor: Memory,
    buffer: Vec<u8>,
}

impl TensorTarget for Target {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn finish(self: Box<Self>) -> Result<(), tch_checkpoint::BoxError> {
        self.tensor.set(self.buffer);
        Ok(())
    }
}

//! A tensor in plain memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch_checkpoint::{Dtype, TensorSpec};
use tch_checkpoint::{Identity, Node, TensorBytes, TensorLeaf, TensorTarget, Trackable};

/// Bytes that are saved and restored as a tensor, and how often they were changed; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Mutex<Bytes>>);

#[derive(Debug)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
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
        Memory(Arc::new(Mutex::new(Bytes { bytes, version: 0 })))
    }

    pub(super) fn get(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the bytes; nothing happens when they are these already.
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
        Ok(TensorSpec::new(Dtype::U8, [self.get().len() as u64]))
    }

    fn identity(&self) -> Option<Identity> {
        let address = Arc::as_ptr(&self.0) as usize;
        let spec = self.spec().ok()?;
        Some(Identity::new("memory", address, spec, Vec::new()))
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

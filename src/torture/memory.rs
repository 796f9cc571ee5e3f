//! A tensor in plain memory.

use crate::dtype::{Dtype, TensorSpec};
use crate::graph::{Identity, Node, TensorBytes, TensorLeaf, TensorTarget, Trackable};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are saved and restored as a tensor; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    pub(super) fn new(bytes: Vec<u8>) -> Memory {
        Memory(Arc::new(Mutex::new(bytes)))
    }

    pub(super) fn get(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trackable for Memory {
    fn node(&self) -> Node {
        Node::tensor(self.clone())
    }
}

impl TensorLeaf for Memory {
    fn spec(&self) -> Result<TensorSpec, String> {
        Ok(TensorSpec::new(Dtype::U8, [self.get().len() as u64]))
    }

    fn identity(&self) -> Option<Identity> {
        None
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, String> {
        Ok(Box::new(self.get().clone()))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, String> {
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

    fn finish(self: Box<Self>) -> Result<(), String> {
        *self.tensor.get() = self.buffer;
        Ok(())
    }
}

//! Tensors in plain memory, so that everything except libtorch is tested without it; and helpers of tests with
//! libtorch.
#![allow(dead_code, reason = "each test uses a part")]

pub mod child;
pub mod documents;
pub mod python;
pub mod run;
pub mod sources;
pub mod steps;
pub mod table;

use std::sync::{Arc, Mutex, MutexGuard};
use tch_checkpoint::{Dtype, Identity, Node, TensorBytes, TensorLeaf, TensorSpec, TensorTarget, Trackable};

/// A tensor in plain memory; clones share it.
#[derive(Clone)]
pub struct Memory(pub Arc<Inner>);

pub struct Inner {
    spec: TensorSpec,
    bytes: Mutex<Vec<u8>>,
}

impl Memory {
    pub fn new(dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Memory {
        let spec = TensorSpec::new(dtype, shape);
        assert_eq!(spec.bytes(), Some(bytes.len() as u64));
        Memory(Arc::new(Inner { spec, bytes: Mutex::new(bytes) }))
    }

    pub fn f32(shape: &[u64], values: impl IntoIterator<Item = f32>) -> Memory {
        Memory::new(Dtype::F32, shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
    }

    /// `count` numbers that depend on `seed`.
    pub fn seeded(count: u64, seed: u64) -> Memory {
        // SplitMix64, so that neighbouring seeds have nothing in common.
        let number = |i: u64| {
            let mut x = (seed << 32).wrapping_add(i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x ^ (x >> 27)) >> 40) as f32
        };
        Memory::f32(&[count], (0..count).map(number))
    }

    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.bytes.lock().unwrap()
    }
}

impl Trackable for Memory {
    fn node(&self) -> Node {
        Node::tensor(self.clone())
    }
}

impl TensorLeaf for Memory {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        Ok(self.0.spec.clone())
    }

    fn identity(&self) -> Option<Identity> {
        let spec = self.0.spec.clone();
        let address = Arc::as_ptr(&self.0) as usize;
        (!self.bytes().is_empty()).then(|| Identity::new("memory", address, spec, vec![]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        Ok(Box::new(Memory::bytes(self).clone()))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        Ok(Box::new(Target { tensor: self.clone(), buffer: vec![0; Memory::bytes(self).len()] }))
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
        *self.tensor.bytes() = self.buffer;
        Ok(())
    }
}

/// A tensor whose version never changes, so that a save can link the file of the previous checkpoint.
#[derive(Clone)]
pub struct Frozen(pub Memory);

impl TensorLeaf for Frozen {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        self.0.spec()
    }

    fn identity(&self) -> Option<Identity> {
        self.0.identity()
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        TensorLeaf::bytes(&self.0)
    }

    fn version(&self) -> Option<u64> {
        Some(1)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        self.0.target()
    }
}

/// Serializes the tests of a file: libtorch's random state belongs to the process, and creating a layer draws from it,
/// so that if one test depends on it, all tests of the file must call this first.
pub fn turn() -> MutexGuard<'static, ()> {
    static RANDOM: Mutex<()> = Mutex::new(());
    RANDOM.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

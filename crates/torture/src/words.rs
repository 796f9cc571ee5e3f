//! Tensors that are copied word by word, so that a torn copy is noticed, and an optimizer that changes them.

#[cfg(shuttle)]
use shuttle::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
#[cfg(not(shuttle))]
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::{
    Child, Collection, Gate, Guarded, Identity, Node, TensorBytes, TensorLeaf, TensorTarget, Trackable,
};
use tch_checkpoint::{Dtype, TensorSpec};

/// A tensor whose words can be changed at any time. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Words(Arc<[AtomicU64]>);

impl Words {
    pub(super) fn new(count: usize) -> Words {
        Words((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// Sets every word.
    pub(super) fn fill(&self, stamp: u64) {
        self.0.iter().for_each(|word| word.store(stamp, Ordering::Relaxed));
    }
}

impl TensorLeaf for Words {
    fn spec(&self) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        Ok(TensorSpec::new(Dtype::I64, [self.0.len() as u64]))
    }

    fn identity(&self) -> Option<Identity> {
        let address = self.0.as_ptr() as usize;
        Some(Identity::new("memory", address, self.spec().ok()?, vec![1]))
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, tch_checkpoint::BoxError> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        Ok(Box::new(bytes))
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, tch_checkpoint::BoxError> {
        Err("it is only saved".into())
    }
}

impl Trackable for Words {
    fn node(&self) -> Node {
        Node::tensor(self.clone())
    }
}

/// Changes its tensors after passing its gate.
#[derive(Debug, Clone)]
pub(super) struct Optimizer {
    pub gate: Gate,
    pub tensors: Vec<Words>,
}

impl Optimizer {
    pub(super) fn new(words: &[usize]) -> Optimizer {
        Optimizer { gate: Gate::new(), tensors: words.iter().map(|&count| Words::new(count)).collect() }
    }

    pub(super) fn step(&self, stamp: u64) {
        self.gate.pass();
        self.overwrite(stamp);
    }

    /// Changes its tensors without passing its gate.
    pub(super) fn overwrite(&self, stamp: u64) {
        self.tensors.iter().for_each(|tensor| tensor.fill(stamp));
    }
}

impl Collection for Optimizer {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(self.tensors.iter().enumerate().map(|(i, tensor)| Child::new(i.to_string(), tensor.node())).collect())
    }

    fn guarded(&self) -> Option<Guarded> {
        let addresses = self.tensors.iter().filter_map(|tensor| Some(tensor.identity()?.address));
        Some(Guarded::new(self.gate.clone(), addresses))
    }

    fn generation(&self) -> Option<u64> {
        Some(0)
    }
}

impl Trackable for Optimizer {
    fn node(&self) -> Node {
        Node::collection(self.clone())
    }
}

/// Returns the words of a tensor's saved bytes that are not `stamp`.
pub(super) fn others(bytes: &[u8], stamp: u64) -> Vec<u64> {
    let words = bytes.chunks_exact(8).filter_map(|word| word.first_chunk()).map(|word| u64::from_le_bytes(*word));
    words.filter(|&word| word != stamp).collect()
}

//! A writer like an optimizer, which only counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::{BoxError, Child, Collection, Gate, Guarded, Node, ValueApply, ValueLeaf};

/// What a gated writer changes: here, the number of its steps.
#[derive(Clone, Default)]
pub struct Steps(pub Arc<AtomicU64>);

impl Collection for Steps {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        Ok(vec![Child::new("steps", Node::value(self.clone()))])
    }

    fn guarded(&self) -> Option<Guarded> {
        Some(Guarded::new(Gate::default(), []))
    }
}

impl ValueLeaf for Steps {
    fn save(&self) -> Result<serde_json::Value, BoxError> {
        Ok(self.0.load(Ordering::SeqCst).into())
    }

    fn load(&self, _: &serde_json::Value) -> Result<ValueApply, BoxError> {
        Err("read only".into())
    }
}

//! The tensors of a part of a checkpoint.

use super::tensor::Leaf;
use crate::error::Result;
use crate::graph::{LeafObject, Trackable, walk};
use crate::part::Part;
use std::collections::BTreeMap;
use tch::Tensor;

impl Part {
    /// Returns its tensors, by their names below it; a tensor that is tracked itself has the empty name. They are live
    /// handles: changing one in place changes the object. Tensors of other libraries are left out.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// let encoder = checkpoint.get("encoder").ok_or("no encoder is tracked")?.tensors()?;
    /// println!("{:?}", encoder["weight"].size());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object) names what cannot be saved, and why.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let below = |key: &str| key.split_once('/').map_or("", |(_, below)| below).to_string();
        let leaves = walk(&[(self.name().to_string(), self.node())])?.leaves;
        let tensors = leaves.into_iter().filter_map(|leaf| match &leaf.object {
            LeafObject::Tensor(tensor) => Some((below(&leaf.key), tensor.as_any()?.downcast_ref::<Leaf>()?.share())),
            LeafObject::Value(_) => None,
        });
        Ok(tensors.collect())
    }
}

//! Decides whether a state is already saved, by its values and digests, not by version counters.

use super::Plan;
use crate::error::{Error, Result};
use crate::format::{Digest, Manifest, TensorRecord};
use crate::graph::Seen;
use crate::parallel;
use std::sync::atomic::{AtomicBool, Ordering};

/// Returns `true` if a save of `plan` now, with its tensors as they are `seen`, would write what `manifest` has.
pub(crate) fn is_saved(plan: &Plan, seen: &[Seen], manifest: &Manifest, threads: usize) -> Result<bool> {
    let record = |key: &str| manifest.tensors.get(key);
    let of = |place: usize| plan.tensors.get(place).and_then(|tensor| record(&tensor.key));
    let tied = plan
        .aliases
        .iter()
        .all(|(key, place)| record(key).zip(of(*place)).is_some_and(|(alias, tensor)| alias.pieces == tensor.pieces));
    if !tied || plan.tensors.len() + plan.aliases.len() != manifest.tensors.len() || plan.values()? != manifest.values {
        return Ok(false);
    }
    let mut pairs = Vec::with_capacity(plan.tensors.len());
    for tensor in &plan.tensors {
        match record(&tensor.key) {
            Some(record) if record.spec == tensor.spec => pairs.push((tensor, record)),
            _ => return Ok(false),
        }
    }
    let same_flag =
        |(key, now): (&String, &Seen)| record(key).is_some_and(|record| record.requires_grad == now.requires_grad());
    if !plan.keys().zip(seen).all(same_flag) {
        return Ok(false);
    }
    let differs = AtomicBool::new(false);
    let compare = |(tensor, record): &(&super::plan::PlannedTensor, &TensorRecord), (): &mut ()| {
        if !differs.load(Ordering::Relaxed) {
            let bytes = tensor.leaf.bytes().map_err(|reason| Error::object(&tensor.key, reason))?;
            differs.fetch_or(Digest::of(bytes.as_slice()) != record.digest, Ordering::Relaxed);
        }
        Ok(())
    };
    parallel::for_each(&pairs, threads, || (), compare)?;
    Ok(!differs.into_inner())
}

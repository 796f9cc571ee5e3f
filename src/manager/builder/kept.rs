//! The settings that determine which checkpoints are kept.

use super::CheckpointManagerBuilder;
use crate::error::{Error, Result};
use crate::manager::retention::{Every, Latest, Retention, RetentionPolicy};
use crate::name::nearest_hint;
use crate::sync::Arc;
use std::time::Duration;

impl CheckpointManagerBuilder {
    /// Sets the maximum number of checkpoints to keep, with the policy [`Latest`](crate::retention::Latest). `None`
    /// keeps all. Defaults to 5, or to the policies that were added with [`keep`](CheckpointManagerBuilder::keep).
    ///
    /// Checkpoints that a run abandoned when it [went back](crate::CheckpointManager#going-back) are kept until this
    /// number of newer ones are complete (1 if only policies are given).
    #[must_use]
    pub fn max_to_keep(mut self, keep: impl Into<Option<usize>>) -> Self {
        self.max_to_keep = Some(keep.into());
        self
    }

    /// Adds a [retention policy](crate::retention). A checkpoint is kept if any of the policies keeps it, including
    /// `max_to_keep` and `keep_every`.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tch_checkpoint::Error> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::CheckpointManager;
    /// use tch_checkpoint::retention::{Best, Goal};
    /// // The newest 2, and the 3 with the highest accuracy.
    /// let manager = CheckpointManager::builder(checkpoint, "checkpoints/run")
    ///     .max_to_keep(2)
    ///     .keep(Best::new("accuracy", Goal::Maximize, 3))
    ///     .open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn keep(mut self, policy: impl RetentionPolicy + 'static) -> Self {
        self.policies.push(Arc::new(policy));
        self
    }

    /// Keeps one checkpoint per `interval` permanently, with the policy [`Every`](crate::retention::Every), which
    /// follows the rule of TensorFlow's `keep_checkpoint_every_n_hours`. Of the others, the newest `max_to_keep` are
    /// kept.
    ///
    /// A permanent checkpoint is marked in its own directory (`mark-permanent.json`), so that neither the loss of the
    /// index nor a manager of another name forgets it.
    #[must_use]
    pub fn keep_every(mut self, interval: Duration) -> Self {
        self.keep_every = Some(interval);
        self
    }

    /// Sets how many newer checkpoints must exist before the checkpoint that a run was restored from may be removed.
    /// Defaults to 1; 0 does not protect it. A number that the policies never reach protects it for the whole run. If the run
    /// goes back to a checkpoint that its own process has saved, that one is protected until the process ends.
    #[must_use]
    pub fn protect_restored(mut self, newer: usize) -> Self {
        self.protect_restored = newer;
        self
    }

    /// Keeps `component` only in the newest `keep` checkpoints that have it, and removes it from older ones. This is
    /// meant for the optimizer, whose state takes twice the space of the weights and is needed only to resume. Can be
    /// set for several components. By default, every checkpoint keeps all components.
    ///
    /// Such a checkpoint is *thinned*: a mark in its directory says so durably before the component's files are
    /// removed. It verifies as intact, and its other components are restored as exactly as before. It lacks the
    /// component ([`CheckpointInfo::without`](crate::retention::CheckpointInfo)), so no run is resumed from it unless
    /// the component is [skipped](crate::RestoreOptions::skip).
    ///
    /// These checkpoints keep all components: the newest one and the newest healthy one, the one that the run was
    /// [restored from](CheckpointManagerBuilder::protect_restored) while that protects it, those that are pinned, and
    /// unhealthy ones, which do not count. A component that shares tensors with other components is not removed. With
    /// `keep` 1, a run cannot be resumed if its newest checkpoint is damaged; use at least 2.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path().join("run");
    /// use tch_checkpoint::retention::EveryNSteps;
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// # let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// // Every thousandth checkpoint stays for good; only the newest 2 can be resumed.
    /// let manager = CheckpointManager::builder(checkpoint, &dir)
    ///     .max_to_keep(5)
    ///     .keep(EveryNSteps(1000))
    ///     .keep_component("optimizer", 2)
    ///     .open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn keep_component(mut self, component: impl Into<String>, keep: usize) -> Self {
        self.keep_components.insert(component.into(), keep);
        self
    }

    /// Sets how many of the newest checkpoints with values that are NaN or infinite are kept. Defaults to 1. No policy
    /// counts or keeps such a checkpoint.
    #[must_use]
    pub fn keep_unhealthy(mut self, keep: usize) -> Self {
        self.keep_unhealthy = keep;
        self
    }

    /// Sets how many of the checkpoints that were found damaged and renamed (`damaged-…`) are kept: those with the
    /// highest numbers, also those without a manifest that an earlier process renamed. Defaults to 3; `None` keeps all, and so does `max_to_keep(None)`. Damaged checkpoints that are
    /// pinned, annotated or permanent are always kept. [Skipped](crate::CheckpointManager::pass_over) checkpoints are
    /// never removed.
    #[must_use]
    pub fn keep_damaged(mut self, keep: impl Into<Option<usize>>) -> Self {
        self.keep_damaged = keep.into();
        self
    }

    /// Logs the components that are to be removed and are not tracked. They may be tracked later.
    pub(super) fn look_at_components(&self) {
        let objects = self.checkpoint.objects();
        let tracked = || objects.iter().map(|(name, _)| name.as_str());
        for component in self.keep_components.keys().filter(|component| tracked().all(|name| name != *component)) {
            let hint = nearest_hint(component, tracked());
            log::warn!("keep_component({component:?}): no object of this name is tracked{hint}");
        }
    }

    pub(super) fn retention(&self) -> Result<Retention> {
        let usage = |text: String| Err(Error::InvalidArgument(text));
        if self.max_to_keep == Some(Some(0)) {
            return usage("max_to_keep is 0: it must be at least 1, or None to keep all".into());
        }
        if let Some((component, _)) = self.keep_components.iter().find(|(_, keep)| **keep == 0) {
            return usage(format!(
                "keep_component({component:?}, 0): it must be at least 1, for a run is resumed from the newest checkpoint"
            ));
        }
        if self.interval == Some(0) {
            return usage("save_every is 0: it must be at least 1 step".into());
        }
        if self.name.is_empty() || self.name.starts_with('.') || self.name.contains(['/', '\\', '\0']) {
            return usage(format!("checkpoint_name is {:?}: it must be a plain name such as \"ckpt\"", self.name));
        }
        if self.keep_every == Some(Duration::ZERO) {
            return usage("keep_every is 0: it must be a positive duration".into());
        }
        let mut policies = self.policies.clone();
        let default = || if policies.is_empty() { Some(5) } else { None };
        let latest = self.max_to_keep.unwrap_or_else(default);
        let superseded_after = if self.max_to_keep == Some(None) { None } else { Some(latest.unwrap_or(1)) };
        policies.extend(latest.map(|keep| Arc::new(Latest(keep)) as Arc<dyn RetentionPolicy>));
        policies.extend(self.keep_every.map(|every| Arc::new(Every(every)) as Arc<dyn RetentionPolicy>));
        let retention = Retention::new(policies, superseded_after).rules(self.rules);
        let retention = retention.protect_restored(self.protect_restored);
        let retention = retention.keep_components(self.keep_components.clone());
        let retention = retention.keep_unhealthy(self.keep_unhealthy).keep_damaged(self.keep_damaged);
        Ok(if superseded_after.is_none() { retention.keep_all() } else { retention })
    }
}

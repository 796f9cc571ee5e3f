//! Options of a report.

use crate::manager::retention::RetentionPolicy;
use crate::sync::Arc;

/// Sets what [`report`](super::report) reads.
///
/// ```
/// use tch_checkpoint::inspect::ReportOptions;
/// use tch_checkpoint::retention::Latest;
/// let options = ReportOptions::new().policy(Latest(3)).samples(50).tensors("encoder/*");
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReportOptions {
    pub(super) policies: Vec<Arc<dyn RetentionPolicy>>,
    pub(super) samples: usize,
    pub(super) tensors: Vec<String>,
}

impl Default for ReportOptions {
    fn default() -> ReportOptions {
        ReportOptions { policies: Vec::new(), samples: 200, tensors: Vec::new() }
    }
}

impl ReportOptions {
    /// Returns options that read all tensors of up to 200 checkpoints.
    #[must_use]
    pub fn new() -> ReportOptions {
        ReportOptions::default()
    }

    /// Adds a policy for [`kept_by`](super::ReportedCheckpoint::kept_by). Without policies, a checkpoint is kept only
    /// for reasons that do not depend on them: it is the newest, pinned, permanent, and so on.
    #[must_use]
    pub fn policy(self, policy: impl RetentionPolicy + 'static) -> Self {
        self.policies([Arc::new(policy) as Arc<dyn RetentionPolicy>])
    }

    /// Adds policies, as [`policy`](ReportOptions::policy) does.
    #[must_use]
    pub fn policies(mut self, policies: impl IntoIterator<Item = Arc<dyn RetentionPolicy>>) -> Self {
        self.policies.extend(policies);
        self
    }

    /// Sets the maximum number of checkpoints whose tensors are described, evenly spaced; the first and the last one
    /// are always among them. 0 reads no tensor. Lowered if there are so many tensors that their descriptions would
    /// need more than about 50 MB. Defaults to 200.
    #[must_use]
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Describes only tensors whose key matches; `*` matches any text, including `/`. Can be called several times, to
    /// select several groups. Defaults to all tensors.
    #[must_use]
    pub fn tensors(mut self, pattern: impl Into<String>) -> Self {
        self.tensors.push(pattern.into());
        self
    }
}

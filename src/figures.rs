//! The cost of a save: times and bytes.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The cost of a save: how long it stalled the training, how long it took until the checkpoint was durable, and how
/// many bytes were written and linked.
///
/// [`CheckpointManager::last_save_figures`](crate::CheckpointManager::last_save_figures) and
/// [`Checkpoint::last_save_figures`](crate::Checkpoint::last_save_figures) return the figures of the last save,
/// [`SavedCheckpoint`](crate::SavedCheckpoint) has those of its checkpoint, and the
/// [manifest](crate::format::Manifest::figures) records them. `ckpt ls`, `show` and `report` display them. All times
/// are measured with a monotonic clock.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let dir = directory.path();
/// use tch_checkpoint::{Background, Checkpoint, CheckpointManager, CheckpointReader, Counter};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
/// let mut manager = CheckpointManager::builder(checkpoint, dir).background(Background::new()).open()?;
/// let path = manager.save_at(7)?;
/// manager.wait()?;
/// let figures = manager.last_save_figures().ok_or("nothing was saved")?;
/// assert!(figures.stall <= figures.total);
/// let recorded = CheckpointReader::open(path)?.manifest().figures.ok_or("not recorded")?;
/// assert_eq!(recorded.bytes_written, figures.bytes_written);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SaveFigures {
    /// The time for which training waited: with a [background save](crate::CheckpointManagerBuilder::background), until
    /// the call returned; otherwise the same as [`total`](Self::total). Includes [`waited`](Self::waited).
    #[serde(rename = "stall_ns", with = "nanoseconds")]
    pub stall: Duration,
    /// The time from the call until the checkpoint was durable. Includes [`waited`](Self::waited). A manifest cannot
    /// record its own end: there, this is the time until the manifest was written, without the last sync and the
    /// rename.
    #[serde(rename = "total_ns", with = "nanoseconds")]
    pub total: Duration,
    /// The time that the call waited for the previous background save. Zero for all other saves.
    #[serde(rename = "waited_ns", with = "nanoseconds")]
    pub waited: Duration,
    /// Bytes of the files that were written, without the manifest.
    pub bytes_written: u64,
    /// Bytes of the files that were not written again because the previous checkpoint has the same ones: they are hard
    /// links in a file system.
    pub bytes_linked: u64,
}

impl SaveFigures {
    /// Returns the bytes written per second, not counting the time spent waiting for the previous save:
    /// [`bytes_written`](Self::bytes_written) / ([`total`](Self::total) − [`waited`](Self::waited)). `None` if no time
    /// has passed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tch_checkpoint::SaveFigures;
    /// let mut figures = SaveFigures::default();
    /// assert_eq!(figures.rate(), None);
    /// figures.bytes_written = 3_000_000;
    /// figures.total = Duration::from_millis(2500);
    /// figures.waited = Duration::from_millis(1000);
    /// assert_eq!(figures.rate(), Some(2e6));
    /// ```
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.total.saturating_sub(self.waited).as_secs_f64();
        (seconds > 0.0).then(|| self.bytes_written as f64 / seconds)
    }
}

/// Durations as whole nanoseconds, at most 2⁶⁴ − 1 (584 years).
mod nanoseconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_any_size_have_a_rate_and_a_text() {
        let longest = Duration::from_nanos(u64::MAX);
        let largest = SaveFigures {
            stall: longest,
            total: longest,
            waited: Duration::ZERO,
            bytes_written: u64::MAX,
            bytes_linked: u64::MAX,
        };
        let text = serde_json::to_string(&largest).unwrap();
        assert_eq!(serde_json::from_str::<SaveFigures>(&text).unwrap(), largest);
        assert!(largest.rate().unwrap().is_finite());
        // What a changed manifest may say: more waiting than there was time.
        assert_eq!(SaveFigures { waited: longest, total: Duration::ZERO, ..largest }.rate(), None);
        assert_eq!(
            serde_json::to_value(SaveFigures { total: Duration::MAX, ..largest }).unwrap()["total_ns"],
            u64::MAX
        );
    }
}

//! A checkpoint of a directory, selected by a short text: the newest, the best, a pinned one, a number, a name.

use super::directory::CheckpointDirectory;
use super::retention::{Best, CheckpointInfo, Goal};
use crate::catalog::numbered;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name::{nearest_hint, shown};
use crate::repository::Storage;
use crate::sync::Arc;

/// What a text selects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Selection<'a> {
    Latest,
    Best(&'a str, Goal),
    Pin(&'a str),
    Number(u64),
    Name(&'a str),
}

impl Selection<'_> {
    fn of(text: &str) -> Result<Selection<'_>> {
        if text == "latest" {
            return Ok(Selection::Latest);
        }
        if let Some(pin) = text.strip_prefix("pin:") {
            return Ok(Selection::Pin(pin));
        }
        if let Some(best) = text.strip_prefix("best:") {
            return match best.rsplit_once(':') {
                Some((metric, "min")) => Ok(Selection::Best(metric, Goal::Minimize)),
                Some((metric, "max")) => Ok(Selection::Best(metric, Goal::Maximize)),
                _ => Err(Error::InvalidArgument(format!(
                    "{} selects no checkpoint: write `best:METRIC:min` or `best:METRIC:max`",
                    shown(text)
                ))),
            };
        }
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        Ok(text.parse().ok().filter(|_| is_number).map_or(Selection::Name(text), Selection::Number))
    }
}

impl CheckpointDirectory {
    /// Returns the checkpoint that `selection` selects:
    ///
    /// | Selection | The checkpoint |
    /// |---|---|
    /// | `latest` | the newest healthy one |
    /// | `best:loss:min`, `best:accuracy:max` | the healthy one with the lowest or highest finite value of a metric; of two with the same value the newer one |
    /// | `pin:paper` | the one with this pin; of several, the newest |
    /// | `120` | the one with this number |
    /// | `ckpt-120` | the one with this name |
    ///
    /// [`initialize_from`](crate::CheckpointManagerBuilder::initialize_from) and
    /// [`inspect::Target::open`](crate::inspect::Target::open) accept such a selection as the last component of a path.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).open()?;
    /// for (step, loss) in [(10, 0.5), (20, 0.2), (30, 0.4)] {
    ///     manager.save_with_metrics(step, [("loss", loss)])?;
    /// }
    /// let run = CheckpointDirectory::new(&dir);
    /// run.pin("ckpt-10", "paper", "table 2")?;
    /// for (selection, name) in
    ///     [("latest", "ckpt-30"), ("best:loss:min", "ckpt-20"), ("pin:paper", "ckpt-10"), ("20", "ckpt-20")]
    /// {
    ///     assert_eq!(run.select(selection)?.name, name);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such checkpoint; [`Error::Damaged`], [`Error::Unsupported`] or [`Error::Io`] if
    /// that of the number cannot be read; [`Error::InvalidArgument`] for a goal other than `min` and `max`, and for a number
    /// that checkpoints of several names have; as for [`checkpoints`](CheckpointDirectory::checkpoints).
    pub fn select(&self, selection: &str) -> Result<CheckpointInfo> {
        let wanted = Selection::of(selection)?;
        if let Selection::Name(name) = wanted {
            return self.get(name);
        }
        self.existing()?;
        let mut found = self.checkpoints()?;
        let (place, reason) = match wanted {
            Selection::Latest => {
                (found.iter().rposition(CheckpointInfo::is_healthy), "no healthy checkpoint is there".to_string())
            }
            Selection::Best(metric, goal) => {
                let best = Best::new(metric, goal, 1).place(&found);
                let metrics = found.iter().flat_map(|info| info.metrics.keys()).map(String::as_str);
                let hint = nearest_hint(metric, metrics);
                let reason = format!("no healthy checkpoint has a finite value of the metric {}{hint}", shown(metric));
                (best, reason)
            }
            Selection::Pin(pin) => {
                let pins = found.iter().flat_map(|info| info.pins.keys()).map(String::as_str);
                let reason = format!("no checkpoint has the pin {}{}", shown(pin), nearest_hint(pin, pins));
                (found.iter().rposition(|info| info.pins.contains_key(pin)), reason)
            }
            Selection::Number(number) => {
                let of = |info: &CheckpointInfo| numbered(&info.name).is_some_and(|(_, of)| of == number);
                let (first, last) = (found.iter().position(of), found.iter().rposition(of));
                if let (Some(first), Some(last)) = (first, last)
                    && first != last
                {
                    let (one, other) = (&found[first].name, &found[last].name);
                    return Err(Error::InvalidArgument(format!(
                        "{one} and {other} have the number {number}: select one of them by its name"
                    )));
                }
                (last, format!("no checkpoint has the number {number}"))
            }
            Selection::Name(_) => (None, String::new()),
        };
        match place {
            Some(place) => Ok(found.swap_remove(place)),
            None => Err(self.not_selected(&wanted, reason)),
        }
    }

    /// Returns the error for a selection that no valid checkpoint is, because `reason`. It may be a damaged one.
    fn not_selected(&self, wanted: &Selection<'_>, reason: String) -> Error {
        let damaged = self.list().map(|listing| listing.damaged).unwrap_or_default();
        let is_wanted = |path: &Location| {
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(numbered).map(|(_, number)| number);
            matches!(wanted, Selection::Number(wanted) if number == Some(*wanted))
        };
        let count = damaged.len();
        match damaged.into_iter().find(|(path, _)| is_wanted(path)) {
            Some((_, error)) => error,
            None if count > 0 => {
                Error::not_found(self.location(), format!("{reason}; {count} are damaged or cannot be read"))
            }
            None => Error::not_found(self.location(), reason),
        }
    }
}

/// Returns the checkpoint that the last component of `path` selects in its parent directory, if it is a selection other
/// than a name.
///
/// # Errors
/// As for [`CheckpointDirectory::select`].
pub(crate) fn selected(storage: &Arc<dyn Storage>, path: &Location) -> Result<Option<Location>> {
    let last = path.file_name().and_then(|last| last.to_str());
    let (Some(last), Some(parent)) = (last, path.parent()) else { return Ok(None) };
    if matches!(Selection::of(last)?, Selection::Name(_)) {
        return Ok(None);
    }
    let parent = if parent.as_os_str().is_empty() { Location::from(".") } else { parent };
    let found = CheckpointDirectory::in_storage(storage.clone(), &parent).select(last)?;
    Ok(Some(parent.join(found.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_selects_by_its_form() {
        for (text, selection) in [
            ("latest", Selection::Latest),
            ("best:loss:min", Selection::Best("loss", Goal::Minimize)),
            ("best:a:b:max", Selection::Best("a:b", Goal::Maximize)),
            ("pin:latest", Selection::Pin("latest")),
            ("0120", Selection::Number(120)),
            ("+1", Selection::Name("+1")),
            ("99999999999999999999", Selection::Name("99999999999999999999")),
            ("ckpt-1", Selection::Name("ckpt-1")),
            ("best", Selection::Name("best")),
            ("", Selection::Name("")),
        ] {
            assert_eq!(Selection::of(text).unwrap(), selection, "{text}");
        }
        for text in ["best:loss", "best:loss:minimum", "best:"] {
            assert!(Selection::of(text).unwrap_err().to_string().contains("best:METRIC:min"), "{text}");
        }
    }
}

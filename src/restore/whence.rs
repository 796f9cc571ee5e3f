//! Identifies a checkpoint that is closed, and opens it again for objects that are tracked later.

use super::opened::Opened;
use super::options::RestoreOptions;
use super::stamp::Stamp;
use crate::catalog::is_settled;
use crate::error::Result;
use crate::format::{Manifest, Mark, MarkKind};
use crate::interop;
use crate::location::Location;
use crate::repository::{MANIFEST, OpenDir, Stat, Storage};
use crate::source::{Content, Source, read_content};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Identifies a checkpoint, to open it again, from whatever working directory, and to find out whether it is the same.
#[derive(Debug)]
pub(crate) enum Whence {
    Ours(Arc<dyn Storage>, Box<Ours>),
    Foreign(Stamp),
}

/// A checkpoint of this crate.
#[derive(Debug)]
pub(crate) struct Ours {
    path: Location,
    manifest: Manifest,
    /// The file of the manifest when it was last read. While it stays the same, so does what it says.
    stat: Option<Stat>,
}

impl Whence {
    /// Closes the checkpoint.
    pub(crate) fn close(opened: Opened, storage: &Arc<dyn Storage>) -> Whence {
        match opened {
            Opened::Ours(source) | Opened::Renamed(interop::Ours { source, .. }) => {
                let path = absolute(&source.path);
                Whence::Ours(storage.clone(), Box::new(Ours { path, manifest: source.manifest, stat: None }))
            }
            Opened::Foreign(_, stamp) => Whence::Foreign(stamp),
        }
    }

    /// Opens the checkpoint again, to restore the object `name`. A map may take its values from anywhere; otherwise a
    /// checkpoint of this crate is opened without what belongs to other objects. Returns `None` if another checkpoint
    /// has taken its place.
    pub(crate) fn open_again(&mut self, name: &str, options: &RestoreOptions) -> Result<Option<Opened>> {
        match self {
            Whence::Ours(storage, ours) => {
                let source = match options.map.is_some() {
                    true => Source::open(&**storage, ours.path.clone())?,
                    false => ours.open(&**storage, name)?,
                };
                Ok(is_same(&ours.manifest, &source.manifest).then(|| Opened::ours(source, options)))
            }
            Whence::Foreign(stamp) => {
                let now = Stamp::of(stamp.path());
                let source = interop::open(stamp.path())?;
                Ok(stamp.is_in(&now).then_some(Opened::Foreign(source, now)))
            }
        }
    }
}

impl Ours {
    /// Opens the files of one component. Takes time in proportion to it, unless the checkpoint has changed.
    fn open(&mut self, storage: &dyn Storage, component: &str) -> Result<Source> {
        let path = self.path.clone();
        Source::open_part(storage, &path, &mut |dir| self.read(dir, component))
    }

    /// Returns the content of one component, and reads the manifest again only if its file or the component may have
    /// changed.
    fn read(&mut self, dir: &dyn OpenDir, component: &str) -> Result<Content> {
        let stat = dir.stat_of(MANIFEST.as_ref()).ok().flatten().filter(stays);
        let removed = Mark::new(self.manifest.id(), MarkKind::Thinned { component: component.to_string() });
        let is_there = matches!(dir.stat_of(removed.file_name().as_ref()), Ok(None));
        if is_there && stat.is_some() && stat == self.stat {
            let manifest = self.manifest.part(component);
            return Ok(Content { manifest, thinned: BTreeMap::new(), unread: None });
        }
        let now = read_content(dir, &self.path)?;
        self.stat = stat.filter(|_| is_same(&self.manifest, &now.manifest));
        Ok(Content { manifest: now.manifest.part(component), ..now })
    }
}

/// Returns `true` if any later change of a file gives it another `stat`. Where there are no times, a change is another
/// file.
fn stays(stat: &Stat) -> bool {
    stat.modified == (0, 0) || is_settled(stat)
}

/// Returns `true` if the manifest `now`, or a part of it, is that of the same save as `then`. A component may have been
/// removed since.
fn is_same(then: &Manifest, now: &Manifest) -> bool {
    then.id() == now.id()
        && now.files.iter().all(|(name, file)| then.files.get(name) == Some(file))
        && now.tensors.iter().all(|(key, record)| then.tensors.get(key) == Some(record))
        && now.values.iter().all(|(key, value)| then.values.get(key) == Some(value))
}

/// Returns the location of a checkpoint, independent of the working directory.
fn absolute(location: &Location) -> Location {
    let absolute = location.as_path().and_then(|path| std::path::absolute(path).ok());
    absolute.map_or_else(|| location.clone(), Location::from)
}

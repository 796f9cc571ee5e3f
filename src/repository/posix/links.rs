//! Symbolic links in the directory of the checkpoints.

use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::repository::names::{STAGING, nonce};
use crate::repository::{Kind, Repository};
use std::ffi::OsStr;

impl PosixDirectory {
    /// Points the link `name` to `target`, or removes it if `target` is `None`. Only a link whose target `is_ours` is
    /// ever replaced or removed.
    pub(super) fn update_link(&self, name: &str, target: Option<&str>, is_ours: &dyn Fn(&str) -> bool) -> Result<()> {
        self.check()?;
        let (root, path) = (self.open_root()?, self.path(name));
        let failed = |e| Error::io("link", &path, e);
        let name: &OsStr = name.as_ref();
        let there = root.stat_of(name).map_err(failed)?;
        if let Some(there) = &there {
            let leads_to = if there.kind == Kind::Link { Some(root.read_link(name).map_err(failed)?) } else { None };
            if leads_to.as_ref().is_some_and(|leads_to| target.is_some_and(|target| leads_to == target)) {
                return Ok(());
            }
            if !leads_to.as_ref().and_then(|leads_to| leads_to.to_str()).is_some_and(is_ours) {
                let hint =
                    "it is not a link of this manager, and was left as it is; rename it, or choose another name".into();
                return Err(Error::AlreadyExists { path, hint });
            }
        }
        match target {
            None if there.is_none() => return Ok(()),
            None => root.remove_file(name).map_err(failed)?,
            Some(target) => {
                let staged = format!("{STAGING}{}-{}", name.to_string_lossy(), nonce());
                root.symlink(target.as_ref(), staged.as_ref()).map_err(failed)?;
                let named = match there {
                    None => root.rename_new(staged.as_ref(), name),
                    Some(_) => root.replace(staged.as_ref(), name),
                };
                named.map_err(|e| {
                    let _ = root.remove_file(staged.as_ref());
                    failed(e)
                })?;
            }
        }
        self.sync(&**root, self.root())
    }
}

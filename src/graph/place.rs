//! The names of objects and files, checked on the way down the graph.

use crate::error::{Error, Result};
use crate::name;
use std::collections::HashSet;

/// The maximum depth of objects. A collection that contains itself ends here.
const MAX_DEPTH: usize = name::MAX_NAMES - 1;

/// Returns the stem of a component's file, distinct on every file system. Checks the name.
pub(crate) fn component_stem(component: &str) -> Result<String> {
    name::check_component(component)?;
    Ok(name::file_stem(component).to_lowercase())
}

/// Returns the error for two components of one stem.
pub(crate) fn same_file(component: &str) -> Error {
    Error::name(
        component,
        "another component's name differs only in case, and both would be the same file on some systems",
    )
}

/// A position in the graph. Checks the names on the way down.
pub(crate) struct Place<'a> {
    pub component: &'a str,
    pub key: String,
    /// The path below the component, or the name that a collection gives instead; `None` at the component itself.
    in_file: Option<String>,
    depth: usize,
}

impl<'a> Place<'a> {
    pub(crate) fn of_component(component: &'a str) -> Result<Place<'a>> {
        name::check_component(component)?;
        Ok(Place { component, key: name::key([component]), in_file: None, depth: 0 })
    }

    /// Returns the place of a child; `name_in_file` as in [`Child`](super::Child).
    pub(crate) fn child(&self, name: &str, name_in_file: Option<&str>) -> Result<Place<'a>> {
        name::check(&self.key, name)?;
        let own_key = name::key([name]);
        let own = name_in_file.map_or_else(|| own_key.clone(), str::to_string);
        let in_file = self.in_file.as_ref().map_or(own.clone(), |parent| name::join(parent, &own));
        let key = name::join(&self.key, &own_key);
        if self.depth == MAX_DEPTH {
            return Err(Error::name(key, format!("objects nest deeper than {MAX_DEPTH}; does one contain itself?")));
        }
        Ok(Place { component: self.component, key, in_file: Some(in_file), depth: self.depth + 1 })
    }

    pub(super) fn name_in_file(&self) -> &str {
        self.in_file.as_deref().unwrap_or(self.component)
    }
}

/// The names of an object's children, each allowed once.
#[derive(Default)]
pub(crate) struct Siblings<'a>(HashSet<&'a str>);

impl<'a> Siblings<'a> {
    pub(crate) fn add(&mut self, name: &'a str, place: &Place<'_>) -> Result<()> {
        match self.0.insert(name) {
            true => Ok(()),
            false => Err(Error::name(&place.key, "two objects have this name; give one of them another")),
        }
    }
}

/// The names of a component's tensors in its file, each allowed once, and none that the format reserves.
#[derive(Default)]
pub(crate) struct FileNames(HashSet<String>);

impl FileNames {
    pub(crate) fn add(&mut self, place: &Place<'_>) -> Result<()> {
        let name = place.name_in_file();
        if name == "__metadata__" {
            return Err(Error::name(&place.key, "safetensors files reserve `__metadata__`; choose another name"));
        }
        if !self.0.insert(name.to_string()) {
            let reason = format!("another tensor of the component is called {name:?} in its file");
            return Err(Error::name(&place.key, reason));
        }
        Ok(())
    }
}

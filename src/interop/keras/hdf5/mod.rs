//! The part of HDF5 that Keras uses, and h5py by default: superblock 0, object headers of version 1, symbol tables;
//! datasets in one piece or in chunks, with the filters that every HDF5 has. Anything that leads into another file is
//! refused.

mod attributes;
mod dataset;
mod decoded;
mod filter;
mod group;
mod header;
mod metadata;
mod types;

pub(super) use attributes::Attributes;
pub(super) use dataset::Dataset;

use self::decoded::Decoded;
use self::group::Link;
use self::metadata::Metadata;
use crate::error::Result;
use crate::interop::input::Input;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The first bytes of a file.
pub(super) const SIGNATURE: [u8; 8] = [0x89, b'H', b'D', b'F', 0x0d, 0x0a, 0x1a, 0x0a];
/// The deepest path.
const MAX_DEPTH: usize = 64;
/// The maximum number of paths, and of their bytes.
const MAX_PATHS: usize = 1 << 20;
const MAX_TEXT: usize = 16 << 20;
/// The maximum number of soft links in a chain.
const MAX_HOPS: usize = 32;
/// The maximum length of the ways of all soft links together.
const MAX_WAYS: usize = 64 << 20;

/// Returns the bytes that a path takes in memory, about.
pub(super) fn text_of(path: &[String]) -> usize {
    path.iter().map(|name| name.len() + 32).sum()
}

/// A file whose description has been read and checked.
#[derive(Debug)]
pub(super) struct File {
    pub input: Input,
    pub datasets: Vec<Dataset>,
    /// Paths to datasets, in order; a dataset may have several.
    pub paths: Vec<(Vec<String>, usize)>,
    /// Texts of the attributes of groups, by path.
    pub groups: BTreeMap<Vec<String>, Arc<Attributes>>,
    /// Paths of soft links that lead nowhere.
    pub dangling: Vec<Vec<String>>,
    decoded: Decoded,
}

/// An object of the file.
enum Object {
    Group {
        links: BTreeMap<String, Link>,
        attributes: Arc<Attributes>,
    },
    Dataset(usize),
    /// A type that has a name.
    Type,
}

impl File {
    /// Reads the elements `range` of a dataset of this file in row-major order, little-endian. `target` has their
    /// length.
    pub(super) fn read(&self, dataset: &Dataset, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        dataset.read(&self.input, &self.decoded, range, target)
    }

    pub(super) fn open(input: Input) -> Result<File> {
        let metadata = Metadata::new(&input);
        let root = superblock(&metadata)?;
        let mut objects = BTreeMap::new();
        let mut datasets = Vec::new();
        let mut indices = BTreeMap::new();
        let mut open = vec![root];
        while let Some(address) = open.pop() {
            if objects.contains_key(&address) {
                continue;
            }
            let messages = header::messages(&metadata, address)?;
            let message = |kind: u16| messages.iter().find(|(found, _)| *found == kind);
            let object = if let Some((_, table)) = message(0x11) {
                let mut attributes = Attributes::default();
                for (_, data) in messages.iter().filter(|(kind, _)| *kind == 0x0c) {
                    attributes.add(&metadata, data)?;
                }
                let mut links = BTreeMap::new();
                for (name, link) in group::links(&metadata, table)? {
                    if let Link::Hard(address) = link {
                        open.push(address);
                    }
                    if links.insert(name, link).is_some() {
                        return Err(metadata.damaged("a group has a name twice"));
                    }
                }
                Object::Group { links, attributes: Arc::new(attributes) }
            } else if message(0x08).is_some() {
                datasets.push(Dataset::parse(&metadata, &messages, &mut indices)?);
                Object::Dataset(datasets.len() - 1)
            } else {
                Object::Type
            };
            objects.insert(address, object);
        }
        let mut names =
            Names { input: &input, root, objects, found: Vec::new(), groups: BTreeMap::new(), dangling: vec![] };
        names.walk()?;
        let Names { found, groups, dangling, .. } = names;
        Ok(File { input, datasets, paths: found, groups, dangling, decoded: Decoded::default() })
    }
}

/// Returns the address of the root group.
fn superblock(metadata: &Metadata<'_>) -> Result<u64> {
    let start = metadata.read(0, metadata.input.len().min(100))?;
    let Some(rest) = start.strip_prefix(&SIGNATURE) else {
        return Err(metadata.damaged("it does not begin as an HDF5 file does"));
    };
    let mut cursor = metadata.cursor(rest);
    let version = cursor.u8()?;
    match version {
        0 | 1 => cursor.skip(4)?,
        2 | 3 => return Err(metadata.unsupported(header::NEWER)),
        _ => return Err(metadata.damaged(format!("version {version} of HDF5 is unknown"))),
    }
    if [cursor.u8()?, cursor.u8()?] != [8, 8] {
        return Err(metadata.unsupported("addresses or lengths do not have 8 bytes"));
    }
    cursor.skip(if version == 1 { 13 } else { 9 })?;
    let (base, _free, end) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    if base != 0 {
        return Err(metadata.unsupported("it starts in the middle of a file"));
    }
    if end > metadata.input.len() {
        let held = metadata.input.len();
        return Err(metadata.damaged(format!("it is cut off: it had {end} bytes, {held} are left")));
    }
    cursor.skip(16)?;
    cursor.u64()
}

/// Finds the paths of a tree of objects.
struct Names<'a> {
    input: &'a Input,
    root: u64,
    objects: BTreeMap<u64, Object>,
    found: Vec<(Vec<String>, usize)>,
    groups: BTreeMap<Vec<String>, Arc<Attributes>>,
    dangling: Vec<Vec<String>>,
}

impl Names<'_> {
    fn walk(&mut self) -> Result<()> {
        // The address, the path, and the groups on it.
        let mut open = vec![(self.root, Vec::<String>::new(), Vec::<u64>::new())];
        let (mut paths, mut text, mut ways) = (0, 0, MAX_WAYS);
        while let Some((address, path, mut above)) = open.pop() {
            let Object::Group { links, attributes } = (match self.objects.get(&address) {
                Some(Object::Dataset(number)) => {
                    self.found.push((path, *number));
                    continue;
                }
                Some(Object::Type) | None => continue,
                Some(group) => group,
            }) else {
                continue;
            };
            if above.contains(&address) {
                return Err(self.input.damaged(format!("the group {path:?} contains itself")));
            }
            above.push(address);
            for (name, link) in links.iter().rev() {
                // Counted before it is copied.
                paths += 1;
                text += text_of(&path) + text_of(std::slice::from_ref(name));
                if paths > MAX_PATHS || text > MAX_TEXT || path.len() >= MAX_DEPTH {
                    return Err(self.input.unsupported("its groups have too many or too long paths"));
                }
                let child = [&path[..], std::slice::from_ref(name)].concat();
                let target = match link {
                    Link::Hard(target) => Some(*target),
                    Link::Soft(text) => {
                        let mut hops = MAX_HOPS;
                        self.resolve(&path, text, &mut hops, &mut ways)?
                    }
                };
                match target {
                    Some(target) => open.push((target, child, above.clone())),
                    None => self.dangling.push(child),
                }
            }
            self.groups.insert(path, attributes.clone());
        }
        self.found.sort();
        Ok(())
    }

    /// Returns the object that a soft link in the group `from` leads to; `None` where there is none.
    fn resolve(&self, from: &[String], text: &str, hops: &mut usize, ways: &mut usize) -> Result<Option<u64>> {
        *hops = match hops.checked_sub(1) {
            Some(left) => left,
            None => return Err(self.input.damaged("soft links lead to one another in a circle")),
        };
        let mut way: Vec<&str> = Vec::new();
        if !text.starts_with('/') {
            way.extend(from.iter().map(String::as_str));
        }
        way.extend(text.split('/').filter(|name| !name.is_empty() && *name != "."));
        let length = text.len() + way.iter().map(|name| name.len() + 32).sum::<usize>();
        let left = ways.checked_sub(length);
        *ways = left.ok_or_else(|| self.input.unsupported("its soft links have too many or too long ways"))?;
        let mut address = self.root;
        let mut passed: Vec<String> = Vec::new();
        for name in way {
            let Some(Object::Group { links, .. }) = self.objects.get(&address) else {
                return Ok(None);
            };
            let target = match links.get(name) {
                Some(Link::Hard(target)) => Some(*target),
                Some(Link::Soft(text)) => self.resolve(&passed, text, hops, ways)?,
                None => None,
            };
            let Some(target) = target else {
                return Ok(None);
            };
            address = target;
            passed.push(name.to_string());
        }
        Ok(self.objects.contains_key(&address).then_some(address))
    }
}

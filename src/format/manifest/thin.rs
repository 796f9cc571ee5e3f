//! Parts of a manifest: without some of its components, whose files were removed after the commit, or one component alone.

use super::{Manifest, Piece};
use crate::name;
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl Manifest {
    /// Returns the components that can be removed alone, with their files: no other component has tensors in these
    /// files, and what the component has in files of others belongs to those as well.
    pub(crate) fn separable(&self) -> BTreeMap<String, Vec<String>> {
        let mut owners: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for (component, piece) in self.pieces() {
            owners.entry(&piece.file).or_default().insert(component);
        }
        let is_shared = |piece: &Piece| owners.get(piece.file.as_str()).is_some_and(|owners| owners.len() > 1);
        let mut shared: HashMap<(&str, &str), BTreeSet<&str>> = HashMap::new();
        for (component, piece) in self.pieces().filter(|(_, piece)| is_shared(piece)) {
            shared.entry((&piece.file, &piece.name)).or_default().insert(component);
        }
        let alone = shared.values().filter(|components| components.len() == 1);
        let tied: BTreeSet<&str> = alone.flatten().copied().collect();
        let mut separable: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in self.files.keys() {
            let Some(owners) = owners.get(file.as_str()).filter(|owners| owners.len() == 1) else { continue };
            let Some(component) = owners.first().filter(|component| !tied.contains(*component)) else { continue };
            if let Some(component) = unescaped(component) {
                separable.entry(component).or_default().push(file.clone());
            }
        }
        separable
    }

    /// Takes out those of `components` that can be removed alone. Returns them with their files.
    pub(crate) fn take_out(&mut self, components: &BTreeSet<String>) -> BTreeMap<String, Vec<String>> {
        let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
        // Two that share a tensor can be taken out one after the other.
        while let Some((component, files)) = self.next_of(components) {
            let key = name::key([&component]);
            self.files.retain(|file, _| !files.contains(file));
            self.tensors.retain(|other, _| name::component(other) != key);
            self.values.retain(|other, _| name::component(other) != key);
            let at = self.without.binary_search(&component).unwrap_or_else(|at| at);
            self.without.insert(at, component.clone());
            taken.insert(component, files);
        }
        taken
    }

    fn next_of(&self, components: &BTreeSet<String>) -> Option<(String, Vec<String>)> {
        if components.is_empty() {
            return None;
        }
        self.separable().into_iter().find(|(component, _)| components.contains(component))
    }

    /// Returns what a restore of one component needs: its tensors and values, the files that these tensors are in, and
    /// the identity of the checkpoint. Takes time in proportion to that.
    pub(crate) fn part(&self, component: &str) -> Manifest {
        let key = name::key([component]);
        let mut part = Manifest::new(self.sequence, &self.run, self.saved_at);
        part.tensors = at_or_below(&self.tensors, &key);
        part.values = at_or_below(&self.values, &key);
        let names = part.tensors.values().flat_map(|record| &record.pieces).map(|piece| &piece.file);
        part.files = names.filter_map(|name| Some((name.clone(), self.files.get(name)?.clone()))).collect();
        let lacked = self.without.binary_search_by(|other| other.as_str().cmp(component));
        part.without.extend(lacked.ok().map(|at| self.without[at].clone()));
        part
    }

    /// Returns the pieces of all tensors with the components of their keys.
    fn pieces(&self) -> impl Iterator<Item = (&str, &Piece)> {
        self.tensors.iter().flat_map(|(key, record)| record.pieces.iter().map(|piece| (name::component(key), piece)))
    }
}

/// Returns the entries of the object `key` and of what is below it.
fn at_or_below<V: Clone>(entries: &BTreeMap<String, V>, key: &str) -> BTreeMap<String, V> {
    let prefix = name::prefix(key);
    let below = entries.range(prefix.clone()..).take_while(|(other, _)| other.starts_with(&prefix));
    let all = entries.get_key_value(key).into_iter().chain(below);
    all.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns the name of a component by the first part of a key.
fn unescaped(component: &str) -> Option<String> {
    name::path(component).and_then(|mut path| path.pop())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{Dtype, TensorSpec};
    use crate::format::{Digest, FileEntry, HeaderEntry, TensorRecord};
    use chrono::Utc;

    /// A manifest of tensors: key, file, name in the file.
    fn manifest(tensors: &[(&str, &str, &str)]) -> Manifest {
        let mut manifest = Manifest::new(1, "0123456789abcdef0123456789abcdef", Utc::now());
        let digest = Digest::of(b"");
        for (key, file, name) in tensors {
            let spec = TensorSpec { dtype: Dtype::F32, shape: vec![1] };
            let piece = Piece::new(*file, *name, 4096..4100);
            manifest.tensors.insert(key.to_string(), TensorRecord::new(spec, digest, vec![piece]));
            manifest.files.insert(file.to_string(), FileEntry::new(4100, HeaderEntry::new(4096, digest)));
        }
        manifest
    }

    fn separable(tensors: &[(&str, &str, &str)]) -> Vec<String> {
        manifest(tensors).separable().into_keys().collect()
    }

    #[test]
    fn a_component_that_has_what_others_need_is_not_separable() {
        let own = [("model/w", "model.safetensors", "w"), ("opt/m", "opt.safetensors", "m")];
        assert_eq!(separable(&own), ["model", "opt"]);
        // The average has a tensor of the model's, and one of its own.
        let tied = [own[0], ("ema/w", "model.safetensors", "w"), ("ema/v", "ema.safetensors", "v")];
        assert_eq!(separable(&tied), ["ema"]);
        let lent = [own[0], ("model/v", "model.safetensors", "v"), ("ema/w", "model.safetensors", "w")];
        assert!(separable(&lent).is_empty());
    }

    #[test]
    fn a_part_has_what_its_component_needs_and_nothing_else() {
        let mut all = manifest(&[
            ("a/w", "a.safetensors", "w"),
            ("a-b", "a-b.safetensors", ""),
            ("a%2Fb/x", "a%2Fb.safetensors", "x"),
            ("ema/w", "a.safetensors", "w"),
        ]);
        for key in ["a/step", "a-b/step", "b"] {
            all.values.insert(key.to_string(), 7.into());
        }
        all.without = vec!["c".to_string(), "d".to_string()];
        let content = |component: &str| {
            let part = all.part(component);
            assert_eq!(part.id(), all.id());
            let keys: Vec<String> = part.tensors.into_keys().chain(part.values.into_keys()).collect();
            (keys.join(" "), part.files.into_keys().collect::<Vec<_>>().join(" "), part.without.join(" "))
        };
        let expected = |keys: &str, files: &str, without: &str| (keys.into(), files.into(), without.into());
        assert_eq!(content("a"), expected("a/w a/step", "a.safetensors", ""));
        assert_eq!(content("a-b"), expected("a-b a-b/step", "a-b.safetensors", ""));
        assert_eq!(content("a/b"), expected("a%2Fb/x", "a%2Fb.safetensors", ""));
        assert_eq!(content("ema"), expected("ema/w", "a.safetensors", ""));
        assert_eq!(content("b"), expected("b", "", ""));
        assert_eq!(content("d"), expected("", "", "d"));
    }

    #[test]
    fn what_is_taken_out_leaves_nothing_behind() {
        let mut manifest = manifest(&[
            ("a%2Fb/x", "a%2Fb-00001-of-00002.safetensors", "x"),
            ("a%2Fb/y", "a%2Fb-00002-of-00002.safetensors", "y"),
            ("model/w", "model.safetensors", "w"),
        ]);
        manifest.values.insert("a%2Fb/step".to_string(), 7.into());
        manifest.without.push("z".to_string());
        let taken = manifest.take_out(&BTreeSet::from(["a/b".to_string(), "unknown".to_string()]));
        assert_eq!(taken["a/b"].len(), 2);
        assert_eq!(manifest.tensors.keys().collect::<Vec<_>>(), ["model/w"]);
        assert!(manifest.values.is_empty());
        assert_eq!(manifest.without, ["a/b", "z"]);
        assert_eq!(manifest.files.len(), 1);
        assert_eq!(manifest.check(), Ok(()));
    }
}

//! Directories of Hugging Face: determines which files belong together.

use super::{damaged, safetensors};
use crate::error::{Error, Result};
use crate::interop::ReadOptions;
use crate::interop::foreign::{Foreign, Found};
use crate::interop::input::Input;
use crate::interop::pytorch;
use crate::interop::view::{Part, Stored, overlap};
use crate::name;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

const INDEX: &str = ".index.json";

/// Names of single files, in order of preference.
const SINGLE: [&str; 6] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "adapter_model.bin",
];

/// The longest index, and the longest `config.json` that is looked at.
const MAX_INDEX: u64 = 100 << 20;

/// Returns `true` if a directory with these names is a Hugging Face directory.
pub(super) fn is_one(names: &BTreeSet<String>) -> bool {
    SINGLE.iter().any(|name| names.contains(*name))
        || names.iter().any(|name| index_of(name) || name.ends_with(".safetensors"))
}

fn index_of(name: &str) -> bool {
    name.strip_suffix(INDEX).is_some_and(|stem| stem.ends_with(".safetensors") || stem.ends_with(".bin"))
}

pub(super) fn open(directory: &Path, options: &ReadOptions) -> Result<Foreign> {
    let entries = std::fs::read_dir(directory).map_err(|e| Error::io("list", directory, e))?;
    let names: BTreeSet<String> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .map_err(|e| Error::io("list", directory, e))?;
    // Safetensors before pickles.
    let mut indices: Vec<&String> = names.iter().filter(|name| index_of(name)).collect();
    indices.sort_by_key(|name| !name.ends_with(".safetensors.index.json"));
    let kind = |name: &str| name.ends_with(".safetensors.index.json");
    if let Some(index) = indices.first() {
        if let Some(other) = indices.get(1).filter(|other| kind(other) == kind(index)) {
            let reason = format!("it holds two indices, {index} and {other}: open one of them");
            return Err(Error::unsupported(directory, reason));
        }
        return open_index(directory, &directory.join(index), options);
    }
    if let Some(single) = SINGLE.iter().find(|name| names.contains(**name)) {
        let found = shard(&directory.join(single), options)?;
        return finish(directory, single.ends_with(".bin"), with_config(directory, found), options);
    }
    let files: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    without_index(directory, &files, options)
}

fn finish(path: &Path, is_pickle: bool, found: Found, options: &ReadOptions) -> Result<Foreign> {
    let format = if is_pickle { "Hugging Face (PyTorch)" } else { "Hugging Face (safetensors)" };
    Foreign::new(format, path, found, options)
}

/// Returns the tensors of one shard, by key.
fn shard(path: &Path, options: &ReadOptions) -> Result<Found> {
    let input = Input::open(path)?;
    let mut start = vec![0; input.len().min(16) as usize];
    input.read(0, &mut start)?;
    if super::is_safetensors(&start) || path.extension().is_some_and(|extension| extension == "safetensors") {
        return safetensors::read(input)?.alone();
    }
    let file_bytes = input.len();
    Ok(Found { file_bytes, ..pytorch::open_input(input, options)?.into_found() })
}

/// An index.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The shard of each tensor. Duplicate names are refused.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the file of each tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<WeightMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((name, file)) = access.next_entry::<String, String>()? {
                    if map.contains_key(&name) {
                        return Err(A::Error::custom(format!("the tensor {name:?} is listed twice")));
                    }
                    map.insert(name, file);
                }
                Ok(WeightMap(map))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

pub(super) fn open_index(directory: &Path, path: &Path, options: &ReadOptions) -> Result<Foreign> {
    let input = Input::open(path)?;
    let bytes = input.read_vec(0..input.len(), MAX_INDEX)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| damaged(path, format!("the index is not right: {e}")))?;
    let WeightMap(map) = index.weight_map;
    let files: BTreeSet<&String> = map.values().collect();
    if let Some(file) = files.iter().find(|file| !is_plain(file)) {
        return Err(damaged(
            path,
            format!("the shard {file:?} is not a plain file name: it leads out of the directory"),
        ));
    }
    let missing: Vec<&str> =
        files.iter().filter(|file| !directory.join(file).exists()).map(|file| file.as_str()).collect();
    if !missing.is_empty() {
        let count = files.len();
        return Err(damaged(path, format!("of its {count} shards these are missing: {}", missing.join(", "))));
    }
    let mut found = Found { file_bytes: input.len(), ..Found::default() };
    // The shard in which each tensor was found.
    let mut homes: BTreeMap<String, &String> = BTreeMap::new();
    for file in files {
        let own = shard(&directory.join(file), options)?;
        found.file_bytes += own.file_bytes;
        found.checks.extend(own.checks);
        let metadata = |key: &String| key.starts_with("__metadata__/");
        found.values.extend(own.values.into_iter().filter(|(key, _)| !metadata(key)));
        found.unreadable.extend(own.unreadable);
        found.order.extend(own.order);
        for (key, tensor) in own.stored {
            let name = name::path(&key).unwrap_or_default().join("/");
            if let Some(other) = homes.insert(key.clone(), file) {
                return Err(damaged(path, format!("the tensor {name:?} is in two shards, {other} and {file}")));
            }
            match map.get(&name) {
                Some(listed) if listed == file => drop(found.stored.insert(key, tensor)),
                Some(listed) => {
                    let reason = format!("according to the index the tensor {name:?} is in {listed}, it is in {file}");
                    return Err(damaged(path, reason));
                }
                None => {
                    let reason = format!("it is in the shard {file}, and the index does not list it");
                    found.unreadable.insert(key, reason);
                }
            }
        }
    }
    let absent = map.iter().find(|(name, _)| {
        let key = name::key([name]);
        !found.stored.contains_key(&key) && !found.unreadable.contains_key(&key)
    });
    if let Some((name, file)) = absent {
        return Err(damaged(path, format!("the tensor {name:?} should be in {file}, and is not")));
    }
    let is_pickle = path.to_str().is_some_and(|path| path.ends_with(".bin.index.json"));
    finish(directory, is_pickle, with_config(directory, found), options)
}

fn is_plain(file: &str) -> bool {
    !file.is_empty() && !file.contains(['/', '\\', '\0']) && file != "." && file != ".."
}

/// What is read of `config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    tie_word_embeddings: Option<bool>,
}

impl Config {
    /// Reads it. The tensors do not need it: one that is not there, cannot be read or is not valid counts as empty.
    fn of(directory: &Path) -> Config {
        let bytes = Input::open(&directory.join("config.json"));
        let bytes = bytes.and_then(|input| input.read_vec(0..input.len(), MAX_INDEX)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }
}

/// Adds a note about an output layer that is tied to the embedding and therefore not stored.
fn with_config(directory: &Path, mut found: Found) -> Found {
    let is_tied = Config::of(directory).tie_word_embeddings == Some(true);
    const HEAD: &str = "lm_head.weight";
    if is_tied && !found.stored.contains_key(HEAD) {
        let is_embedding = |key: &&String| {
            ["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight"]
                .iter()
                .any(|end| key.ends_with(end))
        };
        if let Some(embedding) = found.stored.keys().find(is_embedding) {
            let reason = format!(
                "it is tied to `{embedding}` (config.json: tie_word_embeddings) and not stored: map `{embedding}` to it"
            );
            found.unreadable.insert(HEAD.to_string(), reason);
        }
    }
    found
}

/// Opens files without an index: one file, all of `NAME-00001-of-0000N.safetensors`, or slices written by DCP.
fn without_index(directory: &Path, files: &[&String], options: &ReadOptions) -> Result<Foreign> {
    let unsupported = |reason: String| Error::unsupported(directory, reason);
    if let [file] = files
        && numbered(file).is_none_or(|(.., count)| count == 1)
    {
        let found = shard(&directory.join(file), options)?;
        return finish(directory, false, with_config(directory, found), options);
    }
    let mut contents = Vec::new();
    let mut offsets = Vec::new();
    for file in files {
        let own = safetensors::read(Input::open(&directory.join(file))?)?;
        offsets.extend(own.slices()?);
        contents.push((*file, own));
    }
    if offsets.len() == contents.len() {
        if let Some(missing) = first_missing(files) {
            return Err(damaged(directory, format!("it has no index, and the shard {missing} is missing")));
        }
        let contents = contents.into_iter().zip(offsets).map(|((_, own), offsets)| (own, offsets));
        return finish(directory, false, slices(directory, contents)?, options);
    }
    let (stem, _, count) = files.first().and_then(|file| numbered(file)).ok_or_else(|| {
        unsupported(format!("it holds {} safetensors files and no index: open one of them", files.len()))
    })?;
    let expected: Vec<String> = (1..=count).map(|i| shard_name(stem, i, count)).collect();
    let missing: Vec<&str> = expected.iter().filter(|name| !files.contains(name)).map(String::as_str).collect();
    if !missing.is_empty() || files.len() != expected.len() {
        let reason = format!("it has no index, and of its {count} shards these are missing: {}", missing.join(", "));
        return Err(if missing.is_empty() {
            unsupported("its files belong to more than one model".into())
        } else {
            damaged(directory, reason)
        });
    }
    let mut found = Found::default();
    for (file, own) in contents {
        let own = own.alone()?;
        found.file_bytes += own.file_bytes;
        for (key, tensor) in own.stored {
            if found.stored.insert(key.clone(), tensor).is_some() {
                return Err(damaged(directory, format!("the tensor {key:?} is in two shards, {file} is the second")));
            }
        }
    }
    finish(directory, false, with_config(directory, found), options)
}

/// Returns the first shard that is missing, judging by the numbers of the others. Each rank of DCP numbers its own files.
fn first_missing(files: &[&String]) -> Option<String> {
    let mut there: BTreeMap<(&str, u32), BTreeSet<u32>> = BTreeMap::new();
    for (stem, number, count) in files.iter().filter_map(|file| numbered(file)) {
        there.entry((stem, count)).or_default().insert(number);
    }
    there.iter().find_map(|((stem, count), there)| {
        let missing = (1..=*count).find(|number| !there.contains(number))?;
        Some(shard_name(stem, missing, *count))
    })
}

/// Parses `NAME-00001-of-00003.safetensors`. Returns the name, the number, and the number of files.
fn numbered(file: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = file.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let count = count.parse().ok().filter(|count| (1..=100_000).contains(count))?;
    let number = number.parse().ok().filter(|number| *number <= count)?;
    (shard_name(stem, number, count) == file).then_some((stem, number, count))
}

fn shard_name(stem: &str, number: u32, count: u32) -> String {
    format!("{stem}-{number:05}-of-{count:05}.safetensors")
}

/// Joins tensors of which each file has a slice. Their shape is the extent of all slices.
fn slices(
    directory: &Path,
    contents: impl Iterator<Item = (safetensors::Contents, BTreeMap<String, Vec<u64>>)>,
) -> Result<Found> {
    let mut found = Found::default();
    let mut parts: BTreeMap<String, Vec<Stored>> = BTreeMap::new();
    for (own, mut offsets) in contents {
        found.file_bytes += own.input.len();
        for (name, mut tensor) in own.tensors {
            let offsets = offsets.remove(&name).unwrap_or_else(|| vec![0; tensor.spec.shape.len()]);
            if offsets.len() != tensor.spec.shape.len() {
                return Err(own.input.damaged(format!("the slice of {name:?} has another rank than its tensor")));
            }
            for part in &mut tensor.parts {
                part.begin.clone_from(&offsets);
            }
            parts.entry(name).or_default().push(tensor);
        }
    }
    for (name, slices) in parts {
        let wrong = |reason: &str| damaged(directory, format!("the slices of the tensor {name:?} {reason}"));
        let Some(first) = slices.first() else { continue };
        let mut spec = first.spec.clone();
        if slices.iter().any(|slice| slice.spec.dtype != spec.dtype || slice.spec.shape.len() != spec.shape.len()) {
            return Err(wrong("are of different types"));
        }
        let parts: Vec<Part> = slices.into_iter().flat_map(|slice| slice.parts).collect();
        for (d, length) in spec.shape.iter_mut().enumerate() {
            let ends: Option<Vec<u64>> = parts.iter().map(|part| part.begin[d].checked_add(part.shape[d])).collect();
            *length = ends.and_then(|ends| ends.into_iter().max()).ok_or_else(|| wrong("lead too far"))?;
        }
        let covered = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.shape.iter().product()));
        let count = spec.bytes().map(|bytes| bytes / spec.dtype.size() as u64);
        let overlaps = overlap(&parts);
        let overlaps = overlaps.ok_or_else(|| {
            Error::unsupported(directory, format!("the tensor {name:?} has too many slices to compare"))
        })?;
        if count.is_none() || covered != count || overlaps {
            return Err(wrong("overlap, or leave some of it out"));
        }
        found.stored.insert(name::key([name]), Stored { spec, parts });
    }
    Ok(found)
}

//! Arbitrary bytes as manifest, index, header and names of a directory: the fuzz targets of `fuzz/`, and what must hold of
//! them. An error says what does not hold.

use super::check::ROOT;
use super::foreign::check;
use super::sim::{Files, SimDisk};
use super::table::Table;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::format::safetensors::{LENGTH_BYTES, parse_header};
use tch_checkpoint::format::{Digest, Index, Manifest};
use tch_checkpoint::inspect::Condition;
use tch_checkpoint::internal::{Disk, Kind};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{CheckpointManager, Error, SaveOptions, TensorSource};
use tch_checkpoint::{internal, name};

/// An error says what does not hold.
pub type Verdict = Result<(), String>;

fn must(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

/// Returns the bytes between a valid first and a valid last line. Otherwise a fuzzer would not get past the digest.
fn sealed(format: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{{\"format\":\"{format}\",\"version\":1,\n").into_bytes();
    text.extend_from_slice(body);
    text.push(b'\n');
    let digest = Digest::of(&text);
    text.extend_from_slice(format!("\"xxh3_128\":\"{digest}\"}}\n").as_bytes());
    text
}

/// Parses the bytes as a manifest, and as the content of one.
pub fn manifest(bytes: &[u8]) -> Verdict {
    for text in [bytes.to_vec(), sealed("tch-checkpoint", bytes)] {
        let Ok(manifest) = Manifest::from_bytes(&text) else { continue };
        for name in manifest.files.keys() {
            let plain = name.ends_with(".safetensors") && !name.contains('/') && !name.starts_with('.');
            must(plain, || format!("a file is called {name:?}"))?;
        }
        for (key, record) in &manifest.tensors {
            for piece in &record.pieces {
                let file = manifest.files.get(&piece.file).ok_or_else(|| format!("{key:?} is in no file"))?;
                must(piece.begin <= piece.end && piece.end <= file.bytes, || format!("{key:?} is outside its file"))?;
            }
        }
        let again = manifest.to_bytes().map_err(|e| format!("what was read cannot be written: {e}"))?;
        let read = Manifest::from_bytes(&again).map_err(|e| format!("what was written cannot be read: {e}"))?;
        must(read == manifest, || "what is read again is something else".into())?;
    }
    Ok(())
}

/// Parses the bytes as an index, and as the content of one.
pub fn index(bytes: &[u8]) -> Verdict {
    for text in [bytes.to_vec(), sealed("tch-checkpoint-index", bytes)] {
        let Ok(index) = Index::from_bytes(&text) else { continue };
        for name in index.checkpoints.iter().map(|entry| &entry.name).chain(&index.latest) {
            must(!name.contains('/') && !name.starts_with('.'), || format!("a checkpoint is called {name:?}"))?;
        }
        let again = index.to_bytes().map_err(|e| format!("what was read cannot be written: {e}"))?;
        let read = Index::from_bytes(&again).map_err(|e| format!("what was written cannot be read: {e}"))?;
        must(read == index, || "what is read again is something else".into())?;
    }
    Ok(())
}

/// Parses the bytes as the start of a safetensors file, and, after four bytes with the length of the data, as its JSON.
pub fn header(bytes: &[u8]) -> Verdict {
    let mut tries = vec![(bytes.to_vec(), bytes.len() as u64)];
    if let Some((data, json)) = bytes.split_first_chunk::<4>() {
        let mut start = (json.len() as u64).to_le_bytes().to_vec();
        start.extend_from_slice(json);
        let length = start.len() as u64 + u64::from(u32::from_le_bytes(*data));
        tries.push((start, length));
    }
    for (start, length) in tries {
        let Ok(header) = parse_header(&start, length) else { continue };
        must(header.data_start >= LENGTH_BYTES as u64, || "the data begin in the length".into())?;
        let mut end = 0;
        for tensor in &header.tensors {
            let bytes = tensor.spec.bytes();
            must(tensor.begin == end && bytes == tensor.end.checked_sub(end), || {
                format!("{:?} overlaps", tensor.name)
            })?;
            end = tensor.end;
        }
        must(header.data_start.checked_add(end) == Some(length), || "bytes belong to no tensor".into())?;
    }
    Ok(())
}

/// Uses the bytes as names in a directory of checkpoints, one per line, those of directories with a slash at the end:
/// opening it removes only what has our marks. Also uses them as the name of a component and as a path of keys.
pub fn names(bytes: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(bytes);
    let usable = |line: &&str| {
        let name = line.strip_suffix('/').unwrap_or(line);
        !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".." && name != ".lock"
    };
    let lines: BTreeSet<&str> = text.lines().filter(usable).take(20).collect();
    let disk = SimDisk::new(Files::default(), 0);
    for line in &lines {
        // The second of a file and a directory of one name would stand in the first's place.
        let other = line.strip_suffix('/').map_or_else(|| format!("{line}/"), str::to_string);
        if !lines.contains(other.as_str()) {
            disk.put(&format!("{ROOT}/{line}"), b"a user's");
        }
    }
    disk.put(&format!("{ROOT}/"), &[]);
    let list = || disk.open_dir(Path::new(ROOT)).and_then(|dir| dir.list()).map_err(|e| e.to_string());
    let before = list()?;
    let checkpoint = tch_checkpoint::internal::checkpoint_on(Arc::new(disk.clone()));
    let builder = CheckpointManager::builder(checkpoint, ROOT).save_options(SaveOptions::new().threads(1));
    let manager = builder.open().map_err(|e| format!("it does not open: {e}"))?;
    must(manager.checkpoints().is_empty(), || format!("{:?} are checkpoints", manager.checkpoints()))?;
    drop(manager);
    let after = list()?;
    for entry in before {
        let name = entry.name.to_string_lossy();
        let marked = |prefix: &str| {
            name.strip_prefix(prefix).and_then(|rest| rest.rsplit_once('-')).is_some_and(|(_, nonce)| {
                nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            })
        };
        // A directory with the name of a checkpoint that is none is moved aside.
        let numbered = name.strip_prefix("ckpt-").is_some_and(|number| number.parse::<u64>().is_ok());
        let aside = || after.iter().any(|now| now.name.to_string_lossy().starts_with(&format!("damaged-{name}-")));
        let there = after.contains(&entry) || entry.kind == Kind::Directory && numbered && aside();
        must(there != (marked(".tmp-") || marked(".trash-")), || {
            format!("{}: still there: {there}", entry.name.display())
        })?;
    }
    if let Some(line) = text.lines().next() {
        let file = format!("{}.safetensors", name::file_stem(line));
        let plain = internal::is_plain_file_name(&file);
        must(plain || internal::check_component(line).is_err(), || {
            format!("the component {line:?} is the file {file:?}")
        })?;
        if let Some(path) = name::path(line) {
            must(name::key(&path) == line, || format!("{line:?} is the key of {path:?}"))?;
        }
    }
    Ok(())
}

/// Parses the bytes as a condition. It is refused with a position, or equals the parsed form of its own text.
pub fn condition(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    match text.parse::<Condition>() {
        Ok(condition) => {
            // Its own text has more spaces, and can be too long.
            let own = condition.to_string();
            let again = own.parse::<Condition>();
            must(own.len() > 4096 || again.as_ref() == Ok(&condition), || format!("{own} is not read again: {again:?}"))
        }
        Err(error) => must((1..=text.chars().count() + 1).contains(&error.column), || format!("{text:?}: {error}")),
    }
}

/// Returns the largest factor by which a map can lengthen a tensor.
fn expansion(text: &str) -> u64 {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(u64::MAX).max(1)).fold(1, u64::saturating_mul)
}

/// Parses the bytes as a map. It is refused with a position, or equals the parsed form of its own text, and what it
/// makes of a few tensors can be read, and goes back as it was unless that is refused.
pub fn map(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    // Half of them behind the first line, without which a fuzzer would not get far.
    for text in [text.to_string(), format!("map 1\n{text}")] {
        match text.parse::<NameMap>() {
            Ok(map) => {
                let again = map.to_string().parse::<NameMap>();
                must(again.as_ref().is_ok_and(|again| *again == map), || {
                    format!("{map} is not read again: {again:?}")
                })?;
                let table = Table::new();
                let Ok(mapped) = map.apply(&table) else { continue };
                // A map may ask for as much as there is room for.
                if expansion(&text) <= 1 << 12 {
                    check(&mapped)?;
                    let Ok(back) = map.apply_inverse(&table, &mapped) else { continue };
                    check(&back)?;
                    for (key, spec) in back.tensors() {
                        let mut both = [0, 1].map(|_| vec![0; spec.bytes().unwrap_or_default() as usize]);
                        let read = back.read(key, &mut both[0]).and_then(|()| table.read(key, &mut both[1]));
                        must(read.is_ok() && both[0] == both[1], || {
                            format!("{map} does not give {key} back: {read:?}")
                        })?;
                    }
                }
            }
            Err(Error::Map { line, column, .. }) => {
                let lines = text.lines().count().max(1);
                must((1..=lines).contains(&line) && column >= 1, || {
                    format!("line {line}, column {column} of {text:?}")
                })?;
            }
            Err(error) => return Err(format!("{text:?}: {error}")),
        }
    }
    Ok(())
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::corpora::replayed;

    /// What the fuzzers have kept still holds.
    #[test]
    fn the_corpora() {
        replayed("manifest", manifest);
        replayed("index", index);
        replayed("header", header);
        replayed("names", names);
        replayed("condition", condition);
        replayed("map", map);
    }
}

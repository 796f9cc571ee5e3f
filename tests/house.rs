//! The rooms of `docs/architecture.md`: a room imports only from the rooms above it, and `unsafe` stays where it is allowed.

use std::fs;
use std::path::{Path, PathBuf};

/// In the order of imports: a room may use those before it.
const ROOMS: [&str; 23] = [
    "error",
    "sync",
    "name",
    "dtype",
    "parallel",
    "progress",
    "graph",
    "format",
    "repository",
    "source",
    "interop",
    "map",
    "catalog",
    "save",
    "restore",
    "reader",
    "checkpoint",
    "contents",
    "part",
    "manager",
    "internal",
    "training",
    "torch",
];

/// Imports that go up all the same, with the reason.
const EXCEPTIONS: [(&str, &str); 2] = [
    // The error carries the restore's report, and says how a format's refusal reads.
    ("error", "restore"),
    ("error", "dtype"),
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

fn sources() -> Vec<(String, PathBuf, String)> {
    sources_of("src")
}

fn sources_of(folder: &str) -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    files(&src, &mut found);
    let room = |path: &Path| {
        let first =
            path.strip_prefix(&src).unwrap().components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        first.trim_end_matches(".rs").to_string()
    };
    found.into_iter().map(|path| (room(&path), path.clone(), code(&fs::read_to_string(path).unwrap()))).collect()
}

/// Without comments and unit tests, which may look anywhere.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_go_down() {
    let place = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut wrong = Vec::new();
    for (room, path, text) in sources() {
        let Some(own) = place(&room) else {
            assert!(room == "lib", "{} is in no room of docs/architecture.md", path.display());
            continue;
        };
        for (at, _) in text.match_indices("crate::") {
            let used: String = text[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let up = place(&used).is_some_and(|used| used > own);
            let excused =
                EXCEPTIONS.iter().any(|(from, to)| *from == room && *to == used) || path.ends_with("tests.rs");
            if up && !excused {
                wrong.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports run up the list of rooms:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_in_the_torch_room() {
    let allowed =
        |path: &Path| path.ends_with("posix/lease.rs") || path.components().any(|part| part.as_os_str() == "torch");
    for (_, path, text) in sources() {
        let uses = text
            .lines()
            .filter(|line| line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn"));
        let count = uses.count();
        assert!(count == 0 || allowed(&path), "{} has `unsafe`", path.display());
        assert!(count <= 1 || !path.ends_with("posix/lease.rs"), "one exception, not {count}");
    }
}

#[test]
fn the_tool_uses_the_public_api_only() {
    let tool = sources_of("crates/ckpt/src");
    assert!(!tool.is_empty());
    for (_, path, text) in tool {
        assert!(!text.contains("tch_checkpoint::internal"), "{} uses the inside", path.display());
    }
}

#[test]
fn libtorch_is_seen_in_one_room() {
    let seen: Vec<_> = sources().into_iter().filter(|(_, _, text)| text.contains("tch::")).collect();
    assert!(!seen.is_empty());
    for (room, path, _) in seen {
        assert!(room == "torch", "{} sees tch", path.display());
    }
}

#[test]
fn the_inside_is_for_other_packages() {
    for (room, path, text) in sources() {
        assert!(room == "lib" || !text.contains("crate::internal"), "{} uses it", path.display());
    }
}

//! The rooms of `docs/architecture.md`: a room imports only from the rooms above it, and `unsafe` stays where it is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// In the order of imports: a room may use those before it.
const ROOMS: &[&str] = &[
    "error",
    "sync",
    "name",
    "dtype",
    "parallel",
    "progress",
    "callback",
    "provenance",
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
    "snapshot",
    "checkpoint",
    "convert",
    "contents",
    "part",
    "manager",
    "inspect",
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
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
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

/// A module's path, without `crate`.
type Module = Vec<String>;

/// Imports that may close a circle, with the reason.
const CIRCLES: [(&str, &str); 4] = [
    // The error carries the restore's report.
    ("error", "restore::report"),
    // A leaf joins a group, which asks its leaves.
    ("graph::leaf", "graph::group"),
    // A plan keeps what is made of it from save to save.
    ("save::plan", "save::lazy"),
    // Where the samples lie stays the same too; they are read from what is held.
    ("save::lazy", "save::samples"),
];

/// The paths that begin at `at`: one, or those in braces. Returns where they end.
fn paths(text: &str, mut at: usize, mut path: Module, found: &mut Vec<Module>) -> usize {
    let blank = |at: usize| text[at..].len() - text[at..].trim_start().len();
    loop {
        at += blank(at);
        if text[at..].starts_with('{') {
            at += 1;
            loop {
                at = paths(text, at, path.clone(), found);
                at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
                if !text[at..].starts_with(',') {
                    return (at + 1).min(text.len());
                }
                at += 1;
            }
        }
        let name: String = text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        at += name.len();
        path.extend((!name.is_empty()).then_some(name));
        let next = text[at..].strip_prefix("::").and_then(|rest| rest.chars().next());
        if !next.is_some_and(|next| next.is_alphabetic() || next == '_' || next == '{') {
            found.push(path);
            return at;
        }
        at += 2;
    }
}

/// What a module's text uses of this crate, as whole paths.
fn used(module: &[String], text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && before != ':' && before != '_' {
                paths(text, at, Vec::new(), &mut found);
            }
        }
    }
    let whole = |path: Module| {
        let up = path.iter().take_while(|part| *part == "super").count();
        let (base, rest) = match up {
            0 => (&[][..], &path[1..]),
            _ => (&module[..module.len().saturating_sub(up)], &path[up..]),
        };
        [base, rest].concat()
    };
    found.into_iter().map(whole).collect()
}

/// All modules with their texts.
fn modules() -> BTreeMap<Module, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let module = |path: &Path| {
        let path = path.strip_prefix(&src).unwrap().with_extension("");
        let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
        parts.filter(|part| !["mod", "lib"].contains(&part.as_str())).collect()
    };
    let sources = sources().into_iter().filter(|(_, path, _)| !path.ends_with("tests.rs"));
    sources.map(|(_, path, text)| (module(&path), text)).collect()
}

/// What the modules hand on by another path: from the path to the item's own.
fn handed_on(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, Module> {
    let mut all = BTreeMap::new();
    for (module, text) in modules {
        for (at, _) in
            text.match_indices(" use ").filter(|(at, _)| text[..*at].ends_with("pub") || text[..*at].ends_with(')'))
        {
            let mut found = Vec::new();
            paths(text, at + 5, Vec::new(), &mut found);
            for path in found {
                let own = match path[0].as_str() {
                    "crate" => path[1..].to_vec(),
                    _ => [module, &path[..]].concat(),
                };
                all.insert([&module[..], &path[path.len() - 1..]].concat(), own);
            }
        }
    }
    all
}

/// Which modules each module imports from, but for what is excused. A module and those it is in count as one: it hands on
/// what they have.
fn imports(excused: &[(&str, &str)]) -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    let handed_on = handed_on(&modules);
    let resolve = |mut path: Module| {
        for _ in 0..10 {
            let own = (0..=path.len()).rev().find(|&length| modules.contains_key(&path[..length])).unwrap_or(0);
            match handed_on.get(&path[..path.len().min(own + 1)]) {
                Some(whole) if own < path.len() => path = [&whole[..], &path[own + 1..]].concat(),
                _ => return path[..own].to_vec(),
            }
        }
        path
    };
    let imports = |module: &Module, text: &String| -> BTreeSet<Module> {
        let all = used(module, text).into_iter().map(resolve);
        let excused = |to: &Module| excused.contains(&(&module.join("::"), &to.join("::")));
        all.filter(|to| !to.starts_with(module) && !module.starts_with(to) && !excused(to)).collect()
    };
    modules.iter().map(|(module, text)| (module.clone(), imports(module, text))).collect()
}

/// Modules each of which imports from the next, and the last from the first.
fn circle(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    fn visit(
        module: &Module,
        imports: &BTreeMap<Module, BTreeSet<Module>>,
        way: &mut Vec<Module>,
        done: &mut BTreeSet<Module>,
    ) -> Option<Vec<String>> {
        if let Some(at) = way.iter().position(|before| before == module) {
            return Some(way[at..].iter().map(|module| module.join("::")).collect());
        }
        if !done.insert(module.clone()) {
            return None;
        }
        way.push(module.clone());
        let found = imports.get(module).into_iter().flatten().find_map(|next| visit(next, imports, way, done));
        way.pop();
        found
    }
    imports.keys().find_map(|module| visit(module, imports, &mut Vec::new(), &mut done))
}

#[test]
fn imports_make_no_circle() {
    let imports = imports(&CIRCLES);
    // What is written is read: a path, names in braces, a name that a module hands on.
    let module = |path: &str| -> Module { path.split("::").map(str::to_string).collect() };
    for (from, to) in
        [("save::plan", "save::chunk"), ("save::write", "format::digest"), ("manager::ledger", "catalog::chain")]
    {
        let found = &imports[&module(from)];
        assert!(found.contains(&module(to)), "{from} imports from {to}, not only {found:?}");
    }
    assert_eq!(circle(&imports), None);
    for place in 0..CIRCLES.len() {
        let others = [&CIRCLES[..place], &CIRCLES[place + 1..]].concat();
        assert!(circle(&self::imports(&others)).is_some(), "{:?} needs no excuse", CIRCLES[place]);
    }
    // And a circle would be found.
    let mut back = imports.clone();
    back.get_mut(&module("format::digest")).unwrap().insert(module("save::write"));
    let found = circle(&back).expect("digests that import from what writes them");
    assert!(found.contains(&"format::digest".to_string()) && found.contains(&"save::write".to_string()), "{found:?}");
}

/// A walk of directories is asked for in one place: what a path of another tool's checkpoint leads to. Repositories list
/// single directories, and follow no link.
#[test]
fn directories_are_walked_in_one_place() {
    let walking: Vec<_> = sources().into_iter().filter(|(_, _, text)| text.contains("walkdir::")).collect();
    let paths: Vec<_> = walking.iter().map(|(_, path, _)| path).collect();
    assert!(paths.len() == 1 && paths[0].ends_with("restore/opened.rs"), "{paths:?}");
}

//! The layers of `docs/architecture.md`: a layer imports only from the layers above it, imports form no cycle, and
//! `unsafe` stays where it is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, top to bottom: a layer imports only from those before it.
const LAYERS: &[&str] = &[
    "location",
    "text",
    "error",
    "sync",
    "name",
    "dtype",
    "parallel",
    "progress",
    "callback",
    "provenance",
    "figures",
    "graph",
    "format",
    "rules",
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
    "export",
    "convert",
    "contents",
    "part",
    "manager",
    "inspect",
    "internal",
    "training",
    "torch",
];

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
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

fn sources_of(directory: &str) -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = Vec::new();
    files(&src, &mut found);
    let layer = |path: &Path| {
        let first =
            path.strip_prefix(&src).unwrap().components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        first.trim_end_matches(".rs").to_string()
    };
    found.into_iter().map(|path| (layer(&path), path.clone(), code(&fs::read_to_string(path).unwrap()))).collect()
}

/// Removes comments and unit tests, which may import from anywhere.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_go_down() {
    let place = |layer: &str| LAYERS.iter().position(|known| *known == layer);
    let mut wrong = Vec::new();
    for (layer, path, text) in sources() {
        let Some(own) = place(&layer) else {
            assert!(layer == "lib", "{} is in no layer of docs/architecture.md", path.display());
            continue;
        };
        for (at, _) in text.match_indices("crate::") {
            let used: String = text[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let up = place(&used).is_some_and(|used| used > own);
            if up && !path.ends_with("tests.rs") {
                wrong.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these imports go up the list of layers:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_is_confined_to_the_torch_layer() {
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
        assert!(!text.contains("tch_checkpoint::internal"), "{} uses `internal`", path.display());
    }
}

#[test]
fn only_the_torch_layer_uses_tch() {
    let seen: Vec<_> = sources().into_iter().filter(|(_, _, text)| text.contains("tch::")).collect();
    assert!(!seen.is_empty());
    for (layer, path, _) in seen {
        assert!(layer == "torch", "{} uses tch", path.display());
    }
}

/// A saved model is made of what every user of the crate can use: assets are a public capability.
#[test]
fn the_torch_layer_uses_public_items_of_save_and_repository() {
    let modules = modules();
    let public: BTreeSet<Module> = used_by_crate_root(&modules);
    let of_torch = modules.iter().filter(|(module, _)| module.first().is_some_and(|layer| layer == "torch"));
    let mut count = 0;
    for (module, text) in of_torch {
        assert!(!text.contains(".source."), "{} uses the private source of a reader", module.join("::"));
        for path in used(module, text).into_iter().filter(|path| ["save", "repository"].contains(&path[0].as_str())) {
            assert!(public.contains(&path), "{} uses {}, which is not public", module.join("::"), path.join("::"));
            count += 1;
        }
    }
    assert!(count > 0 && !public.contains(["save", "Held"].map(str::to_string).as_slice()));
}

/// The paths that `lib.rs` makes public.
fn used_by_crate_root(modules: &BTreeMap<Module, String>) -> BTreeSet<Module> {
    let (text, mut found) = (&modules[&Module::new()], Vec::new());
    for (at, _) in text.match_indices("pub use ") {
        paths(text, at + "pub use ".len(), Vec::new(), &mut found);
    }
    found.into_iter().collect()
}

#[test]
fn only_other_packages_use_internal() {
    for (layer, path, text) in sources() {
        assert!(layer == "lib" || !text.contains("crate::internal"), "{} uses `internal`", path.display());
    }
}

/// A module's path, without `crate`.
type Module = Vec<String>;

/// Adds the paths that start at `at`, one or those in braces, to `found`. Returns where they end.
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

/// Returns the paths in this crate that a module's text uses, from the root.
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

/// Returns all modules with their texts.
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

/// Returns the re-exports: from the path to the path of the item.
fn reexports(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, Module> {
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

/// Returns the modules that each module imports from. A module and the modules around it count as one, since they
/// re-export what it has.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    let reexports = reexports(&modules);
    let resolve = |mut path: Module| {
        for _ in 0..10 {
            let own = (0..=path.len()).rev().find(|&length| modules.contains_key(&path[..length])).unwrap_or(0);
            match reexports.get(&path[..path.len().min(own + 1)]) {
                Some(whole) if own < path.len() => path = [&whole[..], &path[own + 1..]].concat(),
                _ => return path[..own].to_vec(),
            }
        }
        path
    };
    let imports = |module: &Module, text: &String| -> BTreeSet<Module> {
        let all = used(module, text).into_iter().map(resolve);
        all.filter(|to| !to.starts_with(module) && !module.starts_with(to)).collect()
    };
    modules.iter().map(|(module, text)| (module.clone(), imports(module, text))).collect()
}

/// Returns modules each of which imports from the next, and the last from the first, if there are such.
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
    let imports = imports();
    // The imports are found: by path, in braces, and through a re-export.
    let module = |path: &str| -> Module { path.split("::").map(str::to_string).collect() };
    for (from, to) in
        [("save::plan", "save::chunk"), ("save::write", "format::digest"), ("manager::ledger", "catalog::chain")]
    {
        let found = &imports[&module(from)];
        assert!(found.contains(&module(to)), "{from} imports from {to}, not only {found:?}");
    }
    assert_eq!(circle(&imports), None);
    // A cycle is found.
    let mut back = imports.clone();
    back.get_mut(&module("format::digest")).unwrap().insert(module("save::write"));
    let found = circle(&back).expect("digests that import from what writes them");
    assert!(found.contains(&"format::digest".to_string()) && found.contains(&"save::write".to_string()), "{found:?}");
}

/// Directories are walked in one place, where a path may be a directory of another tool's checkpoints. Repositories
/// list single directories and follow no links.
#[test]
fn directories_are_walked_in_one_place() {
    let walking: Vec<_> = sources().into_iter().filter(|(_, _, text)| text.contains("walkdir::")).collect();
    let paths: Vec<_> = walking.iter().map(|(_, path, _)| path).collect();
    assert!(paths.len() == 1 && paths[0].ends_with("restore/stamp.rs"), "{paths:?}");
}

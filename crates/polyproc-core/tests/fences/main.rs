//! Reads the sources and holds them to the layout: what may import what, where `unsafe` stands, how large a file may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rooms of the core and their floor: a room imports from lower floors only, or from itself.
const FLOORS: [(&str, u32); 14] = [
    ("prim", 0),
    ("retry", 0),
    ("deadline", 0),
    ("sys", 1),
    ("frame", 2),
    ("robust", 2),
    ("shm", 3),
    ("conn", 3),
    ("process", 4),
    ("queue", 5),
    ("sync", 5),
    ("pool", 6),
    ("reactor", 6),
    ("fuzz", 7),
];

/// What a room above hands down by name, where the lower room must run or describe it.
const HANDED_DOWN: [(&str, &str); 5] = [
    // The bootstrap starts the child's side of the rooms above.
    ("sys/bootstrap.rs", "crate::conn::Channel"),
    ("sys/bootstrap.rs", "crate::process::serve_zygote"),
    ("sys/bootstrap.rs", "crate::process::run_child"),
    ("sys/bootstrap.rs", "crate::process::panic::install_hook"),
    // The trampolines pass payloads.
    ("sys/function.rs", "crate::frame::"),
];
/// A new process that serves a pool enters its loop.
const WORKER_LOOP: (&str, &str) = ("process/enter.rs", "crate::pool::run_worker");

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/").to_owned()
}

/// Path below `folder` and text of each Rust file there.
fn sources(folder: &Path) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder of sources").flatten() {
            match entry.path() {
                path if path.is_dir() => walk(&path, found),
                path if path.extension().is_some_and(|end| end == "rs") => found.push(path),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, &mut found);
    assert!(!found.is_empty());
    let below = |path: &Path| path.strip_prefix(folder).expect("below it").to_str().expect("text").to_owned();
    found.iter().map(|path| (below(path), std::fs::read_to_string(path).expect("a source"))).collect()
}

/// The lines of code, comments and the inline tests at the end left out.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//") && !line.trim().is_empty())
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

#[test]
fn imports_point_down() {
    for (path, text) in sources(&crates().join("polyproc-core/src")) {
        let room = path.split(['/', '.']).next().unwrap_or_default();
        let Some(own) = floor(room) else { continue };
        for line in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let target = &line[at..];
                let other = target["crate::".len()..]
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or_default();
                let down = other == room || floor(other).is_none_or(|floor| floor < own);
                let handed = HANDED_DOWN
                    .iter()
                    .chain([&WORKER_LOOP])
                    .any(|(file, name)| path == *file && target.starts_with(name));
                assert!(down || handed, "{path}: {room} must not import from {other}: {line}");
            }
        }
    }
}

#[test]
fn unsafe_code_stands_behind_the_fence() {
    for name in ["polyproc-core", "polyproc", "polyproc-py"] {
        for (path, text) in sources(&crates().join(name).join("src")) {
            let allowed = match name {
                "polyproc-core" => path.starts_with("sys/"),
                "polyproc-py" => ["sys.rs", "buffer.rs"].contains(&&*path),
                _ => false,
            };
            // One unsafe constructor without unsafe operations: the user's promise.
            let promise = name == "polyproc-core" && path == "process/settings.rs";
            let lines = code(&text).filter(|line| !line.trim_start().starts_with("#[expect(unsafe_code"));
            let found = lines
                .filter(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe"));
            let found: Vec<_> =
                found.filter(|line| !(promise && line.contains("pub unsafe fn new() -> Self"))).collect();
            assert!(allowed || found.is_empty(), "{name}/{path}: {found:?}");
        }
    }
}

#[test]
fn system_calls_stand_behind_the_fence() {
    for (path, text) in
        sources(&crates().join("polyproc-core/src")).into_iter().filter(|(path, _)| !path.starts_with("sys/"))
    {
        // Names of errors and numbers of signals are no calls.
        let allowed = [
            "libc::E",
            "libc::SIG",
            "libc::W",
            "rustix::io::Errno",
            "rustix::io::retry_on_intr",
            "rustix::event::Timespec",
        ];
        for line in code(&text) {
            for crate_name in ["libc::", "rustix::"] {
                for (at, _) in line.match_indices(crate_name) {
                    assert!(allowed.iter().any(|name| line[at..].starts_with(name)), "{path}: {line}");
                }
            }
        }
    }
}

#[test]
fn atomics_come_from_prim() {
    for (path, text) in sources(&crates().join("polyproc-core/src")).into_iter().filter(|(path, _)| path != "prim.rs") {
        assert!(code(&text).all(|line| !line.contains("std::sync::atomic")), "{path}");
    }
}

#[test]
fn files_are_small() {
    for name in ["polyproc-core", "polyproc", "polyproc-py"] {
        for (path, text) in sources(&crates().join(name).join("src")) {
            let lines = code(&text).count();
            assert!(lines <= 600, "{name}/{path} has {lines} lines of code");
        }
    }
}

#[test]
fn the_core_knows_no_face() {
    let manifest = std::fs::read_to_string(crates().join("polyproc-core/Cargo.toml")).expect("the manifest");
    let dependencies =
        manifest.split("[dependencies]").nth(1).expect("dependencies").split("\n[").next().unwrap_or_default();
    for face in ["serde", "postcard", "pyo3", "polyproc "] {
        assert!(!dependencies.contains(face), "the core must not depend on {face}");
    }
}

#[test]
fn a_name_is_that_of_one_type() {
    let mut places = BTreeMap::<String, Vec<String>>::new();
    for (path, text) in sources(&crates().join("polyproc-core/src")) {
        for line in code(&text).filter(|_| !path.ends_with("_tests.rs")) {
            let words = line.split_whitespace().filter(|word| !word.starts_with("pub"));
            let mut words = words.map(|word| word.split(['<', '(', '{', ';', ':', '=']).next().unwrap_or_default());
            let is_type = match words.next() {
                Some("struct" | "enum" | "union" | "trait") => true,
                Some("type") => !line.starts_with(' '), // else it is an associated one
                _ => false,
            };
            if let Some(name) = words.next().filter(|name| is_type && name.starts_with(char::is_uppercase)) {
                places.entry(name.to_owned()).or_default().push(path.clone());
            }
        }
    }
    places.retain(|_, paths| paths.len() > 1);
    assert!(places.is_empty(), "several types have one name: {places:#?}");
}

#[test]
fn documents_name_files_that_exist() {
    let root = crates().parent().expect("the repository").to_owned();
    for document in ["ARCHITECTURE.md", "GLOSSARY.md"] {
        let text = std::fs::read_to_string(root.join("docs").join(document)).expect("a document");
        let words = text.split('`').skip(1).step_by(2).filter(|word| !word.contains(' '));
        let paths = words.filter(|word| [".rs", ".py", "/"].iter().any(|end| word.ends_with(end)));
        for path in paths {
            let places = [root.join(path), crates().join("polyproc-core/src").join(path)];
            assert!(places.iter().any(|place| place.exists()), "{document}: {path}");
        }
    }
}

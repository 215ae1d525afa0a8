//! Checks the layout of the sources: which room may import which, where `unsafe` is allowed, how large a file may be.

mod graph;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms (top-level modules) of the core and their floors: a room imports only from lower floors, or from itself.
const FLOORS: [(&str, u32); 17] = [
    ("prim", 0),
    ("retry", 0),
    ("deadline", 0),
    ("error_chain", 0),
    ("sys", 1),
    ("wire", 2),
    ("function", 3),
    ("robust", 2),
    ("shm", 3),
    ("conn", 3),
    ("process", 4),
    ("queue", 5),
    ("sync", 5),
    ("pool", 6),
    ("reactor", 6),
    ("fuzz", 7),
    ("models", 7),
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/").to_owned()
}

/// Returns the path below `folder` and the text of each Rust file there.
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

/// The part of `text` before its inline tests.
pub(crate) fn without_tests(text: &str) -> &str {
    text.find("\nmod tests {").map_or(text, |end| &text[..end])
}

/// Returns the lines of code, without comments and without the inline tests at the end.
fn code(text: &str) -> impl Iterator<Item = &str> {
    without_tests(text).lines().filter(|line| !line.trim_start().starts_with("//") && !line.trim().is_empty())
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
                assert!(down, "{path}: {room} must not import from {other}: {line}");
            }
        }
    }
}

#[test]
fn unsafe_code_stands_behind_the_fence() {
    for name in ["polyproc-core", "polyproc", "polyproc-py"] {
        for (path, text) in sources(&crates().join(name).join("src")) {
            let allowed = match name {
                "polyproc-core" => path.starts_with("sys/") || ["function.rs", "process/boot.rs"].contains(&&*path),
                "polyproc-py" => ["sys.rs", "buffer.rs"].contains(&&*path),
                _ => false,
            };
            // One unsafe constructor that performs no unsafe operation: its caller makes a promise.
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

/// The rooms that declare types in shared memory. Each declaration expands to an `unsafe impl Shared`, whose bounds the compiler
/// checks field by field: the only unsafe code outside the fence.
const SHARING_ROOMS: [&str; 5] = ["robust", "shm", "queue", "sync", "pool"];

#[test]
fn types_in_shared_memory_are_declared_by_the_macro() {
    let mut rooms = BTreeSet::new();
    for (path, text) in sources(&crates().join("polyproc-core/src")) {
        let uses = code(&text).any(|line| line.trim_start().starts_with("shared! {"));
        if uses && !path.starts_with("sys/") {
            rooms.insert(path.split('/').next().unwrap_or_default().to_owned());
        }
        let by_hand = code(&text).any(|line| line.contains("Shared for "));
        assert!(!by_hand || path == "sys/shared.rs", "{path}: only `shared!` implements `Shared`");
    }
    assert_eq!(rooms, SHARING_ROOMS.map(str::to_owned).into());
    let sys = sources(&crates().join("polyproc-core/src/sys"));
    let (_, text) = sys.iter().find(|(path, _)| path == "shared.rs").expect("it is there");
    let bounded = "unsafe impl crate::sys::shared::Shared for $name where $($type: crate::sys::shared::Shared),* {}";
    assert!(code(text).any(|line| line.trim() == bounded), "every field is bound");
}

#[test]
fn system_calls_stand_behind_the_fence() {
    for (path, text) in
        sources(&crates().join("polyproc-core/src")).into_iter().filter(|(path, _)| !path.starts_with("sys/"))
    {
        // Names of errors and numbers of signals are not calls.
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
        // Also those of the model checker.
        assert!(code(&text).all(|line| !line.contains("sync::atomic")), "{path}");
    }
}

#[test]
fn files_are_small() {
    for name in ["polyproc-core", "polyproc", "polyproc-py"] {
        for (path, text) in sources(&crates().join(name).join("src")) {
            let lines = code(&text).count();
            assert!(lines <= 450, "{name}/{path} has {lines} lines of code");
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
    // The models stand in for other types, under the same names.
    let is_model = |path: &str| path.starts_with("models/") || path.ends_with("/model.rs");
    for (path, text) in sources(&crates().join("polyproc-core/src")).into_iter().filter(|(path, _)| !is_model(path)) {
        // What stands in for the system under the model checker has the names of the system's types.
        let is_counted = !path.ends_with("_tests.rs") && !path.starts_with("models/") && !path.ends_with("model.rs");
        for line in code(&text).filter(|_| is_counted) {
            let words = line.split_whitespace().filter(|word| !word.starts_with("pub"));
            let mut words = words.map(|word| word.split(['<', '(', '{', ';', ':', '=']).next().unwrap_or_default());
            let is_type = match words.next() {
                Some("struct" | "enum" | "union" | "trait") => true,
                Some("type") => !line.starts_with(' '), // an indented one is an associated type
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

#[test]
fn files_import_without_circles() {
    let graph = graph::Graph::of(&crates().join("polyproc-core/src"));
    let circles = graph.circles();
    let described: Vec<_> = circles.iter().map(|circle| graph.describe(circle)).collect();
    assert!(circles.is_empty(), "files import from each other in circles:\n{}", described.join("\n"));
}

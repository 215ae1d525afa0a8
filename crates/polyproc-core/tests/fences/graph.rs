//! The graph of the imports between the files of the core.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, sources};

/// The files of the core, by their module path: `queue::ring` for `queue/ring.rs`, `queue` for `queue/mod.rs`.
pub(crate) struct Graph {
    files: BTreeMap<String, String>,
    /// For each module, the path of each name that it re-exports.
    exports: BTreeMap<String, BTreeMap<String, String>>,
    /// The modules that a module imports from.
    pub(crate) imports: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(crate) fn of(folder: &std::path::Path) -> Self {
        let module = |path: &str| {
            let name = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
            if name == "lib" { String::new() } else { name }
        };
        let files: BTreeMap<_, _> = sources(folder)
            .into_iter()
            .map(|(path, text)| (module(&path), code(&text).collect::<Vec<_>>().join("\n")))
            .collect();
        let mut graph = Self { files, exports: BTreeMap::new(), imports: BTreeMap::new() };
        for (name, text) in &graph.files {
            let mut exports = BTreeMap::new();
            for (statement, is_export) in uses(text) {
                for (path, alias) in flatten(&statement).into_iter().filter(|_| is_export) {
                    exports.insert(alias, absolute(name, &path));
                }
            }
            graph.exports.insert(name.clone(), exports);
        }
        for (name, text) in &graph.files {
            let mut targets = BTreeSet::new();
            // A re-export is not an import: the module itself may not use the name.
            let imports = uses(text).into_iter().filter(|(_, is_export)| !is_export);
            let trees = imports.flat_map(|(statement, _)| flatten(&statement)).map(|(path, _)| path);
            for path in trees.chain(inline_paths(text)) {
                if let Some(target) = graph.resolve(&absolute(name, &path)) {
                    targets.insert(target);
                }
            }
            targets.remove(name);
            graph.imports.insert(name.clone(), targets);
        }
        graph
    }

    /// Returns the module whose file defines the item at `path`.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut module = String::new();
        for word in path.split("::") {
            let child = if module.is_empty() { word.to_owned() } else { format!("{module}::{word}") };
            if self.files.contains_key(&child) {
                module = child;
            } else if let Some(export) = self.exports.get(&module).and_then(|exports| exports.get(word)) {
                return if *export == path { Some(module) } else { self.resolve(export) };
            } else {
                break;
            }
        }
        (!module.is_empty()).then_some(module)
    }

    /// Returns the imports inside a circle, one module per line.
    pub(crate) fn describe(&self, circle: &BTreeSet<String>) -> String {
        let inside =
            |module: &String| self.imports[module].intersection(circle).cloned().collect::<Vec<_>>().join(", ");
        circle.iter().map(|module| format!("{module} -> {}\n", inside(module))).collect()
    }

    /// Returns the groups of modules that import from each other, directly or through others (Tarjan, 1972, by reachability).
    pub(crate) fn circles(&self) -> Vec<BTreeSet<String>> {
        let reach = |from: &String| {
            let mut found = BTreeSet::new();
            let mut open = vec![from];
            while let Some(module) = open.pop() {
                open.extend(self.imports[module].iter().filter(|target| found.insert((*target).clone())));
            }
            found
        };
        let reached: BTreeMap<_, _> = self.imports.keys().map(|module| (module, reach(module))).collect();
        let mut circles = Vec::<BTreeSet<String>>::new();
        for (module, found) in &reached {
            let is_known = circles.iter().any(|circle| circle.contains(*module));
            if found.contains(*module) && !is_known {
                circles.push(found.iter().filter(|other| reached[other].contains(*module)).cloned().collect());
            }
        }
        circles
    }
}

/// Returns the `use` statements of a file, and whether each is a re-export.
fn uses(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let line = text[..at].rsplit('\n').next().unwrap_or_default().trim();
        let is_export = line.starts_with("pub");
        if line.is_empty() || (is_export && !line.contains(' ')) || line.ends_with(')') {
            let statement = text[at + 4..].split(';').next().unwrap_or_default();
            found.push((statement.split_whitespace().collect::<Vec<_>>().join(" "), is_export));
        }
    }
    found
}

/// Returns the paths of a `use` tree, each with the name that it binds.
fn flatten(tree: &str) -> Vec<(String, String)> {
    let tree = tree.trim();
    let Some((stem, rest)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, tree.rsplit("::").next().unwrap_or_default()));
        return vec![(path.trim_end_matches("::self").to_owned(), alias.to_owned())];
    };
    let rest = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, letter) in rest.char_indices().chain([(rest.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&rest[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| flatten(&format!("{stem}{}", part.trim()))).collect()
}

/// Returns the paths that begin with `crate::` or `super::` outside `use` statements.
fn inline_paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = &text[..at];
            let is_part = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let is_visibility = before.ends_with("pub(in ");
            let is_use = before.rsplit([';', '}']).next().is_some_and(|statement| statement.contains("use "));
            let end = |c: char| !c.is_alphanumeric() && c != '_' && c != ':';
            let path = text[at..].split(end).next().unwrap_or_default();
            if !(is_part || is_visibility || is_use) {
                found.push(path.trim_end_matches(':').to_owned());
            }
        }
    }
    found
}

/// Returns the absolute form of a path that is written in `module`.
fn absolute(module: &str, path: &str) -> String {
    let mut base: Vec<&str> = module.split("::").filter(|word| !word.is_empty()).collect();
    let mut words: Vec<&str> = path.split("::").collect();
    match words.first() {
        Some(&"crate") => {
            base.clear();
            words.remove(0);
        }
        Some(&"self") => _ = words.remove(0),
        _ => {}
    }
    while words.first() == Some(&"super") {
        base.pop();
        words.remove(0);
    }
    base.extend(words);
    base.join("::")
}

//! Figures of the sources: size, documentation, memory orders.

use super::{code, crates, sources, without_tests};

/// The lines of a file that use a stronger ordering than relaxed, and whether a comment on the line, or at most six lines above it,
/// names the partner, which may be the kernel.
pub(crate) fn orderings(text: &str) -> Vec<(usize, bool)> {
    let lines: Vec<_> = without_tests(text).lines().collect();
    let is_strong = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["Acquire", "Release", "AcqRel", "SeqCst"].iter().any(|order| code.contains(&format!("Ordering::{order}")))
    };
    let names_partner = |at: usize| {
        let comments = lines[at.saturating_sub(6)..=at].join(" ").to_lowercase();
        ["pairs with", "pair with", "for the kernel"].iter().any(|words| comments.contains(words))
    };
    (0..lines.len()).filter(|at| is_strong(lines[*at])).map(|at| (at + 1, names_partner(at))).collect()
}

/// Returns the files of the core, without the models and what stands in for the system there.
fn without_models() -> Vec<(String, String)> {
    let mut files = sources(&crates().join("polyproc-core/src"));
    files.retain(|(path, _)| !path.starts_with("models/") && !path.ends_with("model.rs"));
    files
}

/// Returns the value below which `share` of the sorted values are.
fn quantile(values: &[usize], share: f64) -> usize {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    let rank = (values.len() as f64 * share) as usize;
    values[rank.min(values.len() - 1)]
}

#[test]
fn orderings_name_their_partner() {
    let mut silent = Vec::new();
    for (path, text) in without_models() {
        let lines = orderings(&text).into_iter().filter(|(_, is_named)| !is_named);
        silent.extend(lines.map(|(line, _)| format!("{path}:{line}")));
    }
    assert!(silent.is_empty(), "with what do these pair? {silent:#?}");
}

#[test]
#[ignore = "prints figures, which are read and not checked"]
#[expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "a table for readers")]
fn metrics() {
    println!(
        "{:<16}{:>6}{:>8}{:>8}{:>6}{:>6}{:>10}  largest file",
        "part", "files", "lines", "median", "p90", "max", "doc/code"
    );
    for (name, below) in [
        ("polyproc-core", "polyproc-core/src"),
        ("  without pool", "polyproc-core/src"),
        ("polyproc", "polyproc/src"),
        ("polyproc-py", "polyproc-py/src"),
    ] {
        let mut files = sources(&crates().join(below));
        files.retain(|(path, _)| !(path.ends_with("_tests.rs") || name.starts_with(' ') && path.starts_with("pool/")));
        let mut sizes: Vec<_> = files.iter().map(|(path, text)| (code(text).count(), path)).collect();
        sizes.sort_unstable();
        let docs = files.iter().flat_map(|(_, text)| without_tests(text).lines()).filter(|line| {
            let line = line.trim_start();
            line.starts_with("///") || line.starts_with("//!")
        });
        let (docs, lines) = (docs.count(), sizes.iter().map(|(size, _)| size).sum::<usize>());
        let (max, largest) = sizes.last().expect("there are files");
        let counts: Vec<_> = sizes.iter().map(|(size, _)| *size).collect();
        println!(
            "{name:<16}{:>6}{lines:>8}{:>8}{:>6}{max:>6}{:>10.2}  {largest}",
            files.len(),
            quantile(&counts, 0.5),
            quantile(&counts, 0.9),
            docs as f64 / lines as f64,
        );
    }
    let found: Vec<_> = without_models().iter().flat_map(|(_, text)| orderings(text)).collect();
    let named = found.iter().filter(|(_, is_named)| *is_named).count();
    println!("\norderings stronger than relaxed in the core: {}, {named} of them name their partner", found.len());
}

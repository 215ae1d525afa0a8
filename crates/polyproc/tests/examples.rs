//! The example programs print the same as the Python originals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns a command for the program of an example, which cargo puts in a folder beside the test binary's.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the test binary");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    Command::new(folder.join("examples").join(name))
}

fn run(name: &str) -> (u32, Vec<String>) {
    let child = example(name).stdout(std::process::Stdio::piped()).spawn().expect("examples are built with the tests");
    let pid = child.id();
    let output = child.wait_with_output().expect("it was started here");
    assert!(output.status.success(), "{name}: {}", output.status);
    (pid, String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect())
}

/// Returns the lines with process ids replaced by `<parent>` and `<child>`.
fn with_pids_named((parent, lines): &(u32, Vec<String>)) -> Vec<String> {
    let named = |word: &str| match word.parse::<u32>() {
        Ok(pid) if pid == *parent => "<parent>".to_owned(),
        Ok(_) => "<child>".to_owned(),
        _ => word.to_owned(),
    };
    lines.iter().map(|line| line.split(' ').map(named).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn s1_process() {
    assert_eq!(with_pids_named(&run("s1_process")), ["TEST <child>", "(1, 2)", "{'a': 'hello'}"]);
}

#[test]
fn s2_subclass() {
    assert_eq!(with_pids_named(&run("s2_subclass")), ["parent: <parent>", "init: <parent>", "run: <child>"]);
}

#[test]
fn s3_daemon_sigterm() {
    let mut lines = with_pids_named(&run("s3_daemon_sigterm"));
    assert!(lines.iter().filter(|line| *line == "sleeping...").count() >= 2);
    lines.retain(|line| line != "sleeping...");
    assert_eq!(lines, ["child start: <child>", "parent exit.", "chid exit. <child>"]);
}

#[test]
fn s4_pool_apply() {
    assert_eq!(run("s4_pool_apply").1, ["(0, 1, 2)", "{'a': 1, 'b': 2}", "123"]);
}

#[test]
fn s5_pool_callback() {
    let (_, mut lines) = run("s5_pool_callback");
    lines.sort();
    let twice = ["in testing", "sleeping...", "test returning..."].into_iter().flat_map(|line| [line, line]);
    let mut expected: Vec<_> = ["", "", "", "123", "callbacking...", "pooling...", "return: 123"].into_iter().collect();
    expected.extend(twice);
    expected.sort_unstable();
    assert_eq!(lines, expected);
}

/// Checks a program that maps over `0..numbers` and then over "abc"; returns the pid that ran each number.
fn check_map(name: &str, numbers: u32, workers: usize) -> BTreeMap<u32, String> {
    let (parent, lines) = run(name);
    let result = format!("{:?}", (100..100 + numbers).collect::<Vec<_>>());
    let at = lines.iter().position(|line| *line == result).expect("the first map's result");
    let pairs: Vec<_> =
        lines.iter().filter_map(|line| line.split_once(' ')).filter(|(pid, _)| pid.parse::<u32>().is_ok()).collect();
    let pids: std::collections::BTreeSet<_> = pairs.iter().map(|(pid, _)| *pid).collect();
    assert!(pids.len() <= workers && !pids.contains(parent.to_string().as_str()), "{pids:?}");
    let mut letters: Vec<_> = lines[at + 1..].iter().filter_map(|line| line.split(' ').nth(1)).collect();
    letters.sort_unstable();
    assert_eq!(letters, ["a", "b", "c"]);
    let ran: BTreeMap<u32, String> =
        pairs.iter().filter_map(|(pid, what)| Some((what.parse().ok()?, (*pid).to_owned()))).collect();
    assert_eq!(ran.keys().copied().collect::<Vec<_>>(), (0..numbers).collect::<Vec<_>>());
    ran
}

#[test]
fn s6_pool_map() {
    check_map("s6_pool_map", 5, 3);
}

#[test]
fn s7_pool_map_chunksize() {
    let ran = check_map("s7_pool_map_chunksize", 10, 5);
    assert!((0..10).step_by(2).all(|n| ran[&n] == ran[&(n + 1)]), "both items of a chunk ran in one worker");
}

#[test]
fn s8_joinablequeue() {
    let (_, lines) = run("s8_joinablequeue");
    assert_eq!(lines.first().map(String::as_str), Some("put over!"));
    let (mut items, mut gave_up) = (Vec::new(), Vec::new());
    let done = lines.iter().position(|line| line == "task done").expect("the parent says so");
    for (at, line) in lines.iter().enumerate() {
        match line.split_once(' ') {
            Some((pid, "empty!")) if pid.parse::<u32>().is_ok() => gave_up.push(pid),
            Some((pid, item)) if pid.parse::<u32>().is_ok() => {
                assert!(at < done, "join returned after every item was printed");
                items.push(item);
            }
            _ => {}
        }
    }
    items.sort_unstable();
    gave_up.sort_unstable();
    gave_up.dedup();
    assert_eq!((items, gave_up.len(), lines.len()), (vec!["0", "1", "2", "3", "4"], 3, 10));
}

fn audit(arguments: &[&str]) -> (Output, serde_json::Value) {
    let output =
        example("unsafe_audit").arg("--json").args(arguments).output().expect("examples are built with the tests");
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, json)
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/rust/data/unsafe_audit")
}

#[test]
fn the_audit_counts_its_own_data_and_names_what_it_cannot_parse() {
    let (output, report) = audit(&[data().to_str().expect("text"), "--workers", "3"]);
    assert!(output.status.success());
    assert_eq!(report["workers"], 3);
    let total = &report["total"];
    let numbers = ["files", "lines", "functions", "unsafe_functions", "unsafe_blocks"].map(|name| total[name].as_u64());
    assert_eq!(numbers, [1, 25, 6, 2, 3].map(Some));
    let unparsed = report["unparsed"].as_array().expect("a list");
    let reasons: Vec<_> = unparsed
        .iter()
        .map(|file| {
            (file["file"].as_str().and_then(|path| path.rsplit('/').next()), file["reason"].as_str().expect("text"))
        })
        .collect();
    let expected = [
        ("deep_nesting.rs", "stack overflow (killed by SIGSEGV)"),
        ("invalid_utf8.rs", "invalid UTF-8"),
        ("syntax_error.rs", "syntax error at 1:"),
    ];
    assert_eq!(reasons.len(), expected.len());
    for ((file, reason), (name, cause)) in reasons.iter().zip(expected) {
        assert!(*file == Some(name) && reason.contains(cause), "{file:?}: {reason}");
    }
}

#[test]
fn ctrl_c_ends_the_audit_with_what_was_counted_so_far() {
    let program =
        example("unsafe_audit").arg("--json").stdout(std::process::Stdio::piped()).spawn().expect("it was built");
    // Waits until the program catches the signal; its default input takes much longer than that.
    let catches_sigint = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).expect("it runs");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).expect("a line of it");
        u64::from_str_radix(caught, 16).expect("hexadecimal") & 0b10 != 0
    };
    while !catches_sigint() {
        std::thread::yield_now();
    }
    let interrupt = Command::new("kill").args(["-INT", &program.id().to_string()]).status().expect("kill(1)");
    assert!(interrupt.success());
    let output = program.wait_with_output().expect("it was started here");
    assert_eq!(output.status.code(), Some(130));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a whole report");
    assert_eq!(report["interrupted"], true);
}

#[test]
fn the_audit_refuses_bad_arguments() {
    for (arguments, complaint) in [
        (&["/nonexistent"][..], "/nonexistent is not a folder"),
        (&["--workers", "many"], "many"),
        (&["--workers"], "missing"),
        (&["--no-such-option"], "no-such-option"),
        (&[".", "."], "unexpected argument"),
    ] {
        let (output, _) = audit(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(complaint), "{arguments:?}: {output:?}");
    }
    let (output, _) = audit(&[".", "--workers", "0"]);
    assert_eq!(output.status.code(), Some(1));
}

/// Keywords that may precede a `!` that does not belong to a macro.
const KEYWORDS: [&str; 8] = ["for", "if", "while", "match", "return", "in", "else", "impl"];

/// Counts without a parser: walks over the tokens, and leaves out macros, comments and strings.
fn count_tokens(stream: proc_macro2::TokenStream, counts: &mut [u64; 3]) {
    use proc_macro2::{Delimiter, TokenTree};
    let tokens: Vec<_> = stream.into_iter().collect();
    let word = |at: usize| match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        _ => String::new(),
    };
    let is_mark = |at: usize, mark| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == mark);
    let is_brace =
        |at: usize| matches!(tokens.get(at), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace);
    let mut unsafe_qualifier = false;
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            // `name! {...}` and `macro_rules! name {...}`; `a != b` has no group after the mark.
            TokenTree::Ident(ident) if is_mark(at + 1, '!') && !KEYWORDS.contains(&ident.to_string().as_str()) => {
                let group = (at + 2..at + 4).find(|at| matches!(tokens.get(*at), Some(TokenTree::Group(_))));
                let named = group == Some(at + 3) && word(at) == "macro_rules";
                at = match group {
                    Some(group) if named || group == at + 2 => group,
                    _ => at,
                };
            }
            TokenTree::Punct(punct) if punct.as_char() == '#' => at += usize::from(is_mark(at + 1, '!')) + 1,
            TokenTree::Ident(ident) if ident == "unsafe" => {
                counts[2] += u64::from(is_brace(at + 1));
                unsafe_qualifier = true;
            }
            TokenTree::Ident(ident) if ident == "fn" && !word(at + 1).is_empty() => {
                counts[0] += 1;
                counts[1] += u64::from(unsafe_qualifier);
                unsafe_qualifier = false;
            }
            TokenTree::Ident(ident) if ident == "extern" => {}
            TokenTree::Literal(_) => {}
            TokenTree::Group(group) => {
                count_tokens(group.stream(), counts);
                unsafe_qualifier = false;
            }
            _ => unsafe_qualifier = false,
        }
        at += 1;
    }
}

#[test]
fn the_audits_counts_are_those_of_an_independent_count() {
    let home = || std::env::home_dir().expect("a home").join(".cargo").into();
    let cargo = PathBuf::from(std::env::var_os("CARGO_HOME").unwrap_or_else(home));
    let registries = std::fs::read_dir(cargo.join("registry/src")).expect("cargo's registry").flatten();
    let crates = registries.flat_map(|registry| std::fs::read_dir(registry.path()).into_iter().flatten().flatten());
    let crates: Vec<_> = crates.map(|folder| folder.path()).collect();
    let dependencies = [
        "itoa",
        "serde_core",
        "postcard",
        "rustix",
        "walkdir",
        "same-file",
        "lexopt",
        "quote",
        "bitflags",
        "thiserror",
    ];
    for name in dependencies {
        let is_it = |folder: &&PathBuf| {
            let folder = folder.file_name().and_then(|folder| folder.to_str()).unwrap_or_default();
            folder
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with("-") && rest[1..].starts_with(char::is_numeric))
        };
        let folder = crates.iter().find(is_it).unwrap_or_else(|| panic!("{name}, a dependency"));
        let (output, report) = audit(&[folder.to_str().expect("text")]);
        assert!(output.status.success());
        assert_eq!(report["unparsed"].as_array().map(Vec::len), Some(0), "{name}");
        let files = walkdir::WalkDir::new(folder).into_iter().flatten();
        let (mut counts, mut lines, mut number) = ([0; 3], 0, 0);
        for file in files.filter(|file| file.path().extension().is_some_and(|end| end == "rs")) {
            let text = std::fs::read_to_string(file.path()).expect("it was parsed");
            lines += text.lines().count() as u64;
            number += 1;
            count_tokens(text.parse().expect("it was parsed"), &mut counts);
        }
        let columns = ["files", "lines", "functions", "unsafe_functions", "unsafe_blocks"];
        let got = columns.map(|column| report["total"][column].as_u64());
        assert_eq!(got, [number, lines, counts[0], counts[1], counts[2]].map(Some), "{name}");
    }
}

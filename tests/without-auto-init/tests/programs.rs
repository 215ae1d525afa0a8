//! Runs the two programs of this package.

use std::process::Command;

fn lines(program: &str) -> Vec<String> {
    let output = Command::new(program).output().expect("cargo built it");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn init_in_main_takes_children_over() {
    let expected =
        ["main runs in MainProcess", "result 2", "panic told", "result 2", "panic told", "panic told", "map [0, 2, 4]"];
    assert_eq!(lines(env!("CARGO_BIN_EXE_with_init")), expected);
}

#[test]
fn without_it_starting_is_an_error_that_says_what_to_do() {
    let lines = lines(env!("CARGO_BIN_EXE_without_init"));
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[0], "main runs");
    assert!(lines[1].contains("call `polyproc::init()`") && lines[2] == lines[1], "{lines:?}");
    assert_eq!(lines[3], "error in the pool too");
}

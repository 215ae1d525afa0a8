//! Shared by the test files: a check for leftovers, and tests that are programs of their own.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

/// The result of a test.
pub(crate) type TestResult = Result<(), Box<dyn Error>>;

/// Waits for `condition`, which another process makes true. The test runner bounds the wait.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the state and parent of a process, from `/proc/PID/stat`; `None` if there is no such process.
pub(crate) fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Returns whether the process has exited: it is reaped or, while its parent does not reap it, a zombie.
pub(crate) fn is_gone(pid: u32) -> bool {
    state_and_parent(pid).is_none_or(|(state, _)| state == 'Z')
}

/// Returns the processes whose parent is `parent`, zombies included.
pub(crate) fn children_of(parent: u32) -> BTreeSet<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// Returns the name of a process, as `ps` shows it.
fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Returns the process id of this process's fork server.
pub(crate) fn forkserver() -> Option<u32> {
    children_of(std::process::id()).into_iter().find(|pid| comm(*pid) == "forkserver")
}

/// Returns whether this process has no children except the running fork server and its spare.
pub(crate) fn is_childless() -> bool {
    let own = |pid: u32| !is_gone(pid) && ["forkserver", "spare"].contains(&comm(pid).as_str());
    let children = children_of(std::process::id());
    children.len() <= 2 && children.into_iter().all(own)
}

/// The user id that tests change to.
pub(crate) const OTHER_USER: u32 = 12_345;

/// Returns whether this process may change its user; prints a note if it may not.
pub(crate) fn may_change_user() -> bool {
    let may = nix::unistd::geteuid().is_root();
    if !may {
        eprintln!("not tried: only root can become another user");
    }
    may
}

pub(crate) fn become_another_user() {
    let other = nix::unistd::Uid::from_raw(OTHER_USER);
    nix::unistd::setresuid(other, other, other).expect("root may");
}

/// Sets the number of descriptors that this process may have; returns the previous limit.
#[expect(unsafe_code, reason = "setrlimit")]
pub(crate) fn limit_descriptors(count: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills the structure.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    let old = std::mem::replace(&mut limit.rlim_cur, count);
    // SAFETY: the call reads the structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    old
}

/// Returns the number of open descriptors of this process, by kind or file.
pub(crate) fn descriptors() -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten() {
        let to = std::fs::read_link(entry.path()).map(|to| to.display().to_string()).unwrap_or_default();
        if !to.ends_with("/fd") {
            *counts.entry(to.split('[').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Returns the number of open pidfds of this process. The fork server and its spare take two.
pub(crate) fn process_descriptors() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter(|to| ["pidfd:[", "anon_inode:[pidfd]"].iter().any(|kind| to.to_string_lossy().starts_with(kind)))
        .count()
}

/// Returns the number of processes of the fork server: itself and its spare, or none where it is refused.
pub(crate) fn processes_ahead() -> usize {
    if polyproc_core::process::is_forkserver_refused() { 0 } else { 2 }
}

/// Checks on drop that the test left no child except the fork server and its spare, and no descriptor.
pub(crate) struct Clean(BTreeMap<String, usize>);

impl Clean {
    pub(crate) fn start() -> Self {
        for _ in 0..3 {
            let warm_up = polyproc::Process::new(|()| (), ()).daemon(true).start().expect("a process can be started");
            warm_up.join().expect("it returns");
        }
        drop(polyproc::Lock::new().expect("memory")); // the file that holds locks stays open, for later locks
        wait_until(is_childless);
        // The supervisor receives the pidfd of the spare a moment later.
        wait_until(|| process_descriptors() == processes_ahead());
        Self(descriptors())
    }
}

impl Drop for Clean {
    /// Waits, as the engine's own threads may hold the last handle to a process for a moment longer.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            wait_until(is_childless);
            wait_until(|| {
                descriptors().iter().all(|(kind, count)| self.0.get(kind).is_some_and(|before| count <= before))
            });
        }
    }
}

/// Returns a command that runs the ignored test `name` of this binary as a program of its own, with one thread.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1", "-q"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns whether this process is such a program. A plain run of all ignored tests must not start them.
pub(crate) fn is_program() -> bool {
    std::env::var_os("POLYPROC_TEST_PROGRAM").is_some()
}

/// Runs a program to its end, and returns its output.
pub(crate) fn run_program(name: &str) -> std::process::Output {
    program(name).env("POLYPROC_TEST_PROGRAM", "1").output().expect("the test binary runs")
}

/// Starts a program, and returns it with the lines of its standard output.
pub(crate) fn start_program(name: &str) -> (std::process::Child, std::io::Lines<BufReader<ChildStdout>>) {
    let mut child = program(name).env("POLYPROC_TEST_PROGRAM", "1").spawn().expect("the test binary runs");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    (child, lines)
}

/// Returns the text after `prefix` in the next line that contains it.
pub(crate) fn line_after(lines: &mut impl Iterator<Item = std::io::Result<String>>, prefix: &str) -> String {
    let found = lines.find_map(|line| line.ok()?.split_once(prefix).map(|(_, rest)| rest.to_owned()));
    found.unwrap_or_else(|| panic!("the program ended before it printed {prefix:?}"))
}

/// Returns a path for a file of the test's own, without such a file.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("polyproc-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Overflows the stack.
pub(crate) fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if frame[0] == u64::MAX {
        return 0;
    }
    overflow(depth + 1) + frame[1]
}

/// Random numbers, the same in each run (xorshift, G. Marsaglia, 2003).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

//! How much memory there is for this process: on the machine, and in the control groups that it is in (`cgroups(7)`).

use std::io;
use std::path::Path;

/// A sixteenth of the machine, or of a control group, is left to others: with nothing left, the kernel would end some of them.
const LEFT_TO_OTHERS: u64 = 16;

/// Checks that `len_bytes` of memory are available. Succeeds if the system does not report how much is.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`], with the figures.
pub(crate) fn check(len_bytes: u64) -> io::Result<()> {
    let available = [of_machine(), of_groups()].into_iter().flatten().min();
    match available {
        Some(available) if available < len_bytes => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!("{len_bytes} bytes of shared memory are wanted, and {available} are available"),
        )),
        _ => Ok(()),
    }
}

/// The memory of the machine, or the least that a control group allows; `None` where the system reports neither.
pub(crate) fn total() -> Option<u64> {
    let of_machine = || field(&meminfo()?, "MemTotal:");
    [of_machine(), limit_of_groups()].into_iter().flatten().min()
}

fn of_machine() -> Option<u64> {
    let text = meminfo()?;
    Some(field(&text, "MemAvailable:")?.saturating_sub(field(&text, "MemTotal:")? / LEFT_TO_OTHERS))
}

fn meminfo() -> Option<String> {
    std::fs::read_to_string("/proc/meminfo").ok()
}

/// A field of [`meminfo`], in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A version of control groups: in which line of `/proc/self/cgroup`, and which files.
struct Version {
    line: &'static str,
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    cached: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        line: "0::/",
        root: "/sys/fs/cgroup",
        limit: "memory.max",
        used: "memory.current",
        cached: "inactive_file ",
    },
    Version {
        line: "memory:/",
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cached: "total_inactive_file ",
    },
];

/// The least of what the groups that this process is in have left.
fn of_groups() -> Option<u64> {
    least_of_groups(of_group)
}

/// The least of their limits.
fn limit_of_groups() -> Option<u64> {
    least_of_groups(|version, group| read(group, version.limit)?.trim().parse().ok())
}

/// The least of what `find` finds of the groups that this process is in.
fn least_of_groups(find: impl Fn(&Version, &Path) -> Option<u64>) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let of_version = |version: &Version| {
        let own = text.lines().find_map(|line| Some(line.split_once(version.line)?.1))?;
        let root = Path::new(version.root);
        let own = root.join(own);
        own.ancestors().take_while(|group| group.starts_with(root)).filter_map(|group| find(version, group)).min()
    };
    VERSIONS.iter().filter_map(of_version).min()
}

fn read(group: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(group.join(file)).ok()
}

/// `None` for a group without a limit.
fn of_group(version: &Version, group: &Path) -> Option<u64> {
    let limit: u64 = read(group, version.limit)?.trim().parse().ok()?; // or "max"
    let used: u64 = read(group, version.used)?.trim().parse().ok()?;
    // Pages of files that nobody uses make way.
    let stat = read(group, "memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(version.cached)?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))).saturating_sub(limit / LEFT_TO_OTHERS))
}

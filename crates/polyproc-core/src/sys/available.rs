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

fn of_machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(field("MemAvailable:")?.saturating_sub(field("MemTotal:")? / LEFT_TO_OTHERS))
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

/// The least of the groups that this process is in.
fn of_groups() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let of_version = |version: &Version| {
        let own = text.lines().find_map(|line| Some(line.split_once(version.line)?.1))?;
        let root = Path::new(version.root);
        let own = root.join(own);
        own.ancestors().take_while(|group| group.starts_with(root)).filter_map(|group| of_group(version, group)).min()
    };
    VERSIONS.iter().filter_map(of_version).min()
}

/// `None` for a group without a limit.
fn of_group(version: &Version, group: &Path) -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
    let limit: u64 = read(version.limit)?.trim().parse().ok()?; // or "max"
    let used: u64 = read(version.used)?.trim().parse().ok()?;
    // Pages of files that nobody uses make way.
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(version.cached)?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))).saturating_sub(limit / LEFT_TO_OTHERS))
}

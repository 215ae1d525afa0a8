//! The memory available to this process: on the machine, and in its control groups (`cgroups(7)`).
//!
//! Memory files count against the machine and the group like private memory. When memory runs out, the kernel kills processes
//! before a reservation by `fallocate(2)` fails. So the engine asks before large reservations ([`check`], called by
//! `memory::check_available`), and the memory budget takes its default limit from here ([`total`], called by `shm::budget`).
//!
//! All values are read from `/proc` and `/sys` at each call, as they change. A value that cannot be read counts as unlimited:
//! the engine then works without the check. Nothing is reserved; other processes may take the memory at any time. Swap is not
//! counted.

use std::io;
use std::path::Path;

/// One sixteenth of the machine's memory, or of a group's limit, is left to other processes: if none were left, the kernel
/// would kill some of them.
const LEFT_TO_OTHERS: u64 = 16;

/// Checks that `len_bytes` of memory are available. Succeeds if the system does not report the available memory. Takes several
/// system calls for each level of the group hierarchy.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`], with the wanted and the available number of bytes.
pub(crate) fn check(len_bytes: u64) -> io::Result<()> {
    let available = [of_machine(), of_groups()].into_iter().flatten().min();
    match available {
        Some(available) if available < len_bytes => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!("cannot allocate {len_bytes} bytes of shared memory: {available} bytes are available"),
        )),
        _ => Ok(()),
    }
}

/// Returns the memory of the machine in bytes, or the lowest limit of a control group if that is lower; `None` where the system
/// reports neither.
pub(crate) fn total() -> Option<u64> {
    let of_machine = || field(&meminfo()?, "MemTotal:");
    [of_machine(), limit_of_groups()].into_iter().flatten().min()
}

/// Returns the available memory of the machine in bytes, as the kernel estimates it, without the share of other processes.
fn of_machine() -> Option<u64> {
    let text = meminfo()?;
    Some(field(&text, "MemAvailable:")?.saturating_sub(field(&text, "MemTotal:")? / LEFT_TO_OTHERS))
}

/// Returns the text of `/proc/meminfo`; `None` without `/proc`.
fn meminfo() -> Option<String> {
    std::fs::read_to_string("/proc/meminfo").ok()
}

/// Returns a field of [`meminfo`] in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A version of control groups: its line in `/proc/self/cgroup`, and its files. A system may have both versions mounted.
struct Version {
    /// The text before the path of the group in its line of `/proc/self/cgroup`.
    line: &'static str,
    /// Where the hierarchy is mounted.
    root: &'static str,
    /// The file with the limit in bytes; `max` if there is none.
    limit: &'static str,
    /// The file with the memory in use in bytes, including cached files.
    used: &'static str,
    /// The line of `memory.stat` with the bytes of cached files that the kernel would reclaim first.
    cached: &'static str,
}

/// Version 2, then version 1 with its memory controller.
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

/// Returns the least available memory, in bytes, of the groups that contain this process.
fn of_groups() -> Option<u64> {
    least_of_groups(of_group)
}

/// Returns the lowest memory limit, in bytes, of the groups that contain this process.
fn limit_of_groups() -> Option<u64> {
    least_of_groups(|version, group| read(group, version.limit)?.trim().parse().ok())
}

/// Returns the least value that `find` returns for the groups that contain this process: its own group and all above it, since
/// each limit applies. In a container whose `/sys/fs/cgroup` begins at its own group, only the part that is visible there
/// counts.
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

/// Returns the text of a file of a group; `None` if it does not exist, as in the root group.
fn read(group: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(group.join(file)).ok()
}

/// Returns the available memory of `group` in bytes, without the share of other processes; `None` if it has no limit. Inactive
/// pages of files count as available.
fn of_group(version: &Version, group: &Path) -> Option<u64> {
    let limit: u64 = read(group, version.limit)?.trim().parse().ok()?; // or "max"
    let used: u64 = read(group, version.used)?.trim().parse().ok()?;
    // The kernel reclaims the inactive pages of files.
    let stat = read(group, "memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(version.cached)?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))).saturating_sub(limit / LEFT_TO_OTHERS))
}

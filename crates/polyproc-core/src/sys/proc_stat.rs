//! `/proc/PID/stat` (`proc_pid_stat(5)`), for the stamps of processes and the place of the arguments.

use std::fmt::Display;
use std::io;

/// Returns `N` fields from number `first` on, counted from 1 as in the man page. `process` is an id or `self`.
///
/// The name, field 2, may contain spaces and parentheses, so fields are counted from its last parenthesis: `first` is at least 3.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there is no such process or no `/proc`; [`io::ErrorKind::InvalidData`] if a field is no number.
pub(super) fn fields<const N: usize>(process: impl Display, first: usize) -> io::Result<[u64; N]> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let found: Result<Vec<u64>, _> = after_name.split_whitespace().skip(first - 3).take(N).map(str::parse).collect();
    found.ok().and_then(|found| found.try_into().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

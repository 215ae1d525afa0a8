//! Niceness and processors of this process, and the memory that a process uses. A pool's worker sets its own ([`set_nice`],
//! [`pin`]); the parent reads the memory of its workers for limits and statistics.

use std::io;

/// Sets the niceness of this process (`setpriority(2)`).
///
/// # Errors
/// `EACCES` if this process is not permitted to lower its niceness.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, nice)?)
}

/// Restricts this thread, and the threads that it creates, to `cpus` (`sched_setaffinity(2)`). Does nothing if `cpus` is empty.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if one of `cpus` is beyond the largest processor number, or none of them exists.
pub(crate) fn pin(cpus: &[u32]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        let cpu = usize::try_from(*cpu).ok().filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU);
        set.set(cpu.ok_or(io::ErrorKind::InvalidInput)?);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Returns the resident memory of a process in bytes, without its shared files: memory files of the engine would count in every
/// process. `None` if the process has exited, or without `/proc`.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = statm.split_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// Returns the peak resident memory of a process in bytes, including shared files, which the kernel does not count apart.
/// `None` if the process has exited, or without `/proc`.
pub(crate) fn peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(peak.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_is_known() {
        let pid = std::process::id();
        let before = resident_bytes(pid).expect("it lives");
        let ballast = vec![1u8; 32 << 20];
        let after = resident_bytes(pid).expect("it lives");
        assert!(after >= before + (30 << 20), "{before} {after} {}", ballast.len());
        assert!(peak_bytes(pid).expect("it lives") >= after);
        assert_eq!(resident_bytes(u32::MAX >> 1), None);
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused() {
        assert!(pin(&[1_000_000]).is_err());
        assert!(pin(&[]).is_ok());
    }
}

//! Process descriptors (`pidfd_open(2)`): waiting, signalling, exit status.
//!
//! A descriptor refers to one process for good, while an id may pass to another process once the process is reaped. So an id is
//! used only for an unreaped child of this process, whose id the kernel cannot reuse, and everything else goes through the
//! descriptor. The one exception is in [`end_group`]. `process/child.rs` keeps the descriptor of each child, and reaps the
//! child under the lock of its status; `process/server.rs` ends children that have no descriptor.
//!
//! Reaping works also where other code of the program takes statuses. These functions wait for no process, except for [`wait`]
//! and [`end`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use super::status::{ExitStatus, Signal};
use crate::deadline::Deadline;

/// Opens a pidfd of `pid`, which must be an unreaped child of this process: until it is reaped, no other process gets its id.
///
/// # Errors
/// `ESRCH` if other code of the program has reaped it; `EMFILE`, `ENFILE` or `ENOMEM`; `ENOSYS` before Linux 5.3.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// As [`open`], but kills and reaps the process if that fails: a process without a descriptor would not be watched by any
/// thread.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_or_end(pid: u32) -> io::Result<OwnedFd> {
    open(pid).inspect_err(|_| end(pid))
}

/// Kills and reaps `pid`, which must be an unreaped child of this process. Blocks until it has ended.
pub(crate) fn end(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    // Both fail only if the process was reaped already, which is what the caller wants.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
}

/// Sends a signal. Succeeds without effect if the process has ended, also if it was reaped.
///
/// # Errors
/// `EPERM` if the process runs as another user by now; `EINVAL` if there is no such signal.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    // SAFETY: the call takes numbers and a null pointer, which it allows.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal.number(), std::ptr::null::<()>(), 0)
    };
    match if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) } {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Reaps a child and returns its exit status, without blocking. Returns `None` while the child runs.
///
/// If the child was reaped elsewhere (by a `waitpid(-1)` of the program, or because `SIGCHLD` is ignored), returns the status
/// that the kernel keeps with the pidfd (Linux 6.15 and newer), or else [`ExitStatus::Unknown`]. `None` also for a process that
/// is no child of this one and runs.
///
/// # Errors
/// An error of `waitid(2)`, for a descriptor that is no pidfd.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) => return Ok(None),
            Ok(Some(status)) => {
                let killed_by = status
                    .terminating_signal()
                    .map(|number| ExitStatus::Signaled { signal: Signal::new(number), core_dumped: status.dumped() });
                return Ok(status.exit_status().map(ExitStatus::Exited).or(killed_by).or(Some(ExitStatus::Unknown)));
            }
            Err(Errno::CHILD) if !super::watch::is_readable(pidfd, Deadline::PASSED)? => return Ok(None),
            Err(Errno::CHILD) => return Ok(Some(recorded_status(pidfd).unwrap_or(ExitStatus::Unknown))),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills the remaining processes of the group that the child `pid` led, if the child has ended. Returns false if it has not.
/// Call this before the child is reaped: until then no other group gets its id.
///
/// If other code of the program has reaped the child, the group is killed only if no process has the id now: a group keeps its
/// id while it has members, so it is still the old one. Otherwise it is left alone.
///
/// # Errors
/// As [`reap`].
pub(crate) fn end_group(pidfd: BorrowedFd<'_>, pid: u32) -> io::Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(true) };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let (has_ended, is_its_group) =
        match rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options)) {
            Ok(ended) => (ended.is_some(), ended.is_some()),
            // Reaped elsewhere: as long as no process has the id again, a group with that id is the old one.
            Err(Errno::CHILD) => {
                let has_ended = super::watch::is_readable(pidfd, Deadline::PASSED)?;
                (has_ended, has_ended && rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
            }
            Err(error) => return Err(error.into()),
        };
    if is_its_group {
        // ESRCH: no process remains.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    Ok(has_ended)
}

/// `struct pidfd_info` of `linux/pidfd.h`, first version. Newer kernels accept it, as its size is part of the request.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    /// The requested fields; on return, the fields that the kernel has filled in.
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    /// The status word of `wait(2)`.
    exit_code: i32,
}
const _: () = assert!(size_of::<PidfdInfo>() == 64);
/// Requests the exit status, which exists once the process was reaped.
const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`
const PIDFD_GET_INFO: libc::c_ulong = 0xC000_0000 | (64 << 16) | (0xFF << 8) | 11;

/// Returns the exit status that the kernel keeps with the pidfd after the process was reaped; `None` before Linux 6.15, which
/// refuses the request.
fn recorded_status(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's size field is the size of `PidfdInfo`, which the kernel fills.
    let got = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (got == 0 && info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_wait_status(info.exit_code))
}

/// Blocks until the process has ended. Returns false if the deadline passes first. Does not reap: any number of threads may
/// wait.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] if a signal handler ran.
pub(crate) fn wait(pidfd: impl AsFd, deadline: Deadline) -> io::Result<bool> {
    super::watch::is_readable(pidfd.as_fd(), deadline)
}

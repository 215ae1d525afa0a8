//! Ends a process when its parent ends, whatever the cause.
//!
//! - `PR_SET_PDEATHSIG`, for processes started by `exec` or by the zygote. The kernel sends the signal when the *thread* that
//!   created the process ends. The supervisor thread creates all of them (also the zygote's children, by `CLONE_PARENT`) and
//!   never ends before its process. The kernel clears the setting when the process changes its user or group.
//! - A life pipe, whose write end only the parent holds. The child reopens the read end, so that `F_SETOWN` and `F_SETSIG`
//!   apply to this process alone. When the last write end is closed, the kernel sends `SIGKILL`, also to a process that has
//!   changed its user. After `fork`, which any thread may call, this is the only mechanism; other processes that must not
//!   outlive their parent use both. For a pool's worker, the signal goes to its process group.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::Signal;

use super::signal;

/// Ends this process when the thread that created it ends: by `SIGKILL`, or for [`DeathScope::Group`] by a signal handler that
/// sends `SIGKILL` to the group. Returns false if the parent has exited already: the caller then exits.
///
/// `parent_pid` is the process whose thread created this one. The setting is lost at a change of user or group, and is not
/// inherited by children.
///
/// # Errors
/// An error of `prctl(2)` or `sigaction(2)`.
pub(crate) fn die_with_creator(parent_pid: u32, scope: DeathScope) -> io::Result<bool> {
    let signal = match scope {
        DeathScope::Process => Signal::KILL,
        DeathScope::Group => signal::end_group_by_handler()?,
    };
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    // If the parent died before the call, this process has another parent by now.
    Ok(std::os::unix::process::parent_id() == parent_pid)
}

/// Undoes [`die_with_creator`], for a process that may outlive its parent.
pub(crate) fn outlive_creator() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(None)?)
}

/// `/proc` is not mounted, by which a forked child reopens the read end of a [`ParentDeathPipe`].
#[derive(Debug, thiserror::Error)]
#[error("a forked process needs /proc to be mounted")]
struct NeedsProc(#[source] io::Error);

/// The two ends of the pipe by which forked children detect that the parent has ended. Each process that starts bound children
/// has one, from its first such start until it ends (`process/state.rs`). Nothing is ever written to it.
#[derive(Debug)]
pub(crate) struct ParentDeathPipe {
    /// The end that children reopen or get in their order.
    read: OwnedFd,
    /// The end that only this process may have: every copy delays the end of file. Close-on-exec.
    write: OwnedFd,
}

impl ParentDeathPipe {
    /// Creates a pipe.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        Ok(Self { read: read.into(), write: write.into() })
    }

    /// Checks that a copy of this process can reopen the read end, before it is copied: the child could not report the failure.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub(crate) fn check(&self) -> io::Result<&Self> {
        let path = format!("/proc/self/fd/{}", self.read.as_raw_fd());
        File::open(path).map_err(|error| io::Error::other(NeedsProc(error)))?;
        Ok(self)
    }

    /// Closes both ends in a forked child that may outlive the parent. An inherited write end would keep other children alive.
    pub(crate) fn close_copies(&self) {
        super::fd::close_copy(&self.write);
        super::fd::close_copy(&self.read);
    }

    /// Binds a forked child to its parent: see [`die_with_writer`]. Closes both copied ends, the write end first. The copied
    /// value must not be used in this process afterwards.
    ///
    /// # Errors
    /// As [`die_with_writer`].
    pub(crate) fn die_with_parent(&self, scope: DeathScope) -> io::Result<bool> {
        super::fd::close_copy(&self.write);
        let lives = die_with_writer(self.read.as_fd(), scope)?;
        super::fd::close_copy(&self.read);
        Ok(lives)
    }
}

/// The read end, which becomes readable when the parent has ended.
impl AsFd for ParentDeathPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// The processes that end together with the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeathScope {
    /// Only the process itself.
    Process,
    /// The process group that this process leads, which includes the commands that it started.
    Group,
}

/// Requests `SIGKILL` for `scope` when the last write end of a [`ParentDeathPipe`] is closed. Returns false if it is closed
/// already.
///
/// The reopened descriptor stays open as long as the process. The kernel delivers the signal whatever this process does; only a
/// process with a copy of the write end delays it, such as a process that the user forked.
///
/// # Errors
/// If `/proc` is not mounted, or `fcntl(2)` fails.
pub(crate) fn die_with_writer(read: BorrowedFd<'_>, scope: DeathScope) -> io::Result<bool> {
    // Reopened, as owner and signal belong to the open file description, which all copies of a descriptor share.
    let own = File::open(format!("/proc/self/fd/{}", read.as_raw_fd()))?;
    let pid = c_int::try_from(std::process::id()).map_err(io::Error::other)?;
    fcntl(own.as_fd(), libc::F_SETOWN, if scope == DeathScope::Group { -pid } else { pid })?;
    fcntl(own.as_fd(), F_SETSIG, libc::SIGKILL)?;
    fcntl(own.as_fd(), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)?;
    let is_closed = super::watch::is_readable(own.as_fd(), crate::deadline::Deadline::PASSED)?;
    std::mem::forget(own); // stays open while the process lives
    Ok(!is_closed)
}

/// Makes this process the leader of a new process group, of its own id. Before its bond: [`DeathScope::Group`] names that
/// group.
///
/// # Errors
/// `EPERM` if it leads a session.
pub(crate) fn lead_group() -> io::Result<()> {
    Ok(rustix::process::setpgid(None, None)?)
}

/// A command of `fcntl(2)`, which the libc crate lacks for glibc. The number is the same on all architectures except MIPS and
/// PA-RISC.
const F_SETSIG: c_int = 10;

/// Calls `fcntl(2)` with a command that takes an integer.
fn fcntl(fd: BorrowedFd<'_>, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: these commands take an integer.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

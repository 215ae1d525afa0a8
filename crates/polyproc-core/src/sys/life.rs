//! Dying together with the parent, whatever ends it.
//!
//! - After `exec` and from the zygote: `PR_SET_PDEATHSIG`. The signal comes when the *thread* that created the process
//!   ends. All these are created by the supervisor thread (the zygote's children count as its: `CLONE_PARENT`), which
//!   never ends before its process. The kernel takes it back when the process changes its user or group.
//! - A pipe whose write end only the parent holds, opened anew so that `F_SETOWN` and `F_SETSIG` are this process's own; when
//!   the last writer goes, the kernel sends `SIGKILL`, also to a process that has changed its user. The only bond after
//!   `fork`, which any thread may call; beside the other one for all who must not outlive their parent. A pool's worker has
//!   it sent to its process group.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::Signal;

use super::signal;

/// Ends this process when the thread that created it ends: by `SIGKILL`, or its whole group by a handler that sends that. False
/// when the parent is gone already.
pub(crate) fn die_with_creator(parent_pid: u32, whom: Whom) -> io::Result<bool> {
    let signal = match whom {
        Whom::Process => Signal::KILL,
        Whom::Group => signal::end_group_by_handler()?,
    };
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    // The parent may have died before the call: then we have another parent by now.
    Ok(std::os::unix::process::parent_id() == parent_pid)
}

/// Takes [`die_with_creator`] back.
pub(crate) fn outlive_creator() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(None)?)
}

/// The two ends of the pipe that tells forked children of the parent's end.
#[derive(Debug)]
pub(crate) struct LifePipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl LifePipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        Ok(Self { read: read.into(), write: write.into() })
    }

    /// That a copy of this process can open it anew.
    ///
    /// # Errors
    /// Where `/proc` is not mounted.
    pub(crate) fn check(&self) -> io::Result<&Self> {
        let without_proc =
            |error| io::Error::other(format!("a copy is bound to its parent by /proc, which is not there: {error}"));
        File::open(format!("/proc/self/fd/{}", self.read.as_raw_fd())).map_err(without_proc)?;
        Ok(self)
    }

    /// In a forked child that is to outlive the parent: what it inherited must not keep others alive.
    pub(crate) fn close_copies(&self) {
        super::fd::close_copy(&self.write);
        super::fd::close_copy(&self.read);
    }

    /// In the forked child: see [`die_with_writer`].
    pub(crate) fn die_with_parent(&self, whom: Whom) -> io::Result<bool> {
        super::fd::close_copy(&self.write);
        let lives = die_with_writer(self.read.as_fd(), whom)?;
        super::fd::close_copy(&self.read);
        Ok(lives)
    }
}

/// The end that is readable when the parent has ended.
impl AsFd for LifePipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// What ends together with the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    Process,
    /// The process group that this process leads: also commands that it started.
    Group,
}

/// `SIGKILL` when the last write end of a [`LifePipe`] closes. False when it is closed already.
pub(crate) fn die_with_writer(read: BorrowedFd<'_>, whom: Whom) -> io::Result<bool> {
    // Opened anew: owner and signal belong to the open file, which is shared by all copies of a descriptor.
    let own = File::open(format!("/proc/self/fd/{}", read.as_raw_fd()))?;
    let pid = c_int::try_from(std::process::id()).map_err(io::Error::other)?;
    fcntl(own.as_fd(), libc::F_SETOWN, if whom == Whom::Group { -pid } else { pid })?;
    fcntl(own.as_fd(), F_SETSIG, libc::SIGKILL)?;
    fcntl(own.as_fd(), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)?;
    let is_closed = super::watch::is_readable(own.as_fd(), crate::deadline::Deadline::PASSED)?;
    std::mem::forget(own); // open for as long as the process lives
    Ok(!is_closed)
}

/// This process leads a process group of its own from now on.
pub(crate) fn lead_group() -> io::Result<()> {
    Ok(rustix::process::setpgid(None, None)?)
}

/// `fcntl(2)`; the libc crate does not have it for glibc. The same number on every architecture but MIPS and PA-RISC.
const F_SETSIG: c_int = 10;

fn fcntl(fd: BorrowedFd<'_>, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: these commands take an integer.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

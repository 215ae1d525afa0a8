//! Dying together with the parent, whatever ends it.
//!
//! - After `exec` and from the zygote: `PR_SET_PDEATHSIG`. The signal comes when the *thread* that created the process
//!   ends. All these are created by the supervisor thread (the zygote's children count as its: `CLONE_PARENT`), which
//!   never ends before its process.
//! - After `fork`, which any thread may call: a pipe whose write end only the parent holds, opened anew so that
//!   `F_SETOWN` and `F_SETSIG` are this process's own; when the last writer goes, the kernel sends `SIGKILL`.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

/// `SIGKILL` for this process when the thread that created it ends. False when the parent is gone already.
pub(crate) fn die_with_creator(parent_pid: u32) -> io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
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

    /// In a forked child that is to outlive the parent: what it inherited must not keep others alive.
    pub(crate) fn close_copies(&self) {
        super::fd::close_copy(&self.write);
        super::fd::close_copy(&self.read);
    }

    /// In the forked child: `SIGKILL` for this process when the parent's write end closes. False when it is closed already.
    pub(crate) fn die_with_parent(&self) -> io::Result<bool> {
        super::fd::close_copy(&self.write);
        let own = File::open(format!("/proc/self/fd/{}", self.read.as_raw_fd()))?;
        super::fd::close_copy(&self.read);
        let pid = c_int::try_from(std::process::id()).map_err(io::Error::other)?;
        fcntl(own.as_fd(), libc::F_SETOWN, pid)?;
        fcntl(own.as_fd(), F_SETSIG, libc::SIGKILL)?;
        fcntl(own.as_fd(), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)?;
        let mut poll = [PollFd::new(&own, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let closed = rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&now)))?;
        std::mem::forget(own); // open for as long as the process lives
        Ok(closed == 0)
    }
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

//! This process, its parent and its children.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::process::{self as core, ExitStatus, Signal};
use polyproc_core::{Deadline, retry_interrupted};

/// This process, as returned by [`current_process`].
#[derive(Debug, Clone)]
pub struct CurrentProcess(core::Current);

impl CurrentProcess {
    /// Returns the name: `MainProcess` for the program; for a child, the given name, or `Process-N` by default.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Returns whether the process is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.daemon
    }
}

/// Returns this process.
///
/// ```
/// assert_eq!(polyproc::current_process().name(), "MainProcess");
/// ```
#[must_use]
pub fn current_process() -> CurrentProcess {
    CurrentProcess(core::current())
}

/// The process that started this one.
#[derive(Debug, Clone)]
pub struct ParentProcess(core::Parent);

impl ParentProcess {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Returns whether the process is still running.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        std::os::unix::process::parent_id() == self.0.pid
    }
}

/// Returns the process that started this one, or `None` in the program itself.
#[must_use]
pub fn parent_process() -> Option<ParentProcess> {
    core::current().parent.map(ParentProcess)
}

/// A child of this process that may still run. Unlike a [`Child`](crate::Child), it does not give access to the result.
#[derive(Debug, Clone)]
pub struct ActiveChild(core::Child);

impl ActiveChild {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Returns whether the process is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.is_daemon()
    }

    /// Returns whether the process is running.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Sends `SIGTERM`.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when the process has changed to another user.
    pub fn terminate(&self) -> io::Result<()> {
        self.0.signal(Signal::TERMINATE)
    }

    /// Sends `SIGKILL`.
    ///
    /// # Errors
    /// As [`ActiveChild::terminate`].
    pub fn kill(&self) -> io::Result<()> {
        self.0.signal(Signal::KILL)
    }

    /// Blocks until the process has ended, for at most `timeout`. Returns `None` if it still runs then.
    ///
    /// # Errors
    /// Fails when the system cannot wait for the process.
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.0.wait(deadline))
    }
}

/// The process descriptor, as for a [`Child`](crate::Child).
impl AsFd for ActiveChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the running children of this process, pool workers included, in the order in which they were started.
#[must_use]
pub fn active_children() -> Vec<ActiveChild> {
    core::active_children().into_iter().map(ActiveChild).collect()
}

/// Returns how many processors this process may use. Honours its CPU affinity and the quota of its control group.
///
/// # Errors
/// Fails when the system does not report the number.
#[doc(alias = "process_cpu_count")]
pub fn cpu_count() -> io::Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// Sets the time between `SIGTERM` and `SIGKILL` for daemonic processes when the program ends. The default is 5 seconds.
pub fn set_daemon_grace(grace: Duration) {
    core::set_daemon_grace(grace);
}

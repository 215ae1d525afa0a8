//! Who this process is, who started it, whom it started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::process::{self as core, ExitStatus, Signal};
use polyproc_core::{Deadline, retry_interrupted};

/// This process, as [`current_process`] finds it.
#[derive(Debug, Clone)]
pub struct CurrentProcess(core::Current);

impl CurrentProcess {
    /// `MainProcess` for the program, the given name or `Process-N` for what it started.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether it is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.daemon
    }
}

/// This process.
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
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        std::os::unix::process::parent_id() == self.0.pid
    }
}

/// The process that started this one; `None` in the program itself.
#[must_use]
pub fn parent_process() -> Option<ParentProcess> {
    core::current().parent.map(ParentProcess)
}

/// A process that this one started and that may still run, without its result.
#[derive(Debug, Clone)]
pub struct ActiveChild(core::Child);

impl ActiveChild {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Whether it is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.is_daemon()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Sends `SIGTERM`.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when it runs as another user by now.
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

    /// Waits until it has ended; `None` when that takes longer than `timeout`.
    ///
    /// # Errors
    /// When the system cannot wait for it.
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.0.wait(deadline))
    }
}

/// Its process descriptor, as of a [`Child`](crate::Child).
impl AsFd for ActiveChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The processes that this one started and that still run, pool workers among them, in the order of their start.
#[must_use]
pub fn active_children() -> Vec<ActiveChild> {
    core::active_children().into_iter().map(ActiveChild).collect()
}

/// How many processors this process may use: its CPU affinity and its cgroup's quota are honoured.
///
/// # Errors
/// When the system does not tell.
#[doc(alias = "process_cpu_count")]
pub fn cpu_count() -> io::Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// How long daemonic processes have between `SIGTERM` and `SIGKILL` when the program ends: five seconds if not set.
pub fn set_daemon_grace(grace: Duration) {
    core::set_daemon_grace(grace);
}

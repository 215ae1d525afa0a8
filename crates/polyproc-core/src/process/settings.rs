//! Settings of a new process.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// How a process is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StartMethod {
    /// A copy of a small helper process, which has one thread and the memory that `preload` initialised. The default: fast
    /// whatever the size of this process, and safe whatever its threads do.
    #[default]
    Forkserver,
    /// The program, executed again: a clean state, about five times slower.
    Spawn,
    /// A copy of this process. The only method for closures that capture variables. Refused while other threads run.
    Fork,
}

/// The target of a standard stream of a new process.
#[derive(Debug, Default)]
pub enum Stdio {
    /// The target of this process's own stream.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A memory file, which the parent reads. Writing never blocks the process. Only for output.
    Captured,
    /// This descriptor: a file, a pipe, a socket.
    Fd(OwnedFd),
}

/// One change to the environment of a new process. Changes apply in the given order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    /// Removes all variables.
    Clear,
    /// Sets one variable.
    Set(OsString, OsString),
    /// Removes one variable.
    Remove(OsString),
}

/// The user's promise that a copy of a process with several threads is sound.
#[derive(Debug, Clone, Copy)]
pub struct ForkWithThreads(());

impl ForkWithThreads {
    /// Allows `fork` while other threads run.
    ///
    /// # Safety
    /// In the child only the calling thread exists. Locks that other threads held at the fork stay locked permanently, and the
    /// data that they guard may be inconsistent. So code in the child must not touch anything that the other threads touch,
    /// except through async-signal-safe functions (`signal-safety(7)`). libc's own allocator and `stdio` locks are safe.
    #[must_use]
    #[expect(unsafe_code, reason = "an unsafe constructor without unsafe operations: the promise itself is the point")]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// Settings of a new process.
#[derive(Debug, Default)]
pub struct Settings {
    /// The name; `None` for `Process-N`.
    pub name: Option<String>,
    /// True if the process gets `SIGTERM` when the program ends, and dies with it however it ends.
    pub daemon: bool,
    /// The start method.
    pub method: StartMethod,
    /// Permission for [`StartMethod::Fork`] while other threads run.
    pub fork_with_threads: Option<ForkWithThreads>,
    /// Changes to the environment that this process has at the start.
    pub env: Vec<EnvChange>,
    /// The working directory, if not this process's own.
    pub current_dir: Option<PathBuf>,
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
}

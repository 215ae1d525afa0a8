//! What a process is to be.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// How a process comes into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StartMethod {
    /// A copy of a small helper process that has one thread and what `preload` left in its memory. The default: fast
    /// whatever this process's size, and safe whatever its threads do.
    #[default]
    Forkserver,
    /// The program, executed anew: a clean state, about five times slower.
    Spawn,
    /// A copy of this process. The only one for closures that capture; refused while other threads run.
    Fork,
}

/// Where a standard stream of a new process leads.
#[derive(Debug, Default)]
pub enum Stdio {
    /// To where this process's own stream leads.
    #[default]
    Inherit,
    /// To `/dev/null`.
    Null,
    /// Into memory, to be read by the parent; it never blocks the process. Only for output.
    Captured,
    /// To this descriptor: a file, a pipe, a socket.
    Fd(OwnedFd),
}

/// One change to the environment that a process gets, made in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    /// Removes all.
    Clear,
    /// Sets one variable.
    Set(OsString, OsString),
    /// Removes one variable.
    Remove(OsString),
}

/// The user's word that a copy of a threaded process is sound.
#[derive(Debug, Clone, Copy)]
pub struct ForkWithThreads(());

impl ForkWithThreads {
    /// Allows `fork` while other threads run.
    ///
    /// # Safety
    /// In the child only the calling thread exists. Locks that other threads held at that moment stay locked for ever, and
    /// what they guard may be half changed; so what runs in the child must touch nothing that those threads touch, other
    /// than through async-signal-safe functions (`signal-safety(7)`). libc's own allocator and `stdio` locks are safe.
    #[must_use]
    #[expect(unsafe_code, reason = "an unsafe constructor without unsafe operations: the promise itself is the point")]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// What a process is to be.
#[derive(Debug, Default)]
pub struct Settings {
    /// `None` for `Process-N`.
    pub name: Option<String>,
    /// Gets `SIGTERM` when the program ends, and dies with it whatever ends it.
    pub daemon: bool,
    /// How it is started.
    pub method: StartMethod,
    /// With [`StartMethod::Fork`]: start even though other threads run.
    pub fork_with_threads: Option<ForkWithThreads>,
    /// Changes to the environment that this process has when it starts the new one.
    pub env: Vec<EnvChange>,
    /// The working directory, if not this process's own.
    pub current_dir: Option<PathBuf>,
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
}

//! How a process ended: [`Signal`] and [`ExitStatus`], which the faces show to users.
//!
//! | end of the process | [`ExitStatus`] | `exit_code`, as in Python | text |
//! |---|---|---|---|
//! | return of its function, or `exit` | `Exited(0)` to `Exited(255)` | the code | `exit code 3` |
//! | a signal | `Signaled` | the negated number | `killed by SIGSEGV (core dumped)` |
//! | any, but other code took the status | `Unknown` | `None` | `exit status unknown: ...` |
//!
//! [`pidfd`](super::pidfd) makes the values from the kernel's reports. The codes that the engine itself uses: 0 and 1 as
//! Python, 101 for a panic as std, 70 (`EX_SOFTWARE`) for a failure of the engine in a child.

use std::fmt;

/// A signal by its number, as in `signal(7)`. Any number is a valid value, also one that the system does not know: a status may
/// come from a newer kernel.
///
/// ```
/// use polyproc_core::process::Signal;
///
/// assert_eq!((Signal::KILL.number(), Signal::KILL.name()), (9, Some("SIGKILL")));
/// assert_eq!(Signal::new(40).to_string(), "signal 40");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// `SIGINT`, the terminal's Ctrl-C. A pool's worker leaves it to its parent.
    pub const INTERRUPT: Self = Self(libc::SIGINT);
    /// `SIGTERM`, the request to end, which a process may catch. Daemons get it at the end of the program.
    pub const TERMINATE: Self = Self(libc::SIGTERM);
    /// `SIGKILL`, which no process survives. The last resort of the engine, and of the kernel when it is out of memory.
    pub const KILL: Self = Self(libc::SIGKILL);

    /// Returns the signal with this number. The kernel refuses an unknown number when the signal is sent; 0 sends nothing, and
    /// only checks whether the process may be signalled.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// Returns the number of the signal: 9 for `SIGKILL`.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Returns the name of the signal: `"SIGKILL"` for 9; `None` for real-time signals and unknown numbers. The names are as in
    /// Linux on x86-64 and aarch64, which number their signals alike.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            libc::SIGHUP => "SIGHUP",
            libc::SIGINT => "SIGINT",
            libc::SIGQUIT => "SIGQUIT",
            libc::SIGILL => "SIGILL",
            libc::SIGTRAP => "SIGTRAP",
            libc::SIGABRT => "SIGABRT",
            libc::SIGBUS => "SIGBUS",
            libc::SIGFPE => "SIGFPE",
            libc::SIGKILL => "SIGKILL",
            libc::SIGUSR1 => "SIGUSR1",
            libc::SIGSEGV => "SIGSEGV",
            libc::SIGUSR2 => "SIGUSR2",
            libc::SIGPIPE => "SIGPIPE",
            libc::SIGALRM => "SIGALRM",
            libc::SIGTERM => "SIGTERM",
            libc::SIGSTKFLT => "SIGSTKFLT",
            libc::SIGCHLD => "SIGCHLD",
            libc::SIGCONT => "SIGCONT",
            libc::SIGSTOP => "SIGSTOP",
            libc::SIGTSTP => "SIGTSTP",
            libc::SIGTTIN => "SIGTTIN",
            libc::SIGTTOU => "SIGTTOU",
            libc::SIGURG => "SIGURG",
            libc::SIGXCPU => "SIGXCPU",
            libc::SIGXFSZ => "SIGXFSZ",
            libc::SIGVTALRM => "SIGVTALRM",
            libc::SIGPROF => "SIGPROF",
            libc::SIGWINCH => "SIGWINCH",
            libc::SIGIO => "SIGIO",
            libc::SIGPWR => "SIGPWR",
            libc::SIGSYS => "SIGSYS",
            _ => return None,
        })
    }

    /// Returns whether a process normally causes this signal itself: by a fault, `abort` or a forbidden system call. A pool
    /// blames the item that ran for such a death of its worker; any other signal came from outside, unless the pool sent it.
    pub(crate) fn is_fault(self) -> bool {
        let faults =
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
        faults.contains(&self.0)
    }
}

/// Writes the name, or `signal 40` for a signal without one.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// How a process ended. It is known once the process was reaped, and does not change afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The process exited with this code, 0 to 255: the low 8 bits of the number that it passed to `exit`.
    Exited(i32),
    /// A signal ended the process: its own fault, another process, or the kernel. No exit function ran.
    Signaled {
        /// The signal.
        signal: Signal,
        /// True if the kernel wrote a core file, or passed one to a handler (`core(5)`).
        core_dumped: bool,
    },
    /// The process has ended, but its status was lost: it was reaped elsewhere (by a `waitpid(-1)` of the program, or because
    /// `SIGCHLD` is ignored), and the kernel, older than 6.15, keeps no second record. Its last messages can still be read.
    Unknown,
}

impl ExitStatus {
    /// Returns Python's `Process.exitcode`: the exit code, or the negated signal number; `None` if the status is unknown. A
    /// running process has no `ExitStatus` at all.
    ///
    /// ```
    /// use polyproc_core::process::{ExitStatus, Signal};
    ///
    /// let killed = ExitStatus::Signaled { signal: Signal::KILL, core_dumped: false };
    /// assert_eq!((killed.exit_code(), killed.success()), (Some(-9), false));
    /// assert_eq!(killed.to_string(), "killed by SIGKILL");
    /// assert_eq!(ExitStatus::Exited(3).exit_code(), Some(3));
    /// ```
    #[must_use]
    pub fn exit_code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled { signal, .. } => Some(-signal.number()),
            Self::Unknown => None,
        }
    }

    /// Returns whether the process exited with code 0. False if the status is unknown.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// Returns the signal that ended the process; `None` if none did, or if the status is unknown.
    #[must_use]
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Signaled { signal, .. } => Some(signal),
            Self::Exited(_) | Self::Unknown => None,
        }
    }

    /// Decodes the status word of `wait(2)`, for a process that has ended. The kernel's record behind a pidfd has the same
    /// format.
    pub(crate) fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            let signal = Signal::new(libc::WTERMSIG(status));
            return Self::Signaled { signal, core_dumped: libc::WCOREDUMP(status) };
        }
        Self::Exited(libc::WEXITSTATUS(status))
    }
}

/// Writes the text that the faces show in errors, such as `exit code 3` or `killed by SIGKILL`.
impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled { signal, core_dumped: false } => write!(f, "killed by {signal}"),
            Self::Signaled { signal, core_dumped: true } => write!(f, "killed by {signal} (core dumped)"),
            Self::Unknown => f.write_str("exit status unknown: other code of the program has reaped the process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_python_does() {
        assert_eq!(ExitStatus::from_wait_status(37 << 8), ExitStatus::Exited(37));
        let killed = ExitStatus::from_wait_status(libc::SIGKILL);
        assert_eq!((killed.exit_code(), killed.to_string().as_str()), (Some(-9), "killed by SIGKILL"));
        assert_eq!(Signal::new(40).to_string(), "signal 40");
        assert_eq!(ExitStatus::Unknown.exit_code(), None);
    }
}

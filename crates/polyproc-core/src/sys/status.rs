//! How a process ended.

use std::fmt;

/// A signal by its number, as in `signal(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// `SIGINT`, the terminal's Ctrl-C.
    pub const INTERRUPT: Self = Self(libc::SIGINT);
    /// `SIGTERM`, the request to end, which a process may catch.
    pub const TERMINATE: Self = Self(libc::SIGTERM);
    /// `SIGKILL`, which no process survives.
    pub const KILL: Self = Self(libc::SIGKILL);

    /// The signal of this number; what the kernel does not know it refuses when it is sent.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The number of the signal, 9 for `SIGKILL`.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The name of the signal, `"SIGKILL"` for 9; `None` for real-time signals and unknown numbers.
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

    /// Whether the kernel sends it to a process for what that process did: a fault, `abort`, a forbidden system call.
    pub(crate) fn is_fault(self) -> bool {
        let faults =
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
        faults.contains(&self.0)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It ended by itself, with this code, 0 to 255.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The signal.
        signal: Signal,
        /// Whether the kernel wrote a core file.
        core_dumped: bool,
    },
    /// It has ended, but other code of this program took its status (`waitpid(-1)`, or an ignored `SIGCHLD`) and the
    /// kernel, older than 6.15, keeps no second record.
    Unknown,
}

impl ExitStatus {
    /// Python's `Process.exitcode`: the code, or minus the signal's number; `None` when it is unknown.
    #[must_use]
    pub fn exit_code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled { signal, .. } => Some(-signal.number()),
            Self::Unknown => None,
        }
    }

    /// Whether it ended by itself with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Signaled { signal, .. } => Some(signal),
            Self::Exited(_) | Self::Unknown => None,
        }
    }

    /// From the status word of `wait(2)`.
    pub(crate) fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            let signal = Signal::new(libc::WTERMSIG(status));
            return Self::Signaled { signal, core_dumped: libc::WCOREDUMP(status) };
        }
        Self::Exited(libc::WEXITSTATUS(status))
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled { signal, core_dumped: false } => write!(f, "killed by {signal}"),
            Self::Signaled { signal, core_dumped: true } => write!(f, "killed by {signal} (core dumped)"),
            Self::Unknown => f.write_str("exit status unknown: taken by other code of the program"),
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

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

    /// Returns the signal with this number. The kernel refuses an unknown number when the signal is sent.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// Returns the number of the signal: 9 for `SIGKILL`.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Returns the name of the signal: `"SIGKILL"` for 9; `None` for real-time signals and unknown numbers.
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

    /// Returns whether a process normally causes this signal itself: by a fault, `abort` or a forbidden system call.
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
    /// The process exited with this code, 0 to 255.
    Exited(i32),
    /// A signal ended the process.
    Signaled {
        /// The signal.
        signal: Signal,
        /// True if the kernel wrote a core file.
        core_dumped: bool,
    },
    /// The process has ended, but its status was lost: it was reaped elsewhere (by a `waitpid(-1)` of the program, or because
    /// `SIGCHLD` is ignored), and the kernel, older than 6.15, keeps no second record.
    Unknown,
}

impl ExitStatus {
    /// Returns Python's `Process.exitcode`: the exit code, or the negated signal number; `None` if the status is unknown.
    #[must_use]
    pub fn exit_code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled { signal, .. } => Some(-signal.number()),
            Self::Unknown => None,
        }
    }

    /// Returns whether the process exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// Returns the signal that ended the process.
    #[must_use]
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Signaled { signal, .. } => Some(signal),
            Self::Exited(_) | Self::Unknown => None,
        }
    }

    /// Decodes the status word of `wait(2)`.
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

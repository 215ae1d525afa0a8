//! [`Deadline`], the only timeout type of the engine.
//!
//! A face turns a timeout into a deadline once, when the user's call begins. All waits of the call get the same value, so that
//! retries, signal handlers and several steps of one operation do not extend it. A deadline is a moment of this process's
//! monotonic clock: it is never sent to another process.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

/// The time at which a wait gives up. Created once at the public edge and then passed down, so that retries do not extend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(When);

/// The moment. `Passed` needs no clock, so that a check without blocking is cheap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// No limit.
    Never,
    /// A moment of the monotonic clock.
    At(Instant),
    /// The past, whatever the clock reads.
    Passed,
}

impl Deadline {
    /// The wait never gives up. It may still be interrupted by a signal handler.
    pub const NEVER: Self = Self(When::Never);

    /// Has passed already: the condition is checked once, without blocking.
    pub const PASSED: Self = Self(When::Passed);

    /// Returns the deadline `timeout` from now; [`Deadline::NEVER`] if the clock cannot represent it. A timeout of zero is
    /// equivalent to [`Deadline::PASSED`], but not equal to it.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout).map_or(When::Never, When::At))
    }

    /// Returns the earlier of this deadline and `timeout` from now: a wait that also re-checks its condition at intervals.
    pub(crate) fn or_sooner(self, timeout: Duration) -> Self {
        match self.remaining() {
            Some(left) if left <= timeout => self,
            _ => Self::after(timeout),
        }
    }

    /// Returns the later of this deadline and `timeout` from now: a wait with a shortest length (`robust::Mutex`).
    pub(crate) fn or_after(self, timeout: Duration) -> Self {
        match self.remaining() {
            Some(left) if left < timeout => Self::after(timeout),
            _ => self,
        }
    }

    /// Returns whether the deadline has passed. Once true, it stays true.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// Returns the remaining time, zero once the deadline has passed; `None` for [`Deadline::NEVER`].
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        match self.0 {
            When::Never => None,
            When::At(at) => Some(at.saturating_duration_since(Instant::now())),
            When::Passed => Some(Duration::ZERO),
        }
    }

    /// Returns [`Deadline::remaining`] in the form that `poll(2)` and `epoll_wait(2)` take; `None`, which they take as no
    /// limit, also for a time that the form cannot represent.
    pub(crate) fn timespec(self) -> Option<Timespec> {
        self.remaining().and_then(|left| Timespec::try_from(left).ok())
    }
}

/// An optional timeout of a user: `None` is [`Deadline::NEVER`].
impl From<Option<Duration>> for Deadline {
    fn from(timeout: Option<Duration>) -> Self {
        timeout.map_or(Self::NEVER, Self::after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_once_and_for_good() {
        assert!(Deadline::PASSED.has_passed());
        assert_eq!(Deadline::PASSED.remaining(), Some(Duration::ZERO));
        assert!(!Deadline::after(Duration::from_secs(3600)).has_passed());
    }

    #[test]
    fn a_timeout_beyond_the_clock_never_passes() {
        assert_eq!(Deadline::after(Duration::MAX), Deadline::NEVER);
        assert_eq!(Deadline::NEVER.remaining(), None);
    }
}

//! `futex(2)` on words that several processes map.

use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::signal;
use crate::prim::AtomicU32;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Another thread called [`wake`].
    Woken,
    /// The word was not `expected`: the caller re-checks its condition.
    Again,
    /// The timeout passed.
    TimedOut,
    /// A signal handler ran, or may run when this thread returns from the engine ([`signal::set_handlers_run_later`]).
    Interrupted,
}

/// Sleeps for at most `timeout` if `word` is `expected`.
///
/// # Panics
/// If the system has no `futex(2)`, in which case threads do not work either.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Wait {
    let comes_back = timeout > signal::recheck_interval() && signal::comes_back();
    let timeout = if comes_back { signal::recheck_interval() } else { timeout };
    let timeout = Timespec::try_from(timeout).ok();
    match futex::wait(word, Flags::empty(), expected, timeout.as_ref()) {
        Ok(()) => Wait::Woken,
        Err(Errno::TIMEDOUT) if comes_back => {
            signal::lengthen_recheck_interval();
            Wait::Interrupted
        }
        Err(Errno::TIMEDOUT) => Wait::TimedOut,
        Err(Errno::AGAIN) => Wait::Again,
        Err(Errno::INTR) => Wait::Interrupted,
        Err(error) => panic!("futex_wait on a mapped word: {error}"),
    }
}

/// Wakes up to `count` waiters. Returns how many it woke.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    // Fails only for an address that is not mapped.
    futex::wake(word, Flags::empty(), count).unwrap_or(0)
}

/// The `count` with which [`wake`] wakes all waiters: the largest that the system call takes, as its argument is signed.
pub(crate) const ALL: u32 = i32::MAX.cast_unsigned();

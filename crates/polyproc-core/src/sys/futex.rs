//! `futex(2)` on words that several processes map.

use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::signal;
use crate::prim::AtomicU32;

/// How a wait came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Somebody called [`wake`].
    Woken,
    /// The word was not `expected` any more: look again.
    Again,
    /// The time is up.
    TimedOut,
    /// A signal handler ran, or is to run when this thread comes back.
    Interrupted,
}

/// Sleeps for at most `timeout` as long as `word` is `expected`.
///
/// # Panics
/// When the system has no `futex(2)`: without it there is no thread either.
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

/// Wakes up to `count` waiters and says how many it woke.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    // Fails for an address that is not mapped only, and `word` is.
    futex::wake(word, Flags::empty(), count).unwrap_or(0)
}

/// Every sleeper, as `count` of [`wake`]: the system call takes a signed number.
pub(crate) const ALL: u32 = i32::MAX.cast_unsigned();

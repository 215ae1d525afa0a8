//! `futex(2)` on words that several processes map. The words are in shared mappings, so the flag for private futexes is not
//! used.
//!
//! `robust` builds locks and waits on it, and a pool its waits for results (`pool/parent/call.rs`, `results.rs`, `latch.rs`). These
//! users re-check their condition after each return, whatever the reason. Where the waker is another process they also bound
//! each sleep: a wake-up is lost if its receiver dies. No memory order comes from here; the users' atomics have it
//! (`docs/design/lock.md`).

use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::signal;
use crate::prim::AtomicU32;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Another thread called [`wake`]; or, rarely, no thread did.
    Woken,
    /// The word was not `expected`: the caller re-checks its condition.
    Again,
    /// The timeout passed.
    TimedOut,
    /// A signal handler ran, or may run when this thread returns from the engine ([`signal::set_handlers_run_later`]).
    Interrupted,
}

/// Sleeps for at most `timeout` if `word` is `expected`. The kernel compares and goes to sleep in one step, so a [`wake`] after
/// a change of the word is not missed. A `timeout` that the kernel's type cannot represent is no limit.
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

/// Wakes up to `count` waiters of the word, in any process that maps it. Returns how many it woke. Does not read the word.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    // Fails only for an address that is not mapped.
    futex::wake(word, Flags::empty(), count).unwrap_or(0)
}

/// The `count` with which [`wake`] wakes all waiters: the largest that the system call takes, as its argument is signed.
pub(crate) const ALL: u32 = i32::MAX.cast_unsigned();

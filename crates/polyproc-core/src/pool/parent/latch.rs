//! [`Latch`]: an event that happens once; [`Parker`]: an event that happens repeatedly. Threads wait for both.
//!
//! Each is one word in private memory and a futex, so a waiter is interrupted by signal handlers, which a `Condvar`
//! does not report. Neither is for other processes.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::prim::{AtomicU32, Ordering};
use crate::robust::WaitError;
use crate::sys::futex;

/// How long a wait without a deadline sleeps at a time.
const LONG: Duration = Duration::from_secs(3600);

/// An event that happens once, and stays: the end of the pool's thread, or of the callback thread.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    /// 1 once it has happened, else 0.
    word: AtomicU32,
}

impl Latch {
    /// Lets all waits return, now and later. What the caller did before is visible to them.
    pub(crate) fn set(&self) {
        // Pairs with the Acquire in `wait`.
        self.word.store(1, Ordering::Release);
        futex::wake(&self.word, futex::ALL);
    }

    /// Blocks until the latch is set. Returns false if the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<bool, WaitError> {
        loop {
            // Pairs with the Release in `set`: what was done before it is visible.
            if self.word.load(Ordering::Acquire) != 0 {
                return Ok(true);
            }
            let left = deadline.remaining().unwrap_or(LONG);
            if left.is_zero() {
                return Ok(false);
            }
            if futex::wait(&self.word, 0, left) == futex::Wait::Interrupted {
                return Err(WaitError::Interrupted);
            }
        }
    }
}

/// Blocks threads until they are unparked: followers, which wait for their call while another thread is the leader, and threads
/// that wait to submit.
#[derive(Debug, Default)]
pub(crate) struct Parker {
    /// Number of calls of [`Parker::unpark`], which may wrap around.
    word: AtomicU32,
}

impl Parker {
    /// Returns a ticket for [`Parker::park`]. The caller takes it first, and checks its condition after that.
    pub(crate) fn ticket(&self) -> u32 {
        // Pairs with the Release in `unpark`. The check of the caller's condition stays after this load.
        self.word.load(Ordering::Acquire)
    }

    /// Sleeps, unless [`Parker::unpark`] was called since the ticket was taken.
    ///
    /// May return without a reason; the caller re-checks its condition. `timeout` bounds the sleep.
    pub(crate) fn park(&self, ticket: u32, timeout: Duration) -> futex::Wait {
        futex::wait(&self.word, ticket, timeout)
    }

    /// Wakes all threads that took their ticket before. The caller has made their condition true.
    pub(crate) fn unpark(&self) {
        // Release pairs with the Acquire in `ticket`: the condition is true before.
        self.word.fetch_add(1, Ordering::AcqRel);
        futex::wake(&self.word, futex::ALL);
    }
}

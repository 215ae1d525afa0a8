//! [`Latch`]: an event that happens once, and that threads wait for.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::prim::{AtomicU32, Ordering};
use crate::robust::WaitError;
use crate::sys::futex;

const LONG: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Latch {
    word: AtomicU32,
}

impl Latch {
    pub(super) fn set(&self) {
        // Pairs with the Acquire in `wait`.
        self.word.store(1, Ordering::Release);
        futex::wake(&self.word, futex::ALL);
    }

    /// Blocks until the latch is set. Returns false if the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran.
    pub(super) fn wait(&self, deadline: Deadline) -> Result<bool, WaitError> {
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

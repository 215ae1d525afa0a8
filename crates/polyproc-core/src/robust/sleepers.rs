//! Waiting in shared memory until something is so, where waiters and wakers may die.
//!
//! One word says whether anybody may sleep, and counts how often that was taken back. Who waits: sets the lowest bit, *looks
//! again*, and sleeps while the word is what it was then. Who makes something so: does it, *then* looks at the word, and
//! wakes if the bit is set. One of the two sees the other (both have a full barrier in between). An event count (V. Vyukov),
//! with these departures:
//!
//! - A waker that wakes one sleeper leaves the bit set, for there may be others. One that finds nobody asleep clears it and
//!   counts one further, *then* wakes everybody who fell asleep in between. Without the count, another waiter that sets the
//!   bit anew would send one to sleep that has not looked since (the model in `tests/loom` shows it).
//! - There is no count of waiters that a dead one could leave too high.
//! - A waiter that is killed after it was woken, or a waker before it wakes, takes a wake-up with it. So every sleep is cut in
//!   slices, and whoever reaps a process wakes all ([`Sleepers::rouse`]).

use std::time::Duration;

use super::os::{self, Deadline, Ordering, Wait};
use super::{Sleepers, WaitError};

/// Somebody may sleep. The rest of the word is the count.
const SLEEPING: u32 = 1;

impl Sleepers {
    /// Waits until `look` finds what it looks for. It looks at once, and at least every `slice`.
    ///
    /// # Errors
    /// [`WaitError`]; and whatever `look` fails with.
    pub(crate) fn wait<T, E: From<WaitError>>(
        &self,
        deadline: Deadline,
        slice: Duration,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        loop {
            let seen = self.word.fetch_or(SLEEPING, Ordering::SeqCst) | SLEEPING;
            // Between setting the bit and looking: pairs with the barrier in `wake_one`.
            os::fence(Ordering::SeqCst);
            if let Some(found) = look()? {
                return Ok(found);
            }
            let left = deadline.remaining().unwrap_or(slice);
            if left.is_zero() {
                return Err(WaitError::TimedOut.into());
            }
            if os::wait(&self.word, seen, left.min(slice)) == Wait::Interrupted {
                return Err(WaitError::Interrupted.into());
            }
        }
    }

    /// Wakes one sleeper, if there is one. To be called when what the sleepers wait for is done, after a lock was released.
    #[inline]
    pub(crate) fn wake_one(&self) {
        os::fence_after_unlock();
        if self.word.load(Ordering::Relaxed) & SLEEPING != 0 && os::wake(&self.word, 1) == 0 {
            self.rouse();
        }
    }

    /// Wakes all sleepers. As [`Sleepers::wake_one`].
    pub(crate) fn wake_all(&self) {
        os::fence_after_unlock();
        if self.word.load(Ordering::Relaxed) & SLEEPING != 0 {
            self.rouse();
        }
    }

    /// Wakes all who may sleep, also those whom a waker that died on its way has left asleep.
    pub(crate) fn rouse(&self) {
        let count_and_clear = |word: u32| Some((word | SLEEPING).wrapping_add(1));
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_and_clear); // it is never `None`
        os::wake(&self.word, os::ALL);
    }
}

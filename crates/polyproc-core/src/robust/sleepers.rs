//! Waiting in shared memory until something is so, where waiters and wakers may die.
//!
//! One word says whether anybody may sleep. Who waits: sets it, *looks again*, sleeps while it is set. Who makes something
//! so: does it, *then* looks at the word, and wakes if it is set. One of the two sees the other (both have a full barrier in
//! between): the event count of V. Vyukov and D. Howells, with the word itself as what is slept on.
//!
//! - A waker that wakes one sleeper leaves the word set, for there may be others. One that finds nobody asleep clears it,
//!   and *then* wakes everybody who fell asleep in between.
//! - There is no count of waiters that a dead one could leave too high.
//! - A waiter that is killed after its wake-up gives it back: the word stands in its robust list as pending, and the
//!   kernel wakes another sleeper (the word never holds a thread id). Once it takes a lock to look, that help is gone for
//!   the moment, and a waker may die between its deed and its waking: so every sleep is also cut in slices, and whoever
//!   notices a death wakes all ([`Sleepers::wake_all`]).

use std::time::Duration;

use super::os::{self, Deadline, Me, Ordering, WAITERS, Wait};
use super::{Sleepers, WaitError};

/// Somebody may sleep. The kernel's own bit, so that the kernel reads "no owner, and waiters".
pub(super) const SLEEPING: u32 = WAITERS;

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
        let me = Me::new();
        loop {
            self.robust.word.swap(SLEEPING, Ordering::SeqCst);
            // Between setting the word and looking: pairs with the barrier in `wake`.
            os::fence(Ordering::SeqCst);
            let found = look();
            me.settle(); // from a wake-up until here it is announced
            if let Some(found) = found? {
                return Ok(found);
            }
            let left = deadline.remaining().unwrap_or(slice);
            if left.is_zero() {
                return Err(WaitError::TimedOut.into());
            }
            me.announce(&self.robust);
            if os::wait(&self.robust.word, SLEEPING, left.min(slice)) == Wait::Interrupted {
                me.settle();
                return Err(WaitError::Interrupted.into());
            }
        }
    }

    /// Wakes one sleeper, if there is one. To be called when what the sleepers wait for is done, after a lock was released.
    #[inline]
    pub(crate) fn wake_one(&self) {
        os::fence_after_unlock();
        if self.robust.word.load(Ordering::Relaxed) == SLEEPING && os::wake(&self.robust.word, 1) == 0 {
            self.rouse();
        }
    }

    /// Wakes all sleepers. As [`Sleepers::wake_one`].
    pub(crate) fn wake_all(&self) {
        os::fence_after_unlock();
        if self.robust.word.load(Ordering::Relaxed) == SLEEPING {
            self.rouse();
        }
    }

    /// Wakes all who may sleep, also those whom a waker that died on its way has left asleep.
    pub(crate) fn rouse(&self) {
        self.robust.word.store(0, Ordering::SeqCst);
        os::wake(&self.robust.word, os::ALL);
    }
}

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
//! - A waiter that is killed after it was woken, or a waker before it wakes, takes a wake-up with it. So whoever reaps a process
//!   wakes all ([`Sleepers::rouse_if_any`]), and every sleep is cut in slices, each twice as long as the one before: who waits for
//!   long wakes next to never, and where nobody reaps, what is lost delays a wait by as long again as it has lasted.

use std::cell::Cell;
use std::time::Duration;

use super::os::{self, Deadline, Ordering, Wait};
use super::{Sleepers, WaitError};

/// Somebody may sleep.
const SLEEPING: u32 = 1;
/// A waker that has taken that back is about to wake all; if it died, somebody may sleep all the same.
const WAKING: u32 = 2;
/// The rest of the word is the count.
const ONE: u32 = 4;

/// How long a sleeper sleeps before it looks for itself.
#[derive(Debug)]
pub(crate) struct Slices {
    first: Duration,
    next: Cell<Duration>,
}

impl Slices {
    const LONGEST: Duration = Duration::from_secs(64);

    pub(crate) fn new(first: Duration) -> Self {
        Self { first, next: Cell::new(first) }
    }

    /// Returns the length of the next sleep.
    pub(crate) fn next(&self) -> Duration {
        self.next.get()
    }

    /// Doubles the next sleep, up to 64 s.
    pub(crate) fn lengthen(&self) {
        self.next.set((self.next.get() * 2).min(Self::LONGEST));
    }

    /// Resets the next sleep to the first length, where only polling can detect the event.
    pub(crate) fn restart(&self) {
        self.next.set(self.first);
    }
}

impl Sleepers {
    /// Waits until `look` finds what it looks for. It looks at once, and after each of the slices.
    ///
    /// # Errors
    /// [`WaitError`]; and whatever `look` fails with.
    pub(crate) fn wait<T, E: From<WaitError>>(
        &self,
        deadline: Deadline,
        slices: &Slices,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        loop {
            let seen = self.word.fetch_or(SLEEPING, Ordering::SeqCst) | SLEEPING;
            // Between setting the bit and looking: pairs with the barrier in `wake_one`.
            os::fence(Ordering::SeqCst);
            if let Some(found) = look()? {
                return Ok(found);
            }
            let left = deadline.remaining().unwrap_or(Slices::LONGEST);
            if left.is_zero() {
                return Err(WaitError::TimedOut.into());
            }
            match os::wait(&self.word, seen, left.min(slices.next())) {
                Wait::Interrupted => return Err(WaitError::Interrupted.into()),
                Wait::TimedOut => slices.lengthen(),
                Wait::Woken | Wait::Again => {}
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

    /// Whether somebody may sleep. As [`Sleepers::wake_one`], to be asked when what the sleepers wait for is done.
    pub(crate) fn is_anyone_asleep(&self) -> bool {
        os::fence(Ordering::SeqCst); // pairs with the one in `wait`
        self.word.load(Ordering::Relaxed) & SLEEPING != 0
    }

    /// Wakes all who may sleep, also those whom a waker that died on its way has left asleep.
    pub(crate) fn rouse(&self) {
        let begun = |word: u32| (word & !SLEEPING | WAKING).wrapping_add(ONE);
        let begin = |word| Some(begun(word));
        let Ok(before) = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin) else { return }; // never
        os::wake(&self.word, os::ALL);
        // Unless another waker has begun since.
        let end = |word: u32| (word / ONE == begun(before) / ONE).then_some(word & !WAKING);
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, end);
    }

    /// Wakes all sleepers as [`Sleepers::rouse`] does; with no sleeper it costs one load.
    pub(crate) fn rouse_if_any(&self) {
        os::fence(Ordering::SeqCst);
        if self.word.load(Ordering::Relaxed) & (SLEEPING | WAKING) != 0 {
            self.rouse();
        }
    }
}

//! A lock in shared memory whose owner may die at any instruction.
//!
//! The word is that of "mutex3" (U. Drepper, *Futexes Are Tricky*, 2011), with the owner's thread id in the place of 1, as
//! the kernel's robust futexes want it. Departures: the word of a dead owner is taken over by whoever comes next, who is
//! told so and repairs what the lock guards; every sleep is cut in slices, since a wake-up can be lost with the
//! process that got it, in the one case that the kernel does not see (another process barged in meanwhile).
//!
//! Only for the engine's own short sections: locks are released in the opposite order of their taking, by the same thread.

use std::time::Duration;

use super::os::{self, Deadline, Me, OWNER, OWNER_DIED, Ordering, Outer, WAITERS, Wait};
use super::{Mutex, WaitError};

const SLICE: Duration = Duration::from_millis(100);
/// After about so many slices, a second, it is asked whether the owner lives.
const SLICES_UNTIL_DOUBT: u32 = 10;
/// A section takes nanoseconds, or as long as its owner is without a processor: who came to look once waits for so long.
/// Only an owner that is stopped (`SIGSTOP`, a debugger) is waited for in vain.
const GRACE: Duration = Duration::from_millis(100);

/// The lock, held. It goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    mutex: &'a Mutex,
    me: Me,
    outer: Outer,
    /// The previous owner died while it held the lock: what the lock guards may be half changed.
    pub(crate) owner_died: bool,
    /// It still is.
    is_broken: bool,
}

impl Guard<'_> {
    /// Repairs what the dead owner left; if that fails, the next owner is told of the death again.
    pub(crate) fn mend<E>(&mut self, repair: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mended = repair();
        self.is_broken = mended.is_err();
        mended
    }
}

impl Mutex {
    /// Takes the lock; waits until the deadline, or for [`GRACE`] when that is later.
    ///
    /// # Errors
    /// [`WaitError`], when it stays taken until the deadline, or a signal handler ran.
    #[inline(always)]
    pub(crate) fn lock(&self, deadline: Deadline) -> Result<Guard<'_>, WaitError> {
        let me = Me::new();
        me.announce(&self.robust);
        // Acquire pairs with the Release in `Guard::drop`.
        let free = self.robust.word.compare_exchange(0, me.tid(), Ordering::Acquire, Ordering::Relaxed).is_ok();
        let owner_died =
            if free { false } else { self.lock_slowly(me.tid(), deadline).inspect_err(|_| me.settle())? };
        let outer = me.link(&self.robust);
        me.settle();
        Ok(Guard { mutex: self, me, outer, owner_died, is_broken: false })
    }

    #[cold]
    #[inline(never)]
    fn lock_slowly(&self, tid: u32, deadline: Deadline) -> Result<bool, WaitError> {
        let word = &self.robust.word;
        let mut until = None;
        let mut slices = 0;
        let mut spins = 0;
        // Whoever slept may have been one of several sleepers.
        let mut others_may_sleep = 0;
        loop {
            let seen = word.load(Ordering::Relaxed);
            if seen & OWNER == 0 {
                let taken = tid | (seen & WAITERS) | others_may_sleep;
                // Acquire pairs with the Release in `Guard::drop`; a dead owner's writes are ordered by the kernel's.
                if word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Ok(seen & OWNER_DIED != 0);
                }
                continue;
            }
            if spins < os::SPINS {
                spins += 1;
                os::spin();
                continue;
            }
            let asleep = seen | WAITERS;
            if seen != asleep && word.compare_exchange(seen, asleep, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                continue;
            }
            let left = until.get_or_insert_with(|| deadline.or_after(GRACE)).remaining().unwrap_or(SLICE);
            if left.is_zero() {
                return Err(WaitError::TimedOut);
            }
            others_may_sleep = WAITERS;
            slices += 1;
            // The kernel marks the words of the dead, unless it was kept from it: by memory that it had taken back already, or a
            // list that was overwritten.
            if slices % SLICES_UNTIL_DOUBT == 0 && os::is_gone(seen & OWNER) {
                // Fails when the mark came, or another owner.
                let _ = word.compare_exchange(asleep, WAITERS | OWNER_DIED, Ordering::Relaxed, Ordering::Relaxed);
                continue;
            }
            if os::wait(word, asleep, left.min(SLICE)) == Wait::Interrupted {
                // The end of the time counts first: a wait that is called again would have its grace anew.
                let is_over = until.is_some_and(Deadline::has_passed);
                return Err(if is_over { WaitError::TimedOut } else { WaitError::Interrupted });
            }
        }
    }
}

impl Drop for Guard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let robust = &self.mutex.robust;
        self.me.announce(robust);
        self.me.unlink(&self.outer);
        // Release pairs with the Acquire of the next owner. SeqCst, for `os::fence_after_unlock`.
        let free = if self.is_broken { OWNER_DIED } else { 0 };
        if robust.word.swap(free, Ordering::SeqCst) & WAITERS != 0 {
            os::wake(&robust.word, 1);
        }
        self.me.settle();
    }
}

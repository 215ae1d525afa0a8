//! [`Mutex`]: a lock in shared memory whose owner may die at any instruction.
//!
//! The algorithm is "mutex3" (U. Drepper, *Futexes Are Tricky*, 2011, section 7), with the owner's thread id in the place of
//! 1, as robust futexes require (`set_robust_list(2)`). Departures: the next owner takes the word of a dead one over, learns
//! of the death ([`Guard::owner_died`]) and repairs what the lock guards. Every sleep is bounded, since a waiter that is killed
//! after it was woken takes the wake-up with it where a third process has acquired the lock meanwhile: the kernel does not see
//! that one case.
//!
//! Only for the engine's own short critical sections: a thread releases its locks in the reverse order of acquisition.

use std::time::Duration;

use super::os::{self, Deadline, Me, OWNER, OWNER_DIED, Ordering, Outer, WAITERS, Wait};
use super::{Mutex, WaitError};

/// How long a waiter sleeps at most before it reads the word again.
const RECHECK_AFTER: Duration = Duration::from_millis(100);
/// How many sleeps (about 1 s) pass before a waiter checks whether the owner is alive.
const SLEEPS_PER_LIVENESS_CHECK: u32 = 10;
/// The shortest wait, whatever the deadline: a critical section takes nanoseconds, or as long as its owner has no processor. Only
/// an owner that is stopped (`SIGSTOP`, a debugger) takes longer.
const MIN_WAIT: Duration = Duration::from_millis(100);

/// The acquired lock, released on drop.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    mutex: &'a Mutex,
    me: Me,
    outer: Outer,
    /// The previous owner died while it held the lock: the guarded data may be inconsistent.
    pub(crate) owner_died: bool,
    /// The data could not be repaired: the next owner sees `owner_died`, too.
    is_broken: bool,
}

impl Guard<'_> {
    /// Repairs the data that the dead owner left inconsistent. If that fails, the next owner sees `owner_died`, too.
    pub(crate) fn repair<E>(&mut self, repair: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let repaired = repair();
        self.is_broken = repaired.is_err();
        repaired
    }
}

impl Mutex {
    /// Acquires the lock. Blocks until the deadline, or for [`MIN_WAIT`] if that is later.
    ///
    /// # Errors
    /// [`WaitError`]: the lock was not released in time, or a signal handler ran.
    #[inline(always)]
    pub(crate) fn lock(&self, deadline: Deadline) -> Result<Guard<'_>, WaitError> {
        let me = Me::new();
        me.announce(&self.robust);
        // Acquire pairs with the Release in `Guard::drop`.
        let free = self.robust.word.compare_exchange(0, me.tid(), Ordering::Acquire, Ordering::Relaxed).is_ok();
        let owner_died =
            if free { false } else { self.lock_contended(me.tid(), deadline).inspect_err(|_| me.settle())? };
        let outer = me.link(&self.robust);
        me.settle();
        Ok(Guard { mutex: self, me, outer, owner_died, is_broken: false })
    }

    #[cold]
    #[inline(never)]
    fn lock_contended(&self, tid: u32, deadline: Deadline) -> Result<bool, WaitError> {
        let word = &self.robust.word;
        let mut until = None;
        let mut sleeps = 0;
        let mut spins = 0;
        // A thread that slept may have been one of several waiters.
        let mut others_may_sleep = 0;
        loop {
            let seen = word.load(Ordering::Relaxed);
            if seen & OWNER == 0 {
                let taken = tid | (seen & WAITERS) | others_may_sleep;
                // Acquire pairs with the Release in `Guard::drop`; the kernel's write to the word orders those of a dead owner.
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
            let left = until.get_or_insert_with(|| deadline.or_after(MIN_WAIT)).remaining().unwrap_or(RECHECK_AFTER);
            if left.is_zero() {
                return Err(WaitError::TimedOut);
            }
            others_may_sleep = WAITERS;
            sleeps += 1;
            // The kernel marks the word of a dead owner, unless the owner's memory was unmapped before or its robust list was
            // overwritten.
            if sleeps % SLEEPS_PER_LIVENESS_CHECK == 0 && os::is_gone(seen & OWNER) {
                // Fails if the kernel's mark has arrived, or another owner.
                let _ = word.compare_exchange(asleep, WAITERS | OWNER_DIED, Ordering::Relaxed, Ordering::Relaxed);
                continue;
            }
            if os::wait(word, asleep, left.min(RECHECK_AFTER)) == Wait::Interrupted {
                // A passed deadline takes precedence: a retry after the signal would get `MIN_WAIT` again.
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
        // Release pairs with the Acquire of the next owner in `lock` and `lock_contended`. SeqCst: on x86 this is the
        // full barrier of `os::fence_after_unlock`.
        let free = if self.is_broken { OWNER_DIED } else { 0 };
        if robust.word.swap(free, Ordering::SeqCst) & WAITERS != 0 {
            os::wake(&robust.word, 1);
        }
        self.me.settle();
    }
}

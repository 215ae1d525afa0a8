//! [`Mutex`]: a lock in shared memory whose owner may die at any instruction.
//!
//! Users: the arena (`shm::arena`), the two sides of a queue (`queue`), conditions and barriers (`sync::object`). Only for the
//! engine's own short critical sections; locks of the program's users are `sync::Lock`. `docs/design/lock.md` lists the steps
//! and the state that a death leaves after each.
//!
//! The algorithm is "mutex3" (U. Drepper, *Futexes Are Tricky*, 2011, section 7), with the owner's thread id in the place of
//! 1, as robust futexes require (`set_robust_list(2)`). Departures: the next owner takes the word of a dead one over, learns
//! of the death ([`Guard::owner_died`]) and repairs what the lock guards. Every sleep is bounded, since a waiter that is
//! killed after it was woken takes the wake-up with it where a third process has acquired the lock meanwhile: the kernel does
//! not see that one case.
//!
//! - A thread releases its locks in the reverse order of acquisition, as the robust list has links in one direction only.
//! - A guard stays in its thread. A thread that holds the lock must not acquire it again.
//! - The lock is not fair: a running thread may acquire it before a woken waiter.
//! - A panic in a critical section releases the lock, and marks nothing.
//!
//! A peer that overwrites the word can block the others, or let two of them in. What they then read is checked as any shared
//! memory is.

use std::time::Duration;

use super::event_count::WaitError;
use crate::deadline::Deadline;
use crate::prim::{Ordering, spin_loop};
use crate::sys::futex::{self, Wait};
use crate::sys::robust::{Me, OWNER, OWNER_DIED, Outer, RobustWord, WAITERS, is_gone};
use crate::sys::shared::shared;

/// How many times to re-read the word before sleeping: a critical section takes some 10 ns, unless its owner was preempted.
const SPINS: u32 = if cfg!(loom) { 1 } else { 40 };

/// How long a waiter sleeps at most before it reads the word again.
const RECHECK_AFTER: Duration = Duration::from_millis(100);
/// How many sleeps (about 1 s) pass before a waiter checks whether the owner is alive.
const SLEEPS_PER_LIVENESS_CHECK: u32 = 10;
/// The shortest wait, whatever the deadline: a critical section takes nanoseconds, or as long as its owner has no processor.
/// Only an owner that is stopped (`SIGSTOP`, a debugger) takes longer.
const MIN_WAIT: Duration = Duration::from_millis(100);

shared! {
    /// A lock whose owner may die: see the module.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 4 | word | 0: free; else the owner's thread id, with [`WAITERS`] while there are any; the kernel replaces the id of a dead owner by [`OWNER_DIED`] |
    /// | 4 | 60 | | see [`RobustWord`]: room for the guarded data |
    pub(crate) struct Mutex { pub(crate) robust: RobustWord, }
}

/// The acquired lock, released on drop.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    mutex: &'a Mutex,
    /// The thread that acquired the lock.
    me: Me,
    /// The head of this thread's robust list before the acquisition, which it becomes again at the release.
    outer: Outer,
    /// The previous owner died while it held the lock: the guarded data may be inconsistent.
    pub(crate) owner_died: bool,
    /// The data could not be repaired: the next owner sees `owner_died`, too.
    is_broken: bool,
}

impl Guard<'_> {
    /// Repairs the data that the dead owner left inconsistent. If that fails, the next owner sees `owner_died`, too, and tries
    /// again. A death during the repair has the same effect, so a repair can be started again at any point.
    ///
    /// # Errors
    /// The error of `repair`. The lock is still held.
    pub(crate) fn repair<E>(&mut self, repair: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let repaired = repair();
        self.is_broken = repaired.is_err();
        repaired
    }
}

impl Mutex {
    /// Acquires the lock. Blocks until the deadline, or for [`MIN_WAIT`] if that is later. The caller checks
    /// [`Guard::owner_died`] before it uses the data.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] if the lock was not released in time: its owner is stopped; [`WaitError::Interrupted`] if a
    /// signal handler ran.
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

    /// Acquires the lock for the thread `tid`, which has announced it. Returns whether the last owner died.
    ///
    /// Spins first, then sets [`WAITERS`] and sleeps. After each tenth sleep it asks the kernel whether the owner exists, and
    /// otherwise marks the word as the kernel would.
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
            if spins < SPINS {
                spins += 1;
                spin_loop();
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
            if sleeps % SLEEPS_PER_LIVENESS_CHECK == 0 && is_gone(seen & OWNER) {
                // Fails if the kernel's mark has arrived, or another owner.
                let _ = word.compare_exchange(asleep, WAITERS | OWNER_DIED, Ordering::Relaxed, Ordering::Relaxed);
                continue;
            }
            if futex::wait(word, asleep, left.min(RECHECK_AFTER)) == Wait::Interrupted {
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
        // full barrier of `fence_after_unlock` in `event_count`.
        let free = if self.is_broken { OWNER_DIED } else { 0 };
        if robust.word.swap(free, Ordering::SeqCst) & WAITERS != 0 {
            futex::wake(&robust.word, 1);
        }
        self.me.settle();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::sys::memory::{self, Mapping, PAGE};
    use crate::sys::thread_id;

    /// As after a death that the kernel did not mark in the word: see `lock_contended`.
    #[test]
    fn a_lock_of_a_thread_that_is_gone_is_taken_over_and_that_of_a_living_one_is_not() {
        let memfd = memory::create(c"test", PAGE).expect("memory");
        let mapping = Mapping::new(memfd.as_fd(), 0, PAGE).expect("memory");
        let mutex = mapping.view::<Mutex>(0).expect("inside");
        let gone = std::thread::spawn(thread_id).join().expect("no panic");
        mutex.robust.word.store(gone, Ordering::Relaxed);
        let guard = mutex.lock(Deadline::NEVER).expect("nobody has it");
        assert!(guard.owner_died);
        drop(guard);
        assert!(!mutex.lock(Deadline::NEVER).expect("it is free").owner_died);
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (told, living) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            told.send(thread_id()).expect("it is read");
            let _ = receiver.recv();
        });
        mutex.robust.word.store(living.recv().expect("it lives"), Ordering::Relaxed);
        let doubted_once = Deadline::after(Duration::from_millis(1500));
        assert_eq!(mutex.lock(doubted_once).map(drop), Err(WaitError::TimedOut));
        drop(sender);
        thread.join().expect("no panic");
    }
}

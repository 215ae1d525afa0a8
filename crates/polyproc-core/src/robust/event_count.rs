//! [`EventCount`]: blocks until a condition in shared memory holds; waiters and wakers may die.
//!
//! The word has a flag "there may be waiters" and a generation. A waiter sets the flag, re-checks its condition, then
//! futex-waits while the word is unchanged. A waker makes the condition true, then reads the word and wakes if the flag is
//! set. Both sides have a full barrier in between, so one of them sees the other. The algorithm is the event count (D. Vyukov,
//! "Eventcounts", 1024cores.net), with these departures:
//!
//! - A waker that wakes one waiter leaves the flag set, since there may be others. A waker whose futex call finds no waiter
//!   clears the flag, increments the generation, *then* wakes every waiter that went to sleep in between. Without the
//!   generation, a second waiter that sets the flag again would let a first one sleep on an outdated check (the model
//!   `no_wake_up_is_lost` fails then).
//! - There is no count of waiters, which a dead waiter would leave too high.
//! - A waiter that is killed after it was woken, or a waker before it wakes, loses a wake-up. So the process that reaps a dead
//!   one calls [`EventCount::recover`], and every sleep is bounded by a [`RecheckInterval`] that doubles: a waiter that waits
//!   for long almost never wakes, and where nobody reaps, a lost wake-up at most doubles the wait.
//!
//! Users: `queue`, `sync`, `shm::room`, and `pool` (idle workers, workers with a full result ring). The event count guards
//! nothing: the condition is read by atomics, or under a lock that the check acquires.

use std::cell::Cell;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::prim::{AtomicU32, Ordering, compiler_fence, fence};
use crate::retry::Interrupt;
use crate::sys::futex::{self, Wait};
use crate::sys::shared::shared;

/// There may be waiters.
const WAITERS: u32 = 1;
/// A waker has cleared [`WAITERS`] and is about to wake all. If it died there, there may be waiters all the same.
const WAKING: u32 = 2;
/// The remaining bits are the generation.
const GENERATION: u32 = 4;

shared! {
    /// Blocks until a condition holds: see the module.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 4 | word | a waiter sets bit 0 before its last check; a waker that found no waiter clears it, increments the generation (from bit 2 on), and sets bit 1 until it has woken all |
    pub(crate) struct EventCount { word: AtomicU32, }
}

/// Why a wait ended before its condition held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("the wait timed out")]
    TimedOut,
    /// A signal handler ran. The wait may be repeated.
    #[error("a signal handler ran during the wait")]
    Interrupted,
}

impl Interrupt for WaitError {
    fn is_interrupted(&self) -> bool {
        *self == Self::Interrupted
    }
}

/// How long a waiter sleeps before it re-checks its condition: doubles with each sleep that nothing ended, up to 64 s. One
/// value belongs to one wait of one thread.
#[derive(Debug)]
pub(crate) struct RecheckInterval {
    /// The length of the first sleep, and of the one after [`RecheckInterval::restart`].
    first: Duration,
    next: Cell<Duration>,
}

impl RecheckInterval {
    const LONGEST: Duration = Duration::from_secs(64);

    /// Creates an interval whose first sleep has this length.
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

/// A full barrier after the read-modify-write that released a lock. On x86 that instruction is one itself.
fn fence_after_unlock() {
    // Pairs with the fence in `EventCount::wait`: the flag of the waiters is read after the release of the lock is
    // visible.
    if cfg!(all(target_arch = "x86_64", not(loom))) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

impl EventCount {
    /// Blocks until `check` returns a value. Calls it at once, after each wake-up and after each interval: at least once, also
    /// if the deadline has passed.
    ///
    /// `check` runs in this thread while the flag is set. It may acquire locks, take what it waits for, and make system calls.
    /// It must not wake this event count when it fails, as that would end the next sleep at once.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`]; [`WaitError::Interrupted`] after a signal handler ran; any error of `check`, at once.
    pub(crate) fn wait<T, E: From<WaitError>>(
        &self,
        deadline: Deadline,
        interval: &RecheckInterval,
        mut check: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        loop {
            // Its Acquire half pairs with the Release half in `wake_generation`: a waiter of the new generation sees
            // the condition.
            let seen = self.word.fetch_or(WAITERS, Ordering::SeqCst) | WAITERS;
            // Between setting the flag and the check. Pairs with the fences in `wake_one`, `wake_all`, `has_waiters`
            // and `recover`, between making the condition true and reading the flag: neither side may load before its
            // store is visible.
            fence(Ordering::SeqCst);
            if let Some(found) = check()? {
                return Ok(found);
            }
            let left = deadline.remaining().unwrap_or(RecheckInterval::LONGEST);
            if left.is_zero() {
                return Err(WaitError::TimedOut.into());
            }
            match futex::wait(&self.word, seen, left.min(interval.next())) {
                Wait::Interrupted => return Err(WaitError::Interrupted.into()),
                Wait::TimedOut => interval.lengthen(),
                Wait::Woken | Wait::Again => {}
            }
        }
    }

    /// Wakes one waiter, if there is one. The caller has made the condition true, and then released a lock or changed a word
    /// by a read-modify-write with SeqCst: on x86-64 that is the full barrier. For conditions that one waiter uses up; a death
    /// of that waiter is left to [`EventCount::recover`].
    #[inline]
    pub(crate) fn wake_one(&self) {
        fence_after_unlock(); // pairs with the fence in `wait`
        if self.word.load(Ordering::Relaxed) & WAITERS != 0 && futex::wake(&self.word, 1) == 0 {
            self.wake_generation();
        }
    }

    /// Wakes all waiters. The caller has made the condition true, and then released a lock.
    pub(crate) fn wake_all(&self) {
        fence_after_unlock(); // pairs with the fence in `wait`
        if self.word.load(Ordering::Relaxed) & WAITERS != 0 {
            self.wake_generation();
        }
    }

    /// Returns whether there may be waiters. The caller has made the condition true.
    pub(crate) fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst); // pairs with the one in `wait`
        self.word.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Wakes all waiters after a process died, also those of a waker that died between clearing the flag and its wake-up.
    /// Without waiters this costs one load.
    pub(crate) fn recover(&self) {
        fence(Ordering::SeqCst); // pairs with the one in `wait`
        if self.word.load(Ordering::Relaxed) & (WAITERS | WAKING) != 0 {
            self.wake_generation();
        }
    }

    /// Begins a new generation and wakes all waiters of earlier ones, whatever the flags say. For callers without a barrier of
    /// their own, and after repairs. It is one system call, also without waiters.
    pub(crate) fn wake_generation(&self) {
        let begun = |word: u32| (word & !WAITERS | WAKING).wrapping_add(GENERATION);
        let begin = |word| Some(begun(word));
        // Release pairs with the Acquire half of the `fetch_or` in `wait`, so the caller needs no fence.
        let Ok(before) = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin) else { return }; // never
        futex::wake(&self.word, futex::ALL);
        // Unless another waker has begun since.
        let is_own = |word: u32| word / GENERATION == begun(before) / GENERATION;
        let end = |word: u32| is_own(word).then_some(word & !WAKING);
        // After the wake-up: a death before this leaves the flag for `recover`. It publishes nothing, and pairs with no
        // load.
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, end);
    }
}

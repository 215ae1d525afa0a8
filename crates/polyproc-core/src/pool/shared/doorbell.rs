//! How workers wake the parent, no more often than it wants.
//!
//! One word says how the parent must be woken. Before the parent sleeps, it sets the word, then *re-checks* for results. A
//! worker writes a result, *then* reads the word. Both have a full barrier in between, so one of them sees the other. A worker
//! that finds the parent asleep sets the word to [`AWAKE`] and wakes it, so only one of many workers does. If that worker dies
//! in between, the pool's thread detects the death and reads the results.

use crate::prim::{AtomicU32, Ordering, fence};
use crate::sys::futex;
use crate::sys::shared::shared;

/// No wake-up is needed: a thread reads results, and re-checks before it sleeps.
pub(crate) const AWAKE: u32 = 0;
/// A thread polls this word.
pub(crate) const SPINNING: u32 = 1;
/// A thread sleeps on this word.
pub(crate) const ASLEEP: u32 = 2;
/// A thread sleeps on this word, and must be woken only when few tasks are left on the table.
pub(crate) const ASLEEP_UNTIL_LOW: u32 = 3;
/// The pool's thread sleeps in `epoll_wait(2)`, and is woken by an `eventfd(2)`.
pub(crate) const AWAY: u32 = 4;

shared! {
    /// See the module.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 4 | word | the parent: how it must be woken; a worker: [`AWAKE`], when it rings |
    pub(crate) struct Doorbell { pub(crate) word: AtomicU32, }
}

impl Doorbell {
    /// Wakes the parent after a worker has written a result. `is_low` returns whether few tasks are left; `ring_driver` writes
    /// to the eventfd. Returns false if the parent does not want to be woken yet.
    pub(crate) fn ring(&self, is_low: impl FnOnce() -> bool, ring_driver: impl FnOnce()) -> bool {
        fence(Ordering::SeqCst); // pairs with those in `set` and `hurry`
        match self.word.load(Ordering::Relaxed) {
            AWAKE => return true,
            ASLEEP_UNTIL_LOW if !is_low() => return false,
            _ => {}
        }
        // Release pairs with the Acquire in `has_rung`: the result is written before.
        match self.word.swap(AWAKE, Ordering::AcqRel) {
            ASLEEP | ASLEEP_UNTIL_LOW => _ = futex::wake(&self.word, 1),
            AWAY => ring_driver(),
            _ => {}
        }
        true
    }

    /// Sets how the parent must be woken. The parent re-checks for results after this.
    pub(crate) fn set(&self, what: u32) {
        self.word.store(what, Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one in `ring`
    }

    /// Changes [`ASLEEP_UNTIL_LOW`] to [`ASLEEP`]: the next result wakes the parent. Returns false if the word was another one.
    pub(crate) fn hurry(&self) -> bool {
        // Before the caller's check for results: by the fence, it pairs with the fence in `ring`, also if it fails.
        let was = self.word.compare_exchange(ASLEEP_UNTIL_LOW, ASLEEP, Ordering::SeqCst, Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one in `ring`
        was.is_ok()
    }

    /// Returns whether a worker has rung since `what` was set.
    pub(crate) fn has_rung(&self, what: u32) -> bool {
        // Pairs with the Release in `ring`.
        self.word.load(Ordering::Acquire) != what
    }
}

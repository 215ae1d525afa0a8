//! How workers wake the parent, no more often than it wants.
//!
//! One word says what the parent does. It looks for results; before it goes to sleep it writes how it is to be woken, and
//! *looks once more*. A worker puts a result down, *then* looks at the word. One of the two sees the other: both have a full
//! barrier in between. The worker that finds somebody asleep sets the word back to [`AWAKE`] and wakes it: so one of many
//! workers does it, once. If that worker dies in between, the parent's thread sees its death and looks for itself.
//! Compiled a second time in `tests/loom`.

use super::Doorbell;
use super::os::{self, Ordering};

/// Somebody looks for results, and will look again before sleeping.
pub(super) const AWAKE: u32 = 0;
/// Somebody looks at this word again and again.
pub(super) const SPINNING: u32 = 1;
/// A thread sleeps on this word.
pub(super) const ASLEEP: u32 = 2;
/// A thread sleeps on this word, and is to sleep on until few tasks are left on the table.
pub(super) const ASLEEP_UNTIL_LOW: u32 = 3;
/// The parent's thread sleeps in `epoll_wait(2)`, in which a futex wakes nobody: it has an `eventfd(2)`.
pub(super) const AWAY: u32 = 4;

impl Doorbell {
    /// A worker has put something down. `is_low` says whether few tasks are left; `ring_driver` writes to the eventfd.
    /// False when the parent is not to be told yet.
    pub(super) fn ring(&self, is_low: impl FnOnce() -> bool, ring_driver: impl FnOnce()) -> bool {
        os::fence(Ordering::SeqCst); // pairs with the one in `set`
        match self.word.load(Ordering::Relaxed) {
            AWAKE => return true,
            ASLEEP_UNTIL_LOW if !is_low() => return false,
            _ => {}
        }
        match self.word.swap(AWAKE, Ordering::AcqRel) {
            ASLEEP | ASLEEP_UNTIL_LOW => _ = os::wake(&self.word, 1),
            AWAY => ring_driver(),
            _ => {}
        }
        true
    }

    /// The parent says what it is going to do; it looks for results after this.
    pub(super) fn set(&self, what: u32) {
        self.word.store(what, Ordering::Relaxed);
        os::fence(Ordering::SeqCst); // pairs with the one in `ring`
    }

    /// The parent is to be woken for any result from now on. False when it is awake anyway, or would be.
    pub(super) fn hurry(&self) -> bool {
        let was = self.word.compare_exchange(ASLEEP_UNTIL_LOW, ASLEEP, Ordering::SeqCst, Ordering::Relaxed);
        os::fence(Ordering::SeqCst); // pairs with the one in `ring`
        was.is_ok()
    }

    /// Whether a worker has rung since `what` was set.
    pub(super) fn has_rung(&self, what: u32) -> bool {
        self.word.load(Ordering::Acquire) != what
    }
}

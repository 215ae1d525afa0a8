//! [`Event`]: a flag in shared memory to wait for, under the `Event` of both faces.
//!
//! Flag and number of sets are one word, and each change is one atomic instruction, so a process that dies in `set` or `clear`
//! leaves the event set or not set; the object's mutex is not used. If it dies before its wake-up, waiters re-check after
//! [`RECHECK_AFTER`], then at longer intervals. A waiter compares the number of sets, so that it also returns if the event was
//! set and cleared during the wait.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::{Ordering, fence};
use crate::robust::{RecheckInterval, WaitError};

/// The flag, in the lowest bit of `StateWords::value`.
const SET: u64 = 1;
/// Added by each `set` that changes the flag: the other bits count them.
const ONCE: u64 = 2;

/// An event between processes. Clones refer to the same event.
#[derive(Debug, Clone)]
pub struct Event(Arc<Object>);
handle!(Event, 3); // 3: the number of this kind of object, also in `new`

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create(3, 0, 0)?))
    }

    /// Returns the word: the flag and, in the other bits, the number of sets.
    fn value(&self) -> u64 {
        // Pairs with the Release in `set` and `clear`.
        self.0.state().value.load(Ordering::Acquire)
    }

    /// Returns whether the event is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.value() & SET != 0
    }

    /// Sets the event and wakes all waiters, also if it was set before: an earlier setter may have died before its wake-up.
    pub fn set(&self) {
        // An update even if the event is set already: it comes before or after the `clear` of another process, which in the
        // second case does not see what the caller has written, but leaves the event set. Release pairs with the Acquire in
        // `value` and `clear`. `wake_all` requires a full barrier: the fence pairs with the one in `EventCount::wait`.
        let set = |value: u64| Some(if value & SET == 0 { value.wrapping_add(ONCE) | SET } else { value });
        let _ = self.0.state().value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set);
        fence(Ordering::SeqCst);
        self.0.layout().waiters.wake_all();
    }

    /// Clears the event.
    pub fn clear(&self) {
        // Acquire pairs with the Release in `set`: a caller that clears the event and then checks for work sees what was
        // written before the `set` that it cleared. Release pairs with the Acquire in `value`.
        self.0.state().value.fetch_and(!SET, Ordering::AcqRel);
    }

    /// Returns how often the event was set while it was not set, for [`Event::wait`].
    #[must_use]
    pub fn sets(&self) -> u64 {
        self.value() / ONCE
    }

    /// Blocks until the event is set, or was set and cleared again since [`Event::sets`] returned `before`.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`]; [`WaitError::Interrupted`] after a signal handler ran. A call that is repeated with the same
    /// number misses nothing.
    pub fn wait(&self, before: u64, deadline: Deadline) -> Result<(), WaitError> {
        self.0.layout().waiters.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || {
            let now = self.value();
            Ok((now & SET != 0 || now / ONCE != before).then_some(()))
        })
    }
}

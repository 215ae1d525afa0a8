//! [`Event`]: a flag to wait for. Each change is one atomic step, so a death leaves it set or not set.
//!
//! The value counts the sets, so a wait also ends if the flag was set and cleared during it. The object's mutex is not used.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::{Ordering, fence};
use crate::robust::{RecheckInterval, WaitError};

/// The flag, in the lowest bit of the value.
const SET: u64 = 1;
/// Added to the value by each set.
const ONCE: u64 = 2;

/// An event. Clones refer to the same event.
#[derive(Debug, Clone)]
pub struct Event(Arc<Object>);
handle!(Event, 3);

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create(3, 0, 0)?))
    }

    /// Returns the flag and the number of sets.
    fn value(&self) -> u64 {
        // Pairs with the Release in `set` and `clear`.
        self.0.state().value.load(Ordering::Acquire)
    }

    /// Returns whether the event is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.value() & SET != 0
    }

    /// Sets the event and wakes all waiters.
    pub fn set(&self) {
        let set = |value: u64| (value & SET == 0).then(|| value.wrapping_add(ONCE) | SET);
        // Release pairs with the Acquire in `value` and `clear`. It fails if the event is set already, and is no
        // barrier then: hence the fence, which pairs with the one in `EventCount::wait`.
        let _ = self.0.state().value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set);
        fence(Ordering::SeqCst);
        self.0.layout().waiters.wake_all();
    }

    /// Clears the event.
    pub fn clear(&self) {
        // Acquire pairs with the Release in `set`: a caller that clears, then looks, sees what was done before the
        // `set`. Release pairs with the Acquire in `value`.
        self.0.state().value.fetch_and(!SET, Ordering::AcqRel);
    }

    /// Blocks until the event is set, or was set at any time since the call.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`]; [`WaitError::Interrupted`] after a signal handler ran: a set before the next call is missed if
    /// it was cleared again.
    pub fn wait(&self, deadline: Deadline) -> Result<(), WaitError> {
        let before = self.value() & !SET;
        self.0.layout().waiters.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || {
            let now = self.value();
            Ok((now & SET != 0 || now != before).then_some(()))
        })
    }
}

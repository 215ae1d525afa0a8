//! [`Event`]: a flag to wait for. One compare-and-swap changes it; a waiter also sees that it was set and cleared again meanwhile.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::{Ordering, fence};
use crate::robust::{RecheckInterval, WaitError};

const SET: u64 = 1;
/// One more set.
const ONCE: u64 = 2;

/// An event. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Event(Arc<Object>);
handle!(Event, 3);

impl Event {
    /// One that is not set.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create(3, 0, 0)?))
    }

    fn value(&self) -> u64 {
        self.0.state().value.load(Ordering::Acquire)
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.value() & SET != 0
    }

    /// Sets it, and wakes all who wait.
    pub fn set(&self) {
        let set = |value: u64| (value & SET == 0).then(|| value.wrapping_add(ONCE) | SET);
        // It is set already when this fails. SeqCst, for the waiters' barrier in `wake_all`.
        let _ = self.0.state().value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set);
        fence(Ordering::SeqCst);
        self.0.layout().waiters.wake_all();
    }

    /// Clears it.
    pub fn clear(&self) {
        self.0.state().value.fetch_and(!SET, Ordering::AcqRel);
    }

    /// Waits until it is set.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait(&self, deadline: Deadline) -> Result<(), WaitError> {
        let before = self.value() & !SET;
        self.0.layout().waiters.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || {
            let now = self.value();
            Ok((now & SET != 0 || now != before).then_some(()))
        })
    }
}

//! [`Semaphore`]: a number that waits where it is zero. One compare-and-swap changes it.
//!
//! A permit has no owner, as in Python and POSIX: any process may give back what another took, and what a process that
//! died had taken is gone. Where that must not be, a lock, or a queue that puts back, is the means.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{RecheckInterval, WaitError};

/// More was released than the semaphore may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the semaphore was released too many times")]
pub struct OverRelease;

/// A semaphore. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Semaphore(Arc<Object>);
handle!(Semaphore, 2);

impl Semaphore {
    /// One that holds `value`, and never more than `bound`.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new(value: u64, bound: u64) -> io::Result<Self> {
        Ok(Self(Object::create(2, value, bound)?))
    }

    fn take(&self) -> bool {
        let less = |value: u64| value.checked_sub(1);
        // Acquire pairs with the Release in `release`.
        self.0.state().value.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).is_ok()
    }

    /// Takes one; waits until the deadline while there is none.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn acquire(&self, deadline: Deadline) -> Result<(), WaitError> {
        if self.take() {
            return Ok(());
        }
        self.0.layout().waiters.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || Ok(self.take().then_some(())))
    }

    /// Gives `count` back, all or none.
    ///
    /// # Errors
    /// [`OverRelease`] when it would hold more than its bound.
    pub fn release(&self, count: u64) -> Result<(), OverRelease> {
        let limit = self.0.layout().kind.limit.load(Ordering::Relaxed);
        let more = |value: u64| value.checked_add(count).filter(|more| *more <= limit);
        // Release pairs with the Acquire in `take`. SeqCst, for the waiters' barrier in `wake_one`.
        self.0.state().value.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).map_err(|_| OverRelease)?;
        match count {
            1 => self.0.layout().waiters.wake_one(),
            _ => self.0.layout().waiters.wake_all(),
        }
        Ok(())
    }

    /// How many it holds just now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.state().value.load(Ordering::Acquire)
    }
}

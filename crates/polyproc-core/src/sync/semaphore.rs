//! [`Semaphore`]: a counter that blocks at zero. Each change is one atomic step.
//!
//! A permit has no owner, as in Python and POSIX: any process may release a permit that another has acquired, and the permits
//! of a dead process are lost. To avoid that, use a lock, or a queue that puts items back.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{RecheckInterval, WaitError};

/// The release would exceed the semaphore's bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the semaphore was released too many times")]
pub struct OverRelease;

/// A semaphore. Clones refer to the same semaphore.
#[derive(Debug, Clone)]
pub struct Semaphore(Arc<Object>);
handle!(Semaphore, 2);

impl Semaphore {
    /// Creates a semaphore with `value` permits, and never more than `bound`.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub fn new(value: u64, bound: u64) -> io::Result<Self> {
        Ok(Self(Object::create(2, value, bound)?))
    }

    fn take(&self) -> bool {
        let less = |value: u64| value.checked_sub(1);
        // Acquire pairs with the Release in `release`.
        self.0.state().value.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).is_ok()
    }

    /// Acquires one permit. Blocks until the deadline while there is none.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn acquire(&self, deadline: Deadline) -> Result<(), WaitError> {
        if self.take() {
            return Ok(());
        }
        self.0.layout().waiters.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || Ok(self.take().then_some(())))
    }

    /// Releases `count` permits, or none.
    ///
    /// # Errors
    /// [`OverRelease`] if the semaphore would have more permits than its bound.
    pub fn release(&self, count: u64) -> Result<(), OverRelease> {
        let limit = self.0.layout().kind.limit.load(Ordering::Relaxed);
        let more = |value: u64| value.checked_add(count).filter(|more| *more <= limit);
        // Release pairs with the Acquire in `take`. SeqCst: on x86 this is the full barrier in `wake_one` and
        // `wake_all`.
        self.0.state().value.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).map_err(|_| OverRelease)?;
        match count {
            1 => self.0.layout().waiters.wake_one(),
            _ => self.0.layout().waiters.wake_all(),
        }
        Ok(())
    }

    /// Returns the current number of permits.
    #[must_use]
    pub fn value(&self) -> u64 {
        // Pairs with the Release in `release`. The engine uses only the number.
        self.0.state().value.load(Ordering::Acquire)
    }
}

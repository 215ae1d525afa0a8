//! [`Call`]: the tasks of one call, and their results.
//!
//! A call is one use of a function: by `apply` with one item, by `map` with many. The faces, or a
//! [`Submitter`](crate::pool::Submitter), open it with [`Pool::call`](crate::pool::Pool::call), submit its items as tasks, seal it,
//! and take the results as they arrive, in any order. [`CallState`] is its part of the pool's state, under the pool's
//! lock; [`Call`] is the handle. A call is *over* when it is sealed and all its items have ended; each item ends
//! exactly once.
//!
//! The bytes of items and results are opaque here: the faces encode and decode them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;

use super::calls::CallState;
use super::driver::Driver;
use super::ends::Ends;
use super::latch::Parker;
use super::leader::WaitFor;
use crate::deadline::Deadline;
use crate::pool::shared::task::Items;
use crate::robust::WaitError;

/// One call: a function, and the tasks that run it. Dropping it discards the results; the tasks still run.
#[derive(Debug)]
pub struct Call {
    /// The pool, which therefore lives at least as long as the call.
    pub(super) driver: Arc<Driver>,
    /// The key of its [`CallState`].
    pub(super) key: usize,
    /// Where this thread sleeps if another one leads.
    pub(super) parker: Arc<Parker>,
}

impl Call {
    /// Submits `items` as one task, and empties `items`. The indices of the items begin at `first`. The descriptors belong to
    /// the first item. If `is_splittable`, items that have not begun after about 1 ms may go to another worker.
    pub fn submit(&self, first: u64, items: &mut Items, fds: Vec<OwnedFd>, is_splittable: bool) {
        self.driver.submit(self.key, first, items, fds, is_splittable);
    }

    /// Adds an item that is not run, with this index. It ends with [`TaskEnd::Refused`], like any other item.
    pub fn refuse(&self, index: u64) {
        self.driver.with(|pool| pool.refuse(self.key, index));
    }

    /// Declares that all items have been submitted.
    pub fn seal(&self) {
        self.driver.with(|pool| pool.seal(self.key));
    }

    /// Returns whether a further task would go out at once. Also true if the pool is closed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.driver.with(|pool| pool.has_room())
    }

    /// Blocks until the wanted condition holds. Returns false if the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran. The wait may be repeated.
    pub fn wait(&self, want: WaitFor, deadline: Deadline) -> Result<bool, WaitError> {
        self.driver.wait(self, want, deadline)
    }

    /// Moves the results that have arrived to `ends`, which must be empty. Returns the number of items that have not ended.
    pub fn take(&self, ends: &mut Ends) -> u64 {
        let left = self.driver.with(|pool| pool.calls.get_mut(self.key).map_or(0, |state| state.take(ends)));
        self.driver.deliver_logs(); // the thread that read the results may not have delivered them yet
        left
    }

    /// Returns whether all items have been submitted and have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.driver.with(|pool| pool.calls.get(self.key).is_none_or(CallState::is_over))
    }

    /// Returns whether a worker has claimed one of its tasks, which has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.driver.is_running(self.key)
    }

    /// Returns whether there are results to take or the call is over. If not, `waker` is woken when that changes.
    pub fn poll(&self, waker: &Waker) -> bool {
        self.driver.with(|pool| pool.calls.get_mut(self.key).is_none_or(|state| state.poll(waker)))
    }

    /// Cancels the items that have not ended. Kills the workers that run them.
    pub fn cancel(&self) {
        self.driver.cancel(self.key);
    }

    /// Cancels the tasks that no worker has claimed. The others continue.
    pub fn give_up(&self) {
        self.driver.give_up(self.key);
    }

    /// Runs `then` on the pool's callback thread once the call is over.
    pub fn then(&self, then: impl FnOnce() + Send + 'static) {
        self.driver.then(self.key, Box::new(then));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // In a forked copy of the process the lock may be held permanently.
        if self.driver.is_ours() {
            self.driver.abandon(self.key);
        }
    }
}

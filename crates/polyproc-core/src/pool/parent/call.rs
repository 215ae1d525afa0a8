//! [`Call`]: the tasks of one call, and their results.
//!
//! A call is one use of a function: by `apply` with one item, by `map` with many. The faces, or a
//! [`Submitter`](super::submitter::Submitter), create it with [`Pool::call`](crate::pool::Pool::call), submit its items as tasks,
//! seal it, and take the results as they arrive, in any order. [`CallState`] is its part of the pool's state, under the pool's
//! lock; [`Call`] is the handle. A call is *over* when it is sealed and all its items have ended; each item ends
//! exactly once.
//!
//! It is opened in the pool's state with its first item, and removed when its last results were taken, so that a call of one
//! item acquires the pool's lock three times: to submit, to sleep, and to take the result.
//!
//! The bytes of items and results are opaque here: the faces encode and decode them.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use super::calls::{CallState, Stop};
use super::driver::Driver;
use super::ends::Ends;
use super::key::CallKey;
use super::latch::Parker;
use super::leader::WaitFor;
use super::state::PoolState;
use super::submission::CallOpening;
use crate::deadline::Deadline;
use crate::pool::shared::task::Items;
use crate::prim::{AtomicBool, Ordering};
use crate::robust::WaitError;

/// One call: a function, and the tasks that run it. Dropping it discards the results; the tasks still run.
#[derive(Debug)]
pub struct Call {
    /// The pool, which therefore lives at least as long as the call.
    driver: Arc<Driver>,
    opening: CallOpening,
    /// Set when the call is opened, under the pool's lock.
    key: OnceLock<CallKey>,
    /// The call was removed from the pool's state: it is over, and all results were taken.
    is_removed: AtomicBool,
    /// Where this thread sleeps if another one leads.
    parker: Arc<Parker>,
}

impl Call {
    /// Creates a call, which is opened with its first item.
    pub(super) fn new(driver: &Arc<Driver>, opening: CallOpening) -> Self {
        let (driver, parker) = (Arc::clone(driver), Arc::default());
        Self { driver, opening, key: OnceLock::new(), is_removed: AtomicBool::new(false), parker }
    }

    /// Calls `f` with the pool's state and the key, under the pool's lock. Opens the call if it is not open.
    fn with<T>(&self, f: impl FnOnce(&mut PoolState, CallKey) -> T) -> T {
        self.driver.with(|pool| {
            let open = || self.driver.open(pool, self.opening.clone(), Arc::clone(&self.parker));
            let key = *self.key.get_or_init(open);
            f(pool, key)
        })
    }

    /// Returns the key. Opens the call if it is not open.
    fn key(&self) -> CallKey {
        self.key.get().copied().unwrap_or_else(|| self.with(|_, key| key))
    }

    /// Submits `items` as one task, and empties `items`. The indices of the items begin at `first`. The descriptors belong to
    /// the first item. If `is_splittable`, items that have not begun after about 1 ms may go to another worker.
    pub fn submit(&self, first: u64, items: &mut Items, fds: Vec<OwnedFd>, is_splittable: bool) {
        self.with(|pool, key| self.driver.submit(pool, key, first, items, fds, is_splittable));
    }

    /// Submits `items` as [`Call::submit`], and declares that all items have been submitted.
    pub fn submit_last(&self, first: u64, items: &mut Items, is_splittable: bool) {
        self.with(|pool, key| {
            self.driver.submit(pool, key, first, items, Vec::new(), is_splittable);
            pool.seal(key);
        });
    }

    /// Adds an item that is not run, with this index. It ends with [`TaskEnd::Refused`](crate::pool::TaskEnd::Refused), like any
    /// other item.
    pub fn refuse(&self, index: u64) {
        self.with(|pool, key| pool.refuse(key, index));
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
        Ok(self.driver.wait(self.key(), &self.parker, (want, deadline), |_| ())?.is_some())
    }

    /// As [`Call::wait`], then [`Call::take`]. Returns `None` if the deadline passed first.
    ///
    /// # Errors
    /// As [`Call::wait`]; nothing was taken.
    pub fn wait_and_take(&self, want: WaitFor, deadline: Deadline, ends: &mut Ends) -> Result<Option<u64>, WaitError> {
        let key = self.key();
        let left = self.driver.wait(key, &self.parker, (want, deadline), |pool| self.take_from(pool, key, ends))?;
        self.driver.deliver_logs(); // the thread that read the results may not have delivered them yet
        Ok(left)
    }

    /// Moves the results that have arrived to `ends`, which must be empty. Returns the number of items that have not ended.
    pub fn take(&self, ends: &mut Ends) -> u64 {
        let left = self.with(|pool, key| self.take_from(pool, key, ends));
        self.driver.deliver_logs(); // as in `wait_and_take`
        left
    }

    fn take_from(&self, pool: &mut PoolState, key: CallKey, ends: &mut Ends) -> u64 {
        let (left, is_removed) = self.driver.take(pool, key, ends);
        if is_removed {
            self.is_removed.store(true, Ordering::Relaxed); // under the lock; only a hint for `drop`
        }
        left
    }

    /// Returns whether all items have been submitted and have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.with(|pool, key| pool.calls.get(key).is_none_or(CallState::is_over))
    }

    /// Returns whether a worker has claimed one of its tasks, which has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.with(|pool, key| self.driver.is_running(pool, key))
    }

    /// Returns whether there are results to take or the call is over. If not, `waker` is woken when that changes.
    pub fn poll(&self, waker: &Waker) -> bool {
        self.with(|pool, key| pool.calls.get_mut(key).is_none_or(|state| state.poll(waker)))
    }

    /// Cancels the items that have not ended. Kills the workers that run them.
    pub fn cancel(&self) {
        self.with(|pool, key| self.driver.stop(pool, key, Stop::Cancelled));
    }

    /// Cancels the tasks that no worker has claimed. The others continue.
    pub fn give_up(&self) {
        self.with(|pool, key| self.driver.stop(pool, key, Stop::GivenUp));
    }

    /// Runs `then` on the pool's callback thread once the call is over.
    pub fn then(&self, then: impl FnOnce() + Send + 'static) {
        self.with(|pool, key| self.driver.then(pool, key, Box::new(then)));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let key = self.key.get().filter(|_| !self.is_removed.load(Ordering::Relaxed));
        // In a forked copy of the process the lock may be held permanently.
        if let Some(key) = key.filter(|_| self.driver.is_ours()) {
            self.driver.abandon(*key);
        }
    }
}

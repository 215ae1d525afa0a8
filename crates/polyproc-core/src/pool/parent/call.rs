//! [`Call`]: the tasks of one call, and their results.
//!
//! A call is one use of a function: by `apply` with one item, by `map` with many. The faces, or a
//! [`Submitter`](crate::pool::Submitter), open it with [`Pool::call`](crate::pool::Pool::call), submit its items as tasks, seal it,
//! and take the results as they arrive, in any order. [`CallState`] is its part of the pool's state, under the pool's
//! lock; [`Call`] is the handle. A call is *over* when it is sealed and all its items have ended; each item ends
//! exactly once.
//!
//! The bytes of items and results are opaque here: the faces encode and decode them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::handle::OnLog;
use super::latch::Parker;
use super::leader::WaitFor;
use super::scheduler::Priority;
use crate::deadline::Deadline;
use crate::pool::TaskEnd;
use crate::pool::shared::result_ring::{ReceivedBlocks, next_result};
use crate::pool::shared::task::Items;
use crate::process::Signal;
use crate::robust::WaitError;
use crate::wire::Payload;

/// How the tasks of a call run.
///
/// Fixed when the call is opened.
#[derive(Clone, Default)]
pub struct CallSettings {
    /// How many times an item is retried after its worker was lost.
    ///
    /// After a death of the worker, not after an error; see `retries_panics`.
    pub retries: u32,
    /// Delay before the first retry of an item, doubled for each further one.
    pub backoff: Duration,
    /// Items that panic are retried, too.
    pub retries_panics: bool,
    /// How long an item may run before its worker is killed.
    ///
    /// Measured by the worker's clock from the beginning of the item. The item ends with [`TaskEnd::TimedOut`], and is
    /// not retried.
    pub limit: Option<Duration>,
    /// With `limit`: the signal sent to the worker when the time is over, and how long until it is killed after that.
    pub soft_signal: Option<(Signal, Duration)>,
    /// How long the whole call may take before its remaining items end with [`TaskEnd::TimedOut`].
    ///
    /// Runs from the opening of the call.
    pub call_limit: Option<Duration>,
    /// Tasks of higher priority go first.
    pub priority: Priority,
    /// The submitter blocks on this task at once, so no wake-up of the pool thread is needed.
    pub is_awaited: bool,
    /// A thread waits for all results together, so it need not be woken for each.
    ///
    /// Then workers wake the waiting thread only when few tasks are left on the table.
    pub is_bulk: bool,
    /// Called with the log records of the call's tasks, instead of the pool's callback.
    pub on_log: Option<OnLog>,
}

impl fmt::Debug for CallSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSettings")
            .field("retries", &self.retries)
            .field("limit", &self.limit)
            .field("call_limit", &self.call_limit)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

/// Results that have arrived, each with the index of its item.
///
/// Filled by the thread that reads results, emptied by the face. Plain results share one vector, so that they cost no
/// allocation each.
#[derive(Debug, Default)]
pub struct Ends {
    /// Records of plain results, one after the other. [`End::Returned`] refers to ranges of them.
    bytes: Vec<u8>,
    /// The index of the first item, and how it and its successors ended. In order of arrival.
    list: Vec<(u64, End)>,
}

/// How one item ended, or several in a row that returned.
#[derive(Debug)]
pub(super) enum End {
    /// `count` results of consecutive items, as records in the bytes of [`Ends`].
    Returned {
        /// At least 1.
        count: u32,
        /// Offset of the first record in the bytes.
        start: usize,
        /// Length of all records in bytes.
        len: usize,
    },
    /// A large result, or one with descriptors, which count as held by the parent until the result is taken.
    Payload(Box<(Payload, Option<ReceivedBlocks>)>),
    /// The item has no result.
    Failed(Box<TaskEnd>),
}

/// The encoded result of an item, or the reason why there is none.
pub type ItemEnd<'a> = Result<(&'a [u8], Vec<OwnedFd>), TaskEnd>;

impl Ends {
    /// Adds plain results, as [`take_results`](crate::pool::shared::result_ring::take_results) returns them.
    pub(super) fn push_returned(&mut self, index: u64, count: u32, results: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(results);
        self.list.push((index, End::Returned { count, start, len: results.len() }));
    }

    /// Adds the end of the item with this index.
    pub(super) fn push(&mut self, index: u64, end: End) {
        self.list.push((index, end));
    }

    /// Returns whether there are no results.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Removes all results, and calls `see` with each, in order of arrival. Keeps the allocated memory.
    ///
    /// Descriptors that `see` does not take are closed.
    pub fn drain(&mut self, mut see: impl FnMut(u64, ItemEnd<'_>)) {
        for (index, end) in self.list.drain(..) {
            match end {
                End::Returned { count, start, len } => {
                    let mut results = self.bytes.get(start..start + len).unwrap_or_default();
                    for item in 0..u64::from(count) {
                        see(index + item, Ok((next_result(&mut results).unwrap_or_default(), Vec::new())));
                    }
                }
                End::Payload(payload) => {
                    let (Payload { bytes: head, fds }, received) = *payload;
                    see(index, Ok((&head, fds)));
                    drop(received); // `see` has mapped or closed the descriptors
                }
                End::Failed(end) => see(index, Err(*end)),
            }
        }
        self.bytes.clear();
    }
}

/// The number by which tasks refer to a function with its context. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FunctionId(pub(super) u64);

/// Why a call is stopped early.
///
/// Ordered by strength: a call that is stopped twice keeps the stronger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    /// Tasks that a worker has claimed may continue.
    ///
    /// No caller wants the results any more, but side effects of running items should complete.
    GivenUp,
    /// Workers that run its items are killed; the items end with [`TaskEnd::Cancelled`].
    Cancelled,
    /// As cancelled, but the items end with [`TaskEnd::TimedOut`].
    TimedOut,
}

/// A call in the state of the pool.
///
/// Lives until it is over and its [`Call`] was dropped.
pub(super) struct CallState {
    /// Distinguishes it from a later call with the same key.
    pub(super) serial: u64,
    /// As given when it was opened.
    pub(super) settings: CallSettings,
    /// The function that its items are passed to.
    pub(super) function: FunctionId,
    /// The function is removed with the call.
    pub(super) has_context: bool,
    /// Results that were not taken yet.
    pub(super) ends: Ends,
    /// Number of items that were submitted and have not ended.
    pub(super) left: u64,
    /// All items have been submitted.
    pub(super) is_sealed: bool,
    /// The [`Call`] was dropped: results are discarded.
    pub(super) is_abandoned: bool,
    /// Counted by [`Leadership`](super::leader::Leadership).
    ///
    /// Its results must be read as they arrive, even if no thread waits: it is neither awaited nor bulk, or was
    /// abandoned.
    pub(super) is_eager: bool,
    /// Why its items end early; `None` if they do not.
    pub(super) stop: Option<Stop>,
    /// The key of its last task. The tasks form a linked list.
    pub(super) last_task: Option<usize>,
    /// The time of its entry in [`Limits`](super::timers::Limits).
    pub(super) limit_at: Option<Instant>,
    /// Where its followers sleep. Shared with [`Call`], so that they sleep without the lock.
    pub(super) parker: Arc<Parker>,
    /// Woken once at the next result, or when the call is over: see [`Call::poll`].
    pub(super) waker: Option<Waker>,
    /// Run by the callback thread when the call is over.
    pub(super) on_complete: Vec<Box<dyn FnOnce() + Send>>,
}

impl CallState {
    /// Returns whether no further item will end.
    pub(super) fn is_over(&self) -> bool {
        self.is_sealed && self.left == 0
    }
}

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
        self.driver.with(|inner| inner.refuse(self.key, index));
    }

    /// Declares that all items have been submitted.
    pub fn seal(&self) {
        self.driver.with(|inner| inner.seal(self.key));
    }

    /// Returns whether a further task would go out at once. Also true if the pool is closed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.driver.with(|inner| inner.has_room())
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
        let left = self.driver.with(|inner| {
            let Some(state) = inner.calls.get_mut(self.key) else { return 0 };
            std::mem::swap(&mut state.ends, ends);
            state.left
        });
        self.driver.deliver_logs(); // the thread that read the results may not have delivered them yet
        left
    }

    /// Returns whether all items have been submitted and have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.driver.with(|inner| inner.is_over(self.key))
    }

    /// Returns whether a worker has claimed one of its tasks, which has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.driver.is_running(self.key)
    }

    /// Returns whether there are results to take or the call is over. If not, `waker` is woken when that changes.
    pub fn poll(&self, waker: &Waker) -> bool {
        self.driver.with(|inner| {
            let Some(state) = inner.calls.get_mut(self.key) else { return true };
            let is_ready = state.is_over() || !state.ends.is_empty();
            state.waker = (!is_ready).then(|| waker.clone());
            is_ready
        })
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

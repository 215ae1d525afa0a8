//! [`Call`]: the tasks of one call of the user's, and how they ended.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::TaskEnd;
use super::driver::Driver;
use super::handle::OnLog;
use super::scheduler::Priority;
use super::stream::{ReceivedBlocks, next_result};
use super::task::Items;
use crate::deadline::Deadline;
use crate::frame::Payload;
use crate::prim::{AtomicU32, Ordering};
use crate::process::Signal;
use crate::robust::WaitError;
use crate::sys::futex;

/// How the tasks of a call are to be run.
#[derive(Clone, Default)]
pub struct CallSettings {
    /// How many times an item is tried again whose worker was lost.
    pub retries: u32,
    /// How long to wait before the first further attempt; twice as long before each one after that.
    pub backoff: Duration,
    /// Items that panic are tried again too.
    pub retries_panics: bool,
    /// How long an item may run before its worker is killed.
    pub limit: Option<Duration>,
    /// With `limit`: the signal that is sent when the time is over, and how long the worker has then.
    pub soft_signal: Option<(Signal, Duration)>,
    /// How long the whole call may take before what has not ended is cancelled.
    pub call_limit: Option<Duration>,
    /// Tasks with larger ones go first.
    pub priority: Priority,
    /// Who submits the one task waits for it right away.
    pub is_awaited: bool,
    /// Somebody waits for all results together, and need not be woken for each.
    pub is_bulk: bool,
    /// Called with what the call's tasks log, in the place of the pool's.
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

/// Results that have come, each with the number of its item.
#[derive(Debug, Default)]
pub struct Ends {
    bytes: Vec<u8>,
    list: Vec<(u64, End)>,
}

#[derive(Debug)]
pub(super) enum End {
    /// So many results from this one on, in the bytes of [`Ends`], as records.
    Returned {
        count: u32,
        start: usize,
        len: usize,
    },
    /// A large one, or one with descriptors, which count as long as they wait here.
    Payload(Box<(Payload, Option<ReceivedBlocks>)>),
    Failed(Box<TaskEnd>),
}

/// An item's result, encoded, or why there is none.
pub type ItemEnd<'a> = Result<(&'a [u8], Vec<OwnedFd>), TaskEnd>;

impl Ends {
    /// Plain results, as [`take_results`](super::stream::take_results) gives them.
    pub(super) fn push_returned(&mut self, index: u64, count: u32, results: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(results);
        self.list.push((index, End::Returned { count, start, len: results.len() }));
    }

    pub(super) fn push(&mut self, index: u64, end: End) {
        self.list.push((index, end));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Calls `see` for each, in the order of their coming, and takes them out; the memory is used again.
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
                    let (Payload { head, fds }, received) = *payload;
                    see(index, Ok((&head, fds)));
                    drop(received); // what was to be kept open is mapped
                }
                End::Failed(end) => see(index, Err(*end)),
            }
        }
        self.bytes.clear();
    }
}

/// A function, with its context, as tasks speak of it. Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FunctionId(pub(super) u64);

/// Why a call is ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    /// What runs may run on.
    GivenUp,
    Cancelled,
    TimedOut,
}

/// A call as the pool knows it.
pub(super) struct CallState {
    /// Never used again.
    pub(super) serial: u64,
    pub(super) settings: CallSettings,
    pub(super) function: FunctionId,
    /// The function goes when the call does.
    pub(super) has_context: bool,
    pub(super) ends: Ends,
    /// Items that were submitted and have not ended.
    pub(super) left: u64,
    /// All have been submitted.
    pub(super) is_sealed: bool,
    /// Nobody wants the results any more.
    pub(super) is_abandoned: bool,
    /// It counts among those that want to be told of each result.
    pub(super) is_eager: bool,
    pub(super) stop: Option<Stop>,
    /// The last one of its tasks, which knows the one before it, and so on.
    pub(super) last_task: Option<usize>,
    /// Its [`Limited`](super::timers::Limited) stands so.
    pub(super) limit_at: Option<Instant>,
    /// Threads that sleep on `parker`, by their serials.
    pub(super) followers: Vec<u64>,
    pub(super) parker: Arc<Parker>,
    pub(super) waker: Option<Waker>,
    pub(super) thens: Vec<Box<dyn FnOnce() + Send>>,
}

impl CallState {
    pub(super) fn is_over(&self) -> bool {
        self.is_sealed && self.left == 0
    }
}

/// Where a thread sleeps that waits for its own call while another one looks for results.
#[derive(Debug, Default)]
pub(super) struct Parker {
    word: AtomicU32,
}

impl Parker {
    pub(super) fn ticket(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// Sleeps unless somebody unparked since the ticket.
    pub(super) fn park(&self, ticket: u32, timeout: Duration) -> futex::Wait {
        futex::wait(&self.word, ticket, timeout)
    }

    pub(super) fn unpark(&self) {
        self.word.fetch_add(1, Ordering::AcqRel);
        futex::wake(&self.word, futex::ALL);
    }
}

/// What a wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A result, or the end of the call.
    Next,
    /// Room for more tasks, or the end of the call.
    Room,
    /// The end of the call.
    All,
}

/// One call of the user's: a function, and the tasks that run it. Dropping it lets them run on, unseen.
#[derive(Debug)]
pub struct Call {
    pub(super) driver: Arc<Driver>,
    pub(super) key: usize,
    pub(super) parker: Arc<Parker>,
}

impl Call {
    /// Has workers run the function on items, numbered from `first` on, as one task; takes them out of `items`. Descriptors belong to the first item.
    /// When `is_loose`, items that have not begun after a moment may go to another worker.
    pub fn submit(&self, first: u64, items: &mut Items, fds: Vec<OwnedFd>, is_loose: bool) {
        self.driver.submit(self.key, first, items, fds, is_loose);
    }

    /// An item, of this number, that is not run: its end comes in the order of the others' as [`TaskEnd::Refused`], for whoever waits.
    pub fn refuse(&self, index: u64) {
        self.driver.with(|inner| inner.refuse(self.key, index));
    }

    /// All has been submitted.
    pub fn seal(&self) {
        self.driver.with(|inner| inner.seal(self.key));
    }

    /// Whether more tasks would go out at once.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.driver.with(|inner| inner.has_room())
    }

    /// Waits for what is wanted; false when the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when a signal handler ran: wait again, or do what the signal asks.
    pub fn wait(&self, want: Want, deadline: Deadline) -> Result<bool, WaitError> {
        self.driver.wait(self, want, deadline)
    }

    /// Takes the results that have come; `ends` is empty before. Gives the number of items that have not ended.
    pub fn take(&self, ends: &mut Ends) -> u64 {
        let left = self.driver.with(|inner| {
            let Some(state) = inner.calls.get_mut(self.key) else { return 0 };
            std::mem::swap(&mut state.ends, ends);
            state.left
        });
        self.driver.deliver_logs(); // another thread may be about to
        left
    }

    /// Whether all was submitted and has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.driver.with(|inner| inner.is_over(self.key))
    }

    /// Whether a worker has taken one of its tasks, which has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.driver.is_running(self.key)
    }

    /// Whether all was submitted and has ended, or there are results to take; else `waker` is woken when that changes.
    pub fn poll(&self, waker: &Waker) -> bool {
        self.driver.with(|inner| {
            let Some(state) = inner.calls.get_mut(self.key) else { return true };
            let is_ready = state.is_over() || !state.ends.is_empty();
            state.waker = (!is_ready).then(|| waker.clone());
            is_ready
        })
    }

    /// What has not ended is taken back, or its worker killed.
    pub fn cancel(&self) {
        self.driver.cancel(self.key);
    }

    /// What no worker has taken is taken back; the rest runs on.
    pub fn give_up(&self) {
        self.driver.give_up(self.key);
    }

    /// Has the pool's thread for callbacks run `then` once all has ended.
    pub fn then(&self, then: impl FnOnce() + Send + 'static) {
        self.driver.then(self.key, Box::new(then));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // In a copy of the process nobody may ever release the lock.
        if self.driver.is_ours() {
            self.driver.abandon(self.key);
        }
    }
}

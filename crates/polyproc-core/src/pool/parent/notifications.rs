//! [`Notifications`]: what to tell other threads and the user once the pool's lock is released.
//!
//! Collected under the lock, sent by `Driver::with` after it. So user code never runs under the lock, and a thread that is
//! woken does not find it held by its waker.

use std::sync::Arc;
use std::task::Waker;

use super::latch::Parker;
use super::settings::OnLog;
use crate::pool::shared::task::PoolEvent;

/// A completion callback of a call, which decodes the results and calls the user's function.
pub(super) type OnComplete = Box<dyn FnOnce() + Send>;

/// See the module. Empty whenever the lock is free.
#[derive(Default)]
pub(super) struct Notifications {
    /// Where followers of calls sleep. Each follower re-checks its condition.
    pub(super) parkers: Vec<Arc<Parker>>,
    /// Futures that wait for a call.
    pub(super) wakers: Vec<Waker>,
    /// Callbacks of calls that were removed: their drop may run user code.
    pub(super) dropped: Vec<OnLog>,
    /// For the callback thread.
    pub(super) on_complete: Vec<OnComplete>,
    /// For the pool's `on_event`.
    pub(super) events: Vec<PoolEvent>,
    /// There are log records to deliver.
    pub(super) logs: bool,
    /// Number of tasks that were put on the table.
    ///
    /// How many workers are woken for them is decided in `Driver::to_wake`.
    pub(super) published: u32,
    /// Wake the leader: its call has a result, or it must read one.
    ///
    /// It is rung through the doorbell, which does nothing if it is awake.
    pub(super) leader: bool,
    /// Wake the pool's thread: for a new first timer, a start, or results that no thread reads.
    pub(super) pool_thread: bool,
}

impl Notifications {
    /// Returns what was collected, if there is anything apart from `published`.
    pub(super) fn take(&mut self) -> Option<Self> {
        let is_any = self.logs
            || self.leader
            || self.pool_thread
            || !(self.parkers.is_empty()
                && self.wakers.is_empty()
                && self.dropped.is_empty()
                && self.on_complete.is_empty()
                && self.events.is_empty());
        is_any.then(|| std::mem::take(self))
    }
}

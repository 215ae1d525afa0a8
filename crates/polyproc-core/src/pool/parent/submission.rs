//! Opening calls, submitting their items, and taking their results.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calls::CallState;
use super::driver::Driver;
use super::ends::Ends;
use super::functions::FunctionId;
use super::key::CallKey;
use super::latch::Parker;
use super::leader::hand_over;
use super::notifications::OnComplete;
use super::scheduler::SchedulerEvent;
use super::settings::CallSettings;
use super::state::PoolState;
use super::tasks::Task;
use super::timers::Limited;
use crate::deadline::Deadline;
use crate::pool::TaskEnd;
use crate::pool::shared::task::Items;
use crate::robust::{RecheckInterval, WaitError};
use crate::sys::futex::Wait;

/// What a call is opened with.
#[derive(Debug, Clone)]
pub(super) struct CallOpening {
    /// The function that its items are passed to.
    pub(super) function: FunctionId,
    /// The function belongs to this call alone, and is removed with it.
    pub(super) has_context: bool,
    pub(super) settings: CallSettings,
    /// When the time limit of the call is over.
    pub(super) limit_at: Option<Instant>,
}

impl CallOpening {
    /// The time limit of the call begins here.
    pub(super) fn new(function: FunctionId, has_context: bool, settings: CallSettings) -> Self {
        // A time beyond the clock's range is no limit.
        let limit_at = settings.call_limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { function, has_context, settings, limit_at }
    }
}

impl Driver {
    /// Opens a call, whose followers sleep on `parker`.
    pub(super) fn open(&self, pool: &mut PoolState, opening: CallOpening, parker: Arc<Parker>) -> CallKey {
        let CallOpening { function, has_context, settings, limit_at } = opening;
        let key = pool.calls.open(function, has_context, settings, parker);
        if let Some(at) = limit_at {
            pool.limit(at, Limited::Call(key));
        }
        if pool.calls.get(key).is_some_and(CallState::is_eager) {
            pool.leadership.add_eager();
            if !self.is_ours() {
                return key; // the rings and the doorbell are those of the original
            }
            hand_over(&mut self.locked(pool));
            // A leader that sleeps until few tasks are left must now wake for the results of this call.
            if pool.leadership.is_led() && self.board.doorbell().hurry() && pool.is_anything_unread() {
                pool.notifications.leader = true;
            }
        }
        key
    }

    /// Submits the items as one task, and empties `items`. Does nothing if there are none.
    ///
    /// `first` is the index of the first item in the call, `fds` its descriptors. The task fails at once if the call
    /// was stopped, the pool is closed, or this process is a forked copy. Does not block: see
    /// [`Driver::wait_to_submit`].
    pub(super) fn submit(
        &self,
        pool: &mut PoolState,
        call: CallKey,
        first: u64,
        items: &mut Items,
        fds: Vec<OwnedFd>,
        is_splittable: bool,
    ) {
        let count = items.count();
        if count == 0 {
            return;
        }
        let bytes = items.take(pool.take_buffer());
        let Some(state) = pool.calls.get_mut(call) else { return };
        state.add_items(count.into());
        let stop = state.stop();
        let (priority, retries) = (state.settings().priority, state.settings().retries);
        let mut task = Task::new(call, first, count, bytes).splittable(is_splittable);
        task.fds = fds;
        let id = pool.tasks.add(task);
        if let Some(stop) = stop {
            return self.remove(pool, id, &stop.end());
        }
        if !self.is_ours() {
            return self.remove(pool, id, &TaskEnd::Terminated);
        }
        self.handle(pool, SchedulerEvent::Submitted(id, priority, retries));
    }

    /// See [`Pool::wait_to_submit`](crate::pool::Pool::wait_to_submit).
    ///
    /// Returns true at once without a limit, and if the pool is closed, so that the submission fails with the reason.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran.
    pub(super) fn wait_to_submit(&self, deadline: Deadline) -> Result<bool, WaitError> {
        let Some(most) = self.settings.max_waiting_bytes else { return Ok(true) };
        let interval = RecheckInterval::new(Duration::from_secs(1));
        loop {
            let ticket = self.submitters.ticket();
            let may =
                !self.is_ours() || self.with(|pool| pool.tasks.waiting_bytes() <= most || !pool.scheduler.is_open());
            if may || deadline.has_passed() {
                return Ok(may);
            }
            match self.submitters.park(ticket, deadline.or_sooner(interval.next()).remaining().unwrap_or_default()) {
                Wait::Interrupted => return Err(WaitError::Interrupted),
                Wait::TimedOut => interval.lengthen(),
                Wait::Woken | Wait::Again => {}
            }
        }
    }

    /// Moves the results that have arrived to `ends`, which must be empty. Removes the call if that were its last ones. Returns
    /// the number of items that have not ended, and whether the call was removed.
    pub(super) fn take(&self, pool: &mut PoolState, call: CallKey, ends: &mut Ends) -> (u64, bool) {
        let Some(state) = pool.calls.get_mut(call) else { return (0, true) };
        let left = state.take(ends);
        let is_over = state.is_over();
        if is_over {
            pool.remove_call(call);
        }
        (left, is_over)
    }

    /// Discards the results of a call. The pool's thread reads the remaining results, as no other thread waits for them.
    ///
    /// The call is removed once its submitted items have ended. It is sealed, since nothing can be submitted any more.
    pub(super) fn abandon(&self, call: CallKey) {
        self.with(|pool| {
            let Some(state) = pool.calls.get_mut(call) else { return };
            if state.abandon() {
                pool.leadership.add_eager();
            }
            pool.settle(call);
            hand_over(&mut self.locked(pool));
        });
    }

    /// Runs `then` on the callback thread once the call is over; at once if it is over already or unknown.
    pub(super) fn then(&self, pool: &mut PoolState, call: CallKey, then: OnComplete) {
        let over = match pool.calls.get_mut(call) {
            Some(state) => state.then(then),
            None => Some(then),
        };
        pool.notifications.on_complete.extend(over);
    }
}

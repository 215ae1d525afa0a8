//! [`Driver`]: the parent's side of a pool. One lock guards its state ([`PoolState`]). A thread with an event acquires the
//! lock, lets the scheduler decide, and carries the actions out. Calls into user code are collected ([`Notifications`]) and
//! made after the lock is released.
//!
//! Threads of the program use a [`Driver`] through [`Pool`](crate::pool::Pool) and [`Call`](crate::pool::Call), the pool's
//! thread directly. They acquire the lock by [`Driver::with`]. Functions with a `pool` argument require the lock, and never
//! call `with`, since the lock is not recursive.
//!
//! Under the lock no thread calls user code or waits for another process. The critical sections are bounded: readers of
//! results leave the lock after a fixed number of rounds.
//!
//! A forked copy of the process has the state, but neither the pool's thread nor the right to its workers
//! ([`Driver::is_ours`]): there, new tasks end at once and waits return.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::callbacks::Callbacks;
use super::error::PoolError;
use super::functions::Functions;
use super::latch::{Latch, Parker};
use super::notifications::Notifications;
use super::settings::{OnLog, PoolSettings};
use super::state::PoolState;
use super::timers::Watch;
use crate::pool::shared::doorbell;
use crate::pool::shared::orders::Orders;
use crate::pool::shared::task_table::TaskTable;
use crate::prim::{AtomicBool, Ordering};
use crate::process::{call_user, lock};
use crate::sys::process_stamp::process_id;
use crate::sys::watch::{EventFd, Poller};

/// The poller's key of the bell. The keys of workers are larger.
pub(super) const BELL: u64 = 0;
/// Maximum number of workers that are woken for one event.
const WOKEN_AT_ONCE: u32 = 256;

/// A log record of a worker, from its arrival until it is delivered.
pub(super) struct Logged {
    /// The process id of the worker.
    pub(super) pid: u32,
    /// The bytes that the worker passed to [`log`](crate::pool::log).
    pub(super) record: Vec<u8>,
    /// The callback of the call whose task logged it.
    pub(super) on_log: Option<OnLog>,
}

/// The shared state of a pool's handle, its calls and its thread.
///
/// It lives as long as the pool, a call or the pool's thread.
pub(super) struct Driver {
    /// All state that changes, apart from shared memory and logs. Acquired by [`Driver::with`] only.
    state: Mutex<PoolState>,
    /// The table of tasks, which workers write, too.
    pub(super) board: TaskTable,
    /// Task descriptors and arguments. Written under the lock.
    pub(super) orders: Orders,
    /// Reports the bell, and the channels and pidfds of workers, to the pool's thread.
    pub(super) watch: Poller,
    /// Rung by workers, and by threads that have work for the pool's thread.
    pub(super) bell: EventFd,
    pub(super) settings: PoolSettings,
    /// Also known to the state, which removes those of calls that are over.
    pub(super) functions: Arc<Functions>,
    /// The thread for completion callbacks.
    pub(super) callbacks: Callbacks,
    /// Threads in `wait_to_submit` sleep here.
    pub(super) submitters: Parker,
    /// Log records that were not delivered yet, in order of arrival.
    logs: Mutex<VecDeque<Logged>>,
    /// True once a worker has logged a record.
    has_logs: AtomicBool,
    /// Held by the thread that delivers log records.
    ///
    /// So records are delivered one at a time, in order. It is acquired without the lock of `state`.
    log_turn: Mutex<()>,
    /// The pool was terminated: no more workers are started.
    pub(super) is_terminated: AtomicBool,
    /// Set when the pool's thread has ended.
    pub(super) end: Latch,
    /// The process that created the pool. A forked copy of that process has no pool thread.
    ///
    /// See [`Driver::is_ours`].
    pid: u32,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Driver {
    /// Creates the memory and the state of a pool of `workers` workers, all of which are still to be started.
    ///
    /// The doorbell is set to [`doorbell::AWAY`], as no thread waits for results yet.
    ///
    /// # Errors
    /// [`PoolError::Os`] if the process has no memory or no descriptors for it.
    pub(super) fn new(workers: usize, settings: PoolSettings) -> Result<Arc<Self>, PoolError> {
        let (board, orders) = TaskTable::new().and_then(|board| Ok((board, Orders::new()?))).map_err(PoolError::Os)?;
        let (watch, bell) = Poller::new().and_then(|watch| Ok((watch, EventFd::new()?))).map_err(PoolError::Os)?;
        watch.add(&bell, BELL).map_err(PoolError::Os)?;
        board.doorbell().set(doorbell::AWAY);
        let functions = Arc::<Functions>::default();
        Ok(Arc::new(Self {
            state: Mutex::new(PoolState::new(workers, Arc::clone(&functions))),
            functions,
            board,
            orders,
            watch,
            bell,
            settings,
            callbacks: Callbacks::default(),
            submitters: Parker::default(),
            logs: Mutex::default(),
            has_logs: AtomicBool::new(false),
            log_turn: Mutex::default(),
            is_terminated: AtomicBool::new(false),
            end: Latch::default(),
            pid: process_id(),
        }))
    }

    /// Returns whether this process created the pool, and so has its thread.
    ///
    /// In a forked copy the lock may be held by a thread that does not exist there, so a function that can avoid the
    /// lock checks this first.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == process_id()
    }

    /// Calls `f` with the state under the lock, then sends the notifications.
    ///
    /// The only function that acquires the lock. `f` must neither call it again nor run user code. Threads and workers
    /// are woken after the release.
    ///
    /// A panic of `f` leaves the lock usable and the notifications pending: the next caller sends them.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut PoolState) -> T) -> T {
        let mut pool = lock(&self.state);
        let result = f(&mut pool);
        let published = std::mem::take(&mut pool.notifications.published);
        let to_wake = if published > 0 { self.to_wake(&mut pool, published) } else { 0 };
        let notifications = pool.notifications.take();
        // Under the lock, so that one thread sees the value fall below the limit.
        let may_submit = self.settings.max_waiting_bytes.is_some_and(|most| pool.tasks.has_made_room(most));
        drop(pool);
        if may_submit {
            self.submitters.unpark();
        }
        for _ in 0..to_wake {
            self.board.waiters().wake_one();
        }
        if let Some(notifications) = notifications {
            self.notify(notifications);
        }
        result
    }

    /// Returns how many workers to wake after `published` tasks were put on the table. Workers that poll the table find tasks
    /// by themselves.
    ///
    /// Each poller takes one task, so waking is not needed while no more tasks are queued than workers poll.
    fn to_wake(&self, pool: &mut PoolState, published: u32) -> u32 {
        if !self.board.lookers().suffice(|| self.board.table().waiting()) {
            return published.min(WOKEN_AT_ONCE);
        }
        // A stopped worker finds nothing, so a timer checks. If a thread waits for the results, it checks before it sleeps.
        if pool.leadership.is_eager() {
            pool.watch(Watch::Queued);
        }
        0
    }

    /// Sends notifications, without the lock. Log records go first, so that they precede the results that wake a
    /// waiter.
    fn notify(&self, notifications: Notifications) {
        if notifications.logs {
            self.deliver_logs();
        }
        if let Some(on_event) = &self.settings.on_event {
            notifications.events.iter().for_each(|event| call_user(|| on_event(event)));
        }
        notifications.parkers.iter().for_each(|parker| parker.unpark());
        notifications.wakers.into_iter().for_each(|waker| call_user(|| waker.wake()));
        notifications.on_complete.into_iter().for_each(|then| self.callbacks.run(then));
        if notifications.leader {
            self.board.doorbell().ring(|| true, || self.bell.ring());
        }
        if notifications.pool_thread {
            self.bell.ring();
        }
    }

    /// Queues a log record. It is delivered after the lock is released, and before the result of its item.
    pub(super) fn add_log(&self, pool: &mut PoolState, logged: Logged) {
        lock(&self.logs).push_back(logged);
        // Pairs with the Acquire in `deliver_logs`.
        self.has_logs.store(true, Ordering::Release);
        pool.notifications.logs = true;
    }

    /// Delivers log records to their callbacks. On return, this or another thread has delivered all earlier records.
    ///
    /// The caller does not hold the lock. Called before results are handed out, so that the records of an item precede
    /// its result. A callback that gets here again returns at once, since its thread is delivering already.
    pub(super) fn deliver_logs(&self) {
        thread_local! {
            static DELIVERS: Cell<bool> = const { Cell::new(false) };
        }
        // Acquire pairs with the Release in `add_log`: the record is in `logs`.
        if !self.has_logs.load(Ordering::Acquire) || DELIVERS.replace(true) {
            return; // called by a callback
        }
        let turn = lock(&self.log_turn);
        while let Some(Logged { pid, record, on_log }) = { lock(&self.logs).pop_front() } {
            if let Some(on_log) = on_log.as_ref().or(self.settings.on_log.as_ref()) {
                call_user(|| on_log(pid, &record));
            }
        }
        drop(turn);
        DELIVERS.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::call::Call;
    use super::super::ends::Ends;
    use super::super::functions::FunctionId;
    use super::super::leader::WaitFor;
    use super::super::settings::CallSettings;
    use super::super::submission::CallOpening;
    use super::*;
    use crate::deadline::Deadline;
    use crate::pool::TaskEnd;
    use crate::pool::shared::task::Items;

    #[test]
    fn in_a_forked_copy_each_call_ends_at_once() {
        let mut driver = Driver::new(1, PoolSettings::default()).expect("memory");
        Arc::get_mut(&mut driver).expect("no other reference").pid = 0; // the original is another process
        for _ in 0..3 {
            let call = Call::new(&driver, CallOpening::new(FunctionId(1), false, CallSettings::default()));
            let mut items = Items::new();
            items.push(|_| Ok::<_, ()>(())).expect("nothing fails");
            call.submit_last(0, &mut items, false);
            let mut ends = Ends::default();
            assert_eq!(call.wait_and_take(WaitFor::All, Deadline::PASSED, &mut ends), Ok(Some(0)));
            let mut ended = Vec::new();
            ends.drain(|index, end| ended.push((index, matches!(end, Err(TaskEnd::Terminated)))));
            assert_eq!(ended, [(0, true)]);
        }
        assert!(driver.with(|pool| !pool.leadership.is_eager()));
    }
}

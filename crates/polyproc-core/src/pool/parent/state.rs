//! [`PoolState`]: all that the parent knows of a pool and that changes, under one lock.
//!
//! Each part owns its data. The methods here are those changes that concern several parts: an item that ends, a call that is
//! over, a timer.
//!
//! The state is private memory and authoritative. What workers write on the table or in their rings is checked against it
//! (`audit`). Deaths of workers therefore never leave it inconsistent; a panic under the lock may, as the lock ignores poison.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::calls::Calls;
use super::ends::End;
use super::functions::Functions;
use super::key::CallKey;
use super::leader::Leadership;
use super::notifications::Notifications;
use super::scheduler::{Action, Scheduler};
use super::tasks::{Task, Tasks};
use super::timers::{Limited, Limits, Timer, Timers, Watch};
use super::workers::Workers;
use crate::pool::TaskEnd;
use crate::pool::shared::orders::Orders;
use crate::pool::shared::task::NoWorkersReason;
use crate::pool::shared::task_table::SLOTS;
use crate::shm::Blocks;

/// Soft limit on bytes of arguments that are out; ignored while fewer than four tasks per worker are out.
///
/// Used by [`PoolState::has_room`] only: it limits how far a producer encodes ahead of the workers, not publication.
const AHEAD_BYTES: u64 = 1 << 20;
/// Maximum number of buffers that are kept for arguments.
const SPARE_BUFFERS: usize = 64;
/// Maximum capacity in bytes of a buffer that is kept.
const SPARE_CAPACITY: usize = 4096;

/// See the module.
///
/// Created with the pool; dropped with the last handle, call or thread of it.
pub(super) struct PoolState {
    /// Decides; holds no data of tasks but their stage, priority and number of attempts.
    pub(super) scheduler: Scheduler,
    pub(super) tasks: Tasks,
    pub(super) calls: Calls,
    functions: Arc<Functions>,
    pub(super) workers: Workers,
    pub(super) timers: Timers,
    pub(super) limits: Limits,
    /// Which thread reads the results.
    pub(super) leadership: Leadership,
    /// Empty whenever the lock is free.
    pub(super) notifications: Notifications,
    /// The allocator of blocks for large arguments.
    pub(super) blocks: Blocks,
    /// The reason that tasks report if the pool has no workers.
    pub(super) no_workers: Option<NoWorkersReason>,
    /// Number of workers that ended other than with exit code 0.
    pub(super) lost: u64,
    /// Number of workers in a row that ended in their initializers by the program's fault.
    pub(super) unfit: usize,
    /// The pool was terminated, and the grace period of its workers is over.
    pub(super) is_past_grace: bool,
    /// The buffer for the records of one worker; its capacity is kept.
    pub(super) scratch: Vec<u8>,
    /// The buffer for the actions of one event, for `Driver::handle`.
    pub(super) actions: Vec<Action>,
    /// Empty vectors for small arguments.
    spare: Vec<Vec<u8>>,
}

impl PoolState {
    /// Creates the state of a pool of `workers` workers, all of which are still to be started.
    pub(super) fn new(workers: usize, functions: Arc<Functions>) -> Self {
        Self {
            scheduler: Scheduler::new(workers, SLOTS as usize),
            tasks: Tasks::new(SLOTS),
            calls: Calls::default(),
            functions,
            workers: Workers::new(workers),
            timers: Timers::default(),
            limits: Limits::default(),
            leadership: Leadership::default(),
            notifications: Notifications::default(),
            blocks: Orders::blocks(),
            no_workers: None,
            lost: 0,
            unfit: 0,
            is_past_grace: false,
            scratch: Vec::new(),
            actions: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Returns an empty vector for the items of a task.
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Keeps a vector for [`PoolState::take_buffer`], if it is small.
    pub(super) fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_CAPACITY {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Frees the block of a task's argument.
    ///
    /// No worker may still be able to read it: the task has ended, or was taken back, or its worker is dead or will be killed.
    pub(super) fn free_argument(&mut self, orders: &Orders, task: &Task) {
        if let Some(block) = task.out().and_then(|place| place.block) {
            orders.free(&mut self.blocks, block);
        }
    }

    /// Adds the result or failure of an item to its call, and notifies the waiters.
    ///
    /// The caller counts the item as done in its task.
    pub(super) fn end_item(&mut self, call: CallKey, index: u64, end: End) {
        if let Some(state) = self.calls.get_mut(call) {
            state.push(index, end);
            self.ended(call, 1);
        }
    }

    /// Counts `count` items of a call as ended, and notifies the waiters.
    pub(super) fn ended(&mut self, call: CallKey, count: u64) {
        let Some(state) = self.calls.get_mut(call) else { return };
        self.notifications.wakers.extend(state.count_ended(count));
        self.wake_waiters(call);
        self.settle(call);
    }

    /// Wakes the threads that wait for this call's results.
    fn wake_waiters(&mut self, call: CallKey) {
        let woken = self.leadership.wake(call);
        if woken.followers {
            self.unpark(call);
        }
        self.notifications.leader |= woken.leader;
    }

    /// Wakes the followers of a call.
    pub(super) fn unpark(&mut self, call: CallKey) {
        self.notifications.parkers.extend(self.calls.get(call).map(|state| Arc::clone(state.parker())));
    }

    /// If a call is over, schedules its callbacks, and removes it if it was abandoned.
    ///
    /// Called after each change that may end the call. Time limits of the call end with it.
    pub(super) fn settle(&mut self, call: CallKey) {
        let Some(finished) = self.calls.get_mut(call).and_then(super::calls::CallState::finish) else { return };
        self.notifications.on_complete.extend(finished.on_complete);
        self.notifications.wakers.extend(finished.waker);
        if finished.was_eager {
            self.leadership.remove_eager();
        }
        if let Some(at) = finished.limit_at {
            self.limits.remove(at, Limited::Call(call));
        }
        if finished.is_abandoned {
            self.remove_call(call);
        }
    }

    /// Removes a call that is over, and its function if that goes with it.
    pub(super) fn remove_call(&mut self, call: CallKey) {
        if let Some((function, on_log)) = self.calls.remove(call) {
            self.notifications.dropped.extend(on_log);
            function.into_iter().for_each(|function| self.functions.remove(function));
        }
    }

    /// Adds an item that is not run, and fails it.
    pub(super) fn refuse(&mut self, call: CallKey, index: u64) {
        if let Some(state) = self.calls.get_mut(call) {
            state.add_items(1);
            let end = TaskEnd::Refused("the item was not submitted".to_owned());
            self.end_item(call, index, End::Failed(Box::new(end)));
        }
    }

    /// Notes that all items of the call have been submitted. Wakes its waiters if it is over with that.
    pub(super) fn seal(&mut self, call: CallKey) {
        let Some(state) = self.calls.get_mut(call) else { return };
        state.seal();
        if state.is_over() {
            self.wake_waiters(call); // they may wait for a further result
        }
        self.settle(call);
    }

    /// Returns whether another task of ordinary size would go out at once and soon be claimed: no task waits, and few
    /// bytes or few tasks are out. True if the pool is not open, so that producers do not wait.
    pub(super) fn has_room(&self) -> bool {
        let few = 4 * self.scheduler.wanted() as u64;
        let is_small = self.tasks.out_bytes() < AHEAD_BYTES || self.tasks.out_count() < few;
        self.scheduler.waiting() == 0 && is_small || !self.scheduler.is_open()
    }

    /// Sets a timer of the pool's thread. Wakes the pool's thread if the timer is earlier than all others.
    pub(super) fn set_timer(&mut self, at: Instant, timer: Timer) {
        self.notifications.pool_thread |= self.timers.set(at, timer);
    }

    /// Sets a watch for a period from now, unless it is set.
    pub(super) fn watch(&mut self, watch: Watch) {
        self.notifications.pool_thread |= self.timers.watch(watch);
    }

    /// Starts the time limit of a task or a call.
    ///
    /// `time` counts from now. The caller has made sure that no limit of it runs. A time beyond the clock's range is no
    /// limit.
    pub(super) fn limit_after(&mut self, time: Duration, limited: Limited) {
        if let Some(at) = Instant::now().checked_add(time) {
            self.limit(at, limited);
        }
    }

    /// As [`PoolState::limit_after`], for a time.
    pub(super) fn limit(&mut self, at: Instant, limited: Limited) {
        let limit_at = match limited {
            Limited::Task(id) => self.tasks.get_mut(id).map(|task| &mut task.limit_at),
            Limited::Call(key) => self.calls.get_mut(key).map(|call| &mut call.limit_at),
        };
        let Some(limit_at) = limit_at else { return };
        *limit_at = Some(at);
        self.limits.add(at, limited);
        self.set_timer_for_limits();
    }

    /// Sets the timer for the earliest limit, unless it is set for that time or an earlier one.
    pub(super) fn set_timer_for_limits(&mut self) {
        if let Some(at) = self.limits.timer_to_set() {
            self.set_timer(at, Timer::Limits);
        }
    }

    /// Kills a worker that wrote invalid data, and reads no more of its results.
    ///
    /// Its death, which the pool's thread detects, decides about its task. Also called by the audit.
    ///
    /// A discarded worker stays in its place until it is reaped.
    pub(super) fn discard(&mut self, at: usize) {
        if let Some(worker) = self.workers.get_mut(at) {
            worker.stream.break_off();
            worker.kill();
        }
    }

    /// Returns whether any worker has written records that were not read.
    pub(super) fn is_anything_unread(&self) -> bool {
        self.workers.iter().any(|worker| worker.stream.is_anything_unread())
    }
}

//! Carries out the scheduler's actions: puts tasks on the table, takes them off, retires and kills workers.
//!
//! [`Driver::handle`] is the only way from an event to its actions. It is called under the lock of [`Inner`] by every
//! thread with an event: threads that submit, wait or cancel, and the pool's thread. No action blocks. What must happen
//! without the lock is only noted here: starts (`to_start`), wake-ups and events of the user
//! ([`Notifications`](super::driver::Notifications)).
//!
//! This file also keeps three things consistent: a task's [`TaskPlace`], the slot and block that it uses, and its entry
//! on the table. Their order:
//!
//! - *Publish*: allocate the slot; write the argument and the task descriptor; publish. A failure frees what was
//!   allocated, and the task waits unchanged.
//! - *Take off*: first make sure that no worker can claim the task (withdrawn, or its worker is dead); then copy the
//!   argument back to private memory, and free slot and block.
//!
//! The next position, [`Inner::tail`], is the parent's own. It advances only together with the table's.

use std::collections::VecDeque;
use std::time::Instant;

use super::audit::AUDIT_PERIOD;
use super::call::End;
use super::driver::{Driver, Inner, TaskPlace};
use super::scheduler::{Action, Loss, SchedulerEvent, TaskId};
use super::thread::{MEMORY_PERIOD, ROOM_PERIOD, STEAL_PERIOD};
use super::timers::{Limited, Timer, after_backoff, after_failed_starts};
use super::worker_handle::WorkerHandle;
use crate::error_chain;
use crate::pool::shared::claim;
use crate::pool::shared::orders::{LIMITED, SPLITTABLE, TaskDescriptor, WITH_FDS};
use crate::pool::shared::task::{PoolEvent, TaskEnd, next_item};
use crate::prim::Ordering;
use crate::process::Signal;
use crate::shm::budget::Share;
use crate::shm::{self, MemoryError};

impl Driver {
    /// Passes `event` to the scheduler, and carries out the actions.
    ///
    /// Follow-up events of the actions are passed in the same call, so that the scheduler's state and the parent's
    /// agree when the lock is released. Must not be called by an action: an action adds to `events` instead, or passes
    /// the event to the scheduler itself.
    pub(super) fn handle(&self, inner: &mut Inner, event: SchedulerEvent) {
        let mut actions = std::mem::take(&mut inner.actions);
        let mut events = VecDeque::new();
        inner.scheduler.on(event, &mut actions);
        loop {
            for action in actions.drain(..) {
                self.act(inner, action, &mut events);
            }
            let Some(event) = events.pop_front() else { break };
            inner.scheduler.on(event, &mut actions);
        }
        inner.actions = actions; // keeps the allocation
    }

    /// Carries out one action. Adds the events that it demands to `events`.
    ///
    /// `Full` events are added in front, the last task first. Each such task goes to the front of the queue, so the
    /// tasks wait again in their old order.
    ///
    /// - `Publish` without room in the budget: the task waits again (`Full`), the memory of free blocks and loans is
    ///   returned, and a timer tries again. With another error the task fails, as it could never go out.
    /// - `MakeWay`: takes back the newest task first, since workers claim the oldest in the meantime. A task that is
    ///   claimed stays out.
    /// - `Fail`: the items end with [`Inner::why`] if there are no workers, else with [`TaskEnd::Terminated`].
    /// - `Delay`: the timer carries the task's serial, since the task may be cancelled before it fires, and its key
    ///   reused.
    /// - `Start`: only noted, for the pool's thread, which is woken.
    /// - `Retire` and `Kill` of a worker that is being started: noted in `on_arrival`, where a later action replaces an
    ///   earlier one.
    /// - `Lose`: the item ends with the reason that was stored at the death of its worker.
    fn act(&self, inner: &mut Inner, action: Action, events: &mut VecDeque<SchedulerEvent>) {
        match action {
            // A task ahead of this one found no memory.
            Action::Publish(id) if matches!(events.front(), Some(SchedulerEvent::Full(_))) => {
                events.push_front(SchedulerEvent::Full(id))
            }
            Action::Publish(id) => match self.publish(inner, id) {
                Ok(()) => {}
                Err(MemoryError::OutOfSpace(error)) if error.is_passing() => {
                    events.push_front(SchedulerEvent::Full(id));
                    if !std::mem::replace(&mut inner.waits_for_room, true) {
                        self.orders.trim(&mut inner.blocks);
                        shm::trim_loans();
                        inner.set_timer(Instant::now() + ROOM_PERIOD, Timer::Room);
                    }
                }
                Err(error) => {
                    let why = format!("could not allocate memory for the argument: {}", error_chain(&error));
                    self.remove(inner, id, &TaskEnd::Refused(why));
                    events.push_back(SchedulerEvent::Ended(id));
                }
            },
            Action::MakeWay(priority) => {
                let is_less = |id: TaskId| {
                    let call = inner.tasks.get(id.0).and_then(|task| inner.calls.get(task.call));
                    call.is_some_and(|call| call.settings.priority < priority)
                };
                let mut out = inner.out();
                out.retain(|(_, _, id)| is_less(*id));
                out.sort_unstable();
                for (position, slot, id) in out.into_iter().rev() {
                    if self.board.table().withdraw(slot, position) {
                        self.take_off(inner, id);
                        inner.scheduler.on(SchedulerEvent::Withdrawn(id), &mut Vec::new());
                    }
                }
                events.push_back(SchedulerEvent::WayMade);
            }
            Action::Fail(id, loss) => {
                let end = match (loss, &inner.why) {
                    (Loss::NoWorkers, Some(why)) => TaskEnd::NoWorkers(why.clone()),
                    _ => TaskEnd::Terminated,
                };
                self.remove(inner, id, &end);
            }
            Action::Lose(id) => events.push_back(self.lose(inner, id)),
            Action::Delay(id, attempt) => {
                let Some(task) = inner.tasks.get(id.0) else { return };
                let index = task.first + u64::from(task.done);
                inner.notifications.events.push(PoolEvent::ItemRetried { index, attempts: attempt });
                let backoff = inner.calls.get(task.call).map_or_else(Default::default, |call| call.settings.backoff);
                let serial = task.serial;
                inner.set_timer(after_backoff(backoff, attempt), Timer::Due { task: id, serial });
            }
            Action::Start(place) => {
                inner.to_start.push_back(place);
                inner.notifications.driver = true;
            }
            Action::StartLater(place, failures, pace) => {
                inner.set_timer(after_failed_starts(failures, pace), Timer::Start(place));
            }
            Action::Retire(place) | Action::Kill(place) => match &inner.workers.get(place.0) {
                Some(Some(worker)) => self.end_worker(worker, action),
                _ => _ = inner.on_arrival.insert(place, action),
            },
        }
    }

    /// Retires or terminates a worker.
    ///
    /// `action` is [`Action::Retire`] or [`Action::Kill`]. Neither waits for the end of the worker, which its pidfd
    /// reports.
    ///
    /// - Retire: the worker exits when it has finished its task. It is woken if it is idle.
    /// - Kill: sends `SIGTERM`, since the user's code may clean up. `SIGKILL` follows by a timer if the pool is
    ///   terminated.
    ///
    /// A worker that this process may not signal is retired, and its channel is closed: its next message to the parent
    /// fails.
    pub(super) fn end_worker(&self, worker: &WorkerHandle, action: Action) {
        if matches!(action, Action::Kill(_)) {
            if worker.child.signal(Signal::TERMINATE).is_ok() {
                return;
            }
            // This process may not signal the worker, since it has given up its privileges. An idle worker retires; a
            // busy worker detects that its channel is closed.
            worker.child.channel().shut_down();
        }
        // Pairs with the Acquire in `is_to_retire`. A waiter sees it after `wake_generation`.
        worker.stream.state().retire.store(1, Ordering::Release);
        self.board.waiters().wake_generation();
    }

    /// Puts a task on the table.
    ///
    /// Does nothing for a task that has ended or is out. The scheduler has made sure that a slot is free.
    ///
    /// Also starts what watches a task that is out: its time limit, the memory measurement, the audit, and the timer
    /// that moves items. Workers are woken after the release of the lock.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`] if the memory budget has no room for the argument, [`MemoryError::System`] if the
    /// system has no memory, [`MemoryError::Corrupt`] if no slot or no place in the table is free. The task waits,
    /// unchanged.
    ///
    /// `out_bytes` decides about the share of the budget: the argument of an only task may use all of it, so that any
    /// argument that fits in the budget goes out in the end.
    fn publish(&self, inner: &mut Inner, id: TaskId) -> Result<(), MemoryError> {
        if !self.board.table().has_place(inner.tail) {
            self.make_places(inner);
        }
        let Some(task) = inner.tasks.get_mut(id.0) else { return Ok(()) };
        let TaskPlace::Waiting(bytes) = &mut task.at else { return Ok(()) };
        let Some(call) = inner.calls.get(task.call) else { return Ok(()) };
        let len = bytes.len() as u64;
        let limited = call.settings.limit.map_or(0, |_| LIMITED);
        let flags =
            limited | if task.fds.is_empty() { 0 } else { WITH_FDS } | if task.is_splittable { SPLITTABLE } else { 0 };
        let order = TaskDescriptor::new(call.function.0, task.count - task.done, flags);
        let slot = inner.free_slots.pop().ok_or(MemoryError::Corrupt)?;
        let position = inner.tail;
        // While other tasks are out, half of the budget is left for their results.
        let share = if inner.out_bytes == 0 { Share::All } else { Share::Half };
        let written = self.orders.write(&mut inner.blocks, slot, order, bytes, share);
        let laid = written.and_then(|block| match self.board.table().publish(slot, position) {
            true => Ok(block),
            false => {
                block.into_iter().for_each(|block| self.orders.free(&mut inner.blocks, block));
                Err(MemoryError::Corrupt)
            }
        });
        let block = laid.inspect_err(|_| inner.free_slots.push(slot))?;
        inner.tail = claim::next(position);
        let mut used = std::mem::take(bytes);
        inner.slots[slot as usize] = Some(id);
        inner.waiting_bytes -= len;
        task.at = TaskPlace::Out { slot, position, block, len, from: task.done };
        task.unbegun_since = None;
        inner.out_bytes += len;
        inner.notifications.published += 1;
        let is_splittable = task.is_splittable;
        if let Some(limit) = call.settings.limit.filter(|_| task.limit_at.is_none()) {
            inner.limit_after(limit, Limited::Task(id));
        }
        if self.settings.memory_limit.is_some() && !std::mem::replace(&mut inner.is_watching_memory, true) {
            inner.set_timer(Instant::now() + MEMORY_PERIOD, Timer::Memory);
        }
        if !inner.is_auditing {
            inner.is_auditing = true;
            inner.set_timer(Instant::now() + AUDIT_PERIOD, Timer::Audit);
        }
        if is_splittable && !inner.is_stealing {
            inner.is_stealing = true;
            inner.set_timer(Instant::now() + STEAL_PERIOD, Timer::Steal);
        }
        if inner.spare.len() < 64 && used.capacity() <= 4096 {
            used.clear();
            inner.spare.push(used);
        }
        Ok(())
    }

    /// Moves the queued tasks to the end of the table's ring, in their order, which frees the places of withdrawn tasks.
    ///
    /// Needed when the ring of positions is full although slots are free, which happens after many withdrawals. Workers
    /// may claim tasks in the meantime; these are left alone.
    ///
    /// Withdraws the newest task first, and publishes the withdrawn ones from the oldest on. Their slots, and so their
    /// descriptors and arguments, stay where they are.
    fn make_places(&self, inner: &mut Inner) {
        let table = self.board.table();
        let mut waiting = inner.out();
        waiting.sort_unstable();
        // The newest first, since workers claim the oldest in the meantime.
        let taken_back = waiting.into_iter().rev().filter(|(position, slot, _)| table.withdraw(*slot, *position));
        let taken_back: Vec<_> = taken_back.collect();
        self.repair_counts(inner);
        for (_, slot, id) in taken_back.into_iter().rev() {
            self.lay_again(inner, id, slot);
        }
    }

    /// Queues a task again at the next position. It keeps its slot, where no worker can claim it now.
    ///
    /// The caller has withdrawn the task or cleared its slot. If the table has no place, the task stays out but cannot
    /// be claimed; the audit lays it again.
    ///
    /// Its argument is not written again, since only the position changes; the descriptor does not contain it.
    pub(super) fn lay_again(&self, inner: &mut Inner, id: TaskId, slot: u32) {
        let (table, tail) = (self.board.table(), inner.tail);
        let Some(task) = inner.tasks.get_mut(id.0) else { return };
        if let TaskPlace::Out { position, .. } = &mut task.at
            && table.publish(slot, tail)
        {
            *position = tail;
            task.unbegun_since = None;
            inner.tail = claim::next(tail);
            inner.notifications.published += 1;
        }
    }

    /// Takes a task that no worker holds off the board, without the items that have ended.
    ///
    /// The task waits with the rest of its argument. The scheduler is informed by the caller. Does nothing if the task
    /// is not out.
    ///
    /// If the argument cannot be read back, for lack of memory, the task has no bytes, and its items fail in the
    /// worker.
    ///
    /// The copy is needed, since the block is reused at once.
    pub(super) fn take_off(&self, inner: &mut Inner, id: TaskId) {
        let Some(task) = inner.tasks.get_mut(id.0) else { return };
        let TaskPlace::Out { slot, block, len, from, .. } = task.at else { return };
        let mut bytes = Vec::new();
        if let Ok(order) = self.orders.read(slot) {
            let _ = self.orders.read_argument(slot, &order, &mut bytes); // fails only for lack of memory: the items fail then
            let mut rest = &bytes[..];
            for _ in from..task.done {
                let _ = next_item(&mut rest);
            }
            bytes = rest.to_vec();
        }
        inner.waiting_bytes += bytes.len() as u64;
        task.at = TaskPlace::Waiting(bytes);
        inner.free(&self.orders, slot, block, len);
    }

    /// Fails the item that ran. Returns the event that follows.
    ///
    /// How it ends was stored in [`Task::lost`](super::driver::Task::lost) when its worker died. The task waits; its
    /// bytes begin with this item, which is removed.
    ///
    /// The event is for the scheduler: [`SchedulerEvent::Requeued`] if items are left, else [`SchedulerEvent::Ended`].
    /// A task that is unknown counts as ended.
    fn lose(&self, inner: &mut Inner, id: TaskId) -> SchedulerEvent {
        let Some(task) = inner.tasks.get_mut(id.0) else { return SchedulerEvent::Ended(id) };
        let end = task.lost.take().map_or(TaskEnd::Terminated, |lost| lost.1);
        let (call, index) = (task.call, task.first + u64::from(task.done));
        task.done += 1;
        if let TaskPlace::Waiting(bytes) = &mut task.at {
            let mut rest = &bytes[..];
            let _ = next_item(&mut rest);
            inner.waiting_bytes -= (bytes.len() - rest.len()) as u64;
            *bytes = rest.to_vec();
        }
        let is_last = task.done == task.count;
        inner.notifications.events.push(PoolEvent::ItemLost { index });
        inner.end_item(call, index, End::Failed(Box::new(end)));
        if is_last {
            inner.remove_task(id);
            return SchedulerEvent::Ended(id);
        }
        SchedulerEvent::Requeued(id)
    }

    /// Removes a task. Its remaining items end with `end`.
    ///
    /// Passes no event to the scheduler. Does nothing for a task that has ended.
    ///
    /// The caller decides what follows for the scheduler: nothing if it has forgotten the task, else
    /// [`SchedulerEvent::Ended`] or [`SchedulerEvent::Dropped`].
    pub(super) fn remove(&self, inner: &mut Inner, id: TaskId, end: &TaskEnd) {
        let Some(task) = inner.remove_task(id) else { return };
        if let TaskPlace::Out { slot, position, block, len, .. } = task.at {
            // A worker that holds it continues until it is killed; its results are ignored.
            self.board.table().withdraw(slot, position);
            inner.free(&self.orders, slot, block, len);
        }
        for item in task.done..task.count {
            let end = End::Failed(Box::new(end.clone()));
            inner.end_item(task.call, task.first + u64::from(item), end);
        }
    }
}

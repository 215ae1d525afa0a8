//! Carries out the scheduler's actions.
//!
//! [`Driver::handle`] is the only way from an event to its actions. It is called under the lock of [`PoolState`] by every
//! thread with an event: threads that submit, wait or cancel, and the pool's thread. No action blocks. What must happen
//! without the lock is only noted here: starts, wake-ups and events of the user
//! ([`Notifications`](super::notifications::Notifications)).

use std::collections::VecDeque;

use super::driver::Driver;
use super::ends::End;
use super::scheduler::{Action, Loss, Priority, SchedulerEvent, TaskId};
use super::state::PoolState;
use super::timers::{Timer, Watch, after_backoff, after_failed_starts};
use super::worker_handle::WorkerHandle;
use crate::error_chain;
use crate::pool::TaskEnd;
use crate::pool::shared::task::PoolEvent;
use crate::prim::Ordering;
use crate::process::Signal;
use crate::shm::{self, MemoryError};

impl Driver {
    /// Passes `event` to the scheduler, and carries out the actions.
    ///
    /// Follow-up events of the actions are passed in the same call, so that the scheduler's state and the parent's
    /// agree when the lock is released. Must not be called by an action: an action adds to `events` instead, or passes
    /// the event to the scheduler itself.
    pub(super) fn handle(&self, pool: &mut PoolState, event: SchedulerEvent) {
        let mut actions = std::mem::take(&mut pool.actions);
        let mut events = VecDeque::new();
        pool.scheduler.on(event, &mut actions);
        loop {
            for action in actions.drain(..) {
                self.act(pool, action, &mut events);
            }
            let Some(event) = events.pop_front() else { break };
            pool.scheduler.on(event, &mut actions);
        }
        pool.actions = actions; // keeps the allocation
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
    /// - `Fail`: the items end with [`PoolState::no_workers`] if there are no workers, else with [`TaskEnd::Terminated`].
    /// - `Delay`: the timer carries the task's serial, since the task may be cancelled before it fires, and its key
    ///   reused.
    /// - `Start`: only noted, for the pool's thread, which is woken.
    /// - `Retire` and `Kill` of a worker that is being started: noted in `on_arrival`, where a later action replaces an
    ///   earlier one.
    /// - `Lose`: the item ends with the reason that was stored at the death of its worker.
    fn act(&self, pool: &mut PoolState, action: Action, events: &mut VecDeque<SchedulerEvent>) {
        match action {
            // A task ahead of this one found no memory.
            Action::Publish(id) if matches!(events.front(), Some(SchedulerEvent::Full(_))) => {
                events.push_front(SchedulerEvent::Full(id))
            }
            Action::Publish(id) => match self.publish(pool, id) {
                Ok(()) => {}
                Err(MemoryError::OutOfSpace(error)) if error.is_passing() => {
                    events.push_front(SchedulerEvent::Full(id));
                    if !pool.timers.is_watching(Watch::Room) {
                        self.orders.trim(&mut pool.blocks);
                        shm::trim_loans();
                        pool.watch(Watch::Room);
                    }
                }
                Err(error) => {
                    let why = format!("could not allocate memory for the argument: {}", error_chain(&error));
                    self.remove(pool, id, &TaskEnd::Refused(why));
                    events.push_back(SchedulerEvent::Ended(id));
                }
            },
            Action::MakeWay(priority) => {
                self.make_way(pool, priority);
                events.push_back(SchedulerEvent::WayMade);
            }
            Action::Fail(id, loss) => {
                let end = match (loss, &pool.no_workers) {
                    (Loss::NoWorkers, Some(why)) => TaskEnd::NoWorkers(why.clone()),
                    _ => TaskEnd::Terminated,
                };
                self.remove(pool, id, &end);
            }
            Action::Lose(id) => events.push_back(self.lose(pool, id)),
            Action::Delay(id, attempt) => {
                let Some(task) = pool.tasks.get(id) else { return };
                let (index, serial) = (task.next_index(), task.serial());
                pool.notifications.events.push(PoolEvent::ItemRetried { index, attempts: attempt });
                let call = pool.calls.get(task.call());
                let backoff = call.map_or_else(Default::default, |call| call.settings().backoff);
                pool.set_timer(after_backoff(backoff, attempt), Timer::Due { task: id, serial });
            }
            Action::Start(place) => {
                pool.workers.want(place);
                pool.notifications.pool_thread = true;
            }
            Action::StartLater(place, failures, pace) => {
                pool.set_timer(after_failed_starts(failures, pace), Timer::Start(place));
            }
            Action::Retire(place) | Action::Kill(place) => match pool.workers.get(place.0) {
                Some(worker) => self.end_worker(worker, action),
                None => pool.workers.set_on_arrival(place, action),
            },
        }
    }

    /// Takes tasks that are less urgent than `priority` back from the table.
    fn make_way(&self, pool: &mut PoolState, priority: Priority) {
        let is_less = |id: TaskId| {
            let call = pool.tasks.get(id).and_then(|task| pool.calls.get(task.call()));
            call.is_some_and(|call| call.settings().priority < priority)
        };
        let mut out: Vec<_> = pool.tasks.out().filter(|(_, _, id)| is_less(*id)).collect();
        out.sort_unstable();
        for (position, slot, id) in out.into_iter().rev() {
            if self.board.table().withdraw(slot, position) {
                self.take_back(pool, id);
                pool.scheduler.on(SchedulerEvent::Withdrawn(id), &mut Vec::new());
            }
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

    /// Fails the item that ran. Returns the event that follows.
    ///
    /// How it ends was stored in [`Task::lost`](super::tasks::Task::lost) when its worker died. The task waits; its
    /// bytes begin with this item, which is removed.
    ///
    /// The event is for the scheduler: [`SchedulerEvent::Requeued`] if items are left, else [`SchedulerEvent::Ended`].
    /// A task that is unknown counts as ended.
    fn lose(&self, pool: &mut PoolState, id: TaskId) -> SchedulerEvent {
        let Some(task) = pool.tasks.get_mut(id) else { return SchedulerEvent::Ended(id) };
        let end = task.lost.take().map_or(TaskEnd::Terminated, |lost| lost.1);
        let (call, index) = (task.call(), task.next_index());
        let is_last = pool.tasks.drop_next_item(id);
        pool.notifications.events.push(PoolEvent::ItemLost { index });
        pool.end_item(call, index, End::Failed(Box::new(end)));
        if is_last {
            self.remove_answered(pool, id);
            return SchedulerEvent::Ended(id);
        }
        SchedulerEvent::Requeued(id)
    }
}

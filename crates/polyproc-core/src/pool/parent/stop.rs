//! Ending calls early: cancelled, given up, or beyond their time limit.

use super::calls::Stop;
use super::driver::Driver;
use super::key::CallKey;
use super::scheduler::{SchedulerEvent, TaskId};
use super::state::PoolState;
use super::timers::{Timer, soon};
use super::worker_handle::Cause;
use crate::pool::shared::result_ring::IDLE;

impl Driver {
    /// Returns whether a worker has claimed a task of the call. The answer is from the table, so a faulty worker can
    /// falsify it.
    pub(super) fn is_running(&self, pool: &PoolState, call: CallKey) -> bool {
        let table = self.board.table();
        let places = pool.tasks.of_call(call).into_iter().filter_map(|id| pool.tasks.get(id)?.out());
        places.into_iter().any(|place| table.holder(place.slot, place.position).is_some())
    }

    /// Ends the remaining items of a call. A task that is claimed and not begun cannot be stopped yet: a timer retries.
    ///
    /// Queued tasks are taken back from the table. For a claimed task, the worker is killed, unless the call is only
    /// given up; the items end when its death is handled. `stop` never becomes weaker: a cancelled call stays
    /// cancelled. Items that are submitted later end at once.
    pub(super) fn stop(&self, pool: &mut PoolState, call: CallKey, stop: Stop) {
        let Some(state) = pool.calls.get_mut(call) else { return };
        let stop = state.set_stop(stop);
        let mut is_left = false;
        for id in pool.tasks.of_call(call) {
            let Some(task) = pool.tasks.get(id) else { continue };
            let Some(place) = task.out() else {
                self.remove(pool, id, &stop.end());
                self.handle(pool, SchedulerEvent::Dropped(id));
                continue;
            };
            if self.board.table().withdraw(place.slot, place.position) {
                self.remove(pool, id, &stop.end());
                self.handle(pool, SchedulerEvent::Ended(id));
            } else if stop != Stop::GivenUp {
                let cause = if stop == Stop::TimedOut { Cause::TimedOut } else { Cause::Cancelled };
                is_left |= !self.revoke_holder(pool, id, cause);
            }
        }
        if is_left {
            pool.set_timer(soon(), Timer::Stop { call, stop });
        }
    }

    /// Kills the worker that has claimed a task, if it has begun the task or has been stopped before that for a while. Returns
    /// false if the caller must try again.
    ///
    /// A claim that the parent cannot relate to a living worker is left to the audit.
    fn revoke_holder(&self, pool: &mut PoolState, id: TaskId, cause: Cause) -> bool {
        let holder = self.read_holder(pool, id); // results that it has written count
        let Some(task) = pool.tasks.get_mut(id) else { return true };
        let Some(place) = task.out() else { return false };
        let Some(worker) = holder.and_then(|at| pool.workers.get_mut(at)) else { return false };
        worker.revoke(cause, Some(place.position)) || task.is_stuck_before_beginning() && worker.revoke_at(cause, IDLE)
    }

    /// Reads the results of the worker that has claimed a task, and returns its place.
    ///
    /// Called before the parent kills a worker because of this task: results that are in the ring count. Does nothing
    /// if no worker has claimed the task.
    pub(super) fn read_holder(&self, pool: &mut PoolState, id: TaskId) -> Option<usize> {
        let place = pool.tasks.get(id)?.out()?;
        let number = self.board.table().holder(place.slot, place.position)?;
        let at = pool.workers.with_number(number)?;
        self.read_worker(pool, at);
        // The results may have ended the task, and its slot may have another one.
        (self.board.table().holder(place.slot, place.position) == Some(number)).then_some(at)
    }
}

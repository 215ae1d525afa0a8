//! Time limits of items.

use std::time::Duration;

use super::driver::Driver;
use super::scheduler::TaskId;
use super::state::PoolState;
use super::timers::Limited;
use super::worker_handle::Cause;
use crate::pool::shared::result_ring::{REVOKED, running_position};
use crate::prim::Ordering;
use crate::sys::clock;

/// When a worker that is between two items is checked again.
const A_MOMENT: Duration = Duration::from_millis(1);

impl Driver {
    /// Checks whether the running item of the task has exceeded its limit, and sets the time of the next check.
    ///
    /// Called when the entry of the task in [`Limits`](super::timers::Limits) is due. What follows depends on the
    /// worker's word `current`:
    ///
    /// - No worker has claimed the task: its time has not begun, so the full limit is set again.
    /// - The worker is revoked: its death ends the item.
    /// - The worker has claimed the task, and is idle or in another task: re-checks after 1 ms. If it stays idle for
    ///   long ([`Task::is_stuck_before_beginning`](super::tasks::Task::is_stuck_before_beginning)), it is stopped; it is killed as [`Cause::Frozen`], so the task goes
    ///   to another worker.
    /// - The running item has time left: re-checks when that is over.
    /// - The time is over, and the call has a soft signal: sends it once per item, and re-checks after the grace
    ///   period.
    /// - Otherwise revokes the worker at exactly this item ([`Cause::TimedOut`]). If it has begun another item,
    ///   re-checks.
    ///
    /// Both times are of the monotonic clock. The worker writes `started`, so a corrupted worker can extend its own
    /// limit.
    pub(super) fn limit(&self, pool: &mut PoolState, id: TaskId) {
        if let Some(task) = pool.tasks.get_mut(id) {
            task.limit_at = None;
        }
        let holder = self.read_holder(pool, id); // results that the worker has written count
        let Some(task) = pool.tasks.get_mut(id) else { return };
        let Some(place) = task.out() else { return }; // the limit is set again when it goes out
        let Some(call) = pool.calls.get(task.call()) else { return };
        let (Some(limit), soft_signal) = (call.settings().limit, call.settings().soft_signal) else { return };
        let Some(worker) = holder.and_then(|at| pool.workers.get_mut(at)) else {
            // No worker has claimed the task yet, so its time has not begun.
            return pool.limit_after(limit, Limited::Task(id));
        };
        let cell = worker.stream.state();
        // Pairs with the Release in `declare`: `started` is written before.
        let current = cell.current.load(Ordering::Acquire);
        let ran = clock::monotonic_nanos().saturating_sub(cell.started.load(Ordering::Relaxed));
        let left = limit.saturating_sub(Duration::from_nanos(ran));
        let again = match running_position(current) {
            _ if current == REVOKED => return,
            // The worker is about to begin the task, or has ended it.
            None if task.is_stuck_before_beginning() && worker.revoke_at(Cause::Frozen, current) => return,
            at if at != Some(place.position) => A_MOMENT,
            _ if !left.is_zero() => left,
            _ => match soft_signal.filter(|_| worker.warned != Some(current)) {
                Some((signal, grace)) => {
                    worker.warned = Some(current);
                    let _ = worker.child.signal(signal); // without effect if the worker has exited
                    grace
                }
                None if worker.revoke_at(Cause::TimedOut, current) => return,
                None => A_MOMENT, // it has begun another item
            },
        };
        pool.limit_after(again, Limited::Task(id));
    }
}

//! Moving items that have not begun from busy workers to idle ones.

use super::driver::Driver;
use super::scheduler::SchedulerEvent;
use super::state::PoolState;
use super::tasks::Task;
use super::timers::Watch;
use crate::pool::shared::orders::TaskDescriptor;
use crate::pool::shared::result_ring::{cut, is_cut, running_item, running_position};
use crate::pool::shared::task::next_item;
use crate::prim::Ordering;

impl Driver {
    /// If workers are idle and no task waits, takes items that have not begun from busy workers.
    ///
    /// Runs as [`Watch::Steal`] while a task is out whose items may move to other workers. With a queued task the
    /// idle workers have work anyway, so nothing moves.
    pub(super) fn steal(&self, pool: &mut PoolState) {
        if !pool.tasks.is_any_splittable_out() {
            return;
        }
        pool.watch(Watch::Steal);
        let is_any_idle =
            self.board.lookers().count() > 0 || pool.workers.iter().any(|worker| !worker.idle_for().is_zero());
        if self.board.table().waiting() > 0 || !is_any_idle {
            return;
        }
        for at in 0..pool.workers.places() {
            self.cut(pool, at);
        }
    }

    /// Turns the items that a worker has not begun of its task into tasks of their own.
    ///
    /// The worker at place `at` must run a task with [`SPLITTABLE`](crate::pool::shared::orders::SPLITTABLE); otherwise nothing
    /// happens.
    ///
    /// 1. Reads the worker's results, so that `reading` and `done` are current.
    /// 2. Copies the items after the running one, without changing any state.
    /// 3. Sets the cut flag in the worker's word `current`. If the worker has begun another item by then, the
    ///    compare-and-swap fails and nothing moves; the next timer tries again. If it succeeds, the worker leaves the
    ///    task after the running item.
    /// 4. Shortens the task, and submits each copied item as a task of its own. It keeps its index and priority, and
    ///    goes out before waiting tasks of the same priority.
    ///
    /// A death of the worker after step 3 affects only the shortened task.
    fn cut(&self, pool: &mut PoolState, at: usize) {
        self.read_worker(pool, at);
        let Some(worker) = pool.workers.get(at) else { return };
        let Some(id) = worker.reading else { return };
        let Some(task) = pool.tasks.get(id).filter(|task| task.is_splittable()) else { return };
        let Some(place) = task.out() else { return };
        let current = &worker.stream.state().current;
        // Pairs with the Release in `declare`. Only the word is used.
        let now = current.load(Ordering::Acquire);
        let Ok(order) = self.orders.read(place.slot) else { return };
        let kept = running_item(now) + 1;
        let items = task.count() - place.from;
        if running_position(now) != Some(place.position) || is_cut(now) || kept >= items {
            return;
        }
        // Before the cut, which cannot be taken back: without memory for the argument the task stays whole.
        let Some(left) = self.items_after(place.slot, &order, kept, items) else { return };
        // AcqRel pairs with the worker's compare-and-swap in `declare`: a cut task begins no further item.
        if current.compare_exchange(now, cut(now), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let call = task.call();
        let Some(first) = pool.tasks.cut_off(id, items - kept) else { return };
        if pool.tasks.get(id).is_some_and(|task| task.left() == 0) {
            self.finish(pool, at, id); // the item that ran has ended by now
        }
        let settings = pool.calls.get(call).map(|call| (call.settings().priority, call.settings().retries));
        let Some((priority, retries)) = settings else { return };
        for (index, bytes) in (first..).zip(left) {
            let id = pool.tasks.add(Task::new(call, index, 1, bytes));
            self.handle(pool, SchedulerEvent::Resubmitted(id, priority, retries));
            self.handle(pool, SchedulerEvent::Due(id));
        }
    }

    /// Returns the bytes of each of a task's `count` items but the first `kept`, each with its length field.
    ///
    /// `None` without memory for them, or if they are malformed. Changes nothing, so the caller can still leave the
    /// task whole.
    fn items_after(&self, slot: u32, order: &TaskDescriptor, kept: u32, count: u32) -> Option<Vec<Vec<u8>>> {
        let mut bytes = Vec::new();
        self.orders.read_argument(slot, order, &mut bytes).ok()?;
        let mut left = &bytes[..];
        let mut items = Vec::new();
        for at in 0..count {
            let start = left;
            next_item(&mut left).ok()?;
            if at >= kept {
                items.push(start[..start.len() - left.len()].to_vec());
            }
        }
        Some(items)
    }
}

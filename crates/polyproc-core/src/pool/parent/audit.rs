//! Finds tasks that are lost on the table. All workers can write to it, and a faulty one may have overwritten its
//! words. The parent's private state, and what each worker reports in its own stream, are authoritative: a task that is
//! out, but that no worker runs and no worker can claim, is put on the table again.
//!
//! The audit also finds workers that were stopped between claiming a task and beginning it.
//!
//! It runs on the pool's thread, under its lock, once per [`Watch::Audit`] period while tasks are out:
//!
//! 1. Restores the head and tail of the table, and the parent's counts in each worker's memory.
//! 2. Discards each worker whose state contradicts what it has written ([`audit_worker`]).
//! 3. Removes polling workers that do not exist, on which the parent would rely for new tasks.
//! 4. Checks each task that is out. If no worker reports to run it, and its slot says that none can claim it, clears
//!    the slot and queues it again.
//!
//! A correct pool is not changed by it: a task between claim and beginning is left alone for
//! [`Task::is_stuck_before_beginning`](super::tasks::Task::is_stuck_before_beginning), and a queued task is withdrawn
//! by a compare-and-swap, which fails if a worker was faster. A task that several workers claim because of overwritten
//! words may run more than once, but is answered once (`results`).

use super::driver::Driver;
use super::scheduler::TaskId;
use super::state::PoolState;
use super::timers::Watch;
use super::worker_handle::Cause;
use crate::pool::shared::claim::SlotState;
use crate::pool::shared::result_ring::{IDLE, REVOKED, running_position};
use crate::prim::Ordering;
use crate::shm;

impl Driver {
    /// Runs the audit, and sets the timer of the next one. See the module.
    ///
    /// The caller removed the timer. If no task is out, returns the memory of free blocks instead, and sets no timer:
    /// the next publication does.
    pub(super) fn audit(&self, pool: &mut PoolState) {
        if pool.tasks.out_count() == 0 {
            self.orders.trim(&mut pool.blocks);
            shm::trim_loans();
            return;
        }
        pool.watch(Watch::Audit);
        self.repair_counts(pool);
        (0..pool.workers.places()).for_each(|at| audit_worker(pool, at));
        let is_living = |number| pool.workers.iter().any(|worker| u64::from(worker.number) + 1 == number);
        self.board.lookers().retain(is_living);
        let out: Vec<_> = pool.tasks.out().collect();
        for (position, slot, id) in out {
            if !self.is_run(pool, id, position) && self.is_lost(pool, id, slot, position) {
                self.board.table().clear(slot);
                self.publish_again(pool, id, slot);
            }
        }
    }

    /// Restores the counts of the table from the parent's state.
    ///
    /// Also used when the ring of positions is full. The head is restored to the oldest task that is queued.
    pub(super) fn repair_counts(&self, pool: &PoolState) {
        let table = self.board.table();
        let is_queued = |(position, slot, _): &(u64, u32, TaskId)| {
            table.slot_state(*slot) == SlotState::Queued { position: *position }
        };
        let first = pool.tasks.out().filter(is_queued).map(|(position, ..)| position).min();
        table.repair(first.unwrap_or(pool.tasks.tail()), pool.tasks.tail());
    }

    /// Returns whether a worker reports in its own stream that it runs the task.
    ///
    /// A worker may claim so falsely, which only keeps its own task from others; `audit_worker` finds it if it stays
    /// silent.
    fn is_run(&self, pool: &PoolState, id: TaskId, position: u64) -> bool {
        pool.workers.iter().any(|worker| {
            // Pairs with the Release in `declare`. Only the word is used.
            let current = worker.stream.state().current.load(Ordering::Acquire);
            worker.reading == Some(id) || running_position(current) == Some(position)
        })
    }

    /// Returns whether no worker can claim a task that no worker runs.
    ///
    /// Withdraws a task that is queued but unreachable, so that no worker claims it meanwhile. Kills a worker that is
    /// stopped before it begins the task; then the task is not lost, as the death returns it.
    fn is_lost(&self, pool: &mut PoolState, id: TaskId, slot: u32, position: u64) -> bool {
        let table = self.board.table();
        match table.slot_state(slot) {
            SlotState::Queued { position: at } if at == position => {
                !table.is_reachable(slot, position, pool.tasks.tail()) && table.withdraw(slot, position)
            }
            SlotState::Claimed { position: at, worker } if at == position => {
                let worker = pool.workers.with_number(worker).and_then(|at| pool.workers.get_mut(at));
                let (Some(worker), Some(task)) = (worker, pool.tasks.get_mut(id)) else { return true };
                if !task.is_stuck_before_beginning() {
                    return false;
                }
                // Pairs with the Release in `declare`.
                let current = worker.stream.state().current.load(Ordering::Acquire);
                // Checked after the load: results that it wrote before it began another task are visible.
                if worker.stream.is_anything_unread() || running_position(current) == Some(position) {
                    return false;
                }
                if current == IDLE {
                    // The worker is stopped, and its death returns the task; or it begins the task just now, and this fails.
                    let _ = worker.revoke_at(Cause::Frozen, IDLE);
                    return false;
                }
                current != REVOKED // it runs another task, and never claimed this one
            }
            _ => pool.tasks.get(id).is_some_and(|task| task.out().is_some()),
        }
    }
}

/// Checks a worker that may have overwritten its own stream: it may wait for room that exists, or report that it is idle while
/// it has a task to answer. Restores the shared counts of its stream, and discards it if its state stays contradictory.
///
/// `at` is its place. A worker counts as silent if it is in no task for as long as a stopped one, and its results are
/// incomplete.
fn audit_worker(pool: &mut PoolState, at: usize) {
    let Some(worker) = pool.workers.get(at) else { return };
    worker.stream.repair_counts();
    // Pairs with the Release in `declare`: results that were written before are found unread below.
    let current = worker.stream.state().current.load(Ordering::Acquire);
    let has_revoked_itself = current == REVOKED && worker.revocation.is_none();
    let task = worker.reading.and_then(|id| pool.tasks.get_mut(id));
    let is_silent = task.is_some_and(|task| {
        let Some(position) = task.out().map(|place| place.position) else { return false };
        let is_running = running_position(current) == Some(position) || worker.stream.is_anything_unread();
        if is_running {
            task.unbegun_since = None;
        }
        !is_running && task.is_stuck_before_beginning()
    });
    if has_revoked_itself || is_silent {
        pool.discard(at);
    }
}

//! Tasks that are lost on the table. All workers may write there; one that went wild may have written over its words. What the
//! parent knows of its own, and what each worker says in its own stream, is what counts: a task that is out, and that by these
//! nobody runs and nobody can take, is laid down again.
//!
//! Also a worker that took a task and stands still before it begins it is found here.

use std::time::{Duration, Instant};

use super::claim::SlotState;
use super::driver::{Driver, Inner, TaskPlace};
use super::scheduler::TaskId;
use super::staff::{self, Cause};
use super::stream::{DOOMED, IDLE, running_position};
use super::timers::Timer;
use crate::prim::Ordering;
use crate::shm;

/// How often it is looked, while tasks are out.
pub(super) const AUDIT_PERIOD: Duration = Duration::from_secs(1);

impl Driver {
    /// See the module.
    pub(super) fn audit(&self, inner: &mut Inner) {
        inner.is_auditing = inner.out_tasks() > 0;
        if !inner.is_auditing {
            self.orders.trim(&mut inner.blocks);
            shm::trim_loans();
            return;
        }
        inner.set_timer(Instant::now() + AUDIT_PERIOD, Timer::Audit);
        self.repair_counts(inner);
        (0..inner.workers.len()).for_each(|at| audit_worker(inner, at));
        let is_living = |number| inner.workers.iter().flatten().any(|worker| u64::from(worker.number) + 1 == number);
        self.board.lookers().retain(is_living);
        for (position, slot, id) in inner.out() {
            if !self.is_run_by_anybody(inner, id, position) && self.is_lost(inner, id, slot, position) {
                self.board.table().clear(slot);
                self.lay_again(inner, id, slot);
            }
        }
    }

    /// The counts of the table are what the parent knows.
    pub(super) fn repair_counts(&self, inner: &Inner) {
        let table = self.board.table();
        let is_queued = |(position, slot, _): &(u64, u32, TaskId)| {
            table.slot_state(*slot) == SlotState::Queued { position: *position }
        };
        let first = inner.out().into_iter().filter(is_queued).map(|(position, ..)| position).min();
        table.repair(first.unwrap_or(inner.tail), inner.tail);
    }

    /// Whether a worker says in its own stream that it runs the task.
    fn is_run_by_anybody(&self, inner: &Inner, id: TaskId, position: u64) -> bool {
        inner.workers.iter().flatten().any(|worker| {
            let current = worker.stream.cell().current.load(Ordering::Acquire);
            worker.reading == Some(id) || running_position(current) == Some(position)
        })
    }

    /// Whether a task that nobody runs is one that nobody can take either.
    fn is_lost(&self, inner: &mut Inner, id: TaskId, slot: u32, position: u64) -> bool {
        let table = self.board.table();
        match table.slot_state(slot) {
            SlotState::Queued { position: at } if at == position => {
                !table.is_reachable(slot, position, inner.tail) && table.withdraw(slot, position)
            }
            SlotState::Claimed { position: at, worker } if at == position => {
                let worker = staff::with_number(&mut inner.workers, worker);
                let (Some(worker), Some(task)) = (worker, inner.tasks.get_mut(id.0)) else { return true };
                if !task.is_stuck_before_beginning() {
                    return false;
                }
                let current = worker.stream.cell().current.load(Ordering::Acquire);
                // Looked at after that: what it answered before it went on to another task is seen.
                if worker.stream.is_anything_unread() || running_position(current) == Some(position) {
                    return false;
                }
                if current == IDLE {
                    // It stands still, and its death gives the task back; or it begins the task just now.
                    let _ = worker.doom_at(Cause::Frozen, IDLE);
                    return false;
                }
                current != DOOMED // it runs another one, and never took this
            }
            _ => matches!(inner.tasks.get(id.0).map(|task| &task.at), Some(TaskPlace::Out { .. })),
        }
    }
}

/// A worker that wrote over its own stream may wait for room that is there, or say of itself that it runs nothing while it has a task
/// to answer. Its counts are what the parent knows; if it goes on in contradiction with itself, it is of no use.
fn audit_worker(inner: &mut Inner, at: usize) {
    let Some(worker) = &inner.workers[at] else { return };
    worker.stream.repair_counts();
    let current = worker.stream.cell().current.load(Ordering::Acquire);
    let is_doomed_by_itself = current == DOOMED && worker.doom.is_none();
    let task = worker.reading.and_then(|id| inner.tasks.get_mut(id.0));
    let is_silent = task.is_some_and(|task| {
        let TaskPlace::Out { position, .. } = task.at else { return false };
        let is_running = running_position(current) == Some(position) || worker.stream.is_anything_unread();
        if is_running {
            task.unbegun_since = None;
        }
        !is_running && task.is_stuck_before_beginning()
    });
    if is_doomed_by_itself || is_silent {
        inner.discard(at);
    }
}

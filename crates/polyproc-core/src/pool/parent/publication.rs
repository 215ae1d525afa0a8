//! Tasks on the table: putting them there, taking them back, moving them.
//!
//! A task's place, the slot and block that it uses, and its entry of the table change together. Their order:
//!
//! - *Publish*: write the argument and the task descriptor into a free slot; publish; note the place. A failure frees what
//!   was allocated, and the task waits unchanged.
//! - *Take back*: first make sure that no worker can claim the task (withdrawn, or its worker is dead); then copy the
//!   argument back to private memory, and free slot and block.
//!
//! The next position, [`Tasks::tail`](super::tasks::Tasks::tail), is the parent's own. It advances only together with the
//! table's.

use super::driver::Driver;
use super::ends::End;
use super::scheduler::TaskId;
use super::state::PoolState;
use super::tasks::{TablePlace, Task};
use super::timers::{Limited, Watch};
use crate::pool::TaskEnd;
use crate::pool::shared::orders::{LIMITED, SPLITTABLE, TaskDescriptor, WITH_FDS};
use crate::pool::shared::task::next_item;
use crate::shm::MemoryError;
use crate::shm::budget::Share;

impl Driver {
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
    /// The bytes that are out decide about the share of the budget: the argument of an only task may use all of it, so that
    /// any argument that fits in the budget goes out in the end.
    pub(super) fn publish(&self, pool: &mut PoolState, id: TaskId) -> Result<(), MemoryError> {
        if !self.board.table().has_place(pool.tasks.tail()) {
            self.make_places(pool);
        }
        let Some(task) = pool.tasks.get(id) else { return Ok(()) };
        let Some(bytes) = task.waiting() else { return Ok(()) };
        let Some(call) = pool.calls.get(task.call()) else { return Ok(()) };
        let limit = call.settings().limit.filter(|_| task.limit_at.is_none());
        let limited = call.settings().limit.map_or(0, |_| LIMITED);
        let flags = limited
            | if task.fds.is_empty() { 0 } else { WITH_FDS }
            | if task.is_splittable() { SPLITTABLE } else { 0 };
        let order = TaskDescriptor::new(call.function().0, task.left(), flags);
        let slot = pool.tasks.free_slot().ok_or(MemoryError::Corrupt)?;
        // While other tasks are out, half of the budget is left for their results.
        let share = if pool.tasks.out_bytes() == 0 { Share::All } else { Share::Half };
        let block = self.orders.write(&mut pool.blocks, slot, order, bytes, share)?;
        if !self.board.table().publish(slot, pool.tasks.tail()) {
            block.into_iter().for_each(|block| self.orders.free(&mut pool.blocks, block));
            return Err(MemoryError::Corrupt);
        }
        if let Some(used) = pool.tasks.set_out(id, block) {
            pool.keep_buffer(used);
        }
        pool.notifications.published += 1;
        if let Some(limit) = limit {
            pool.limit_after(limit, Limited::Task(id));
        }
        if self.settings.memory_limit.is_some() {
            pool.watch(Watch::Memory);
        }
        pool.watch(Watch::Audit);
        if flags & SPLITTABLE != 0 {
            pool.watch(Watch::Steal);
        }
        Ok(())
    }

    /// Moves the queued tasks to the end of the table's ring, in their order, which frees the places of withdrawn tasks.
    ///
    /// Needed when the ring of positions is full although slots are free, which happens after many withdrawals. Workers
    /// may claim tasks in the meantime; these are left alone.
    ///
    /// Withdraws the newest task first, since workers claim the oldest in the meantime, and publishes the withdrawn ones from
    /// the oldest on. Their slots, and so their descriptors and arguments, stay where they are.
    fn make_places(&self, pool: &mut PoolState) {
        let table = self.board.table();
        let mut waiting: Vec<_> = pool.tasks.out().collect();
        waiting.sort_unstable();
        let taken_back = waiting.into_iter().rev().filter(|(position, slot, _)| table.withdraw(*slot, *position));
        let taken_back: Vec<_> = taken_back.collect();
        self.repair_counts(pool);
        for (_, slot, id) in taken_back.into_iter().rev() {
            self.publish_again(pool, id, slot);
        }
    }

    /// Queues a task again at the next position. It keeps its slot, where no worker can claim it now.
    ///
    /// The caller has withdrawn the task or cleared its slot. If the table has no place, the task stays out but cannot
    /// be claimed; the audit publishes it again.
    ///
    /// Its argument is not written again, since only the position changes; the descriptor does not contain it.
    pub(super) fn publish_again(&self, pool: &mut PoolState, id: TaskId, slot: u32) {
        if pool.tasks.in_slot(slot as usize) == Some(id) && self.board.table().publish(slot, pool.tasks.tail()) {
            pool.tasks.set_out_again(id);
            pool.notifications.published += 1;
        }
    }

    /// Takes a task that no worker holds off the table, without the items that have ended.
    ///
    /// The task waits with the rest of its argument. The scheduler is informed by the caller. Does nothing if the task
    /// is not out.
    ///
    /// If the argument cannot be read back, for lack of memory, the task has no bytes, and its items fail in the
    /// worker.
    ///
    /// The copy is needed, since the block is reused at once.
    pub(super) fn take_back(&self, pool: &mut PoolState, id: TaskId) {
        let Some(task) = pool.tasks.get(id) else { return };
        let Some(place) = task.out() else { return };
        let bytes = self.read_back(task, place).unwrap_or_default();
        pool.tasks.set_waiting(id, bytes);
        if let Some(block) = place.block {
            self.orders.free(&mut pool.blocks, block);
        }
    }

    /// Returns a copy of the items of a task that have not ended. `place` is its place on the table.
    ///
    /// # Errors
    /// Those of reading the argument, for lack of memory.
    pub(super) fn read_back(&self, task: &Task, place: TablePlace) -> Result<Vec<u8>, MemoryError> {
        let mut bytes = Vec::new();
        self.orders.read_argument(place.slot, &self.orders.read(place.slot)?, &mut bytes)?;
        let mut rest = &bytes[..];
        for _ in place.from..task.done() {
            let _ = next_item(&mut rest);
        }
        bytes.drain(..bytes.len() - rest.len());
        Ok(bytes)
    }

    /// Removes a task whose items have all been answered.
    ///
    /// Frees its slot, its block and its limit. The caller informs the scheduler.
    pub(super) fn remove_answered(&self, pool: &mut PoolState, id: TaskId) {
        if let Some(task) = pool.tasks.remove(id) {
            pool.free_argument(&self.orders, &task);
            if let Some(at) = task.limit_at {
                pool.limits.remove(at, Limited::Task(id));
            }
        }
    }

    /// Removes a task. Its remaining items end with `end`.
    ///
    /// Passes no event to the scheduler. Does nothing for a task that has ended.
    ///
    /// The caller decides what follows for the scheduler: nothing if it has forgotten the task, else `Ended` or `Dropped`.
    pub(super) fn remove(&self, pool: &mut PoolState, id: TaskId, end: &TaskEnd) {
        let Some(task) = pool.tasks.get(id) else { return };
        let (call, first, left) = (task.call(), task.next_index(), task.left());
        if let Some(place) = task.out() {
            // A worker that holds it continues until it is killed; its results are ignored.
            self.board.table().withdraw(place.slot, place.position);
        }
        if let Some(worker) = task.reader.and_then(|at| pool.workers.get_mut(at)) {
            worker.reading = None;
        }
        self.remove_answered(pool, id);
        for index in first..first + u64::from(left) {
            pool.end_item(call, index, End::Failed(Box::new(end.clone())));
        }
    }
}

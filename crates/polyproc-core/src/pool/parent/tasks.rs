//! [`Tasks`]: the tasks of a pool that have not ended, where their arguments are, and the slots of the table.
//!
//! A task waits in private memory or is *out*, in a slot of the table. Slots, positions, byte counts and the list of each
//! call's tasks change only here, together. The shared words of the table are the caller's: it publishes a task before
//! [`Tasks::set_out`], and makes sure before [`Tasks::set_waiting`] and [`Tasks::remove`] that no worker can claim it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use slab::Slab;

use super::key::CallKey;
use super::scheduler::TaskId;
use crate::pool::shared::claim;
use crate::pool::shared::task::{TaskEnd, next_item};
use crate::shm::Extent;

/// From its claim of a task to the beginning a worker takes some hundred nanoseconds, or as long as it is preempted. A worker
/// that takes longer than this is stopped (`SIGSTOP`, a debugger, a freezer).
///
/// Used for a task that must end now, and by the audit: see [`Task::is_stuck_before_beginning`].
const UNBEGUN_LIMIT: Duration = Duration::from_millis(200);

/// A key that no task has.
const NO_TASK: usize = usize::MAX;

/// Where a task is on the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct TablePlace {
    /// Its entry of the table.
    pub(super) slot: u32,
    /// Its number, which changes if it is published again.
    pub(super) position: u64,
    /// The block of its argument, unless that is inline.
    pub(super) block: Option<Extent>,
    /// The item of the task with which the argument begins.
    pub(super) from: u32,
    /// Length of the argument in bytes.
    len: u64,
}

/// Where a task's argument is.
///
/// Delayed tasks are `Waiting`, too: only the scheduler distinguishes them.
#[derive(Debug)]
enum TaskPlace {
    /// In the parent's private memory: the items that have not ended.
    Waiting(Vec<u8>),
    /// On the table.
    Out(TablePlace),
}

/// Some items of a call that go to a worker together.
///
/// It exists from [`Tasks::add`] until its last item has ended. Items that the worker has not begun may leave it for
/// tasks of their own (`steal`); then `count` shrinks.
#[derive(Debug)]
pub(super) struct Task {
    /// Its call.
    call: CallKey,
    /// The tasks of the same call that were added just before and after it, or [`NO_TASK`].
    neighbours: [usize; 2],
    /// Distinguishes it from a later task with the same key.
    serial: u64,
    /// The index of the first item in the call.
    first: u64,
    /// Number of items.
    count: u32,
    /// Number of items that have ended.
    done: u32,
    place: TaskPlace,
    /// Items that have not begun may go to another worker.
    ///
    /// Set for short tasks that were put together by the engine, not for chunks that the user asked for.
    is_splittable: bool,
    /// The place of the worker whose results are being read for it: from its *begin* record to its last result.
    pub(super) reader: Option<usize>,
    /// Descriptors of the first item.
    ///
    /// Sent to a worker that asks for them. They stay here until the task has ended, for a retry.
    pub(super) fds: Vec<OwnedFd>,
    /// The number of items that had ended when its worker was lost, and how the next item ends if it is not retried. Boxed,
    /// since few tasks have it and a call may have millions of tasks.
    pub(super) lost: Option<Box<(u32, TaskEnd)>>,
    /// Number of attempts at its one item that ended in a panic.
    pub(super) panics: u32,
    /// The time of its entry in the limits.
    ///
    /// `None` while no limit runs: it has no limit, or has not gone out yet.
    pub(super) limit_at: Option<Instant>,
    /// Number of workers in a row that died after they claimed it and before they began it.
    pub(super) unbegun_deaths: u32,
    /// When the worker that claimed it was first seen not to have begun it.
    pub(super) unbegun_since: Option<Instant>,
}

impl Task {
    /// Creates a task of `count` items that waits. `first` is the index of its first item in the call; `bytes` are its items,
    /// each with its length field.
    pub(super) fn new(call: CallKey, first: u64, count: u32, bytes: Vec<u8>) -> Self {
        Self {
            call,
            neighbours: [NO_TASK; 2],
            serial: 0,
            first,
            count,
            done: 0,
            place: TaskPlace::Waiting(bytes),
            is_splittable: false,
            reader: None,
            fds: Vec::new(),
            lost: None,
            panics: 0,
            limit_at: None,
            unbegun_deaths: 0,
            unbegun_since: None,
        }
    }

    /// Permits that items that have not begun go to another worker, if there are several.
    pub(super) fn splittable(mut self, is_splittable: bool) -> Self {
        self.is_splittable = is_splittable && self.count > 1;
        self
    }

    /// Returns its call.
    pub(super) fn call(&self) -> CallKey {
        self.call
    }

    /// Returns the number that distinguishes it from a later task with the same key.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns the number of its items, of which [`Task::done`] have ended.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Returns the number of items that have ended.
    pub(super) fn done(&self) -> u32 {
        self.done
    }

    /// Returns the number of items that have not ended.
    pub(super) fn left(&self) -> u32 {
        self.count - self.done
    }

    /// Returns the index in the call of its next item to end.
    pub(super) fn next_index(&self) -> u64 {
        self.first + u64::from(self.done)
    }

    /// Counts further items as ended. Returns whether these were the last ones.
    pub(super) fn advance(&mut self, items: u32) -> bool {
        self.done = self.count.min(self.done + items);
        self.done == self.count
    }

    /// Returns whether items that have not begun may go to another worker.
    pub(super) fn is_splittable(&self) -> bool {
        self.is_splittable
    }

    /// Returns its place on the table; `None` while it waits.
    pub(super) fn out(&self) -> Option<TablePlace> {
        if let TaskPlace::Out(place) = self.place { Some(place) } else { None }
    }

    /// Returns whether it is on the table at this position.
    pub(super) fn is_out_at(&self, position: u64) -> bool {
        self.out().is_some_and(|place| place.position == position)
    }

    /// Returns its items that have not ended, while it waits.
    pub(super) fn waiting(&self) -> Option<&[u8]> {
        if let TaskPlace::Waiting(bytes) = &self.place { Some(bytes) } else { None }
    }

    /// Notes that a worker has claimed the task and not begun it. Returns whether this has lasted for [`UNBEGUN_LIMIT`].
    ///
    /// The caller has found that the worker is idle. The note is reset when the task begins or goes out again.
    pub(super) fn is_stuck_before_beginning(&mut self) -> bool {
        self.unbegun_since.get_or_insert_with(Instant::now).elapsed() >= UNBEGUN_LIMIT
    }

    /// Returns the length of its argument in bytes while that is in private memory, else 0.
    fn waiting_bytes(&self) -> u64 {
        self.waiting().map_or(0, |bytes| bytes.len() as u64)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tasks {
    /// By [`TaskId`].
    records: Slab<Task>,
    /// The serial of the last task that was added.
    serial: u64,
    /// By the place of a call: its last task, or [`NO_TASK`]. The tasks of a call form a list. Those of an earlier call with
    /// this place have ended.
    last_of_call: Vec<usize>,
    /// The task in each slot; `None` if the slot is in `free_slots`.
    slots: Vec<Option<TaskId>>,
    /// Slots for the next tasks. As many as the scheduler believes to be free.
    free_slots: Vec<u32>,
    /// The position of the next task on the table. Authoritative, since workers may overwrite the shared copy.
    tail: u64,
    /// Bytes of the arguments of tasks that wait.
    waiting_bytes: u64,
    /// The value of `waiting_bytes` at the last call of [`Tasks::has_made_room`].
    seen_waiting: u64,
    /// Bytes of the arguments of tasks that are out.
    out_bytes: u64,
    /// Number of splittable tasks that are out.
    splittable_out: usize,
}

impl Tasks {
    /// Creates the tasks of a pool whose table has `slots` slots.
    pub(super) fn new(slots: u32) -> Self {
        Self {
            records: Slab::new(),
            serial: 0,
            last_of_call: Vec::new(),
            slots: vec![None; slots as usize],
            free_slots: (0..slots).rev().collect(),
            tail: 0,
            waiting_bytes: 0,
            seen_waiting: 0,
            out_bytes: 0,
            splittable_out: 0,
        }
    }

    /// Adds a task, as the last one of its call, and gives it a serial.
    ///
    /// The scheduler does not know it yet: the caller passes `Submitted` or `Resubmitted`.
    pub(super) fn add(&mut self, mut task: Task) -> TaskId {
        let call = task.call.at;
        if self.last_of_call.len() <= call {
            self.last_of_call.resize(call + 1, NO_TASK);
        }
        let before = self.last_of_call[call];
        self.serial += 1;
        task.serial = self.serial;
        task.neighbours = [before, NO_TASK];
        self.waiting_bytes += task.waiting_bytes();
        let id = self.records.insert(task);
        if let Some(before) = self.records.get_mut(before) {
            before.neighbours[1] = id;
        }
        self.last_of_call[call] = id;
        TaskId(id)
    }

    /// Removes a task, and frees its slot. The caller frees the block, informs the scheduler and ends the limit. `None` if it
    /// was removed before.
    pub(super) fn remove(&mut self, id: TaskId) -> Option<Task> {
        let task = self.records.try_remove(id.0)?;
        self.waiting_bytes -= task.waiting_bytes();
        if let TaskPlace::Out(place) = task.place {
            self.leave_table(place, task.is_splittable);
        }
        let [before, after] = task.neighbours;
        if let Some(task) = self.records.get_mut(before) {
            task.neighbours[1] = after;
        }
        match self.records.get_mut(after) {
            Some(task) => task.neighbours[0] = before,
            None => self.last_of_call[task.call.at] = before,
        }
        Some(task)
    }

    /// Frees the slot of a task that was out there, and counts it as not out.
    fn leave_table(&mut self, place: TablePlace, is_splittable: bool) {
        self.out_bytes -= place.len;
        self.splittable_out -= usize::from(is_splittable);
        self.slots[place.slot as usize] = None;
        self.free_slots.push(place.slot);
    }

    /// Returns a task.
    pub(super) fn get(&self, id: TaskId) -> Option<&Task> {
        self.records.get(id.0)
    }

    /// Returns a task.
    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.records.get_mut(id.0)
    }

    /// Returns the tasks of a call, the last one first.
    pub(super) fn of_call(&self, call: CallKey) -> Vec<TaskId> {
        let is_of_call = |id: &usize| self.records.get(*id).is_some_and(|task| task.call == call);
        let last = self.last_of_call.get(call.at).copied().filter(is_of_call);
        let before = |id: &usize| self.records.get(*id).map(|task| task.neighbours[0]).filter(|id| *id != NO_TASK);
        std::iter::successors(last, before).map(TaskId).collect()
    }

    /// Returns the position of the next task on the table.
    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    /// Returns the slot for the next task on the table.
    pub(super) fn free_slot(&self) -> Option<u32> {
        self.free_slots.last().copied()
    }

    /// Notes that a waiting task is on the table now: in the slot that [`Tasks::free_slot`] returned, at [`Tasks::tail`].
    /// Returns the bytes that waited. `None`, without a change, for a task that does not wait.
    pub(super) fn set_out(&mut self, id: TaskId, block: Option<Extent>) -> Option<Vec<u8>> {
        let slot = self.free_slot()?;
        let task = self.records.get_mut(id.0)?;
        let TaskPlace::Waiting(bytes) = &mut task.place else { return None };
        let bytes = std::mem::take(bytes);
        let len = bytes.len() as u64;
        let place = TablePlace { slot, position: self.tail, block, from: task.done, len };
        task.place = TaskPlace::Out(place);
        task.unbegun_since = None;
        self.splittable_out += usize::from(task.is_splittable);
        self.waiting_bytes -= len;
        self.out_bytes += len;
        self.free_slots.pop();
        self.slots[slot as usize] = Some(id);
        self.tail = claim::next(self.tail);
        Some(bytes)
    }

    /// Notes that a task that is out was published again, in its slot at [`Tasks::tail`].
    pub(super) fn set_out_again(&mut self, id: TaskId) {
        let Some(task) = self.records.get_mut(id.0) else { return };
        if let TaskPlace::Out(place) = &mut task.place {
            place.position = self.tail;
            task.unbegun_since = None;
            self.tail = claim::next(self.tail);
        }
    }

    /// Notes that a task that was out waits again, with `bytes`: its items that have not ended. Frees its slot.
    pub(super) fn set_waiting(&mut self, id: TaskId, bytes: Vec<u8>) {
        let Some(task) = self.records.get_mut(id.0) else { return };
        let TaskPlace::Out(place) = task.place else { return };
        self.waiting_bytes += bytes.len() as u64;
        task.place = TaskPlace::Waiting(bytes);
        task.reader = None;
        let is_splittable = task.is_splittable;
        self.leave_table(place, is_splittable);
    }

    /// Counts the next item of a waiting task as ended, and drops its bytes. Returns whether it was the last one.
    pub(super) fn drop_next_item(&mut self, id: TaskId) -> bool {
        let Some(task) = self.records.get_mut(id.0) else { return true };
        if let TaskPlace::Waiting(bytes) = &mut task.place {
            let mut rest = &bytes[..];
            let _ = next_item(&mut rest); // a task without bytes fails in the worker
            let used = bytes.len() - rest.len();
            bytes.drain(..used);
            self.waiting_bytes -= used as u64;
        }
        task.advance(1)
    }

    /// Takes the last `items` items from a task. Returns the index of the first of them in the call.
    pub(super) fn cut_off(&mut self, id: TaskId, items: u32) -> Option<u64> {
        let task = self.records.get_mut(id.0)?;
        task.count -= items;
        Some(task.first + u64::from(task.count))
    }

    /// Returns the task in a slot. `slot` may come from shared memory.
    pub(super) fn in_slot(&self, slot: usize) -> Option<TaskId> {
        self.slots.get(slot).copied().flatten()
    }

    /// Returns the task at a position, if it is out in this slot. Both may come from shared memory.
    pub(super) fn at(&self, slot: usize, position: u64) -> Option<(TaskId, &Task)> {
        let id = self.in_slot(slot)?;
        Some((id, self.get(id).filter(|task| task.is_out_at(position))?))
    }

    /// Returns position, slot and id of each task that is out, in no particular order.
    pub(super) fn out(&self) -> impl Iterator<Item = (u64, u32, TaskId)> + '_ {
        self.slots.iter().flatten().filter_map(|id| {
            let place = self.get(*id)?.out()?;
            Some((place.position, place.slot, *id))
        })
    }

    /// Returns the number of tasks that are out.
    ///
    /// From the parent's own slots, not from the shared counts.
    pub(super) fn out_count(&self) -> u64 {
        self.slots.len() as u64 - self.free_slots.len() as u64
    }

    /// Returns the bytes of the arguments of tasks that are out.
    pub(super) fn out_bytes(&self) -> u64 {
        self.out_bytes
    }

    /// Returns whether a task is out whose items may go to another worker.
    pub(super) fn is_any_splittable_out(&self) -> bool {
        self.splittable_out > 0
    }

    /// Returns the bytes of the arguments of tasks that wait.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Returns whether the bytes that wait have fallen from above `most` to `most` or below since the last call.
    pub(super) fn has_made_room(&mut self, most: u64) -> bool {
        std::mem::replace(&mut self.seen_waiting, self.waiting_bytes) > most && self.waiting_bytes <= most
    }
}

#[cfg(test)]
mod tests {
    //! After any sequence of changes the counts are those of the records.

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Change {
        /// Add a task with this number of items to a call.
        Add(usize, u32),
        /// Change the nth task.
        Remove(usize),
        Publish(usize),
        PublishAgain(usize),
        TakeBack(usize),
        EndItem(usize),
        CutOff(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        let at = 0..8usize;
        prop_oneof![
            4 => (0..3usize, 1..5u32).prop_map(|(call, count)| Change::Add(call, count)),
            2 => at.clone().prop_map(Change::Remove),
            4 => at.clone().prop_map(Change::Publish),
            1 => at.clone().prop_map(Change::PublishAgain),
            2 => at.clone().prop_map(Change::TakeBack),
            2 => at.clone().prop_map(Change::EndItem),
            1 => at.prop_map(Change::CutOff),
        ]
    }

    fn key(call: usize) -> CallKey {
        CallKey { at: call, serial: 1 }
    }

    /// `count` items of one byte each.
    fn items(count: u32) -> Vec<u8> {
        (0..count).flat_map(|_| [1, 0, 0, 0, 0, 0, 0, 0, b'x']).collect()
    }

    fn check(tasks: &Tasks, ids: &[TaskId]) {
        let sum = |of: fn(&Task) -> u64| ids.iter().map(|id| of(tasks.get(*id).expect("it is there"))).sum::<u64>();
        assert_eq!(tasks.waiting_bytes, sum(Task::waiting_bytes));
        assert_eq!(tasks.out_bytes, sum(|task| task.out().map_or(0, |place| place.len)));
        assert_eq!(tasks.out_count(), sum(|task| u64::from(task.out().is_some())));
        assert_eq!(tasks.splittable_out as u64, sum(|task| u64::from(task.is_splittable() && task.out().is_some())));
        for (position, slot, id) in tasks.out() {
            assert_eq!(tasks.at(slot as usize, position).map(|(id, _)| id), Some(id));
            assert!(!tasks.free_slots.contains(&slot) && position < tasks.tail());
        }
        for call in 0..3 {
            let mut of_call = tasks.of_call(key(call));
            of_call.reverse();
            let added: Vec<_> =
                ids.iter().copied().filter(|id| tasks.get(*id).is_some_and(|task| task.call() == key(call))).collect();
            assert_eq!(of_call, added, "in the order in which they were added");
        }
    }

    #[test]
    fn a_call_that_was_removed_has_no_tasks_of_its_successor() {
        let mut tasks = Tasks::new(4);
        let id = tasks.add(Task::new(key(0), 0, 1, items(1)));
        assert_eq!(tasks.of_call(key(0)), [id]);
        assert_eq!(tasks.of_call(CallKey { at: 0, serial: 2 }), []);
    }

    proptest! {
        #[test]
        fn counts_and_lists_fit_the_tasks(changes in proptest::collection::vec(change(), 1..200)) {
            let mut tasks = Tasks::new(4);
            let mut ids = Vec::new();
            for change in changes {
                let nth = |at: usize| (!ids.is_empty()).then(|| ids[at % ids.len()]);
                match change {
                    Change::Add(call, count) => {
                        let task = Task::new(key(call), 0, count, items(count)).splittable(true);
                        ids.push(tasks.add(task));
                    }
                    Change::Remove(at) => {
                        if let Some(id) = nth(at) {
                            assert!(tasks.remove(id).is_some() && tasks.remove(id).is_none());
                            ids.retain(|other| *other != id);
                        }
                    }
                    Change::Publish(at) => {
                        if let Some(id) = nth(at) {
                            let waits = tasks.get(id).is_some_and(|task| task.waiting().is_some());
                            let (free, position) = (tasks.free_slot(), tasks.tail());
                            assert_eq!(tasks.set_out(id, None).is_some(), waits && free.is_some());
                            if waits && let Some(slot) = free {
                                assert_eq!(tasks.at(slot as usize, position).map(|(id, _)| id), Some(id));
                            }
                        }
                    }
                    Change::PublishAgain(at) => {
                        if let Some(id) = nth(at) {
                            tasks.set_out_again(id);
                        }
                    }
                    Change::TakeBack(at) => {
                        if let Some(id) = nth(at) {
                            let left = tasks.get(id).expect("it is there").left();
                            tasks.set_waiting(id, items(left));
                        }
                    }
                    Change::EndItem(at) => {
                        if let Some(id) = nth(at).filter(|id| tasks.get(*id).is_some_and(|task| task.left() > 1 && task.out().is_none())) {
                            assert!(!tasks.drop_next_item(id));
                            let task = tasks.get(id).expect("it is there");
                            assert_eq!(task.waiting().map(<[u8]>::len), Some(9 * task.left() as usize));
                        }
                    }
                    Change::CutOff(at) => {
                        if let Some(id) = nth(at).filter(|id| tasks.get(*id).is_some_and(|task| task.left() > 1 && task.out().is_some())) {
                            assert!(tasks.cut_off(id, 1).is_some());
                        }
                    }
                }
                check(&tasks, &ids);
            }
        }
    }
}

//! Reading results, and waiting for them. `leader` decides which thread reads.
//!
//! # From a ring to a call
//!
//! [`Driver::read_worker`] copies a ring's records to private memory and parses the copy. A *begin* record is checked
//! against the table and selects the task (`reading`); each further record ends its next item. After its last item the
//! task is removed. Results go to the [`Ends`](super::call::Ends) of their call, also if no thread waits for it.
//!
//! A worker that writes an invalid record is discarded: no more of its ring is read, and it is killed. Its death is
//! handled as any other, so its task is retried or fails; other workers are not affected.
//!
//! This file does not detect deaths, except that a dead worker's ring is read like that of a living one.

use std::time::Duration;

use super::call::{Call, End};
use super::driver::{Driver, Inner, Task, TaskPlace};
use super::leader::{self, Leadership, ResultState, ResultWait, ResultWaiter, WaitFor, WaitStep};
use super::scheduler::{SchedulerEvent, TaskId};
use super::thread::CHANNEL_MESSAGES;
use super::timers::{Timer, after_backoff};
use crate::deadline::Deadline;
use crate::pool::shared::doorbell::{ASLEEP, ASLEEP_UNTIL_LOW, Doorbell, SPINNING};
use crate::pool::shared::result_ring::{
    LOGGED, ResultBody, ResultKind, ResultRecord, WITH_FDS, begun, parse, take_results,
};
use crate::pool::shared::task::{TaskEnd, next_item};
use crate::prim::{AtomicU64, Ordering};
use crate::robust::{HAS_SPARE_PROCESSOR, RecheckInterval, WaitError, spin_until};
use crate::shm::MemoryError;
use crate::shm::budget;
use crate::sys::futex::{self, Wait};
use crate::wire::Payload;

/// How long a thread sleeps at first before it re-checks. The pool's thread detects a worker that dies before it wakes a
/// thread; this is for the case that it does not.
///
/// Doubles with each sleep that nothing ends: see [`RecheckInterval`].
const RECHECK_AFTER: Duration = Duration::from_secs(1);

/// The serial of the next [`ResultWaiter`], in all pools.
static NEXT_WAITER: AtomicU64 = AtomicU64::new(1);

/// The pool's state under its lock, for the functions of `leader`.
pub(super) struct LockedState<'a> {
    driver: &'a Driver,
    inner: &'a mut Inner,
}

impl ResultState for LockedState<'_> {
    fn leadership(&mut self) -> &mut Leadership {
        &mut self.inner.leadership
    }

    fn doorbell(&self) -> &Doorbell {
        self.driver.board.doorbell()
    }

    fn is_anything_unread(&self) -> bool {
        self.inner.is_anything_unread()
    }

    fn collect(&mut self) {
        self.driver.collect(self.inner);
    }

    /// Returns 0 for a call that is unknown: it is over, so no thread waits for it.
    fn ticket(&self, call: usize) -> u32 {
        self.inner.calls.get(call).map_or(0, |state| state.parker.ticket())
    }

    fn unpark(&mut self, call: usize) {
        self.inner.unpark(call);
    }

    fn wake_pool_thread(&mut self) {
        self.inner.notifications.driver = true;
    }

    fn keep_leader_asleep(&mut self) {
        self.inner.notifications.leader = false;
    }

    /// True in a forked copy of the process, where no results arrive, and for a call that is unknown.
    fn is_satisfied(&self, call: usize, want: WaitFor) -> bool {
        !self.driver.is_ours()
            || self.inner.calls.get(call).is_none_or(|state| match want {
                WaitFor::Next => !state.ends.is_empty() || state.is_over(),
                WaitFor::Room => self.inner.has_room() || state.is_over(),
                WaitFor::All => state.is_over(),
            })
    }

    /// A thread spins once per wait, for a single result only, before it sleeps. It sleeps until few tasks are left if it
    /// waits for no single result, and no other thread or callback waits for one.
    fn way_to_sleep(&mut self, wait: &ResultWait) -> u32 {
        let inner = &self.inner;
        let is_any_waiting = inner.scheduler.waiting() > 0 || wait.want == WaitFor::Room;
        let low = if is_any_waiting { inner.out_tasks() / 2 } else { 0 };
        self.driver.board.low_water().store(low, Ordering::Relaxed);
        match wait.want {
            WaitFor::Next if wait.may_spin && *HAS_SPARE_PROCESSOR => SPINNING,
            WaitFor::Room | WaitFor::All if !inner.leadership.is_each_wanted() => ASLEEP_UNTIL_LOW,
            _ => ASLEEP,
        }
    }
}

impl Driver {
    /// Returns the state for the functions of `leader`.
    pub(super) fn locked<'a>(&'a self, inner: &'a mut Inner) -> LockedState<'a> {
        LockedState { driver: self, inner }
    }

    /// See [`Call::wait`].
    ///
    /// The caller does not hold the lock. Results of any call are read meanwhile.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran; the thread has left the leaders and followers.
    pub(super) fn wait(&self, call: &Call, want: WaitFor, deadline: Deadline) -> Result<bool, WaitError> {
        let interval = RecheckInterval::new(RECHECK_AFTER);
        let me = ResultWaiter { call: call.key, serial: NEXT_WAITER.fetch_add(1, Ordering::Relaxed) };
        let mut wait = ResultWait { me, want, deadline, may_spin: true };
        loop {
            let woken = match self.with(|inner| leader::step(&mut self.locked(inner), &mut wait)) {
                WaitStep::Done => return Ok(true),
                WaitStep::TimedOut => return Ok(false),
                WaitStep::Again => {
                    std::thread::yield_now();
                    continue;
                }
                WaitStep::Lead(how) => self.sleep_as_leader(how, deadline.or_sooner(interval.next())),
                WaitStep::Follow(ticket) => {
                    let until = deadline.or_sooner(interval.next());
                    call.parker.park(ticket, until.remaining().unwrap_or(RECHECK_AFTER))
                }
            };
            match woken {
                Wait::TimedOut => interval.lengthen(),
                Wait::Woken | Wait::Again => {}
                Wait::Interrupted => {
                    self.with(|inner| leader::leave(&mut self.locked(inner), me));
                    return Err(WaitError::Interrupted);
                }
            }
        }
    }

    /// Spins or sleeps until a worker rings, without the lock. `how` is the value that the doorbell was set to.
    ///
    /// Before it sleeps it wakes one worker if tasks are queued, since none was woken for them if enough workers
    /// polled.
    ///
    /// Returns [`Wait::Again`] after spinning: the next step decides.
    fn sleep_as_leader(&self, how: u32, deadline: Deadline) -> Wait {
        let doorbell = self.board.doorbell();
        if how == SPINNING {
            // If there is no result, the next step sleeps.
            spin_until(false, || doorbell.has_rung(SPINNING));
            return Wait::Again;
        }
        if self.board.table().waiting() > 0 {
            self.board.waiters().wake_one(); // polling workers may have been stopped
        }
        futex::wait(&doorbell.word, how, deadline.remaining().unwrap_or(RECHECK_AFTER))
    }

    /// Reads the results of all workers.
    ///
    /// Requires the lock. Any thread may read any ring.
    pub(super) fn collect(&self, inner: &mut Inner) {
        for at in 0..inner.workers.len() {
            if inner.workers[at].as_ref().is_some_and(|worker| worker.stream.is_anything_unread()) {
                self.read_worker(inner, at);
            }
        }
    }

    /// Reads the results of a worker.
    ///
    /// The worker may be dead. A malformed record discards it; the records before it count. Returns at once if the
    /// place is empty.
    pub(super) fn read_worker(&self, inner: &mut Inner, at: usize) {
        let mut bytes = std::mem::take(&mut inner.scratch);
        let Some(worker) = &mut inner.workers[at] else { return };
        let mut read = worker.stream.read(&mut bytes);
        let mut rest = &bytes[..];
        while read.is_ok() && !rest.is_empty() {
            self.take_results(inner, at, &mut rest);
            if !rest.is_empty() {
                read = parse(&mut rest).and_then(|record| self.on_record(inner, at, record));
            }
        }
        if read.is_err() {
            inner.discard(at);
        }
        inner.scratch = bytes;
    }

    /// Splits the plain results of the worker's current task off `bytes`, and adds them to the call.
    ///
    /// A fast path: consecutive plain results are copied to the call as they are, without parsing each. The task ends
    /// if they are its last ones.
    fn take_results(&self, inner: &mut Inner, at: usize, bytes: &mut &[u8]) {
        let Some(id) = inner.workers[at].as_ref().and_then(|worker| worker.reading) else { return };
        let Some(task) = inner.tasks.get_mut(id.0) else { return };
        let (results, count) = take_results(bytes, task.count - task.done);
        if count == 0 {
            return;
        }
        let (call, index) = (task.call, task.first + u64::from(task.done));
        task.done += count;
        let is_over = task.done == task.count;
        if let Some(state) = inner.calls.get_mut(call) {
            state.ends.push_returned(index, count, results);
        }
        inner.ended(call, count.into());
        if is_over {
            self.finish(inner, at, id);
        }
    }

    /// Removes a task whose items have all been answered.
    ///
    /// Frees its slot and its block, and informs the scheduler, which may publish another task at once. Its worker is
    /// free for a further *begin* record.
    ///
    /// The caller has counted all its items as ended. `at` is the place of the worker that ran it.
    pub(super) fn finish(&self, inner: &mut Inner, at: usize, id: TaskId) {
        if let Some(TaskPlace::Out { slot, block, len, .. }) = inner.remove_task(id).map(|task| task.at) {
            inner.free(&self.orders, slot, block, len);
        }
        if let Some(worker) = &mut inner.workers[at] {
            worker.reading = None;
        }
        self.handle(inner, SchedulerEvent::Ended(id));
    }

    /// Handles one record of the worker at place `at`.
    ///
    /// A *begin* record is accepted if the task is out at that position, this worker has claimed it, has ended its last
    /// task, and no other worker answers it. So two workers never answer the same task, even if one has overwritten the
    /// table.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the record does not fit the parent's state. The caller discards the worker.
    ///
    /// For any other record, the worker must have begun a task; the record ends that task's item `done`. A panic that
    /// may be retried ends no item here, but adds a task ([`Driver::try_again`]).
    fn on_record(&self, inner: &mut Inner, at: usize, record: ResultRecord<'_>) -> Result<(), MemoryError> {
        let worker = inner.workers[at].as_mut().ok_or(MemoryError::Corrupt)?;
        if let ResultBody::Number(number) = record.body {
            let (slot, position) = begun(number);
            let id = inner.slots.get(slot).copied().flatten().ok_or(MemoryError::Corrupt)?;
            let task = inner.tasks.get(id.0).ok_or(MemoryError::Corrupt)?;
            let is_there = matches!(task.at, TaskPlace::Out { position: at, .. } if at == position);
            let holder = u32::try_from(slot).ok().and_then(|slot| self.board.table().holder(slot, position));
            // A worker may answer only for a task that it has claimed, and no two workers for the same task.
            let is_its_own = is_there && holder == Some(worker.number) && worker.reading.is_none();
            if !is_its_own || inner.workers.iter().flatten().any(|other| other.reading == Some(id)) {
                return Err(MemoryError::Corrupt);
            }
            if let Some(worker) = &mut inner.workers[at] {
                worker.reading = Some(id);
            }
            if let Some(task) = inner.tasks.get_mut(id.0) {
                task.unbegun_since = None;
            }
            return Ok(());
        }
        let id = worker.reading.ok_or(MemoryError::Corrupt)?;
        let task = inner.tasks.get_mut(id.0).ok_or(MemoryError::Corrupt)?;
        let (call, index) = (task.call, task.first + u64::from(task.done));
        match self.end_of(inner, at, record)? {
            End::Failed(end) if matches!(*end, TaskEnd::Panicked(_)) && self.try_again(inner, id) => {}
            end => inner.end_item(call, index, end),
        }
        let task = inner.tasks.get_mut(id.0).ok_or(MemoryError::Corrupt)?;
        task.done += 1;
        if task.done >= task.count {
            self.finish(inner, at, id);
        }
        Ok(())
    }

    /// Returns how an item ended: the contents of a record, with the bytes and descriptors that belong to it.
    ///
    /// Log records and descriptors of the item are in the channel by now, since the worker sends them first; they are
    /// read here. A block is copied, and returned to the worker at once. Descriptors that did not arrive make a result
    /// [`TaskEnd::Refused`].
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if a block is outside the worker's file, or the bytes of a failure are malformed; the
    /// errors of copying the block.
    ///
    /// `record` is not a *begin* record.
    fn end_of(&self, inner: &mut Inner, at: usize, record: ResultRecord<'_>) -> Result<End, MemoryError> {
        let has_fds = inner.workers[at].as_ref().is_some_and(|worker| !worker.fds.is_empty());
        if record.flags & LOGGED != 0 || record.flags & WITH_FDS != 0 && !has_fds {
            self.hear_channel(inner, at, CHANNEL_MESSAGES);
        }
        let worker = inner.workers[at].as_mut().ok_or(MemoryError::Corrupt)?;
        let fds = match record.flags & WITH_FDS {
            0 => Ok(Vec::new()),
            _ => worker.fds.pop_front().unwrap_or_else(|| Err("the result's descriptors were lost".to_owned())),
        };
        let head = match record.body {
            ResultBody::Block { offset, len } => {
                let mut head = Vec::new();
                worker.stream.segment().copy_out(offset, len, &mut head)?;
                worker.give_back(offset);
                if budget::is_room_awaited() {
                    self.board.waiters().wake_all(); // this worker may be idle, and only it can free the block
                }
                head
            }
            ResultBody::Bytes(bytes) => bytes.to_vec(),
            ResultBody::Number(_) => return Err(MemoryError::Corrupt),
        };
        Ok(match (record.kind, fds) {
            (ResultKind::Returned, Ok(fds)) => {
                let received = (!fds.is_empty()).then(|| worker.stream.received(fds.len()));
                End::Payload(Box::new((Payload { bytes: head, fds }, received)))
            }
            (ResultKind::Returned, Err(why)) => End::Failed(Box::new(TaskEnd::Refused(why))),
            (kind, _) => End::Failed(Box::new(TaskEnd::of_record(kind, head).map_err(|_| MemoryError::Corrupt)?)),
        })
    }

    /// Retries the current item of a task, which panicked, as a task of its own. Returns false if it may not be retried.
    ///
    /// For [`retries_panics`](crate::pool::CallSettings::retries_panics). The item is copied from the task's argument, which
    /// the worker cannot have changed, and goes out after the back-off. The old task continues with its next item: the
    /// caller counts this one as done without a result. An item with descriptors is not retried.
    fn try_again(&self, inner: &mut Inner, id: TaskId) -> bool {
        let serial = inner.serial();
        let Some(task) = inner.tasks.get(id.0) else { return false };
        let Some(call) = inner.calls.get(task.call) else { return false };
        let (priority, retries) = (call.settings.priority, call.settings.retries);
        let may = call.settings.retries_panics && task.panics < retries && call.stop.is_none();
        let TaskPlace::Out { slot, from, .. } = task.at else { return false };
        if !may || !task.fds.is_empty() {
            return false;
        }
        let mut bytes = Vec::new();
        let Ok(order) = self.orders.read(slot) else { return false };
        if self.orders.read_argument(slot, &order, &mut bytes).is_err() {
            return false;
        }
        let mut rest = &bytes[..];
        for _ in from..task.done {
            let _ = next_item(&mut rest);
        }
        let start = bytes.len() - rest.len();
        if next_item(&mut rest).is_err() {
            return false;
        }
        let item = bytes[start..bytes.len() - rest.len()].to_vec();
        let (attempt, backoff) = (task.panics + 1, call.settings.backoff);
        let single = Task::single(task.call, serial, task.first + u64::from(task.done), item);
        let task = Task { panics: attempt, ..single };
        let id = inner.add_task(task);
        self.handle(inner, SchedulerEvent::Resubmitted(id, priority, retries));
        inner.set_timer(after_backoff(backoff, attempt), Timer::Due { task: id, serial });
        true
    }
}

impl Inner {
    /// Kills a worker that wrote invalid data, and reads no more of its results.
    ///
    /// Its death, which the pool's thread detects, decides about its task. Also called by the audit.
    ///
    /// A discarded worker stays in its place until it is reaped.
    pub(super) fn discard(&mut self, at: usize) {
        if let Some(worker) = &mut self.workers[at] {
            worker.stream.break_off();
            worker.kill();
        }
    }

    /// Returns whether any worker has written records that were not read.
    pub(super) fn is_anything_unread(&self) -> bool {
        self.workers.iter().flatten().any(|worker| worker.stream.is_anything_unread())
    }
}

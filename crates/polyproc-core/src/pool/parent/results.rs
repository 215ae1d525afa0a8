//! Reading results, and waiting for them. `leader` decides which thread reads.
//!
//! # From a ring to a call
//!
//! [`Driver::read_worker`] copies a ring's records to private memory and parses the copy. A *begin* record is checked
//! against the table and selects the task (`reading`); each further record ends its next item. After its last item the
//! task is removed. Results go to the [`Ends`](super::ends::Ends) of their call, also if no thread waits for it.
//!
//! A worker that writes an invalid record is discarded: no more of its ring is read, and it is killed. Its death is
//! handled as any other, so its task is retried or fails; other workers are not affected.
//!
//! This file does not detect deaths, except that a dead worker's ring is read like that of a living one.

use std::time::Duration;

use super::calls::CallState;
use super::driver::Driver;
use super::ends::End;
use super::key::CallKey;
use super::latch::Parker;
use super::leader::{self, Leadership, ResultState, ResultWait, ResultWaiter, WaitFor, WaitStep};
use super::messages::CHANNEL_MESSAGES;
use super::scheduler::{SchedulerEvent, TaskId};
use super::state::PoolState;
use super::tasks::Task;
use super::timers::{Timer, after_backoff};
use crate::deadline::Deadline;
use crate::pool::TaskEnd;
use crate::pool::shared::doorbell::{ASLEEP, ASLEEP_UNTIL_LOW, Doorbell, SPINNING};
use crate::pool::shared::result_ring::{
    LOGGED, ResultBody, ResultKind, ResultRecord, WITH_FDS, begun, parse, take_results,
};
use crate::pool::shared::task::next_item;
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
    pool: &'a mut PoolState,
}

impl ResultState for LockedState<'_> {
    fn leadership(&mut self) -> &mut Leadership {
        &mut self.pool.leadership
    }

    fn doorbell(&self) -> &Doorbell {
        self.driver.board.doorbell()
    }

    fn is_anything_unread(&self) -> bool {
        self.pool.is_anything_unread()
    }

    fn collect(&mut self) {
        self.driver.collect(self.pool);
    }

    /// Returns 0 for a call that is unknown: it is over, so no thread waits for it.
    fn ticket(&self, call: CallKey) -> u32 {
        self.pool.calls.get(call).map_or(0, |state| state.parker().ticket())
    }

    fn unpark(&mut self, call: CallKey) {
        self.pool.unpark(call);
    }

    fn wake_pool_thread(&mut self) {
        self.pool.notifications.pool_thread = true;
    }

    fn keep_leader_asleep(&mut self) {
        self.pool.notifications.leader = false;
    }

    /// True for a call that is unknown.
    fn is_satisfied(&self, call: CallKey, want: WaitFor) -> bool {
        self.pool.calls.get(call).is_none_or(|state| match want {
            WaitFor::Next => state.has_ends() || state.is_over(),
            WaitFor::Room => self.pool.has_room() || state.is_over(),
            WaitFor::All => state.is_over(),
        })
    }

    /// A thread spins once per wait, for a single result or the last one, before it sleeps. It sleeps until few tasks are left if it
    /// waits for no single result, and no other thread or callback waits for one.
    fn way_to_sleep(&mut self, wait: &ResultWait) -> u32 {
        let pool = &self.pool;
        let is_any_waiting = pool.scheduler.waiting() > 0 || wait.want == WaitFor::Room;
        let low = if is_any_waiting { pool.tasks.out_count() / 2 } else { 0 };
        self.driver.board.low_water().store(low, Ordering::Relaxed);
        let is_for_one = match wait.want {
            WaitFor::Next => true,
            WaitFor::All => pool.calls.get(wait.me.call).is_some_and(CallState::is_last_item_left),
            WaitFor::Room => false,
        };
        if is_for_one && wait.may_spin && *HAS_SPARE_PROCESSOR {
            SPINNING
        } else if wait.want == WaitFor::Next || pool.leadership.is_each_wanted() {
            ASLEEP
        } else {
            ASLEEP_UNTIL_LOW
        }
    }
}

impl Driver {
    /// Returns the state for the functions of `leader`.
    pub(super) fn locked<'a>(&'a self, pool: &'a mut PoolState) -> LockedState<'a> {
        LockedState { driver: self, pool }
    }

    /// Blocks until the wanted condition of a call holds, and then calls `then` under the same lock. Returns `None` if the
    /// deadline passed first.
    ///
    /// The caller does not hold the lock. Results of any call are read meanwhile. `parker` is that of the call.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran; the thread has left the leaders and followers.
    pub(super) fn wait<T>(
        &self,
        call: CallKey,
        parker: &Parker,
        (want, deadline): (WaitFor, Deadline),
        mut then: impl FnMut(&mut PoolState) -> T,
    ) -> Result<Option<T>, WaitError> {
        if !self.is_ours() {
            return Ok(Some(self.with(then))); // in a forked copy of the process no results arrive
        }
        let interval = RecheckInterval::new(RECHECK_AFTER);
        let me = ResultWaiter { call, serial: NEXT_WAITER.fetch_add(1, Ordering::Relaxed) };
        let mut wait = ResultWait { me, want, deadline, may_spin: true };
        loop {
            let (step, done) = self.with(|pool| {
                let step = leader::step(&mut self.locked(pool), &mut wait);
                (step, (step == WaitStep::Done).then(|| then(pool)))
            });
            let woken = match step {
                WaitStep::Done | WaitStep::TimedOut => return Ok(done),
                WaitStep::Again => {
                    std::thread::yield_now();
                    continue;
                }
                WaitStep::Lead(how) => self.sleep_as_leader(how, deadline.or_sooner(interval.next())),
                WaitStep::Follow(ticket) => {
                    let until = deadline.or_sooner(interval.next());
                    parker.park(ticket, until.remaining().unwrap_or(RECHECK_AFTER))
                }
            };
            match woken {
                Wait::TimedOut => interval.lengthen(),
                Wait::Woken | Wait::Again => {}
                Wait::Interrupted => {
                    self.with(|pool| leader::leave(&mut self.locked(pool), me));
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
    pub(super) fn collect(&self, pool: &mut PoolState) {
        for at in 0..pool.workers.places() {
            if pool.workers.get(at).is_some_and(|worker| worker.stream.is_anything_unread()) {
                self.read_worker(pool, at);
            }
        }
    }

    /// Reads the results of a worker.
    ///
    /// The worker may be dead. A malformed record discards it; the records before it count. Returns at once if the
    /// place is empty.
    pub(super) fn read_worker(&self, pool: &mut PoolState, at: usize) {
        let mut bytes = std::mem::take(&mut pool.scratch);
        if let Some(worker) = pool.workers.get_mut(at) {
            let mut read = worker.stream.read(&mut bytes);
            let mut rest = &bytes[..];
            while read.is_ok() && !rest.is_empty() {
                self.take_results(pool, at, &mut rest);
                if !rest.is_empty() {
                    read = parse(&mut rest).and_then(|record| self.on_record(pool, at, record));
                }
            }
            if read.is_err() {
                pool.discard(at);
            }
        }
        pool.scratch = bytes;
    }

    /// Splits the plain results of the worker's current task off `bytes`, and adds them to the call.
    ///
    /// A fast path: consecutive plain results are copied to the call as they are, without parsing each. The task ends
    /// if they are its last ones.
    fn take_results(&self, pool: &mut PoolState, at: usize, bytes: &mut &[u8]) {
        let Some(id) = pool.workers.get(at).and_then(|worker| worker.reading) else { return };
        let Some(task) = pool.tasks.get_mut(id) else { return };
        let (results, count) = take_results(bytes, task.left());
        if count == 0 {
            return;
        }
        let (call, index) = (task.call(), task.next_index());
        let is_over = task.advance(count);
        if let Some(state) = pool.calls.get_mut(call) {
            state.push_returned(index, count, results);
        }
        pool.ended(call, count.into());
        if is_over {
            self.finish(pool, at, id);
        }
    }

    /// Removes a task whose items have all been answered, and informs the scheduler, which may publish another task at once.
    /// Its worker is free for a further *begin* record.
    ///
    /// The caller has counted all its items as ended. `at` is the place of the worker that ran it.
    pub(super) fn finish(&self, pool: &mut PoolState, at: usize, id: TaskId) {
        self.remove_answered(pool, id);
        if let Some(worker) = pool.workers.get_mut(at) {
            worker.reading = None;
        }
        self.handle(pool, SchedulerEvent::Ended(id));
    }

    /// Handles one record of the worker at place `at`.
    ///
    /// For any record but *begin*, the worker must have begun a task; the record ends that task's next item. A panic that
    /// may be retried ends no item here, but adds a task ([`Driver::try_again`]).
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the record does not fit the parent's state. The caller discards the worker.
    fn on_record(&self, pool: &mut PoolState, at: usize, record: ResultRecord<'_>) -> Result<(), MemoryError> {
        if let ResultBody::Number(number) = record.body {
            return self.on_begin(pool, at, number);
        }
        let worker = pool.workers.get(at).ok_or(MemoryError::Corrupt)?;
        let id = worker.reading.ok_or(MemoryError::Corrupt)?;
        let task = pool.tasks.get(id).ok_or(MemoryError::Corrupt)?;
        let (call, index) = (task.call(), task.next_index());
        match self.end_of(pool, at, record)? {
            End::Failed(end) if matches!(*end, TaskEnd::Panicked(_)) && self.try_again(pool, id) => {}
            end => pool.end_item(call, index, end),
        }
        if pool.tasks.get_mut(id).ok_or(MemoryError::Corrupt)?.advance(1) {
            self.finish(pool, at, id);
        }
        Ok(())
    }

    /// Handles a *begin* record.
    ///
    /// It is accepted if the task is out at that position, this worker has claimed it, has ended its last task, and no other
    /// worker answers it. So two workers never answer the same task, even if one has overwritten the table.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if it is not accepted.
    fn on_begin(&self, pool: &mut PoolState, at: usize, number: u64) -> Result<(), MemoryError> {
        let (slot, position) = begun(number);
        let (id, _) = pool.tasks.at(slot, position).ok_or(MemoryError::Corrupt)?;
        let holder = u32::try_from(slot).ok().and_then(|slot| self.board.table().holder(slot, position));
        let worker = pool.workers.get_mut(at).ok_or(MemoryError::Corrupt)?;
        let task = pool.tasks.get_mut(id).ok_or(MemoryError::Corrupt)?;
        if holder != Some(worker.number) || worker.reading.is_some() || task.reader.is_some() {
            return Err(MemoryError::Corrupt);
        }
        worker.reading = Some(id);
        task.reader = Some(at);
        task.unbegun_since = None;
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
    fn end_of(&self, pool: &mut PoolState, at: usize, record: ResultRecord<'_>) -> Result<End, MemoryError> {
        let has_fds = pool.workers.get(at).is_some_and(|worker| !worker.fds.is_empty());
        if record.flags & LOGGED != 0 || record.flags & WITH_FDS != 0 && !has_fds {
            self.hear_channel(pool, at, CHANNEL_MESSAGES);
        }
        let worker = pool.workers.get_mut(at).ok_or(MemoryError::Corrupt)?;
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
    fn try_again(&self, pool: &mut PoolState, id: TaskId) -> bool {
        let Some(task) = pool.tasks.get(id) else { return false };
        let Some(call) = pool.calls.get(task.call()) else { return false };
        let (settings, attempt) = (call.settings(), task.panics + 1);
        let may = settings.retries_panics && attempt <= settings.retries && call.stop().is_none();
        let Some(place) = task.out().filter(|_| may && task.fds.is_empty()) else { return false };
        let Ok(mut item) = self.read_back(task, place) else { return false };
        let mut rest = &item[..];
        if next_item(&mut rest).is_err() {
            return false;
        }
        item.truncate(item.len() - rest.len());
        let (priority, retries, due) = (settings.priority, settings.retries, after_backoff(settings.backoff, attempt));
        let mut again = Task::new(task.call(), task.next_index(), 1, item);
        again.panics = attempt;
        let id = pool.tasks.add(again);
        self.handle(pool, SchedulerEvent::Resubmitted(id, priority, retries));
        if let Some(task) = pool.tasks.get(id) {
            let serial = task.serial();
            pool.set_timer(due, Timer::Due { task: id, serial });
        }
        true
    }
}

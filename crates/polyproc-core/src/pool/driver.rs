//! The parent's side of a pool. One lock guards its state ([`Inner`]). A thread with an event acquires the lock, lets the
//! scheduler decide, and carries the actions out. Calls into user code are collected ([`Notifications`]) and made after the lock is
//! released.
//!
//! | file | part |
//! |---|---|
//! | `driver` | the state; calls |
//! | `effects` | the scheduler's actions |
//! | `results` | results, and the threads that wait for them |
//! | `thread` | the pool's thread: deaths, timers, starts |

use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::call::{self, CallSettings, End, FunctionId, Parker, Stop};
use super::callbacks::Callbacks;
use super::doorbell;
use super::handle::{OnLog, PoolError, PoolSettings};
use super::latch::Latch;
use super::orders::Orders;
use super::result_ring::IDLE;
use super::results::ResultWaiter;
use super::scheduler::{Action, Place, Scheduler, SchedulerEvent, TaskId};
use super::task::{Items, NoWorkersReason, PoolEvent, TaskEnd, encode_function};
use super::task_table::{SLOTS, TaskTable};
use super::timers::{Limited, Limits, Timer, Timers, soon};
use super::worker_handle::{self, Cause, Numbers, WorkerHandle};
use crate::deadline::Deadline;
use crate::prim::{AtomicBool, Ordering, fence};
use crate::process::{Function, call_user, lock};
use crate::robust::{RecheckInterval, WaitError};
use crate::shm::{Blocks, Extent};
use crate::sys::futex::Wait;
use crate::sys::process_stamp::process_id;
use crate::sys::watch::{EventFd, Poller};

/// Soft limit on bytes of arguments that are out; ignored while fewer than four tasks per worker are out.
const AHEAD_BYTES: u64 = 1 << 20;
/// Maximum number of workers that are woken for one event.
const WOKEN_AT_ONCE: u32 = 256;

/// From its claim of a task to the beginning a worker takes some hundred nanoseconds, or as long as it is preempted. A worker
/// that takes longer than this is stopped (`SIGSTOP`, a debugger, a freezer).
const UNBEGUN_LIMIT: Duration = Duration::from_millis(200);

/// Where a task's argument is.
pub(super) enum TaskPlace {
    /// In the parent's private memory.
    Waiting(Vec<u8>),
    /// On the board. The argument begins with item `from` of the task.
    Out { slot: u32, position: u64, block: Option<Extent>, len: u64, from: u32 },
}

/// A key that no task has.
const NO_TASK: usize = usize::MAX;

/// Some items of a call that go to a worker together.
pub(super) struct Task {
    pub(super) call: usize,
    /// The tasks of the same call that were added just before and after it, or [`NO_TASK`].
    pub(super) neighbours: [usize; 2],
    /// Distinguishes it from a later task with the same key.
    pub(super) serial: u64,
    /// The index of the first item in the call.
    pub(super) first: u64,
    /// Number of items.
    pub(super) count: u32,
    /// Number of items that have ended.
    pub(super) done: u32,
    pub(super) at: TaskPlace,
    /// Descriptors of the first item.
    pub(super) fds: Vec<OwnedFd>,
    /// The number of items that had ended when its worker was lost, and how the next item ends if it is not retried. Boxed,
    /// since few tasks have it and a call may have millions of tasks.
    pub(super) lost: Option<Box<(u32, TaskEnd)>>,
    /// Number of attempts at its one item that ended in a panic.
    pub(super) panics: u32,
    /// Items that have not begun may go to another worker.
    pub(super) is_splittable: bool,
    /// The time of its entry in [`Limits`].
    pub(super) limit_at: Option<Instant>,
    /// Number of workers in a row that died after they claimed it and before they began it.
    pub(super) unbegun_deaths: u32,
    /// When the worker that claimed it was first seen not to have begun it.
    pub(super) unbegun_since: Option<Instant>,
}

impl Task {
    /// Notes that a worker has claimed the task and not begun it. Returns whether this has lasted for [`UNBEGUN_LIMIT`].
    pub(super) fn is_stuck_before_beginning(&mut self) -> bool {
        self.unbegun_since.get_or_insert_with(Instant::now).elapsed() >= UNBEGUN_LIMIT
    }

    /// Returns the length of its argument in bytes while that is in private memory, else 0.
    pub(super) fn waiting_bytes(&self) -> u64 {
        if let TaskPlace::Waiting(bytes) = &self.at { bytes.len() as u64 } else { 0 }
    }

    /// Creates a task of one item.
    pub(super) fn single(call: usize, serial: u64, index: u64, bytes: Vec<u8>) -> Self {
        Self {
            call,
            neighbours: [NO_TASK; 2],
            serial,
            first: index,
            count: 1,
            done: 0,
            at: TaskPlace::Waiting(bytes),
            fds: Vec::new(),
            lost: None,
            panics: 0,
            is_splittable: false,
            limit_at: None,
            unbegun_deaths: 0,
            unbegun_since: None,
        }
    }
}

/// A log record of a worker.
pub(super) struct Logged {
    pub(super) pid: u32,
    pub(super) record: Vec<u8>,
    /// The callback of the call whose task logged it.
    pub(super) on_log: Option<OnLog>,
}

/// Notifications to send once the lock is released.
#[derive(Default)]
pub(super) struct Notifications {
    parkers: Vec<Arc<Parker>>,
    wakers: Vec<Waker>,
    on_complete: Vec<Box<dyn FnOnce() + Send>>,
    /// Events for `on_event`.
    pub(super) events: Vec<PoolEvent>,
    /// There are log records to deliver.
    pub(super) logs: bool,
    /// Number of tasks that were put on the table.
    pub(super) published: u32,
    /// Wake the leader.
    pub(super) leader: bool,
    /// Wake the pool's thread.
    pub(super) driver: bool,
}

impl Notifications {
    /// Wakes the followers of a call.
    pub(super) fn unpark(&mut self, call: &mut call::CallState) {
        call.followers.clear(); // a thread that sleeps again adds itself again
        self.parkers.push(Arc::clone(&call.parker));
    }

    fn is_empty(&self) -> bool {
        self.parkers.is_empty()
            && self.wakers.is_empty()
            && self.on_complete.is_empty()
            && !self.logs
            && self.events.is_empty()
            && !self.leader
            && !self.driver
    }
}

/// The parent's state of a pool.
pub(super) struct Inner {
    pub(super) scheduler: Scheduler,
    pub(super) tasks: Slab<Task>,
    pub(super) calls: Slab<call::CallState>,
    /// The task in each slot of the board.
    pub(super) slots: Vec<Option<TaskId>>,
    pub(super) free_slots: Vec<u32>,
    /// The position of the next task on the table. Authoritative, since workers may overwrite the shared copy.
    pub(super) tail: u64,
    /// [`Timer::Audit`] is set.
    pub(super) is_auditing: bool,
    /// The value of `waiting_bytes` when the lock was last released.
    seen_waiting: u64,
    /// Bytes of the arguments of all tasks that are not out.
    pub(super) waiting_bytes: u64,
    /// Bytes of the arguments of tasks that are out.
    pub(super) out_bytes: u64,
    pub(super) blocks: Blocks,
    /// Functions without a context, by [`Function::key`].
    functions: HashMap<(usize, usize), FunctionId>,
    /// The encoded names and contexts of functions, for workers that ask.
    pub(super) names: HashMap<FunctionId, Vec<u8>>,
    /// Empty vectors for reuse.
    pub(super) spare: Vec<Vec<u8>>,
    next_serial: u64,
    pub(super) workers: Vec<Option<WorkerHandle>>,
    pub(super) numbers: Numbers,
    /// Places in which workers must be started.
    pub(super) to_start: VecDeque<Place>,
    /// Actions for workers that are being started, carried out when they have started.
    pub(super) on_arrival: HashMap<Place, Action>,
    pub(super) timers: Timers,
    pub(super) limits: Limits,
    /// The thread that reads the results.
    pub(super) leader: Option<ResultWaiter>,
    /// Number of calls whose results must be read as they arrive, even if no thread waits for them.
    pub(super) eager: usize,
    pub(super) notifications: Notifications,
    /// The reason that tasks report if the pool has no workers.
    pub(super) why: Option<NoWorkersReason>,
    pub(super) scratch: Vec<u8>,
    pub(super) actions: Vec<Action>,
    pub(super) lost: u64,
    /// [`Timer::Steal`] is set.
    pub(super) is_stealing: bool,
    /// [`Timer::Memory`] is set.
    pub(super) is_watching_memory: bool,
    /// [`Timer::Room`] is set.
    pub(super) waits_for_room: bool,
    /// [`Timer::LookAfter`] is set.
    pub(super) is_looking_after: bool,
    /// Number of workers in a row that ended in their initializers by the program's fault.
    pub(super) unfit: usize,
    /// The pool was terminated, and the grace period of its workers is over.
    pub(super) is_past_grace: bool,
}

/// The shared state of a pool's handle, its calls and its thread.
pub(super) struct Driver {
    inner: Mutex<Inner>,
    pub(super) board: TaskTable,
    pub(super) orders: Orders,
    pub(super) watch: Poller,
    /// Rung by workers, and by threads that have work for the pool's thread.
    pub(super) bell: EventFd,
    pub(super) settings: PoolSettings,
    pub(super) callbacks: Callbacks,
    /// Threads in [`Driver::wait_to_submit`] sleep here.
    pub(super) submitters: Parker,
    /// Log records that were not delivered yet, in order of arrival.
    pub(super) logs: Mutex<VecDeque<Logged>>,
    /// True once a worker has logged a record.
    pub(super) has_logs: AtomicBool,
    /// Held by the thread that delivers log records.
    log_turn: Mutex<()>,
    /// The pool was terminated: no more workers are started.
    pub(super) is_terminated: AtomicBool,
    /// Set when the pool's thread has ended.
    pub(super) end: Latch,
    /// The process that created the pool. A forked copy of that process has no pool thread.
    pid: u32,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Driver {
    pub(super) fn new(workers: usize, settings: PoolSettings) -> Result<Arc<Self>, PoolError> {
        let (board, orders) = TaskTable::new().and_then(|board| Ok((board, Orders::new()?))).map_err(PoolError::Os)?;
        let (watch, bell) = Poller::new().and_then(|watch| Ok((watch, EventFd::new()?))).map_err(PoolError::Os)?;
        watch.add(&bell, super::thread::BELL).map_err(PoolError::Os)?;
        board.doorbell().set(doorbell::AWAY);
        let inner = Inner {
            scheduler: Scheduler::new(workers, SLOTS as usize),
            tasks: Slab::new(),
            calls: Slab::new(),
            slots: vec![None; SLOTS as usize],
            free_slots: (0..SLOTS).rev().collect(),
            tail: 0,
            is_auditing: false,
            seen_waiting: 0,
            waiting_bytes: 0,
            out_bytes: 0,
            blocks: Orders::blocks(),
            functions: HashMap::new(),
            names: HashMap::new(),
            spare: Vec::new(),
            next_serial: 0,
            workers: (0..workers).map(|_| None).collect(),
            numbers: Numbers::default(),
            to_start: (0..workers).map(Place).collect(),
            on_arrival: HashMap::new(),
            timers: BinaryHeap::new(),
            limits: Limits::default(),
            leader: None,
            eager: 0,
            notifications: Notifications::default(),
            why: None,
            scratch: Vec::new(),
            actions: Vec::new(),
            lost: 0,
            is_stealing: false,
            is_watching_memory: false,
            waits_for_room: false,
            is_looking_after: false,
            unfit: 0,
            is_past_grace: false,
        };
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
            board,
            orders,
            watch,
            bell,
            settings,
            callbacks: Callbacks::default(),
            submitters: Parker::default(),
            logs: Mutex::default(),
            has_logs: AtomicBool::new(false),
            log_turn: Mutex::default(),
            is_terminated: AtomicBool::new(false),
            end: Latch::default(),
            pid: process_id(),
        }))
    }

    /// Returns whether this process created the pool, and so has its thread.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == process_id()
    }

    /// Calls `f` with the state under the lock, then sends the notifications.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = f(&mut inner);
        let published = std::mem::take(&mut inner.notifications.published);
        let to_wake = if published > 0 { self.to_wake(&mut inner, published) } else { 0 };
        let notifications = (!inner.notifications.is_empty()).then(|| std::mem::take(&mut inner.notifications));
        // Under the lock, so that one thread sees the value fall below the limit.
        let now = inner.waiting_bytes;
        let before = std::mem::replace(&mut inner.seen_waiting, now);
        let may_submit = self.settings.max_waiting_bytes.is_some_and(|most| before > most && now <= most);
        drop(inner);
        if may_submit {
            self.submitters.unpark();
        }
        for _ in 0..to_wake {
            self.board.waiters().wake_one();
        }
        if let Some(notifications) = notifications {
            self.notify(notifications);
        }
        result
    }

    /// Returns how many workers to wake after `published` tasks were put on the table. Workers that poll the table find tasks
    /// by themselves.
    fn to_wake(&self, inner: &mut Inner, published: u32) -> u32 {
        // Pairs with the fence in `EventCount::wait`: a worker that stops polling leaves `lookers` first, then checks
        // the table a last time.
        fence(Ordering::SeqCst);
        let looking = self.board.lookers().count();
        if looking == 0 || self.board.table().waiting() > looking {
            return published.min(WOKEN_AT_ONCE);
        }
        // A stopped worker finds nothing, so a timer checks. If a thread waits for the results, it checks before it sleeps.
        if inner.eager > 0 && !inner.is_looking_after {
            inner.is_looking_after = true;
            inner.set_timer(soon(), Timer::LookAfter);
        }
        0
    }

    /// Delivers log records to their callbacks. On return, this or another thread has delivered all earlier records.
    pub(super) fn deliver_logs(&self) {
        thread_local! {
            static DELIVERS: Cell<bool> = const { Cell::new(false) };
        }
        // Acquire pairs with the Release in `on_log_message`: the record is in `logs`.
        if !self.has_logs.load(Ordering::Acquire) || DELIVERS.replace(true) {
            return; // called by a callback
        }
        let turn = lock(&self.log_turn);
        while let Some(Logged { pid, record, on_log }) = { lock(&self.logs).pop_front() } {
            if let Some(on_log) = on_log.as_ref().or(self.settings.on_log.as_ref()) {
                call_user(|| on_log(pid, &record));
            }
        }
        drop(turn);
        DELIVERS.set(false);
    }

    fn notify(&self, notifications: Notifications) {
        if notifications.logs {
            self.deliver_logs();
        }
        if let Some(on_event) = &self.settings.on_event {
            notifications.events.iter().for_each(|event| call_user(|| on_event(event)));
        }
        notifications.parkers.iter().for_each(|parker| parker.unpark());
        notifications.wakers.into_iter().for_each(|waker| call_user(|| waker.wake()));
        notifications.on_complete.into_iter().for_each(|then| self.callbacks.run(then));
        if notifications.leader {
            self.board.doorbell().ring(|| true, || self.bell.ring());
        }
        if notifications.driver {
            self.bell.ring();
        }
    }

    /// Opens a call. Returns its key and its parker.
    pub(super) fn open(&self, function: FunctionId, has_context: bool, settings: CallSettings) -> (usize, Arc<Parker>) {
        self.with(|inner| {
            let parker = Arc::<Parker>::default();
            let serial = inner.serial();
            let limit = settings.call_limit;
            let is_eager = !settings.is_bulk && !settings.is_awaited;
            inner.eager += usize::from(is_eager);
            let key = inner.calls.insert(call::CallState {
                serial,
                settings,
                function,
                has_context,
                ends: call::Ends::default(),
                left: 0,
                is_sealed: false,
                is_abandoned: false,
                is_eager,
                stop: None,
                last_task: None,
                limit_at: None,
                followers: Vec::new(),
                parker: Arc::clone(&parker),
                waker: None,
                on_complete: Vec::new(),
            });
            if let Some(limit) = limit {
                inner.limit_after(limit, Limited::Call(key));
            }
            if is_eager {
                self.hand_over(inner);
                // A leader that sleeps until few tasks are left must now wake for the results of this call.
                if inner.leader.is_some() && self.board.doorbell().hurry() && inner.is_anything_unread() {
                    inner.notifications.leader = true;
                }
            }
            (key, parker)
        })
    }

    pub(super) fn submit(&self, call: usize, first: u64, items: &mut Items, fds: Vec<OwnedFd>, is_splittable: bool) {
        let count = items.count();
        if count == 0 {
            return;
        }
        self.with(|inner| {
            let serial = inner.serial();
            let bytes = items.take(inner.spare.pop().unwrap_or_default());
            let Some(state) = inner.calls.get_mut(call) else { return };
            state.left += u64::from(count);
            let stop = state.stop;
            let (priority, retries) = (state.settings.priority, state.settings.retries);
            let single = Task::single(call, serial, first, bytes);
            let is_splittable = is_splittable && count > 1;
            let id = inner.add_task(Task { count, fds, is_splittable, ..single });
            if let Some(stop) = stop {
                return self.remove(inner, id, &stop_end(stop));
            }
            if !self.is_ours() {
                return self.remove(inner, id, &TaskEnd::Terminated);
            }
            self.handle(inner, SchedulerEvent::Submitted(id, priority, retries));
        });
    }

    /// See [`Pool::wait_to_submit`](super::Pool::wait_to_submit).
    pub(super) fn wait_to_submit(&self, deadline: Deadline) -> Result<bool, WaitError> {
        let Some(most) = self.settings.max_waiting_bytes else { return Ok(true) };
        let interval = RecheckInterval::new(Duration::from_secs(1));
        loop {
            let ticket = self.submitters.ticket();
            let may = self.with(|inner| inner.waiting_bytes <= most || !inner.scheduler.is_open()) || !self.is_ours();
            if may || deadline.has_passed() {
                return Ok(may);
            }
            match self.submitters.park(ticket, deadline.or_sooner(interval.next()).remaining().unwrap_or_default()) {
                Wait::Interrupted => return Err(WaitError::Interrupted),
                Wait::TimedOut => interval.lengthen(),
                Wait::Woken | Wait::Again => {}
            }
        }
    }

    pub(super) fn is_running(&self, call: usize) -> bool {
        self.with(|inner| {
            inner.tasks_of(call).into_iter().filter_map(|id| inner.tasks.get(id.0)).any(|task| match task.at {
                TaskPlace::Out { slot, position, .. } => self.board.table().holder(slot, position).is_some(),
                TaskPlace::Waiting(_) => false,
            })
        })
    }

    pub(super) fn cancel(&self, call: usize) {
        self.with(|inner| self.stop(inner, call, Stop::Cancelled));
    }

    pub(super) fn give_up(&self, call: usize) {
        self.with(|inner| self.stop(inner, call, Stop::GivenUp));
    }

    /// Ends the remaining items of a call. A task that is claimed and not begun cannot be stopped yet: a timer retries.
    pub(super) fn stop(&self, inner: &mut Inner, call: usize, stop: Stop) {
        let Some(state) = inner.calls.get_mut(call) else { return };
        let serial = state.serial;
        let stop = state.stop.map_or(stop, |earlier| earlier.max(stop));
        state.stop = Some(stop);
        let mut is_left = false;
        for id in inner.tasks_of(call) {
            let Some(task) = inner.tasks.get(id.0) else { continue };
            match &task.at {
                TaskPlace::Waiting(_) => {
                    self.remove(inner, id, &stop_end(stop));
                    self.handle(inner, SchedulerEvent::Dropped(id));
                }
                &TaskPlace::Out { slot, position, .. } => {
                    let table = self.board.table();
                    if table.withdraw(slot, position) {
                        self.remove(inner, id, &stop_end(stop));
                        self.handle(inner, SchedulerEvent::Ended(id));
                    } else if stop != Stop::GivenUp {
                        let cause = if stop == Stop::TimedOut { Cause::TimedOut } else { Cause::Cancelled };
                        is_left |= !self.doom_holder(inner, id, cause);
                    }
                }
            }
        }
        if is_left {
            inner.set_timer(soon(), Timer::Stop { call, serial, stop });
        }
    }

    /// Kills the worker that has claimed a task, if it has begun the task or has been stopped before that for a while. Returns
    /// false if the caller must try again.
    fn doom_holder(&self, inner: &mut Inner, id: TaskId, cause: Cause) -> bool {
        self.read_holder(inner, id); // results that it has written count
        let Some(task) = inner.tasks.get_mut(id.0) else { return true };
        let TaskPlace::Out { slot, position, .. } = task.at else { return false };
        let holder = self.board.table().holder(slot, position);
        let worker = holder.and_then(|number| worker_handle::with_number(&mut inner.workers, number));
        let Some(worker) = worker else { return false };
        worker.revoke(cause, Some(position)) || task.is_stuck_before_beginning() && worker.revoke_at(cause, IDLE)
    }

    /// Discards the results of a call. The pool's thread reads the remaining results, as no other thread waits for them.
    pub(super) fn abandon(&self, call: usize) {
        self.with(|inner| {
            let Some(state) = inner.calls.get_mut(call) else { return };
            state.is_abandoned = true;
            state.is_sealed = true;
            inner.eager += usize::from(!std::mem::replace(&mut state.is_eager, true));
            inner.settle(call);
            self.hand_over(inner);
        });
    }

    pub(super) fn then(&self, call: usize, then: Box<dyn FnOnce() + Send>) {
        self.with(|inner| match inner.calls.get_mut(call) {
            Some(state) if !state.is_over() => state.on_complete.push(then),
            _ => inner.notifications.on_complete.push(then),
        });
    }
}

/// Returns how the items of a stopped call end.
pub(super) fn stop_end(stop: Stop) -> TaskEnd {
    match stop {
        Stop::GivenUp | Stop::Cancelled => TaskEnd::Cancelled,
        Stop::TimedOut => TaskEnd::TimedOut,
    }
}

impl Inner {
    pub(super) fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    /// Adds a task, as the last one of its call.
    pub(super) fn add_task(&mut self, mut task: Task) -> TaskId {
        let call = task.call;
        let last = self.calls.get(call).and_then(|state| state.last_task);
        task.neighbours = [last.unwrap_or(NO_TASK), NO_TASK];
        self.waiting_bytes += task.waiting_bytes();
        let id = self.tasks.insert(task);
        if let Some(before) = last.and_then(|last| self.tasks.get_mut(last)) {
            before.neighbours[1] = id;
        }
        if let Some(state) = self.calls.get_mut(call) {
            state.last_task = Some(id);
        }
        TaskId(id)
    }

    /// Removes a task from the state, its call and the limits.
    pub(super) fn remove_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.try_remove(id.0)?;
        self.waiting_bytes -= task.waiting_bytes();
        let [before, after] = task.neighbours;
        if let Some(task) = self.tasks.get_mut(before) {
            task.neighbours[1] = after;
        }
        if let Some(task) = self.tasks.get_mut(after) {
            task.neighbours[0] = before;
        } else if let Some(state) = self.calls.get_mut(task.call) {
            state.last_task = (before != NO_TASK).then_some(before);
        }
        if let Some(at) = task.limit_at {
            self.limits.remove(at, Limited::Task(id));
        }
        Some(task)
    }

    /// Returns the tasks of a call, the last one first.
    fn tasks_of(&self, call: usize) -> Vec<TaskId> {
        let last = self.calls.get(call).and_then(|state| state.last_task);
        let before = |id: &usize| self.tasks.get(*id).map(|task| task.neighbours[0]).filter(|id| *id != NO_TASK);
        std::iter::successors(last, before).map(TaskId).collect()
    }

    /// Returns the id of a function that was called before without a context.
    pub(super) fn known_function(&self, key: (usize, usize)) -> Option<FunctionId> {
        self.functions.get(&key).copied()
    }

    /// Registers a function that was not called before, or one with a context, which is for one call.
    pub(super) fn new_function(&mut self, key: (usize, usize), name: &Function, context: Option<&[u8]>) -> FunctionId {
        let id = self.register(name, context.unwrap_or_default());
        if context.is_none() {
            self.functions.insert(key, id);
        }
        id
    }

    /// Registers a function that workers may ask for.
    pub(super) fn register(&mut self, name: &Function, context: &[u8]) -> FunctionId {
        let id = FunctionId(self.serial());
        self.names.insert(id, encode_function(name, context));
        id
    }

    /// Frees a slot, and the block of its argument.
    pub(super) fn free(&mut self, orders: &Orders, slot: u32, block: Option<Extent>, len: u64) {
        self.out_bytes -= len;
        self.slots[slot as usize] = None;
        self.free_slots.push(slot);
        if let Some(block) = block {
            orders.free(&mut self.blocks, block);
        }
    }

    /// Adds the result or failure of an item to its call, and notifies the waiters.
    pub(super) fn end_item(&mut self, call: usize, index: u64, end: End) {
        if let Some(state) = self.calls.get_mut(call) {
            state.ends.push(index, end);
            self.ended(call, 1);
        }
    }

    /// Counts `count` items of a call as ended, and notifies the waiters.
    pub(super) fn ended(&mut self, call: usize, count: u64) {
        let Some(state) = self.calls.get_mut(call) else { return };
        state.left -= count;
        self.notifications.wakers.extend(state.waker.take());
        if state.is_abandoned {
            state.ends = call::Ends::default();
        }
        self.tell_waiters(call);
        self.settle(call);
    }

    /// Wakes the threads that wait for this call's results.
    fn tell_waiters(&mut self, call: usize) {
        if let Some(state) = self.calls.get_mut(call).filter(|state| !state.followers.is_empty()) {
            self.notifications.unpark(state);
        }
        self.notifications.leader |= self.leader.is_some_and(|leader| leader.call == call);
    }

    /// If a call is over, schedules its callbacks, and removes it if it was abandoned.
    fn settle(&mut self, call: usize) {
        let Some(state) = self.calls.get_mut(call).filter(|state| state.is_over()) else { return };
        self.notifications.on_complete.append(&mut state.on_complete);
        self.notifications.wakers.extend(state.waker.take());
        self.eager -= usize::from(std::mem::take(&mut state.is_eager));
        if let Some(at) = state.limit_at.take() {
            self.limits.remove(at, Limited::Call(call));
        }
        if state.is_abandoned {
            if state.has_context {
                self.names.remove(&state.function);
            }
            self.calls.remove(call);
        }
    }

    /// Adds an item that is not run, and fails it.
    pub(super) fn refuse(&mut self, call: usize, index: u64) {
        if let Some(state) = self.calls.get_mut(call) {
            state.left += 1;
            self.end_item(
                call,
                index,
                call::End::Failed(Box::new(TaskEnd::Refused("the item was not submitted".to_owned()))),
            );
        }
    }

    pub(super) fn seal(&mut self, call: usize) {
        if let Some(state) = self.calls.get_mut(call) {
            state.is_sealed = true;
            if state.is_over() {
                self.tell_waiters(call); // they may wait for a further result
            }
            self.settle(call);
        }
    }

    pub(super) fn is_over(&self, call: usize) -> bool {
        self.calls.get(call).is_none_or(call::CallState::is_over)
    }

    pub(super) fn has_room(&self) -> bool {
        let is_small = self.out_bytes < AHEAD_BYTES || self.out_tasks() < 4 * self.scheduler.wanted() as u64;
        self.scheduler.waiting() == 0 && is_small || !self.scheduler.is_open()
    }

    /// Returns position, slot and id of each task that is out.
    pub(super) fn out(&self) -> Vec<(u64, u32, TaskId)> {
        let out = self.slots.iter().flatten().filter_map(|id| match self.tasks.get(id.0)?.at {
            TaskPlace::Out { slot, position, .. } => Some((position, slot, *id)),
            TaskPlace::Waiting(_) => None,
        });
        out.collect()
    }

    /// Returns the number of tasks that are out.
    pub(super) fn out_tasks(&self) -> u64 {
        self.slots.len() as u64 - self.free_slots.len() as u64
    }
}

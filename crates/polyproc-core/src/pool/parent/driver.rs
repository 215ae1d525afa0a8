//! The parent's side of a pool. One lock guards its state ([`Inner`]). A thread with an event acquires the lock, lets
//! the scheduler decide, and carries the actions out. Calls into user code are collected ([`Notifications`]) and made
//! after the lock is released.
//!
//! | file | part |
//! |---|---|
//! | `driver` | the state; calls |
//! | `effects` | the scheduler's actions |
//! | `results` | results, and the threads that wait for them |
//! | `thread` | the pool's thread: deaths, timers, starts |
//!
//! Threads of the program use a [`Driver`] through [`Pool`](crate::pool::Pool) and [`Call`](crate::pool::Call), the pool's thread
//! directly. They acquire the lock by [`Driver::with`]. Functions with an `inner` argument require the lock, and never
//! call `with`, since the lock is not recursive.
//!
//! Under the lock no thread calls user code or waits for another process. The critical sections are bounded: readers of
//! results leave the lock after a fixed number of rounds.
//!
//! The state in [`Inner`] is private memory and authoritative. What workers write on the board or in their rings is
//! checked against it (`audit`). Deaths of workers therefore never leave it inconsistent; a panic under the lock may,
//! as the lock ignores poison.
//!
//! A forked copy of the process has the state, but neither the pool's thread nor the right to its workers
//! ([`Driver::is_ours`]): there, new tasks end at once and waits return.

use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::call::{self, CallSettings, End, FunctionId, Stop};
use super::callbacks::Callbacks;
use super::handle::{OnLog, PoolError, PoolSettings};
use super::latch::{Latch, Parker};
use super::leader::{Leadership, hand_over};
use super::scheduler::{Action, Place, Scheduler, SchedulerEvent, TaskId};
use super::timers::{Limited, Limits, Timer, Timers, soon};
use super::worker_handle::{self, Cause, Numbers, WorkerHandle};
use crate::deadline::Deadline;
use crate::pool::shared::doorbell;
use crate::pool::shared::orders::Orders;
use crate::pool::shared::result_ring::IDLE;
use crate::pool::shared::task::{Items, NoWorkersReason, PoolEvent, TaskEnd, encode_function};
use crate::pool::shared::task_table::{SLOTS, TaskTable};
use crate::prim::{AtomicBool, Ordering};
use crate::process::{Function, call_user, lock};
use crate::robust::{RecheckInterval, WaitError};
use crate::shm::{Blocks, Extent};
use crate::sys::futex::Wait;
use crate::sys::process_stamp::process_id;
use crate::sys::watch::{EventFd, Poller};

/// Soft limit on bytes of arguments that are out; ignored while fewer than four tasks per worker are out.
///
/// Used by [`Inner::has_room`] only: it limits how far a producer encodes ahead of the workers, not publication.
const AHEAD_BYTES: u64 = 1 << 20;
/// Maximum number of workers that are woken for one event.
const WOKEN_AT_ONCE: u32 = 256;

/// From its claim of a task to the beginning a worker takes some hundred nanoseconds, or as long as it is preempted. A worker
/// that takes longer than this is stopped (`SIGSTOP`, a debugger, a freezer).
///
/// Used for a task that must end now, and by the audit: see [`Task::is_stuck_before_beginning`].
const UNBEGUN_LIMIT: Duration = Duration::from_millis(200);

/// Where a task's argument is.
///
/// Delayed tasks are `Waiting`, too: only the scheduler distinguishes them.
pub(super) enum TaskPlace {
    /// In the parent's private memory.
    Waiting(Vec<u8>),
    /// On the board. The argument begins with item `from` of the task.
    ///
    /// `slot` is its entry of the table; `position` its number, which changes if it is published again; `block` the
    /// block of its argument unless that is inline; `len` the length of the argument in bytes.
    Out { slot: u32, position: u64, block: Option<Extent>, len: u64, from: u32 },
}

/// A key that no task has.
const NO_TASK: usize = usize::MAX;

/// Some items of a call that go to a worker together.
///
/// Its key in [`Inner::tasks`] is its [`TaskId`]. It exists from [`Inner::add_task`] until its last item has ended.
/// Items that the worker has not begun may leave it for tasks of their own (`thread`); then `count` shrinks.
pub(super) struct Task {
    /// The key of its call in [`Inner::calls`].
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
    /// The bytes of its items that have not ended, and where they are.
    pub(super) at: TaskPlace,
    /// Descriptors of the first item.
    ///
    /// Sent to a worker that asks for them. They stay here until the task has ended, for a retry.
    pub(super) fds: Vec<OwnedFd>,
    /// The number of items that had ended when its worker was lost, and how the next item ends if it is not retried. Boxed,
    /// since few tasks have it and a call may have millions of tasks.
    pub(super) lost: Option<Box<(u32, TaskEnd)>>,
    /// Number of attempts at its one item that ended in a panic.
    pub(super) panics: u32,
    /// Items that have not begun may go to another worker.
    ///
    /// Set for short tasks that were put together by the engine, not for chunks that the user asked for.
    pub(super) is_splittable: bool,
    /// The time of its entry in [`Limits`].
    ///
    /// `None` while no limit runs: it has no limit, or has not gone out yet.
    pub(super) limit_at: Option<Instant>,
    /// Number of workers in a row that died after they claimed it and before they began it.
    pub(super) unbegun_deaths: u32,
    /// When the worker that claimed it was first seen not to have begun it.
    pub(super) unbegun_since: Option<Instant>,
}

impl Task {
    /// Notes that a worker has claimed the task and not begun it. Returns whether this has lasted for [`UNBEGUN_LIMIT`].
    ///
    /// The caller has found that the worker is idle. The note is reset when the task begins or goes out again.
    pub(super) fn is_stuck_before_beginning(&mut self) -> bool {
        self.unbegun_since.get_or_insert_with(Instant::now).elapsed() >= UNBEGUN_LIMIT
    }

    /// Returns the length of its argument in bytes while that is in private memory, else 0.
    pub(super) fn waiting_bytes(&self) -> u64 {
        if let TaskPlace::Waiting(bytes) = &self.at { bytes.len() as u64 } else { 0 }
    }

    /// Creates a task of one item.
    ///
    /// The task waits, and belongs to no list of its call before [`Inner::add_task`]. `index` is that of the item in
    /// the call, `bytes` the item with its length field.
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
///
/// In [`Driver::logs`] from its arrival until it is delivered.
pub(super) struct Logged {
    /// The process id of the worker.
    pub(super) pid: u32,
    /// The bytes that the worker passed to [`log`](crate::pool::log).
    pub(super) record: Vec<u8>,
    /// The callback of the call whose task logged it.
    pub(super) on_log: Option<OnLog>,
}

/// Notifications to send once the lock is released.
///
/// Collected under the lock, sent by [`Driver::with`] after it. So user code never runs under the lock, and a thread
/// that is woken does not find it held by its waker.
#[derive(Default)]
pub(super) struct Notifications {
    /// Threads that sleep as followers of a call. Each re-checks its condition.
    pub(super) parkers: Vec<Arc<Parker>>,
    /// Futures that wait for a call.
    wakers: Vec<Waker>,
    /// Completion callbacks, for the callback thread.
    on_complete: Vec<Box<dyn FnOnce() + Send>>,
    /// Events for `on_event`.
    pub(super) events: Vec<PoolEvent>,
    /// There are log records to deliver.
    pub(super) logs: bool,
    /// Number of tasks that were put on the table.
    ///
    /// How many workers are woken for them is decided in [`Driver::to_wake`].
    pub(super) published: u32,
    /// Wake the leader.
    ///
    /// Its call has a result, or it must read one: it is rung through the doorbell, which does nothing if it is awake.
    pub(super) leader: bool,
    /// Wake the pool's thread.
    ///
    /// For a new first timer, a start, or results that no thread reads.
    pub(super) driver: bool,
}

impl Notifications {
    /// Returns whether there is nothing to send, apart from `published`.
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
///
/// Guarded by [`Driver::with`]. Created with the pool; dropped with the last handle, call or thread of it.
pub(super) struct Inner {
    /// Decides; holds no data of tasks but their stage, priority and number of attempts.
    pub(super) scheduler: Scheduler,
    /// Tasks that have not ended, by [`TaskId`].
    pub(super) tasks: Slab<Task>,
    /// Calls whose [`Call`](crate::pool::Call) exists or whose items have not all ended.
    pub(super) calls: Slab<call::CallState>,
    /// The task in each slot of the board.
    ///
    /// `None` if the slot is in `free_slots`.
    pub(super) slots: Vec<Option<TaskId>>,
    /// Slots for the next tasks. As many as the scheduler believes to be free.
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
    /// The allocator of blocks for large arguments.
    pub(super) blocks: Blocks,
    /// Functions without a context, by [`Function::key`].
    ///
    /// Never removed: a program has a limited number of them.
    functions: HashMap<(usize, usize), FunctionId>,
    /// The encoded names and contexts of functions, for workers that ask.
    ///
    /// Removed with the call if the function has a context and is not registered.
    pub(super) names: HashMap<FunctionId, Vec<u8>>,
    /// Empty vectors for reuse.
    ///
    /// Buffers of small arguments. At most 64, each with a capacity of 4 KiB at most.
    pub(super) spare: Vec<Vec<u8>>,
    /// The last number from [`Inner::serial`].
    next_serial: u64,
    /// By [`Place`]; `None` while no worker runs there. Grows with the wanted number of workers, and never shrinks.
    pub(super) workers: Vec<Option<WorkerHandle>>,
    /// Numbers by which workers claim tasks.
    pub(super) numbers: Numbers,
    /// Places in which workers must be started.
    pub(super) to_start: VecDeque<Place>,
    /// Actions for workers that are being started, carried out when they have started.
    ///
    /// Only [`Action::Retire`] and [`Action::Kill`].
    pub(super) on_arrival: HashMap<Place, Action>,
    /// Timers of the pool's thread: only it removes them.
    pub(super) timers: Timers,
    /// Time limits of tasks and calls.
    pub(super) limits: Limits,
    /// Which thread reads the results.
    pub(super) leadership: Leadership,
    /// Empty whenever the lock is free.
    pub(super) notifications: Notifications,
    /// The reason that tasks report if the pool has no workers.
    pub(super) why: Option<NoWorkersReason>,
    /// The buffer for the records of one worker; its capacity is kept.
    pub(super) scratch: Vec<u8>,
    /// The buffer for the actions of one event, for [`Driver::handle`].
    pub(super) actions: Vec<Action>,
    /// Number of workers that ended other than with exit code 0.
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
///
/// It lives as long as the pool, a call or the pool's thread.
pub(super) struct Driver {
    /// All state that changes, apart from shared memory and logs. Acquired by [`Driver::with`] only.
    inner: Mutex<Inner>,
    /// The table of tasks, which workers write, too.
    pub(super) board: TaskTable,
    /// Task descriptors and arguments. Written under the lock.
    pub(super) orders: Orders,
    /// Reports the bell, and the channels and pidfds of workers, to the pool's thread.
    pub(super) watch: Poller,
    /// Rung by workers, and by threads that have work for the pool's thread.
    pub(super) bell: EventFd,
    pub(super) settings: PoolSettings,
    /// The thread for completion callbacks.
    pub(super) callbacks: Callbacks,
    /// Threads in [`Driver::wait_to_submit`] sleep here.
    pub(super) submitters: Parker,
    /// Log records that were not delivered yet, in order of arrival.
    pub(super) logs: Mutex<VecDeque<Logged>>,
    /// True once a worker has logged a record.
    pub(super) has_logs: AtomicBool,
    /// Held by the thread that delivers log records.
    ///
    /// So records are delivered one at a time, in order. It is acquired without the lock of `inner`.
    log_turn: Mutex<()>,
    /// The pool was terminated: no more workers are started.
    pub(super) is_terminated: AtomicBool,
    /// Set when the pool's thread has ended.
    pub(super) end: Latch,
    /// The process that created the pool. A forked copy of that process has no pool thread.
    ///
    /// See [`Driver::is_ours`].
    pid: u32,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Driver {
    /// Creates the memory and the state of a pool of `workers` workers, all of which are still to be started.
    ///
    /// The doorbell is set to [`doorbell::AWAY`], as no thread waits for results yet.
    ///
    /// # Errors
    /// [`PoolError::Os`] if the process has no memory or no descriptors for it.
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
            leadership: Leadership::default(),
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
    ///
    /// In a forked copy the lock may be held by a thread that does not exist there, so a function that can avoid the
    /// lock checks this first.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == process_id()
    }

    /// Calls `f` with the state under the lock, then sends the notifications.
    ///
    /// The only function that acquires the lock. `f` must neither call it again nor run user code. Threads and workers
    /// are woken after the release.
    ///
    /// A panic of `f` leaves the lock usable and the notifications pending: the next caller sends them.
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
    ///
    /// Each poller takes one task, so waking is not needed while no more tasks are queued than workers poll.
    fn to_wake(&self, inner: &mut Inner, published: u32) -> u32 {
        if !self.board.lookers().suffice(|| self.board.table().waiting()) {
            return published.min(WOKEN_AT_ONCE);
        }
        // A stopped worker finds nothing, so a timer checks. If a thread waits for the results, it checks before it sleeps.
        if inner.leadership.is_eager() && !inner.is_looking_after {
            inner.is_looking_after = true;
            inner.set_timer(soon(), Timer::LookAfter);
        }
        0
    }

    /// Delivers log records to their callbacks. On return, this or another thread has delivered all earlier records.
    ///
    /// The caller does not hold the lock. Called before results are handed out, so that the records of an item precede
    /// its result. A callback that gets here again returns at once, since its thread is delivering already.
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

    /// Sends notifications, without the lock. Log records go first, so that they precede the results that wake a
    /// waiter.
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
    ///
    /// `has_context` says that the function belongs to this call alone, and is removed with it. The time limit of the
    /// call begins here. The key stays valid until [`Driver::abandon`], which the drop of the [`Call`](crate::pool::Call)
    /// calls.
    pub(super) fn open(&self, function: FunctionId, has_context: bool, settings: CallSettings) -> (usize, Arc<Parker>) {
        self.with(|inner| {
            let parker = Arc::<Parker>::default();
            let serial = inner.serial();
            let limit = settings.call_limit;
            let is_eager = !settings.is_bulk && !settings.is_awaited;
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
                parker: Arc::clone(&parker),
                waker: None,
                on_complete: Vec::new(),
            });
            if let Some(limit) = limit {
                inner.limit_after(limit, Limited::Call(key));
            }
            if is_eager {
                inner.leadership.add_eager();
                hand_over(&mut self.locked(inner));
                // A leader that sleeps until few tasks are left must now wake for the results of this call.
                if inner.leadership.is_led() && self.board.doorbell().hurry() && inner.is_anything_unread() {
                    inner.notifications.leader = true;
                }
            }
            (key, parker)
        })
    }

    /// Submits the items as one task, and empties `items`. Does nothing if there are none.
    ///
    /// `first` is the index of the first item in the call, `fds` its descriptors. The task fails at once if the call
    /// was stopped, the pool is closed, or this process is a forked copy. Does not block: see
    /// [`Driver::wait_to_submit`].
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

    /// See [`Pool::wait_to_submit`](crate::pool::Pool::wait_to_submit).
    ///
    /// Returns true at once without a limit, and if the pool is closed, so that the submission fails with the reason.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran.
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

    /// Returns whether a worker has claimed a task of the call. The answer is from the table, so a faulty worker can
    /// falsify it.
    pub(super) fn is_running(&self, call: usize) -> bool {
        self.with(|inner| {
            inner.tasks_of(call).into_iter().filter_map(|id| inner.tasks.get(id.0)).any(|task| match task.at {
                TaskPlace::Out { slot, position, .. } => self.board.table().holder(slot, position).is_some(),
                TaskPlace::Waiting(_) => false,
            })
        })
    }

    /// Ends all items of the call that have not ended; kills workers that run some.
    pub(super) fn cancel(&self, call: usize) {
        self.with(|inner| self.stop(inner, call, Stop::Cancelled));
    }

    /// Ends the items of the call in tasks that no worker has claimed.
    pub(super) fn give_up(&self, call: usize) {
        self.with(|inner| self.stop(inner, call, Stop::GivenUp));
    }

    /// Ends the remaining items of a call. A task that is claimed and not begun cannot be stopped yet: a timer retries.
    ///
    /// Queued tasks are taken back from the table. For a claimed task, the worker is killed, unless the call is only
    /// given up; the items end when its death is handled. `stop` never becomes weaker: a cancelled call stays
    /// cancelled. Items that are submitted later end at once.
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
                        is_left |= !self.revoke_holder(inner, id, cause);
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
    ///
    /// A claim that the parent cannot relate to a living worker is left to the audit.
    fn revoke_holder(&self, inner: &mut Inner, id: TaskId, cause: Cause) -> bool {
        self.read_holder(inner, id); // results that it has written count
        let Some(task) = inner.tasks.get_mut(id.0) else { return true };
        let TaskPlace::Out { slot, position, .. } = task.at else { return false };
        let holder = self.board.table().holder(slot, position);
        let worker = holder.and_then(|number| worker_handle::with_number(&mut inner.workers, number));
        let Some(worker) = worker else { return false };
        worker.revoke(cause, Some(position)) || task.is_stuck_before_beginning() && worker.revoke_at(cause, IDLE)
    }

    /// Discards the results of a call. The pool's thread reads the remaining results, as no other thread waits for them.
    ///
    /// The call is removed once its submitted items have ended. It is sealed, since nothing can be submitted any more.
    pub(super) fn abandon(&self, call: usize) {
        self.with(|inner| {
            let Some(state) = inner.calls.get_mut(call) else { return };
            state.is_abandoned = true;
            state.is_sealed = true;
            if !std::mem::replace(&mut state.is_eager, true) {
                inner.leadership.add_eager();
            }
            inner.settle(call);
            hand_over(&mut self.locked(inner));
        });
    }

    /// Runs `then` on the callback thread once the call is over; at once if it is over already or unknown.
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
    /// Returns a number that no call, task, function, worker or waiter of this pool had before. The first is 1.
    pub(super) fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    /// Adds a task, as the last one of its call.
    ///
    /// The scheduler does not know it yet: the caller passes [`SchedulerEvent::Submitted`] or
    /// [`SchedulerEvent::Resubmitted`].
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
    ///
    /// Does not free the slot of a task that is out, and does not inform the scheduler. `None` if it was removed
    /// before.
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
    ///
    /// `key` is from [`Function::key`].
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
    ///
    /// Workers ask for it by the id, at their first task with it.
    pub(super) fn register(&mut self, name: &Function, context: &[u8]) -> FunctionId {
        let id = FunctionId(self.serial());
        self.names.insert(id, encode_function(name, context));
        id
    }

    /// Frees a slot, and the block of its argument.
    ///
    /// `len` is the length of the argument in bytes. No worker may still be able to read the block: the task has ended,
    /// or was taken back, or its worker is dead or will be killed.
    pub(super) fn free(&mut self, orders: &Orders, slot: u32, block: Option<Extent>, len: u64) {
        self.out_bytes -= len;
        self.slots[slot as usize] = None;
        self.free_slots.push(slot);
        if let Some(block) = block {
            orders.free(&mut self.blocks, block);
        }
    }

    /// Adds the result or failure of an item to its call, and notifies the waiters.
    ///
    /// The caller counts the item as done in its task.
    pub(super) fn end_item(&mut self, call: usize, index: u64, end: End) {
        if let Some(state) = self.calls.get_mut(call) {
            state.ends.push(index, end);
            self.ended(call, 1);
        }
    }

    /// Counts `count` items of a call as ended, and notifies the waiters.
    ///
    /// The results of an abandoned call are dropped here.
    pub(super) fn ended(&mut self, call: usize, count: u64) {
        let Some(state) = self.calls.get_mut(call) else { return };
        state.left -= count;
        self.notifications.wakers.extend(state.waker.take());
        if state.is_abandoned {
            state.ends = call::Ends::default();
        }
        self.wake_waiters(call);
        self.settle(call);
    }

    /// Wakes the threads that wait for this call's results.
    fn wake_waiters(&mut self, call: usize) {
        let woken = self.leadership.wake(call);
        if woken.followers {
            self.unpark(call);
        }
        self.notifications.leader |= woken.leader;
    }

    /// Wakes the followers of a call.
    pub(super) fn unpark(&mut self, call: usize) {
        self.notifications.parkers.extend(self.calls.get(call).map(|state| Arc::clone(&state.parker)));
    }

    /// If a call is over, schedules its callbacks, and removes it if it was abandoned.
    ///
    /// Called after each change that may end the call. Time limits of the call end with it.
    fn settle(&mut self, call: usize) {
        let Some(state) = self.calls.get_mut(call).filter(|state| state.is_over()) else { return };
        self.notifications.on_complete.append(&mut state.on_complete);
        self.notifications.wakers.extend(state.waker.take());
        if std::mem::take(&mut state.is_eager) {
            self.leadership.remove_eager();
        }
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

    /// Notes that all items of the call have been submitted. Wakes its waiters if it is over with that.
    pub(super) fn seal(&mut self, call: usize) {
        if let Some(state) = self.calls.get_mut(call) {
            state.is_sealed = true;
            if state.is_over() {
                self.wake_waiters(call); // they may wait for a further result
            }
            self.settle(call);
        }
    }

    /// Returns whether the call has been sealed and all its items have ended, or is unknown.
    pub(super) fn is_over(&self, call: usize) -> bool {
        self.calls.get(call).is_none_or(call::CallState::is_over)
    }

    /// Returns whether another task of ordinary size would go out at once and soon be claimed: no task waits, and few
    /// bytes or few tasks are out. True if the pool is not open, so that producers do not wait.
    pub(super) fn has_room(&self) -> bool {
        let is_small = self.out_bytes < AHEAD_BYTES || self.out_tasks() < 4 * self.scheduler.wanted() as u64;
        self.scheduler.waiting() == 0 && is_small || !self.scheduler.is_open()
    }

    /// Returns position, slot and id of each task that is out.
    ///
    /// In no particular order.
    pub(super) fn out(&self) -> Vec<(u64, u32, TaskId)> {
        let out = self.slots.iter().flatten().filter_map(|id| match self.tasks.get(id.0)?.at {
            TaskPlace::Out { slot, position, .. } => Some((position, slot, *id)),
            TaskPlace::Waiting(_) => None,
        });
        out.collect()
    }

    /// Returns the number of tasks that are out.
    ///
    /// From the parent's own slots, not from the shared counts.
    pub(super) fn out_tasks(&self) -> u64 {
        self.slots.len() as u64 - self.free_slots.len() as u64
    }
}

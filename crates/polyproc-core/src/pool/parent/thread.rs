//! The pool's thread: it detects workers that become ready or die, replaces dead workers, and fires timers. It reads
//! results only while no other thread waits for them. `docs/design/pool.md` describes what a death at each step of a
//! worker costs.
//!
//! A pool has one such thread, `polyproc-pool`. [`Pool::new`](crate::pool::Pool::new) starts it, and
//! [`Pool::join`](crate::pool::Pool::join) waits for its end. One round of its loop:
//!
//! 1. Fires the timers that are due.
//! 2. Starts the workers that the scheduler wants. This needs no lock, since a start takes milliseconds.
//! 3. Ends if the scheduler is over and no start is pending.
//! 4. Sleeps in `epoll_wait(2)` until a timer is due, the bell rings, or the channel or the pidfd of a worker is
//!    readable.
//! 5. Reads results if the bell rang. Reads the messages of the reported workers, and handles their deaths.
//! 6. Takes over the reading of results if no thread leads and a call needs it ([`hand_over`]).
//!
//! Locks: functions with an `inner` argument run under the lock of [`Inner`], and several of them are also called by
//! threads that wait for results or cancel calls. Functions without it acquire the lock themselves, and must not be
//! called under it. Only one thread starts workers: the one in `Pool::new`, then this one.
//!
//! No function here waits for a worker. Messages and results of workers are untrusted: a message that is malformed or
//! unexpected is ignored, and a question that refers to a task of another worker gets an empty answer.
//!
//! This thread runs the callbacks `on_event` and `on_log` and wakes futures, as any thread does that releases the lock.
//! Completion callbacks go to the thread of `callbacks`.
//!
//! | object | written by | used up by |
//! |---|---|---|
//! | `timers` | any thread, under the lock; an earlier first timer rings the bell | this thread |
//! | `to_start`, `on_arrival` | actions of the scheduler, on any thread, under the lock | the thread that starts workers |
//! | the poller | the thread that starts workers | this thread, which also removes dead workers |
//! | the bell | workers, and any thread with work for this one | this thread |
//! | a worker's channel | the worker | any thread, under the lock |

use std::cmp::Reverse;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::call::{FunctionId, Stop};
use super::driver::{Driver, Inner, Logged, Task, TaskPlace, stop_end};
use super::leader::hand_over;
use super::scheduler::{Blame, Held, Place, RetryHope, SchedulerEvent, TaskId};
use super::timers::{Limited, Timer};
use super::worker_handle::{self, Cause, Revocation, WorkerHandle};
use crate::conn::{Arrival, Message};
use crate::deadline::Deadline;
use crate::pool::shared::claim::TableWords;
use crate::pool::shared::orders::TaskDescriptor;
use crate::pool::shared::result_ring::{REVOKED, cut, is_cut, running_item, running_position};
use crate::pool::shared::task::{NoWorkersReason, PoolEvent, TaskEnd, decode_unfit, next_item, tag};
use crate::prim::Ordering;
use crate::process::tag as process;
use crate::process::{ExitStatus, GiveUp, Outcome, Signal, StartError, lock, own_threads};
use crate::shm;
use crate::sys::watch::Poller;
use crate::sys::{clock, priority};

/// The poller's key of the bell. The keys of workers are larger.
pub(super) const BELL: u64 = 0;
/// How long workers have between `SIGTERM` and `SIGKILL` when a pool is terminated.
const GRACE: Duration = Duration::from_secs(1);
/// How often the memory of workers is measured, if it is limited, while tasks are out.
///
/// A worker can exceed its limit by what it allocates in this time.
pub(super) const MEMORY_PERIOD: Duration = Duration::from_millis(20);
/// Number of workers in a row that end in their initializers by the program's fault, after which the pool gives up.
///
/// The scheduler counts all deaths of workers that are not ready yet, with a larger limit.
const UNFIT_LIMIT: usize = 3;
/// Number of workers in a row that die between claiming a task and beginning it, after which the task loses an item: otherwise
/// workers might die of it for ever.
const UNBEGUN_DEATHS: u32 = 3;
/// Maximum number of messages that are read from a worker at a time, so that other threads can acquire the lock in between.
///
/// The poller reports the rest again.
const MESSAGES_AT_ONCE: usize = 64;
/// More messages than fit in a channel.
pub(super) const CHANNEL_MESSAGES: usize = 1024;
/// Maximum time that items wait behind a long item while other workers are idle.
///
/// Also the pause between two checks of [`Timer::LookAfter`].
pub(super) const STEAL_PERIOD: Duration = Duration::from_millis(1);
/// How often the pool retries to publish a task for which there was no memory, as other data in flight may free some.
pub(super) const ROOM_PERIOD: Duration = Duration::from_millis(10);

impl Driver {
    /// Starts the pool's thread, which sets the latch `end` when the pool is over.
    ///
    /// All signals are blocked in it, so that signal handlers of the program run on other threads.
    ///
    /// # Errors
    /// The error of `pthread_create(3)`. The workers that were started before still run.
    pub(super) fn spawn_thread(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let driver = Arc::clone(self);
        own_threads().spawn("polyproc-pool", move || {
            driver.run();
            driver.end.set();
        })
    }

    /// Runs the loop of the module's header until the pool is over.
    ///
    /// If `epoll_wait(2)` fails, the pool cannot detect deaths any more. Then the function terminates the pool and
    /// returns without waiting for the exits of the workers.
    fn run(&self) {
        let mut keys = Vec::new();
        self.with(|inner| {
            if let Some(time) = self.settings.retire_idle {
                inner.set_timer(Instant::now() + time, Timer::Idle);
            }
        });
        loop {
            let next = self.with(|inner| self.fire_timers(inner));
            self.start_workers();
            if self.with(|inner| inner.scheduler.is_over() && inner.to_start.is_empty()) {
                return;
            }
            let deadline =
                next.map_or(Deadline::NEVER, |at| Deadline::after(at.saturating_duration_since(Instant::now())));
            if self.watch.wait(&mut keys, deadline).is_err() {
                // The program closed all descriptors: no worker can be started or watched any more.
                return self.with(|inner| self.handle(inner, SchedulerEvent::Terminated));
            }
            self.with(|inner| {
                for &key in &keys {
                    if key == BELL {
                        self.bell.answer();
                        self.collect(inner);
                    } else if let Some(at) = inner.position(key) {
                        self.receive(inner, at);
                    }
                }
                hand_over(&mut self.locked(inner));
            });
        }
    }

    /// Fires the timers that are due. Returns when the next one is due.
    ///
    /// An action may set further timers; these fire in the same call only if they are due already.
    fn fire_timers(&self, inner: &mut Inner) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let Reverse((at, timer)) = *inner.timers.peek()?;
            if at > now {
                return Some(at);
            }
            inner.timers.pop();
            self.fire(inner, timer);
        }
    }

    /// Performs the action of a timer that was removed from the heap.
    ///
    /// Called by the pool's thread, and with [`Timer::Kill`] by [`Driver::kill_all`].
    ///
    /// Timers are not removed when their reason disappears, so each kind re-checks it here. Tasks and calls are checked
    /// by their serial, since their keys are reused. A periodic timer sets itself again while there is something to
    /// watch, and keeps its flag in [`Inner`] up to date, so that at most one timer of its kind is set.
    ///
    /// - [`Timer::Limits`] is set for the earliest limit. It ends all limits that are due, and is set for the next one.
    /// - [`Timer::Memory`] measures each worker's own memory, and the data that it has put into queues and other shared
    ///   objects. A worker above the limit is revoked, even if it is idle.
    /// - [`Timer::Idle`] is set as long as the pool exists. The scheduler retires a worker only if no task is left.
    /// - [`Timer::LookAfter`] wakes one worker at a time while tasks are queued.
    fn fire(&self, inner: &mut Inner, timer: Timer) {
        match timer {
            Timer::Due { task, serial } => {
                if inner.tasks.get(task.0).is_some_and(|task| task.serial == serial) {
                    self.handle(inner, SchedulerEvent::Due(task));
                }
            }
            Timer::Start(place) => self.handle(inner, SchedulerEvent::StartDue(place)),
            Timer::Limits => {
                inner.limits.timer = None;
                let now = Instant::now();
                while let Some(limited) = inner.limits.pop_due(now) {
                    match limited {
                        Limited::Task(id) => self.limit(inner, id),
                        Limited::Call(key) => {
                            if let Some(state) = inner.calls.get_mut(key) {
                                state.limit_at = None;
                                self.stop(inner, key, Stop::TimedOut);
                            }
                        }
                    }
                }
                inner.set_timer_for_limits();
            }
            Timer::Stop { call, serial, stop } => {
                if inner.calls.get(call).is_some_and(|state| state.serial == serial && !state.is_over()) {
                    self.stop(inner, call, stop);
                }
            }
            Timer::Memory => {
                let limit = self.settings.memory_limit.unwrap_or(u64::MAX);
                for worker in inner.workers.iter_mut().flatten() {
                    let shared = worker.identity().map_or(0, |of| shm::bytes_of(of, worker.stream.segment().inode()));
                    let own = priority::resident_bytes(worker.child.pid());
                    if own.is_some_and(|own| own.saturating_add(shared) > limit) {
                        worker.revoke(Cause::OutOfMemory, None);
                    }
                }
                inner.is_watching_memory = inner.out_tasks() > 0;
                if inner.is_watching_memory {
                    inner.set_timer(Instant::now() + MEMORY_PERIOD, Timer::Memory);
                }
            }
            Timer::Idle => {
                let Some(time) = self.settings.retire_idle else { return };
                for at in 0..inner.workers.len() {
                    if inner.workers[at].as_ref().is_some_and(|worker| worker.idle_for() >= time) {
                        self.handle(inner, SchedulerEvent::Idle(Place(at)));
                    }
                }
                inner.set_timer(Instant::now() + time, Timer::Idle);
            }
            Timer::Steal => self.steal(inner),
            Timer::Audit => self.audit(inner),
            Timer::Room => {
                inner.waits_for_room = false;
                self.handle(inner, SchedulerEvent::Room);
            }
            Timer::LookAfter => {
                inner.is_looking_after = false;
                if self.board.table().waiting() > 0 {
                    self.board.waiters().wake_one();
                    inner.is_looking_after = true;
                    inner.set_timer(Instant::now() + STEAL_PERIOD, Timer::LookAfter);
                }
            }
            Timer::Kill => {
                inner.is_past_grace = true; // for workers that are being started
                inner.workers.iter().flatten().for_each(WorkerHandle::kill);
            }
        }
    }

    /// If workers are idle and no task waits, takes items that have not begun from busy workers.
    ///
    /// Runs every [`STEAL_PERIOD`] while a task is out whose items may move to other workers. With a queued task the
    /// idle workers have work anyway, so nothing moves.
    fn steal(&self, inner: &mut Inner) {
        inner.is_stealing =
            inner.tasks.iter().any(|(_, task)| task.is_splittable && matches!(task.at, TaskPlace::Out { .. }));
        if !inner.is_stealing {
            return;
        }
        inner.set_timer(Instant::now() + STEAL_PERIOD, Timer::Steal);
        let is_idle = |worker: &WorkerHandle| !worker.idle_for().is_zero();
        let is_any_idle = self.board.lookers().count() > 0 || inner.workers.iter().flatten().any(is_idle);
        if self.board.table().waiting() > 0 || !is_any_idle {
            return;
        }
        for at in 0..inner.workers.len() {
            self.cut(inner, at);
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
    fn cut(&self, inner: &mut Inner, at: usize) {
        self.read_worker(inner, at);
        let Some(worker) = &inner.workers[at] else { return };
        let Some(id) = worker.reading else { return };
        let Some(task) = inner.tasks.get(id.0).filter(|task| task.is_splittable) else { return };
        let TaskPlace::Out { slot, position, from, .. } = task.at else { return };
        let current = &worker.stream.state().current;
        // Pairs with the Release in `declare`. Only the word is used.
        let now = current.load(Ordering::Acquire);
        let Ok(order) = self.orders.read(slot) else { return };
        let kept = running_item(now) + 1;
        let items = task.count - from;
        if running_position(now) != Some(position) || is_cut(now) || kept >= items {
            return;
        }
        // Before the cut, which cannot be taken back: without memory for the argument the task stays whole.
        let Some(left) = self.items_after(slot, &order, kept, items) else { return };
        // AcqRel pairs with the worker's compare-and-swap in `declare`: a cut task begins no further item.
        if current.compare_exchange(now, cut(now), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let rest = items - kept;
        let serial = inner.serial();
        let Some(task) = inner.tasks.get_mut(id.0) else { return };
        task.count -= rest;
        let (call, end) = (task.call, task.first + u64::from(task.count));
        if task.done == task.count {
            self.finish(inner, at, id); // the item that ran has ended by now
        }
        let settings = inner.calls.get(call).map(|call| (call.settings.priority, call.settings.retries));
        let Some((priority, retries)) = settings else { return };
        for (item, bytes) in (0..).zip(left) {
            let id = inner.add_task(Task::single(call, serial, end + item, bytes));
            self.handle(inner, SchedulerEvent::Resubmitted(id, priority, retries));
            self.handle(inner, SchedulerEvent::Due(id));
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

    /// Checks whether the running item of the task has exceeded its limit, and sets the time of the next check.
    ///
    /// Called when the entry of the task in [`Limits`](super::timers::Limits) is due. What follows depends on the
    /// worker's word `current`:
    ///
    /// - No worker has claimed the task: its time has not begun, so the full limit is set again.
    /// - The worker is revoked: its death ends the item.
    /// - The worker has claimed the task, and is idle or in another task: re-checks after 1 ms. If it stays idle for
    ///   long ([`Task::is_stuck_before_beginning`]), it is stopped; it is killed as [`Cause::Frozen`], so the task goes
    ///   to another worker.
    /// - The running item has time left: re-checks when that is over.
    /// - The time is over, and the call has a soft signal: sends it once per item, and re-checks after the grace
    ///   period.
    /// - Otherwise revokes the worker at exactly this item ([`Cause::TimedOut`]). If it has begun another item,
    ///   re-checks.
    ///
    /// Both times are of the monotonic clock. The worker writes `started`, so a corrupted worker can extend its own
    /// limit.
    fn limit(&self, inner: &mut Inner, id: TaskId) {
        if let Some(task) = inner.tasks.get_mut(id.0) {
            task.limit_at = None;
        }
        self.read_holder(inner, id); // results that the worker has written count
        let Some(task) = inner.tasks.get_mut(id.0) else { return };
        let TaskPlace::Out { slot, position, .. } = task.at else { return }; // the limit is set again when it goes out
        let Some(call) = inner.calls.get(task.call) else { return };
        let (Some(limit), soft_signal) = (call.settings.limit, call.settings.soft_signal) else { return };
        let holder = self.board.table().holder(slot, position);
        let worker = holder.and_then(|number| worker_handle::with_number(&mut inner.workers, number));
        let Some(worker) = worker else {
            // No worker has claimed the task yet, so its time has not begun.
            return inner.limit_after(limit, Limited::Task(id));
        };
        let cell = worker.stream.state();
        // Pairs with the Release in `declare`: `started` is written before.
        let current = cell.current.load(Ordering::Acquire);
        let ran = clock::monotonic_nanos().saturating_sub(cell.started.load(Ordering::Relaxed));
        let left = limit.saturating_sub(Duration::from_nanos(ran));
        let a_moment = Duration::from_millis(1);
        let again = match running_position(current) {
            _ if current == REVOKED => return,
            // The worker is about to begin the task, or has ended it.
            None if task.is_stuck_before_beginning() && worker.revoke_at(Cause::Frozen, current) => return,
            at if at != Some(position) => a_moment,
            _ if !left.is_zero() => left,
            _ => match soft_signal.filter(|_| worker.warned != Some(current)) {
                Some((signal, grace)) => {
                    worker.warned = Some(current);
                    let _ = worker.child.signal(signal); // without effect if the worker has exited
                    grace
                }
                None if worker.revoke_at(Cause::TimedOut, current) => return,
                None => a_moment, // it has begun another item
            },
        };
        inner.limit_after(again, Limited::Task(id));
    }

    /// Reads the results of the worker that has claimed a task.
    ///
    /// Called before the parent kills a worker because of this task: results that are in the ring count. Does nothing
    /// if no worker has claimed the task.
    pub(super) fn read_holder(&self, inner: &mut Inner, id: TaskId) {
        let Some(TaskPlace::Out { slot, position, .. }) = inner.tasks.get(id.0).map(|task| &task.at) else { return };
        let holder = self.board.table().holder(*slot, *position);
        let is_holder =
            |worker: &Option<WorkerHandle>| worker.as_ref().is_some_and(|worker| Some(worker.number) == holder);
        if let Some(at) = inner.workers.iter().position(is_holder) {
            self.read_worker(inner, at);
        }
    }

    /// Starts the workers that the scheduler wants, without the lock, since a start takes long.
    ///
    /// Called by the pool's thread only. A start that fails is reported as [`PoolEvent::WorkerNotStarted`] and passed
    /// to the scheduler, which decides on further attempts; then the next place is tried. The error is also the reason
    /// with which tasks fail if the pool gives up.
    pub(super) fn start_workers(&self) {
        // A stopped fork server must not delay the end of the pool.
        // Acquire pairs with the Release in `terminate` and `kill_all`. Only the flag is used.
        while let Err(error) = self.start_next(&|| self.is_terminated.load(Ordering::Acquire)) {
            let (place, error) = error;
            self.with(|inner| {
                let hope = if is_passing(&error) { RetryHope::Some } else { RetryHope::None };
                inner.on_arrival.remove(&place);
                let error = Arc::new(error);
                inner.notifications.events.push(PoolEvent::WorkerNotStarted { error: Arc::clone(&error) });
                inner.why = Some(NoWorkersReason::Start(error));
                self.handle(inner, SchedulerEvent::NotStarted(place, hope));
            });
        }
    }

    /// Starts the workers that the scheduler wants, up to the first failure.
    ///
    /// # Errors
    /// The error of the start, with its place; [`StartError::Interrupted`] if `give_up` returns true during a wait for the fork
    /// server.
    ///
    /// The caller does not hold the lock. No other thread starts workers of this pool at the same time: a number is
    /// unused only as long as no worker with it is added to `workers`, which happens after the start.
    pub(super) fn start_next(&self, give_up: GiveUp<'_>) -> Result<(), (Place, StartError)> {
        while let Some((place, number, key)) = self.with(|inner| {
            let place = inner.to_start.pop_front()?;
            let workers = &inner.workers;
            let is_taken = |number| workers.iter().flatten().any(|worker| worker.number == number);
            let number = inner.numbers.next(crate::pool::shared::claim::WORKERS, is_taken);
            Some((place, number, inner.serial()))
        }) {
            let orders = self.orders.for_a_worker();
            let worker = orders.map_err(|source| StartError::Os { doing: "opening a pool's task descriptors", source });
            let worker = worker.and_then(|orders| {
                let shared = [self.board.as_fd(), orders.as_fd(), self.bell.as_fd()];
                WorkerHandle::start(&self.settings, place, number, key, shared, give_up)
            });
            self.install(place, worker.map_err(|error| (place, error))?);
        }
        Ok(())
    }

    /// Watches the channel and the pidfd of a started worker, and adds it to its place.
    ///
    /// While it was being started, the scheduler may have decided to retire or kill the worker of this place. That
    /// action waits in `on_arrival` and is carried out here. A worker that cannot be watched is killed and reaped at
    /// once, since its death would not be detected; the death counts as the program's fault.
    ///
    /// The worker may send messages before it is added. They stay in its channel, and the poller reports them in the
    /// next round.
    fn install(&self, place: Place, worker: WorkerHandle) {
        let (watch, child): (&Poller, _) = (&self.watch, worker.child.clone());
        let watched = watch.add(child.channel(), worker.key).and_then(|()| watch.add(&child, worker.key));
        self.with(|inner| {
            inner.notifications.events.push(PoolEvent::WorkerStarted { pid: child.pid() });
            if let Some(action) = inner.on_arrival.remove(&place) {
                self.end_worker(&worker, action);
                if inner.is_past_grace {
                    worker.kill();
                }
            }
            if let Some(at) = inner.workers.get_mut(place.0) {
                *at = Some(worker);
            }
        });
        if let Err(source) = watched {
            // Its death would not be detected, and it may have claimed a task.
            let _ = child.signal(Signal::KILL);
            let _ = child.wait_through_signals(Deadline::NEVER);
            self.with(|inner| {
                let error = Arc::new(StartError::Os { doing: "watching a worker", source });
                inner.notifications.events.push(PoolEvent::WorkerNotStarted { error: Arc::clone(&error) });
                inner.why = Some(NoWorkersReason::Start(error));
                if let Some(Some(worker)) = inner.workers.get_mut(place.0) {
                    // Blames the program, so that the pool does not retry for ever.
                    worker.revocation = Some(Revocation { position: None, cause: Cause::Frozen });
                }
                self.receive(inner, place.0);
            });
        }
    }

    /// Reads the messages of a worker, and checks whether it is alive.
    ///
    /// Called by the pool's thread when the worker's channel or pidfd is readable, and for a worker that cannot be
    /// watched.
    ///
    /// The order makes the death of a worker final: the exit status is read first, so the process writes nothing after
    /// that. Then its channel and its ring are read to the end, and [`Driver::reap`] decides about its task from what
    /// arrived. From a living worker at most [`MESSAGES_AT_ONCE`] messages are read; the poller reports the rest again.
    /// A living worker that has closed its channel cannot ask for functions or descriptors, and is killed; its death is
    /// reported by its pidfd later.
    fn receive(&self, inner: &mut Inner, at: usize) {
        let Some(worker) = &inner.workers[at] else { return };
        let child = worker.child.clone();
        // Checked first, so that all output of a dead worker is read below. If the check fails, the worker counts as alive.
        let status = child.try_wait().unwrap_or(None);
        let most = if status.is_some() { CHANNEL_MESSAGES } else { MESSAGES_AT_ONCE };
        let is_open = self.hear_channel(inner, at, most);
        if inner.workers[at].as_ref().is_some_and(WorkerHandle::has_many_fds) {
            self.read_worker(inner, at); // the results of these descriptors, before further messages
        }
        let Some(status) = status else {
            if !is_open {
                // It has closed its channel, and is of no use any more.
                self.watch.remove(child.channel());
                let _ = child.signal(Signal::KILL);
            }
            return;
        };
        self.watch.remove(child.channel());
        self.watch.remove(&child);
        self.read_worker(inner, at);
        if let Some(worker) = inner.workers[at].take() {
            self.reap(inner, Place(at), worker, status);
        }
    }

    /// Reads at most `most` messages of a worker. Returns false if no more will come.
    ///
    /// Never blocks. Also called by a thread that reads a result whose descriptors or log records are in the channel.
    /// Stops early if the descriptors of too many results wait ([`WorkerHandle::has_many_fds`]): the caller must read
    /// the ring first. A worker for whose descriptors there is no result is discarded.
    pub(super) fn hear_channel(&self, inner: &mut Inner, at: usize, most: usize) -> bool {
        for _ in 0..most {
            let Some(worker) = &mut inner.workers[at] else { return false };
            if worker.has_many_fds() {
                // Their results are read first. If none is unread, the descriptors belong to no result, since the next result
                // alone cannot have that many: the worker is faulty.
                if !worker.stream.is_anything_unread() {
                    inner.discard(at);
                }
                return true;
            }
            match worker.child.channel().try_receive_any() {
                Ok(Some(Arrival::Whole(message))) => self.on_message(inner, at, message),
                Ok(Some(Arrival::FdsLost(tag::RESULT_FDS))) => {
                    let why = "the result's descriptors could not be received: too many open files".to_owned();
                    worker.fds.push_back(Err(why));
                }
                Ok(Some(Arrival::FdsLost(_))) => {} // a log record that was sent in a memory file
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    /// Handles a message of the worker at place `at`.
    ///
    /// The table of messages is in `task`. The tags from `RETURNED` to `STACK_OVERFLOW` are the last messages of any
    /// process; they only say how it ends, and are used after its death.
    ///
    /// Its side effects on the pool: `READY` ends the series of deaths that [`UNFIT_LIMIT`] counts; `UNFIT` ends the
    /// pool; descriptors of a result stay in [`WorkerHandle::fds`] until its record is read.
    fn on_message(&self, inner: &mut Inner, at: usize, message: Message) {
        let Some(worker) = &mut inner.workers[at] else { return };
        match message.tag {
            tag::READY => {
                inner.notifications.events.push(PoolEvent::WorkerReady { pid: worker.child.pid() });
                inner.unfit = 0;
                self.handle(inner, SchedulerEvent::Ready(Place(at)));
            }
            tag::UNFIT => {
                if let Ok(why) = decode_unfit(message.payload) {
                    inner.why = Some(why);
                    self.handle(inner, SchedulerEvent::Broken);
                }
            }
            tag::RESULT_FDS => worker.fds.push_back(Ok(message.payload.fds)),
            tag::LOG => {
                let pid = worker.child.pid();
                self.on_log_message(inner, pid, message.payload.bytes);
            }
            tag::NEED_FDS => self.send_fds(inner, at, &message.payload.bytes),
            tag::NEED_FUNCTION => {
                let id = message.payload.bytes.first_chunk().map(|id| u64::from_le_bytes(*id)).unwrap_or_default();
                let name = inner.names.get(&FunctionId(id)).map_or(&[][..], Vec::as_slice);
                self.answer(inner, at, tag::FUNCTION, &[&id.to_le_bytes(), name].concat(), &[]);
            }
            process::RETURNED..=process::STACK_OVERFLOW => {
                // A malformed message is ignored.
                let _ = worker.exit_report.on_message(message);
            }
            _ => {}
        }
    }

    /// Answers a question of a worker without blocking. Kills a worker that does not read its answers. If the answer cannot be
    /// sent for another reason, sends an empty one, with which the task fails in the worker.
    ///
    /// `head` begins with the 8 bytes that identify the question, if the answer has any; the empty answer keeps them.
    fn answer(&self, inner: &Inner, at: usize, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>]) {
        let Some(worker) = &inner.workers[at] else { return };
        let channel = worker.child.channel();
        let sent = channel.try_send(tag, head, fds).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Err(error),
            _ => channel.try_send(tag, head.get(..8).unwrap_or_default(), &[]),
        });
        if sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            worker.kill();
        }
    }

    /// Queues a log record of a worker, which begins with the 8 bytes of the position of the worker's task.
    ///
    /// The record is for the callback of the call whose task is out at that position. If there is no such task, or its
    /// call has no callback, the pool's callback gets it. It is delivered after the lock is released, and before the
    /// result of its item: see [`Driver::deliver_logs`].
    fn on_log_message(&self, inner: &mut Inner, pid: u32, mut record: Vec<u8>) {
        let Some(position) = record.split_first_chunk().map(|(position, _)| u64::from_le_bytes(*position)) else {
            return;
        };
        record.drain(..8);
        let call = self.task_at(inner, position).map(|task| task.call);
        let on_log = call.and_then(|call| inner.calls.get(call)).and_then(|call| call.settings.on_log.clone());
        lock(&self.logs).push_back(Logged { pid, record, on_log });
        // Pairs with the Acquire in `deliver_logs`.
        self.has_logs.store(true, Ordering::Release);
        inner.notifications.logs = true;
    }

    /// Returns the task at a position, if it is out.
    ///
    /// The slot number is read from shared memory and may be wrong. The result is still the task of that position,
    /// since the position is compared with the parent's own record.
    fn task_at<'a>(&self, inner: &'a Inner, position: u64) -> Option<&'a Task> {
        let slot = self.board.number(position).load(Ordering::Relaxed);
        let task = inner.tasks.get((*inner.slots.get(slot as usize)?)?.0)?;
        matches!(task.at, TaskPlace::Out { position: at, .. } if at == position).then_some(task)
    }

    /// Sends a worker the descriptors of the argument of the task that it has claimed.
    ///
    /// `position` is the head of the worker's question. If the worker has not claimed that task, or if the head is
    /// malformed, the answer has no descriptors.
    fn send_fds(&self, inner: &Inner, at: usize, position: &[u8]) {
        let Some(worker) = &inner.workers[at] else { return };
        let position = position.try_into().map(u64::from_le_bytes);
        let task = position.ok().and_then(|position| {
            let task = self.task_at(inner, position)?;
            let TaskPlace::Out { slot, .. } = task.at else { return None };
            (self.board.table().holder(slot, position) == Some(worker.number)).then_some(task)
        });
        let fds: Vec<_> = task.iter().flat_map(|task| task.fds.iter().map(AsFd::as_fd)).collect();
        self.answer(inner, at, tag::FDS, &[], &fds);
    }

    /// Handles the death of a worker, after its output was read.
    ///
    /// The worker is no longer in `workers`, and its process is reaped.
    ///
    /// 1. Removes it from the polling workers, and wakes all idle workers: it may have consumed a wake-up for a task.
    /// 2. Finds its task, and takes that off the board ([`Driver::held`], [`Driver::unfinished`]).
    /// 3. Determines who is to blame. A signal that is no fault comes from outside, unless the pool revoked the worker.
    /// 4. Passes the death to the scheduler, which requeues, delays or fails the item, and starts a replacement.
    /// 5. After [`UNFIT_LIMIT`] deaths in a row during initializers, ends the pool.
    ///
    /// The first death is kept as the reason for tasks that fail for lack of workers, unless a failed start is known.
    /// Exits other than with code 0 count as lost workers ([`Pool::workers_lost`](crate::pool::Pool::workers_lost)).
    fn reap(&self, inner: &mut Inner, place: Place, mut worker: WorkerHandle, status: ExitStatus) {
        worker.exit_report.status = status;
        let ended = worker.ended();
        inner.notifications.events.push(PoolEvent::WorkerEnded { pid: ended.pid, ended });
        self.board.lookers().leave(worker.number);
        // It may have died between being woken for a task and claiming it.
        self.board.waiters().wake_generation();
        let held = self.held(inner, &worker).and_then(|(id, position)| self.unfinished(inner, id, position, &worker));
        let is_outside = matches!(status, ExitStatus::Signaled { signal, .. } if !signal.is_fault());
        let blame = if is_outside && worker.revocation.is_none() { Blame::Outside } else { Blame::Program };
        if blame == Blame::Program && worker.is_initialising() && self.settings.initializer.is_some() {
            inner.unfit += 1;
        }
        inner.why = inner.why.take().or(Some(NoWorkersReason::Died(ended)));
        inner.lost += u64::from(status.exit_code() != Some(0));
        self.handle(inner, SchedulerEvent::Died(place, blame, held));
        if inner.unfit >= UNFIT_LIMIT {
            inner.why = Some(NoWorkersReason::Died(ended));
            self.handle(inner, SchedulerEvent::Broken);
        }
    }

    /// Returns the task that a dead worker had claimed and not finished, with its position.
    ///
    /// A worker holds at most one task: it claims the next one after it has written all results of the last. While the
    /// parent reads the results of a task (`reading`), the claim in the table is ignored.
    fn held(&self, inner: &Inner, worker: &WorkerHandle) -> Option<(TaskId, u64)> {
        // The worker's own stream takes precedence over the table, which other workers may overwrite.
        let is_read_by = |worker: &WorkerHandle, id| worker.reading == Some(id);
        let held = inner.out().into_iter().find(|(position, slot, id)| {
            is_read_by(worker, *id)
                || worker.reading.is_none()
                    && self.board.table().holder(*slot, *position) == Some(worker.number)
                    && !inner.workers.iter().flatten().any(|other| is_read_by(other, *id))
        });
        held.map(|(position, _, id)| (id, position))
    }

    /// Takes the task of a dead worker off the board. Returns how far it was, or `None` if the task has ended with
    /// that.
    ///
    /// The worker's ring is read to the end. `position` is the position at which it held the task.
    ///
    /// The task has not begun if its *begin* record is not in the ring and the worker was not revoked in it. Then it
    /// waits again, whole; [`UNBEGUN_DEATHS`] such deaths in a row count as a death in its first item. Otherwise the
    /// item `done` was running. How it ends is stored in [`Task::lost`], for [`Driver::lose`], and depends on the
    /// revocation first and on the worker's last message second. Time limits and cancellations are final; all other
    /// ends may be retried.
    ///
    /// If the call was stopped, and the worker was killed for that or had not begun the task, the whole task ends here.
    fn unfinished(
        &self,
        inner: &mut Inner,
        id: TaskId,
        position: u64,
        worker: &WorkerHandle,
    ) -> Option<(TaskId, Held)> {
        self.take_off(inner, id);
        let task = inner.tasks.get_mut(id.0)?;
        let revocation = worker
            .revocation
            .filter(|revocation| revocation.position == Some(position))
            .map(|Revocation { cause, .. }| cause);
        let is_begun = worker.reading == Some(id) || revocation.is_some();
        let is_stopped_here = revocation.is_some_and(|cause| matches!(cause, Cause::TimedOut | Cause::Cancelled));
        let stop = inner.calls.get(task.call).and_then(|call| call.stop);
        if let Some(stop) = stop.filter(|stop| is_stopped_here || !is_begun && *stop != Stop::GivenUp) {
            self.remove(inner, id, &stop_end(stop));
            self.handle(inner, SchedulerEvent::Ended(id));
            return None;
        }
        task.unbegun_since = None;
        task.unbegun_deaths = if is_begun { 0 } else { task.unbegun_deaths + 1 };
        if !is_begun && task.unbegun_deaths < UNBEGUN_DEATHS {
            return Some((id, Held::NotBegun));
        }
        let is_same = task.lost.as_ref().is_some_and(|lost| lost.0 == task.done);
        let end = match (revocation, &worker.exit_report.outcome) {
            (Some(Cause::TimedOut), _) => TaskEnd::TimedOut,
            (Some(Cause::OutOfMemory), _) => TaskEnd::OutOfMemory,
            (Some(Cause::Cancelled), _) => TaskEnd::Cancelled,
            (Some(Cause::Frozen), _) => TaskEnd::WorkerLost(worker.ended()),
            (None, Some(Outcome::Panicked(panic))) => TaskEnd::Panicked(panic.clone()),
            (None, _) => TaskEnd::WorkerLost(worker.ended()),
        };
        task.lost = Some(Box::new((task.done, end)));
        let may_retry = !matches!(revocation, Some(Cause::TimedOut | Cause::Cancelled));
        Some((id, Held::Running { is_same, may_retry }))
    }

    /// Terminates all workers. Kills those that have not exited after [`GRACE`].
    ///
    /// Does not block: the workers get `SIGTERM` now, and [`Timer::Kill`] is set for the pool's thread. Tasks that have
    /// not ended fail now. Repeated calls only set further timers.
    ///
    /// A worker that starts at this moment gets the signals from [`Driver::install`].
    pub(super) fn terminate(&self) {
        self.with(|inner| {
            self.handle(inner, SchedulerEvent::Terminated);
            // Pairs with the Acquire in `start_workers`.
            self.is_terminated.store(true, Ordering::Release);
            inner.set_timer(Instant::now() + GRACE, Timer::Kill);
            inner.notifications.driver = true;
        });
    }

    /// Kills all workers.
    ///
    /// For a pool whose creation failed and that has no thread, so nothing waits for the end of the workers.
    pub(super) fn kill_all(&self) {
        // Pairs with the Acquire in `start_workers`.
        self.is_terminated.store(true, Ordering::Release);
        self.with(|inner| self.fire(inner, Timer::Kill));
    }

    /// See [`Pool::resize`](crate::pool::Pool::resize).
    ///
    /// Grows `workers` to the new number. It never shrinks, so that a [`Place`] stays valid; the places above the
    /// wanted number stay empty once their workers have retired. Does not wait for starts or exits.
    pub(super) fn resize(&self, workers: usize) {
        self.with(|inner| {
            while inner.workers.len() < workers {
                inner.workers.push(None);
            }
            self.handle(inner, SchedulerEvent::Resized(workers));
            inner.notifications.driver = true;
        });
    }
}

impl Inner {
    /// Returns the place of the worker whose descriptors have this key in the poller.
    ///
    /// `None` if that worker was reaped meanwhile.
    fn position(&self, key: u64) -> Option<usize> {
        self.workers.iter().position(|worker| worker.as_ref().is_some_and(|worker| worker.key == key))
    }
}

/// Returns whether a later start may succeed: the system lacked a resource, or the fork server failed.
///
/// Other errors, for instance a missing program file, do not pass by themselves, so they are not worth a delay.
fn is_passing(error: &StartError) -> bool {
    let StartError::Os { source, .. } = error else { return matches!(error, StartError::Forkserver { .. }) };
    matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

//! The pool's thread: it sees workers get ready and die, starts others in their place, and does what is to be done at a time.
//! Results it looks for only while no other thread waits for them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::call::{FunctionId, Stop};
use super::driver::{At, Driver, Inner, Logged, Task, stop_end};
use super::scheduler::{Event, Held, Hope, Place, TaskId};
use super::staff::{Cause, Doom, Worker};
use super::stream::{DOOMED, cut, is_cut, running_item, running_position};
use super::task::{PoolEvent, TaskEnd, Why, decode_unfit, next_item, tag};
use crate::conn::Message;
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::outcome::tag as process;
use crate::process::{ExitStatus, Outcome, Signal, StartError, State, lock};
use crate::sys::watch::Watch;
use crate::sys::{clock, priority, signal};

/// The key of the bell; those of workers are larger.
pub(super) const BELL: u64 = 0;
/// How long workers have between `SIGTERM` and `SIGKILL` when a pool is terminated.
const GRACE: Duration = Duration::from_secs(1);
/// How often the memory of workers is looked at, where it is limited.
const MEMORY_PERIOD: Duration = Duration::from_millis(20);
/// So many workers in a row that die in their initializers mean that all will.
const UNFIT_LIMIT: usize = 3;
/// How long items wait at most behind one that takes long, while other workers have nothing to do.
pub(super) const SHARE_PERIOD: Duration = Duration::from_millis(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What is to be done at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A delayed task goes out again.
    Due { task: TaskId, serial: u64 },
    /// Another attempt to start a worker.
    Start(Place),
    /// An item of the task there may have run for too long.
    Limit { slot: u32, position: u64 },
    /// What is left of the call is ended.
    Stop { call: usize, serial: u64, stop: Stop },
    /// A look at the memory of all workers.
    Memory,
    /// A look at who has been idle for long.
    Idle,
    /// A look at tasks whose items may go to other workers.
    Share,
    /// A look at tasks that no worker was woken for.
    LookAfter,
    /// Workers that were told to end and have not.
    Kill,
}

/// The next one first.
pub(super) type Timers = BinaryHeap<Reverse<(Instant, Timer)>>;

/// In a moment.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_millis(1)
}

/// When the next attempt is due, after so many: the first after `backoff`, then twice as late each time.
pub(super) fn after_backoff(backoff: Duration, attempts: u32) -> Instant {
    Instant::now() + backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_BACKOFF)
}

/// When to try again to start a worker, after so many failures.
pub(super) fn after_failed_starts(failures: u32) -> Instant {
    Instant::now() + Duration::from_millis(10 << failures.min(6))
}

impl Inner {
    /// Has the pool's thread do something at a time.
    pub(super) fn set_timer(&mut self, at: Instant, timer: Timer) {
        let is_first = self.timers.peek().is_none_or(|Reverse((first, _))| at < *first);
        self.timers.push(Reverse((at, timer)));
        self.told.driver |= is_first;
    }
}

impl Driver {
    pub(super) fn spawn_thread(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let own_threads = &State::current().own_threads;
        own_threads.fetch_add(1, Ordering::Relaxed);
        let driver = Arc::clone(self);
        let run = move || {
            driver.run();
            own_threads.fetch_sub(1, Ordering::Relaxed);
        };
        std::thread::Builder::new().name("polyproc-pool".to_owned()).spawn(run).inspect_err(|_| {
            own_threads.fetch_sub(1, Ordering::Relaxed);
        })
    }

    fn run(&self) {
        signal::block_all();
        let mut keys = Vec::new();
        self.with(|inner| {
            if self.settings.memory_limit.is_some() {
                inner.set_timer(Instant::now() + MEMORY_PERIOD, Timer::Memory);
            }
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
            // Fails for a descriptor that is no epoll only.
            self.watch.wait(&mut keys, deadline).expect("an epoll descriptor can be waited for");
            self.with(|inner| {
                for &key in &keys {
                    if key == BELL {
                        self.bell.answer();
                        self.collect(inner);
                    } else if let Some(at) = inner.position(key) {
                        self.hear(inner, at);
                    }
                }
                self.hand_over(inner);
            });
        }
    }

    /// Does what is due; when the next thing is.
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

    fn fire(&self, inner: &mut Inner, timer: Timer) {
        match timer {
            Timer::Due { task, serial } => {
                if inner.tasks.get(task.0).is_some_and(|task| task.serial == serial) {
                    self.handle(inner, Event::Due(task));
                }
            }
            Timer::Start(place) => self.handle(inner, Event::StartDue(place)),
            Timer::Limit { slot, position } => self.limit(inner, slot, position),
            Timer::Stop { call, serial, stop } => {
                if inner.calls.get(call).is_some_and(|state| state.serial == serial && !state.is_over()) {
                    self.stop(inner, call, stop);
                }
            }
            Timer::Memory => {
                let limit = self.settings.memory_limit.unwrap_or(u64::MAX);
                for worker in inner.workers.iter_mut().flatten() {
                    if priority::resident_bytes(worker.child.pid()).is_some_and(|bytes| bytes > limit) {
                        worker.doom(Cause::OutOfMemory, None);
                    }
                }
                inner.set_timer(Instant::now() + MEMORY_PERIOD, Timer::Memory);
            }
            Timer::Idle => {
                let Some(time) = self.settings.retire_idle else { return };
                for at in 0..inner.workers.len() {
                    if inner.workers[at].as_ref().is_some_and(|worker| worker.idle_for() >= time) {
                        self.handle(inner, Event::Idle(Place(at)));
                    }
                }
                inner.set_timer(Instant::now() + time, Timer::Idle);
            }
            Timer::Share => self.share(inner),
            Timer::LookAfter => {
                inner.is_looking_after = false;
                if self.board.table().waiting() > 0 {
                    self.board.sleepers().wake_one();
                    inner.is_looking_after = true;
                    inner.set_timer(Instant::now() + SHARE_PERIOD, Timer::LookAfter);
                }
            }
            Timer::Kill => {
                for worker in inner.workers.iter().flatten() {
                    // One that has ended takes none, which is as good.
                    let _ = worker.child.signal(Signal::KILL);
                }
            }
        }
    }

    /// Where workers have nothing to do, they get what others have not begun.
    fn share(&self, inner: &mut Inner) {
        inner.is_sharing = inner.tasks.iter().any(|(_, task)| task.is_loose && matches!(task.at, At::Out { .. }));
        if !inner.is_sharing {
            return;
        }
        inner.set_timer(Instant::now() + SHARE_PERIOD, Timer::Share);
        let is_idle = |worker: &Worker| !worker.idle_for().is_zero();
        let is_any_idle = self.board.lookers().count() > 0 || inner.workers.iter().flatten().any(is_idle);
        if self.board.table().waiting() > 0 || !is_any_idle {
            return;
        }
        for at in 0..inner.workers.len() {
            self.cut(inner, at);
        }
    }

    /// Takes from a worker what it has not begun of its task.
    fn cut(&self, inner: &mut Inner, at: usize) {
        self.read_worker(inner, at);
        let Some(worker) = &inner.workers[at] else { return };
        let Some(id) = worker.reading else { return };
        let Some(task) = inner.tasks.get(id.0).filter(|task| task.is_loose) else { return };
        let At::Out { slot, position, .. } = task.at else { return };
        let current = &worker.stream.cell().current;
        let now = current.load(Ordering::Acquire);
        let Ok(order) = self.board.read(slot) else { return };
        let kept = running_item(now) + 1;
        let is_cuttable = running_position(now) == Some(position) && !is_cut(now) && kept < order.items;
        // Release and Acquire: the worker, when it sees this, begins no further item.
        if !is_cuttable || current.compare_exchange(now, cut(now), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let rest = order.items - kept;
        let mut bytes = Vec::new();
        // Only a process that went wild makes this fail: the items then fail to be decoded.
        let _ = self.board.read_argument(slot, &order, &mut bytes);
        let mut left = &bytes[..];
        for _ in 0..kept {
            let _ = next_item(&mut left);
        }
        let serial = inner.serial();
        let Some(task) = inner.tasks.get_mut(id.0) else { return };
        task.count -= rest;
        let (call, end) = (task.call, task.first + u64::from(task.count));
        if task.done == task.count {
            self.finish(inner, at, id); // the item that ran has ended meanwhile
        }
        let settings = inner.calls.get(call).map(|call| (call.settings.priority, call.settings.retries));
        let Some((priority, retries)) = settings else { return };
        for item in 0..rest {
            let start = left;
            if next_item(&mut left).is_err() {
                return;
            }
            let bytes = start[..start.len() - left.len()].to_vec();
            let id = TaskId(inner.tasks.insert(Task::single(call, serial, end + u64::from(item), bytes)));
            self.handle(inner, Event::Resubmitted(id, priority, retries));
            self.handle(inner, Event::Due(id));
        }
    }

    /// Looks whether an item of the task there has run for too long, and when to look again.
    fn limit(&self, inner: &mut Inner, slot: u32, position: u64) {
        let Some(id) = inner.slots[slot as usize] else { return };
        let Some(task) = inner.tasks.get(id.0) else { return };
        if !matches!(task.at, At::Out { position: at, .. } if at == position) {
            return;
        }
        let Some(settings) = inner.calls.get(task.call).map(|call| call.settings.clone()) else { return };
        let Some(limit) = settings.limit else { return };
        let holder = self.board.table().holder(slot, position);
        let worker = inner.workers.iter_mut().flatten().find(|worker| Some(worker.number) == holder);
        let Some(worker) = worker else {
            // Nobody has it yet, so it has the whole time before it.
            return inner.set_timer(Instant::now() + limit, Timer::Limit { slot, position });
        };
        let cell = worker.stream.cell();
        let current = cell.current.load(Ordering::Acquire);
        let ran = clock::monotonic_nanos().saturating_sub(cell.started.load(Ordering::Relaxed));
        let left = limit.saturating_sub(Duration::from_nanos(ran));
        let again = if running_position(current) != Some(position) {
            if current == DOOMED {
                return;
            }
            Duration::from_millis(1) // about to begin, or ended
        } else if !left.is_zero() {
            left
        } else if let Some((signal, grace)) = settings.soft_signal.filter(|_| worker.warned != Some(current)) {
            worker.warned = Some(current);
            let _ = worker.child.signal(signal); // one that has ended takes none
            grace
        } else if worker.doom(Cause::TimedOut, Some(position)) {
            return;
        } else {
            Duration::from_millis(1)
        };
        inner.set_timer(Instant::now() + again, Timer::Limit { slot, position });
    }

    /// Starts the workers that the scheduler wants. Not under the lock: that takes a while.
    pub(super) fn start_workers(&self) {
        while let Err(error) = self.start_next() {
            let (place, error) = error;
            self.with(|inner| {
                let hope = if is_passing(&error) { Hope::Some } else { Hope::None };
                inner.on_arrival.remove(&place);
                let error = Arc::new(error);
                inner.told.events.push(PoolEvent::WorkerNotStarted { error: Arc::clone(&error) });
                inner.why = Some(Why::Start(error));
                self.handle(inner, Event::NotStarted(place, hope));
            });
        }
    }

    /// Starts all workers to be started, up to the first failure.
    pub(super) fn start_next(&self) -> Result<(), (Place, StartError)> {
        while let Some((place, number, key)) = self.with(|inner| {
            let place = inner.to_start.pop_front()?;
            inner.next_number = (inner.next_number + 1) % super::claim::WORKERS;
            Some((place, inner.next_number, inner.serial()))
        }) {
            let worker = Worker::start(&self.settings, place, number, key, &self.board, &self.bell);
            let worker = worker.map_err(|error| (place, error))?;
            self.install(place, worker).map_err(|error| (place, error))?;
        }
        Ok(())
    }

    fn install(&self, place: Place, worker: Worker) -> Result<(), StartError> {
        let watch: &Watch = &self.watch;
        let watched = watch.add(worker.child.channel(), worker.key).and_then(|()| watch.add(&worker.child, worker.key));
        if let Err(source) = watched {
            let _ = worker.child.signal(Signal::KILL);
            return Err(StartError::Os { doing: "watching a worker", source });
        }
        self.with(|inner| {
            inner.told.events.push(PoolEvent::WorkerStarted { pid: worker.child.pid() });
            if let Some(action) = inner.on_arrival.remove(&place) {
                self.end_worker(&worker, action);
            }
            if let Some(at) = inner.workers.get_mut(place.0) {
                *at = Some(worker);
            }
        });
        Ok(())
    }

    /// Reads what a worker sent and looks whether it lives.
    fn hear(&self, inner: &mut Inner, at: usize) {
        let Some(worker) = &inner.workers[at] else { return };
        let child = worker.child.clone();
        // Looked at first: whatever a dead worker wrote was written before its death.
        let status = child.try_wait().unwrap_or(Some(ExitStatus::Unknown));
        let is_open = self.hear_channel(inner, at);
        let Some(status) = status else {
            if !is_open {
                // It closed its channel: it is of no use any more, and its death is next.
                self.watch.remove(child.channel());
                let _ = child.signal(Signal::KILL);
            }
            return;
        };
        self.watch.remove(child.channel());
        self.watch.remove(&child);
        self.read_worker(inner, at);
        if let Some(worker) = inner.workers[at].take() {
            self.bury(inner, Place(at), worker, status);
        }
    }

    /// Takes all messages of a worker; false when no more will come.
    pub(super) fn hear_channel(&self, inner: &mut Inner, at: usize) -> bool {
        loop {
            let Some(worker) = &inner.workers[at] else { return false };
            match worker.child.channel().try_receive() {
                Ok(Some(message)) => self.on_message(inner, at, message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // A result's descriptors, and no room for them here.
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                    let why = format!("the result could not be received: {error}");
                    if let Some(worker) = &mut inner.workers[at] {
                        worker.fds.push_back(Err(why));
                    }
                }
                Ok(None) | Err(_) => return false,
            }
        }
    }

    fn on_message(&self, inner: &mut Inner, at: usize, message: Message) {
        let Some(worker) = &mut inner.workers[at] else { return };
        match message.tag {
            tag::READY => {
                inner.told.events.push(PoolEvent::WorkerReady { pid: worker.child.pid() });
                inner.unfit = 0;
                self.handle(inner, Event::Ready(Place(at)));
            }
            tag::UNFIT => {
                if let Ok(why) = decode_unfit(message.payload) {
                    inner.why = Some(why);
                    self.handle(inner, Event::Broken);
                }
            }
            tag::RESULT_FDS => worker.fds.push_back(Ok(message.payload.fds)),
            tag::LOG => {
                let pid = worker.child.pid();
                self.on_log_message(inner, pid, message.payload.head);
            }
            tag::NEED_FDS => self.send_fds(inner, at, &message.payload.head),
            tag::NEED_FUNCTION => {
                let id = message.payload.head.try_into().map(|id| FunctionId(u64::from_le_bytes(id)));
                let name = id.ok().and_then(|id| inner.names.get(&id)).map_or(&[][..], Vec::as_slice);
                // Without it the task fails there; a worker that is gone needs none.
                if worker.child.channel().send(tag::FUNCTION, name, &[]).is_err() {
                    let _ = worker.child.channel().send(tag::FUNCTION, &[], &[]);
                }
            }
            process::RETURNED..=process::STACK_OVERFLOW => {
                // A malformed one says nothing.
                let _ = worker.last_words.hear(message);
            }
            _ => {}
        }
    }

    /// A worker logged something: the position of its task, and what.
    fn on_log_message(&self, inner: &mut Inner, pid: u32, mut record: Vec<u8>) {
        let Some(position) = record.split_first_chunk().map(|(position, _)| u64::from_le_bytes(*position)) else {
            return;
        };
        record.drain(..8);
        let is_its = |task: &Task| matches!(task.at, At::Out { position: at, .. } if at == position);
        let task = inner.tasks.iter().find(|(_, task)| is_its(task)).map(|(_, task)| task.call);
        let on_log = task.and_then(|call| inner.calls.get(call)).and_then(|call| call.settings.on_log.clone());
        lock(&self.logs).push_back(Logged { pid, record, on_log });
        self.has_logs.store(true, Ordering::Release);
        inner.told.logs = true;
    }

    /// The worker needs the descriptors of the argument of the task that it has.
    fn send_fds(&self, inner: &mut Inner, at: usize, position: &[u8]) {
        use std::os::fd::AsFd;
        let position = position.try_into().map(u64::from_le_bytes).ok();
        let task = inner
            .tasks
            .iter()
            .find(|(_, task)| matches!(task.at, At::Out { position: at, .. } if Some(at) == position));
        let fds: Vec<_> = task.iter().flat_map(|(_, task)| task.fds.iter().map(AsFd::as_fd)).collect();
        if let Some(worker) = &inner.workers[at] {
            // Without them the task fails there; a worker that is gone needs none.
            if worker.child.channel().send(tag::FDS, &[], &fds).is_err() {
                let _ = worker.child.channel().send(tag::FDS, &[], &[]);
            }
        }
    }

    /// A worker is dead, and all that it wrote was read.
    fn bury(&self, inner: &mut Inner, place: Place, mut worker: Worker, status: ExitStatus) {
        worker.last_words.status = status;
        let (pid, ended) = (worker.child.pid(), (&worker.last_words).into());
        inner.told.events.push(PoolEvent::WorkerEnded { pid, ended });
        self.board.lookers().leave(worker.number);
        // It may have been woken for a task, and not have taken it.
        self.board.sleepers().rouse();
        let held = self.held(inner, &worker).and_then(|(id, position)| self.unfinished(inner, id, position, &worker));
        if worker.is_initialising() && self.settings.initializer.is_some() {
            inner.unfit += 1;
        }
        inner.why = inner.why.take().or(Some(Why::Died((&worker.last_words).into())));
        inner.lost += u64::from(status.exit_code() != Some(0));
        self.handle(inner, Event::Died(place, held));
        if inner.unfit >= UNFIT_LIMIT {
            inner.why = Some(Why::Died((&worker.last_words).into()));
            self.handle(inner, Event::Broken);
        }
    }

    /// The task that a dead worker had taken and not finished.
    fn held(&self, inner: &Inner, worker: &Worker) -> Option<(TaskId, u64)> {
        inner.slots.iter().flatten().find_map(|id| match inner.tasks.get(id.0)?.at {
            At::Out { slot, position, .. } => {
                (self.board.table().holder(slot, position) == Some(worker.number)).then_some((*id, position))
            }
            At::Waiting(_) => None,
        })
    }

    /// Takes such a task off the board and says how it stood; `None` when that was its end.
    fn unfinished(&self, inner: &mut Inner, id: TaskId, position: u64, worker: &Worker) -> Option<(TaskId, Held)> {
        self.take_off(inner, id, 0);
        let task = inner.tasks.get_mut(id.0)?;
        let doom = worker.doom.filter(|doom| doom.position == Some(position)).map(|Doom { cause, .. }| cause);
        if worker.reading != Some(id) && doom.is_none() {
            return Some((id, Held::NotBegun));
        }
        let stop = inner.calls.get(task.call).and_then(|call| call.stop);
        if let Some(stop) = stop.filter(|_| doom.is_some_and(|cause| cause != Cause::OutOfMemory)) {
            self.remove(inner, id, &stop_end(stop));
            self.handle(inner, Event::Ended(id));
            return None;
        }
        let is_same = task.lost_at == Some(task.done);
        task.lost_at = Some(task.done);
        task.loss = Some(match (doom, &worker.last_words.outcome) {
            (Some(Cause::TimedOut), _) => TaskEnd::TimedOut,
            (Some(Cause::OutOfMemory), _) => TaskEnd::OutOfMemory,
            (Some(Cause::Cancelled), _) => TaskEnd::Cancelled,
            (None, Some(Outcome::Panicked(panic))) => TaskEnd::Panicked(panic.clone()),
            (None, _) => TaskEnd::WorkerLost((&worker.last_words).into()),
        });
        let may_retry = !matches!(doom, Some(Cause::TimedOut | Cause::Cancelled));
        Some((id, Held::Running { is_same, may_retry }))
    }

    /// Ends all workers; those that have not ended after a while, by force.
    pub(super) fn terminate(&self) {
        self.with(|inner| {
            self.handle(inner, Event::Terminated);
            inner.set_timer(Instant::now() + GRACE, Timer::Kill);
            inner.told.driver = true;
        });
    }

    /// Ends all workers by force.
    pub(super) fn kill_all(&self) {
        self.with(|inner| self.fire(inner, Timer::Kill));
    }

    /// See [`Pool::resize`](super::Pool::resize).
    pub(super) fn resize(&self, workers: usize) {
        self.with(|inner| {
            while inner.workers.len() < workers {
                inner.workers.push(None);
            }
            self.handle(inner, Event::Resized(workers));
            inner.told.driver = true;
        });
    }
}

impl Inner {
    fn position(&self, key: u64) -> Option<usize> {
        self.workers.iter().position(|worker| worker.as_ref().is_some_and(|worker| worker.key == key))
    }
}

/// Whether a worker may start a little later: the system was out of something.
fn is_passing(error: &StartError) -> bool {
    let StartError::Os { source, .. } = error else { return matches!(error, StartError::Forkserver { .. }) };
    matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

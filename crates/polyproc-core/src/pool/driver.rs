//! Acts for the scheduler: one thread per pool that hears the workers and sees them die.
//!
//! Everybody who brings an event holds the state's lock, lets the scheduler decide, and carries its actions out before the
//! lock is released; so a submitter hands a task to an idle worker itself. A worker holds one task at most and reads it
//! before it answers, so sending never waits. What a task's end calls is called after the lock is released.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::TaskEnd;
use super::handle::PoolError;
use super::scheduler::{Action, Event, Loss, Scheduler, Slot, TaskId};
use super::task::{decode_outcome, send_task, tag};
use crate::conn::{Message, is_peer_gone};
use crate::deadline::Deadline;
use crate::frame::Payload;
use crate::prim::Ordering;
use crate::process::{
    Child, Ending, ExitStatus, Outcome, Settings, Signal, StartError, StartMethod, State, lock, start_worker,
};
use crate::sys::signal;
use crate::sys::watch::{Bell, Watch};

/// Called with a task's end.
pub(super) type Done = Box<dyn FnOnce(TaskEnd) + Send>;
/// Tasks that have ended, to be told so once the lock is released.
type Ended = Vec<(Done, TaskEnd)>;

/// How long workers have between `SIGTERM` and `SIGKILL` when a pool is terminated.
const GRACE: Duration = Duration::from_secs(1);
const BELL: u64 = 0;

/// A task that has not ended.
struct Task {
    done: Done,
    /// What to send, until it is sent.
    order: Option<(Vec<u8>, Payload)>,
    /// What the worker answered.
    outcome: Option<Outcome>,
}

/// A worker and the keys that its descriptors are watched by; a replacement gets new ones.
struct Worker {
    child: Child,
    key: u64,
    /// What it said last, apart from answers: a stack overflow, or a panic where panics abort.
    last_words: Ending,
    /// The task that it was given last.
    held: Option<TaskId>,
}

struct Inner {
    scheduler: Scheduler,
    tasks: HashMap<TaskId, Task>,
    next_task: u64,
    workers: Vec<Option<Worker>>,
    next_key: u64,
    /// Why the last worker that did not start did not.
    start_error: Option<StartError>,
    kill_at: Deadline,
}

/// The shared state of a pool's handle and its thread.
pub(super) struct Driver {
    inner: Mutex<Inner>,
    watch: Watch,
    bell: Bell,
    method: StartMethod,
    /// The process that made it: in a copy of that process there is no thread behind it.
    pid: u32,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Driver {
    pub(super) fn new(workers: usize, method: StartMethod) -> Result<Arc<Self>, PoolError> {
        let inner = Inner {
            scheduler: Scheduler::new(workers),
            tasks: HashMap::new(),
            next_task: 0,
            workers: (0..workers).map(|_| None).collect(),
            next_key: BELL + 1,
            start_error: None,
            kill_at: Deadline::NEVER,
        };
        let (watch, bell) = Watch::new().and_then(|watch| Ok((watch, Bell::new()?))).map_err(PoolError::Os)?;
        watch.add(&bell, BELL).map_err(PoolError::Os)?;
        let driver = Self { inner: Mutex::new(inner), watch, bell, method, pid: std::process::id() };
        let mut inner = lock(&driver.inner);
        for at in 0..workers {
            if let Err(error) = driver.start(&mut inner, Slot(at)) {
                inner.kill_all();
                return Err(error.into());
            }
        }
        drop(inner);
        Ok(Arc::new(driver))
    }

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
            lock(&self.inner).kill_all();
        })
    }

    /// Whether this process has the thread behind it.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    pub(super) fn submit(&self, function: Vec<u8>, input: Payload, done: Done) {
        if !self.is_ours() {
            return done(TaskEnd::Terminated);
        }
        self.with(|inner, ended| {
            inner.next_task += 1;
            let task = TaskId(inner.next_task);
            inner.tasks.insert(task, Task { done, order: Some((function, input)), outcome: None });
            self.handle(inner, Event::Submitted(task), ended);
        });
    }

    pub(super) fn close(&self) {
        if self.is_ours() {
            self.with(|inner, ended| self.handle(inner, Event::Closed, ended));
            self.bell.ring();
        }
    }

    pub(super) fn terminate(&self) {
        if self.is_ours() {
            self.with(|inner, ended| {
                inner.kill_at = Deadline::after(GRACE);
                self.handle(inner, Event::Terminated, ended);
            });
            self.bell.ring();
        }
    }

    /// Runs `f` with the state, then tells the tasks that have ended.
    fn with<T>(&self, f: impl FnOnce(&mut Inner, &mut Ended) -> T) -> T {
        let mut ended = Vec::new();
        let result = f(&mut lock(&self.inner), &mut ended);
        for (done, end) in ended {
            done(end);
        }
        result
    }

    fn run(&self) {
        signal::block_all();
        let mut keys = Vec::new();
        let mut kill_at = Deadline::NEVER;
        loop {
            // Fails for a descriptor that is no epoll only.
            self.watch.wait(&mut keys, kill_at).expect("an epoll descriptor can be waited for");
            let over = self.with(|inner, ended| {
                if inner.kill_at.has_passed() {
                    inner.kill_all();
                    inner.kill_at = Deadline::NEVER;
                }
                for &key in &keys {
                    if key == BELL {
                        self.bell.answer();
                    } else if let Some(at) = inner.position(key) {
                        self.hear(inner, Slot(at), ended);
                    }
                }
                kill_at = inner.kill_at;
                inner.scheduler.is_over()
            });
            if over {
                return;
            }
        }
    }

    /// Reads what a worker sent and looks whether it lives.
    fn hear(&self, inner: &mut Inner, slot: Slot, ended: &mut Ended) {
        // Looked at first: whatever a dead worker sent was sent before its death.
        let Some(worker) = &inner.workers[slot.0] else { return };
        let child = worker.child.clone();
        let status = child.try_wait().unwrap_or(Some(ExitStatus::Unknown));
        if status.is_some() {
            self.handle(inner, Event::Doomed(slot), ended);
        }
        loop {
            match child.channel().try_receive() {
                Ok(Some(message)) => self.on_message(inner, slot, message, ended),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The answer came with a descriptor for which there is no room: the task has ended, without a result.
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                    let why = format!("the result could not be received: {error}");
                    let Some(held) = inner.workers[slot.0].as_ref().and_then(|worker| worker.held) else { break };
                    self.finish(inner, slot, held, Outcome::Refused(why), ended);
                }
                // It closed its channel or writes nonsense: it is of no use any more, and its death is next.
                Ok(None) | Err(_) if status.is_none() => {
                    self.watch.remove(child.channel());
                    let _ = child.signal(Signal::KILL);
                    self.handle(inner, Event::Doomed(slot), ended);
                    return;
                }
                Ok(None) | Err(_) => break,
            }
        }
        if let (Some(status), Some(worker)) = (status, &mut inner.workers[slot.0]) {
            self.watch.remove(child.channel());
            self.watch.remove(&child);
            worker.last_words.status = status;
            self.handle(inner, Event::Died(slot), ended);
        }
    }

    /// The worker is done with the task, and this came of it.
    fn finish(&self, inner: &mut Inner, slot: Slot, id: TaskId, outcome: Outcome, ended: &mut Ended) {
        if let Some(task) = inner.tasks.get_mut(&id) {
            task.outcome = Some(outcome);
        }
        self.handle(inner, Event::Finished(slot, id), ended);
    }

    fn on_message(&self, inner: &mut Inner, slot: Slot, message: Message, ended: &mut Ended) {
        use crate::process::outcome::tag as process;
        match message.tag {
            tag::READY => self.handle(inner, Event::Ready(slot), ended),
            process::RETURNED..=process::STACK_OVERFLOW => {
                if let Some(worker) = &mut inner.workers[slot.0] {
                    // A malformed one says nothing.
                    let _ = worker.last_words.hear(message);
                }
            }
            _ => {
                let Ok((task, outcome)) = decode_outcome(message) else { return };
                self.finish(inner, slot, TaskId(task), outcome, ended);
            }
        }
    }

    /// Lets the scheduler decide, and does it.
    fn handle(&self, inner: &mut Inner, event: Event, ended: &mut Ended) {
        let mut events = vec![event];
        let mut actions = Vec::new();
        while let Some(event) = events.pop() {
            inner.scheduler.on(event, &mut actions);
            for action in actions.drain(..) {
                match action {
                    Action::Assign(slot, task) => events.extend(inner.assign(slot, task)),
                    Action::Complete(task) => inner.complete(task, ended),
                    Action::Fail(task, loss) => inner.fail(task, loss, ended),
                    Action::Start(slot) => {
                        if let Err(error) = self.start(inner, slot) {
                            inner.start_error = Some(error);
                            events.push(Event::NotStarted(slot));
                        }
                    }
                    Action::Retire(slot) => inner.tell(slot, |child| child.channel().send(tag::RETIRE, &[], &[])),
                    Action::Kill(slot) => inner.tell(slot, |child| child.signal(Signal::TERMINATE)),
                }
            }
        }
    }

    fn start(&self, inner: &mut Inner, slot: Slot) -> Result<(), StartError> {
        let child = start_worker(Settings { daemon: true, method: self.method, ..Settings::default() })?;
        let key = inner.next_key;
        inner.next_key += 1;
        let watched = self.watch.add(child.channel(), key).and_then(|()| self.watch.add(&child, key));
        if let Err(source) = watched {
            let _ = child.signal(Signal::KILL);
            return Err(StartError::Os { doing: "watching a worker", source });
        }
        let last_words = Ending::new(ExitStatus::Unknown);
        inner.workers[slot.0] = Some(Worker { child, key, last_words, held: None });
        Ok(())
    }
}

impl Inner {
    fn kill_all(&self) {
        for worker in self.workers.iter().flatten() {
            // One that has ended takes none, which is as good.
            let _ = worker.child.signal(Signal::KILL);
        }
    }

    fn position(&self, key: u64) -> Option<usize> {
        self.workers.iter().position(|worker| worker.as_ref().is_some_and(|worker| worker.key == key))
    }

    /// A worker that cannot be told is dead, or may not be signalled any more, or there is no memory for the message: the
    /// end of its channel ends it in each case.
    fn tell(&self, slot: Slot, say: impl FnOnce(&Child) -> io::Result<()>) {
        if let Some(worker) = &self.workers[slot.0]
            && say(&worker.child).is_err()
        {
            worker.child.channel().shut_down();
        }
    }

    /// Sends the task; the event that follows where that fails.
    fn assign(&mut self, slot: Slot, id: TaskId) -> Option<Event> {
        let task = self.tasks.get_mut(&id)?;
        let worker = self.workers[slot.0].as_mut()?;
        let (function, input) = task.order.take()?;
        worker.held = Some(id);
        match send_task(worker.child.channel(), id.0, &function, &input) {
            Ok(()) => None,
            Err(error) if is_peer_gone(&error) => {
                task.order = Some((function, input));
                Some(Event::NotDelivered(slot, id))
            }
            // No descriptor or memory for it: the task ends, the worker has nothing to do with it.
            Err(error) => {
                task.outcome = Some(Outcome::Refused(format!("the argument could not be sent to a worker: {error}")));
                Some(Event::Finished(slot, id))
            }
        }
    }

    fn complete(&mut self, id: TaskId, ended: &mut Ended) {
        if let Some(task) = self.tasks.remove(&id) {
            let outcome = task.outcome.unwrap_or_else(|| Outcome::Refused("the worker gave no answer".to_owned()));
            ended.push((task.done, TaskEnd::Outcome(outcome)));
        }
    }

    fn fail(&mut self, id: TaskId, loss: Loss, ended: &mut Ended) {
        let Some(task) = self.tasks.remove(&id) else { return };
        let end = match loss {
            Loss::Terminated => TaskEnd::Terminated,
            Loss::NoWorkers => TaskEnd::NoWorkers(self.start_error.take()),
            Loss::WorkerDied(slot) => {
                let last_words = self.workers[slot.0].take().map(|worker| worker.last_words);
                match (task.outcome, last_words.unwrap_or(Ending::new(ExitStatus::Unknown))) {
                    (Some(refused), _) => TaskEnd::Outcome(refused),
                    (None, Ending { outcome: Some(Outcome::Panicked(panic)), .. }) => {
                        TaskEnd::Outcome(Outcome::Panicked(panic))
                    }
                    (None, ending) => TaskEnd::WorkerLost(ending),
                }
            }
        };
        ended.push((task.done, end));
    }
}

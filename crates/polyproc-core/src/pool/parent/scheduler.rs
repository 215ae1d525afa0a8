//! Decides which tasks are on the table, which workers run, and what happens after a death. Pure: no clock, no descriptor,
//! no shared memory.
//!
//! A task is *waiting* (here, ordered by priority, then by submission), *out* (on the table, where workers claim it), or
//! *delayed* (until its next attempt is due). Invariants, tested with arbitrary sequences of events:
//!
//! - a submitted task ends exactly once: by `Ended`, `Fail` or `Dropped`;
//! - no more tasks are out than the table has slots, and no task waits while a slot is free, unless there is no memory for
//!   its argument or the pool is over;
//! - tasks go out in the order of priority, and within a priority in the order of submission;
//! - a death costs the one item that ran, and no other; an item is tried no more often than allowed;
//! - there are as many workers as wanted, unless they fail to start, are retired, or the pool ends; in each case every task
//!   ends.
//!
//! The parent (`driver`) owns one [`Scheduler`], under the lock of its state, and passes each event by `Driver::handle`
//! (`effects`), which carries out the actions in their order before it passes the next event. Some actions demand a
//! later event of the parent; each is named at its action. An event that does not fit the state, for instance a timer
//! for a task that has ended, changes nothing.
//!
//! Besides its own state the scheduler knows nothing of a task but its id, priority and permitted retries. Items,
//! arguments, slots and positions are the parent's.
//!
//! *Urgent tasks.* Workers claim tasks in the order of publication. If a waiting task is more urgent than a published
//! task, the scheduler asks the parent to take the less urgent ones back ([`Action::MakeWay`]), and publishes in the
//! right order after that.
//!
//! *Lack of memory.* When the parent reports [`SchedulerEvent::Full`], nothing is published until a task ends or
//! [`SchedulerEvent::Room`] arrives. The task that found no memory stays the first one of its priority, so that small
//! tasks do not overtake it for ever.
//!
//! *Workers.* The workers have places from 0 on. A place that loses its worker gets another one while it is wanted.
//! Starts that fail are repeated, and workers that die before they are ready are replaced, up to limits; deaths by
//! signals from outside have no limit. When a limit is reached, the pool is over: all tasks fail, all workers are
//! killed, and later tasks fail at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

pub(crate) use super::event::{Action, Blame, Held, Loss, Pace, Place, Priority, RetryHope, SchedulerEvent, TaskId};

/// Where a task is. A task without a stage is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskStage {
    /// Here, for a free slot; in `waiting`.
    Waiting,
    /// On the table, or held by a worker.
    Out,
    /// Waits for [`SchedulerEvent::Due`], or for the answer to [`Action::Lose`].
    Delayed,
}

/// A task that has not ended.
#[derive(Debug, Clone, Copy)]
struct QueuedTask {
    /// Changes only with the counts of [`Scheduler`].
    at: TaskStage,
    /// Does not change.
    priority: Priority,
    /// How many times each of its items may be retried.
    retries: u32,
    /// Number of attempts at the current item that were lost with a worker.
    attempts: u32,
    /// The number of its latest entry in `waiting`.
    wait: u64,
}

impl QueuedTask {
    /// Creates a task without attempts and without an entry in `waiting`.
    fn new(at: TaskStage, priority: Priority, retries: u32) -> Self {
        Self { at, priority, retries, attempts: 0, wait: 0 }
    }
}

/// The state of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerSlot {
    /// [`Action::Start`] was issued, and the worker is not ready.
    Starting,
    /// It claims tasks.
    Ready,
    /// Asked to exit, or killed.
    Ending,
    /// Asked to exit, as it was idle for long. Its place stays empty until there are tasks.
    Retiring,
    /// Another attempt to start a worker is pending.
    ///
    /// [`SchedulerEvent::StartDue`] follows.
    Awaited,
    /// The place is empty.
    Gone,
}

impl WorkerSlot {
    /// Returns whether it counts as one of the wanted workers.
    fn counts(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Awaited)
    }
}

/// The phase of the pool's life: goes forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerLife {
    /// Tasks can be submitted.
    Open,
    /// Submitted tasks still run. Workers retire when no task is left.
    Closed,
    /// Every task fails for this reason, and no worker is started.
    Over(Loss),
}

/// Deaths in a row, per worker, by the program's fault and before any worker was ready, after which the pool gives up.
///
/// Workers that are killed from outside do not count.
const STILLBORN_LIMIT: usize = 50;
/// Failed starts in a row, per worker and while no worker is ready, after which the pool gives up: with the delays, about 2 s.
const FAILED_START_LIMIT: u32 = 8;

/// The state of the scheduler. See the module.
///
/// Owned by the parent's state; lives as long as the pool.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Number of tasks that may be out.
    slots: usize,
    /// By [`TaskId`]; `None` once the task has ended.
    tasks: Vec<Option<QueuedTask>>,
    /// The waiting tasks, each with [`QueuedTask::wait`]. An entry with an outdated number is stale, and skipped.
    ///
    /// The most urgent queue comes first. An empty queue stays until it is found first.
    waiting: BTreeMap<Reverse<Priority>, VecDeque<(TaskId, u64)>>,
    /// Number of tasks that have not ended.
    live: usize,
    /// Number of tasks in the stage *waiting*.
    waiting_count: usize,
    /// Number of stale entries in `waiting`.
    passed_over: usize,
    /// The number of the latest entry in `waiting`.
    waits: u64,
    /// The memory budget has no room for the argument of the first waiting task.
    is_full: bool,
    /// Number of tasks that are out, by priority.
    out: BTreeMap<Priority, usize>,
    /// Sum of `out`. At most `slots`.
    out_count: usize,
    /// By [`Place`]. Never shrinks.
    workers: Vec<WorkerSlot>,
    /// The configured number of workers.
    wanted: usize,
    /// Decides whether tasks and workers are accepted.
    phase: WorkerLife,
    /// Deaths in a row before any worker was ready, by the program's fault.
    stillborn: usize,
    /// Deaths in a row before any worker was ready, by signals from outside.
    killed_at_birth: u32,
    /// Failed starts since a worker became ready.
    failed_starts: u32,
}

impl Scheduler {
    /// Creates a scheduler for `workers` workers that are being started, and a table of `slots` tasks.
    pub(crate) fn new(workers: usize, slots: usize) -> Self {
        Self {
            slots,
            tasks: Vec::new(),
            waiting: BTreeMap::new(),
            live: 0,
            waiting_count: 0,
            passed_over: 0,
            waits: 0,
            is_full: false,
            out: BTreeMap::new(),
            out_count: 0,
            workers: vec![WorkerSlot::Starting; workers],
            wanted: workers,
            phase: WorkerLife::Open,
            stillborn: 0,
            killed_at_birth: 0,
            failed_starts: 0,
        }
    }

    /// Returns whether the pool has ended: no worker is left, and none will be started.
    pub(crate) fn is_over(&self) -> bool {
        self.phase != WorkerLife::Open && self.is_deserted()
    }

    /// Returns whether tasks can be submitted.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == WorkerLife::Open
    }

    /// Returns the number of tasks that wait to go out.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting_count
    }

    /// Returns the wanted number of workers.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Returns whether no worker runs, starts or is awaited.
    fn is_deserted(&self) -> bool {
        self.workers.iter().all(|worker| *worker == WorkerSlot::Gone)
    }

    /// Handles `event`. Appends the actions that follow from it to `actions`.
    ///
    /// The only function that changes the state. Afterwards no task waits while there is a slot, except for lack of
    /// memory, and between [`Action::MakeWay`] and [`SchedulerEvent::WayMade`].
    ///
    /// # Panics
    /// If a place is not below the largest wanted number of workers so far.
    pub(crate) fn on(&mut self, event: SchedulerEvent, actions: &mut Vec<Action>) {
        match event {
            SchedulerEvent::Submitted(task, priority, retries) => return self.submit(task, priority, retries, actions),
            SchedulerEvent::Resubmitted(task, priority, retries) => match self.phase {
                WorkerLife::Over(loss) => actions.push(Action::Fail(task, loss)),
                WorkerLife::Open | WorkerLife::Closed => {
                    self.add(task, QueuedTask::new(TaskStage::Delayed, priority, retries))
                }
            },
            SchedulerEvent::Ended(task) => {
                self.end(task);
                self.is_full = false;
            }
            SchedulerEvent::Withdrawn(task) => {
                self.not_out(task);
                return self.wait(task, true);
            }
            SchedulerEvent::Full(task) => {
                self.not_out(task);
                self.wait(task, true);
                self.is_full = true;
            }
            SchedulerEvent::Room => self.is_full = false,
            SchedulerEvent::WayMade => {}
            SchedulerEvent::Dropped(task) => self.end(task),
            SchedulerEvent::Requeued(task) => {
                if let Some(Some(task)) = self.tasks.get_mut(task.0) {
                    task.attempts = 0;
                }
                self.wait_again(task, actions);
            }
            SchedulerEvent::Due(task) => {
                if matches!(self.tasks.get(task.0), Some(Some(QueuedTask { at: TaskStage::Delayed, .. }))) {
                    self.wait_again(task, actions);
                }
            }
            SchedulerEvent::Ready(place) => {
                if self.workers[place.0] == WorkerSlot::Starting {
                    self.workers[place.0] = WorkerSlot::Ready;
                }
                (self.stillborn, self.killed_at_birth, self.failed_starts) = (0, 0, 0);
            }
            SchedulerEvent::Died(place, blame, held) => self.on_death(place, blame, held, actions),
            SchedulerEvent::NotStarted(place, hope) => self.on_failed_start(place, hope, actions),
            SchedulerEvent::StartDue(place) => {
                if self.workers[place.0] == WorkerSlot::Awaited {
                    self.workers[place.0] = WorkerSlot::Gone;
                    self.start_at(place, actions);
                }
            }
            SchedulerEvent::Idle(place) => {
                if self.phase == WorkerLife::Open && self.workers[place.0] == WorkerSlot::Ready && self.live == 0 {
                    self.workers[place.0] = WorkerSlot::Retiring;
                    actions.push(Action::Retire(place));
                }
            }
            SchedulerEvent::Resized(wanted) => self.resize(wanted, actions),
            SchedulerEvent::Closed => {
                if self.phase == WorkerLife::Open {
                    self.phase = WorkerLife::Closed;
                }
            }
            SchedulerEvent::Terminated => self.give_up(Loss::Terminated, actions),
            SchedulerEvent::Broken => self.give_up(Loss::NoWorkers, actions),
        }
        self.publish(actions);
        self.retire_when_closed(actions);
    }

    /// Accepts a new task, or fails it because the pool is not open. The first task after a quiet time also fills empty
    /// places.
    fn submit(&mut self, task: TaskId, priority: Priority, retries: u32, actions: &mut Vec<Action>) {
        let loss = match self.phase {
            WorkerLife::Open => None,
            WorkerLife::Closed => Some(Loss::Terminated),
            WorkerLife::Over(loss) => Some(loss),
        };
        if let Some(loss) = loss {
            return actions.push(Action::Fail(task, loss));
        }
        self.add(task, QueuedTask::new(TaskStage::Waiting, priority, retries));
        self.wait(task, false);
        if self.live == 1 {
            self.restaff(actions);
        }
        self.publish_first(priority, actions);
    }

    /// Publishes waiting tasks after one of this priority was added.
    ///
    /// Otherwise asks the parent to take back less urgent tasks; it publishes after [`SchedulerEvent::WayMade`].
    fn publish_first(&mut self, priority: Priority, actions: &mut Vec<Action>) {
        // Workers would claim less urgent tasks that are on the table first.
        if self.out.range(..priority).any(|(_, count)| *count > 0) {
            actions.push(Action::MakeWay(priority));
        } else {
            self.publish(actions);
        }
    }

    /// Adds a task whose stage is set. The caller adds a waiting one to its queue.
    fn add(&mut self, id: TaskId, task: QueuedTask) {
        if self.tasks.len() <= id.0 {
            self.tasks.resize(id.0 + 1, None);
        }
        self.tasks[id.0] = Some(task);
        self.live += 1;
    }

    /// Adds a task to the queue of its priority. Its earlier entry, if there is one, becomes stale.
    fn wait(&mut self, task: TaskId, in_front: bool) {
        let Some(Some(state)) = self.tasks.get_mut(task.0) else { return };
        state.at = TaskStage::Waiting;
        self.waiting_count += 1;
        self.waits += 1;
        state.wait = self.waits;
        let queue = self.waiting.entry(Reverse(state.priority)).or_default();
        let entry = (task, state.wait);
        if in_front { queue.push_front(entry) } else { queue.push_back(entry) }
    }

    /// Lets a task that was out or delayed wait in front of its priority. If the pool is over, fails it.
    fn wait_again(&mut self, task: TaskId, actions: &mut Vec<Action>) {
        match self.phase {
            WorkerLife::Open | WorkerLife::Closed => {
                self.wait(task, true);
                if let Some(Some(state)) = self.tasks.get(task.0) {
                    self.publish_first(state.priority, actions);
                }
            }
            WorkerLife::Over(loss) => {
                self.end(task);
                actions.push(Action::Fail(task, loss));
            }
        }
    }

    /// Takes a task out of the counts of tasks that are out, if it is. The caller sets its next stage.
    fn not_out(&mut self, task: TaskId) {
        let Some(Some(state)) = self.tasks.get(task.0) else { return };
        if state.at == TaskStage::Out {
            self.out_count -= 1;
            if let Some(count) = self.out.get_mut(&state.priority) {
                *count -= 1;
            }
        }
    }

    /// Removes a task.
    fn end(&mut self, task: TaskId) {
        self.not_out(task);
        if let Some(Some(state)) = self.tasks.get_mut(task.0).map(Option::take) {
            self.live -= 1;
            if state.at == TaskStage::Waiting {
                self.waiting_count -= 1;
                self.passed_over += 1;
                self.tidy();
            }
        }
    }

    /// Returns whether an entry of `waiting` is current: the task waits, and this is its latest entry.
    fn waits_so(tasks: &[Option<QueuedTask>], (task, wait): (TaskId, u64)) -> bool {
        matches!(tasks.get(task.0), Some(Some(state)) if state.at == TaskStage::Waiting && state.wait == wait)
    }

    /// Removes stale entries once they outnumber the waiting tasks, so that dropping a task costs amortised constant time.
    fn tidy(&mut self) {
        if self.passed_over > self.waiting_count + 64 {
            let Self { tasks, waiting, .. } = self;
            waiting.values_mut().for_each(|queue| queue.retain(|entry| Self::waits_so(tasks, *entry)));
            self.passed_over = 0;
        }
    }

    /// Publishes waiting tasks, the most urgent first, while there are slots and memory.
    fn publish(&mut self, actions: &mut Vec<Action>) {
        while self.waiting_count > 0 && self.out_count < self.slots && !self.is_full {
            let Some(mut queue) = self.waiting.first_entry() else { return };
            let Some(entry) = queue.get_mut().pop_front() else {
                if self.waiting.len() == 1 {
                    return;
                }
                self.waiting.pop_first();
                continue;
            };
            if !Self::waits_so(&self.tasks, entry) {
                self.passed_over = self.passed_over.saturating_sub(1);
                continue;
            }
            let (task, _) = entry;
            if let Some(Some(state)) = self.tasks.get_mut(task.0) {
                state.at = TaskStage::Out;
                *self.out.entry(state.priority).or_default() += 1;
                self.out_count += 1;
                self.waiting_count -= 1;
                actions.push(Action::Publish(task));
            }
        }
    }

    /// Handles the death of a worker: first its task, then its place. A worker that dies before it is ready is started
    /// again at once if the program is to blame, up to [`STILLBORN_LIMIT`], and after a delay if it was killed from
    /// outside.
    fn on_death(&mut self, place: Place, blame: Blame, held: Option<(TaskId, Held)>, actions: &mut Vec<Action>) {
        let was = std::mem::replace(&mut self.workers[place.0], WorkerSlot::Gone);
        if let Some((task, held)) = held {
            self.on_unfinished(task, held, actions);
        }
        match blame {
            _ if was == WorkerSlot::Retiring && self.live == 0 => {}
            Blame::Program if was == WorkerSlot::Starting => {
                self.stillborn += 1;
                if self.stillborn >= STILLBORN_LIMIT * self.wanted.max(1) {
                    return self.give_up(Loss::NoWorkers, actions);
                }
                self.start_at(place, actions);
            }
            Blame::Outside if was == WorkerSlot::Starting && self.is_wanted(place) => {
                let failures = self.killed_at_birth / self.count_u32();
                self.killed_at_birth = self.killed_at_birth.saturating_add(1);
                self.workers[place.0] = WorkerSlot::Awaited;
                actions.push(Action::StartLater(place, failures, Pace::Fast));
            }
            _ => self.start_at(place, actions),
        }
    }

    /// Decides about the task that a dead worker held. A task that was not begun waits again, in front. Otherwise the
    /// item that ran is delayed for another attempt if that is permitted, and lost if not.
    fn on_unfinished(&mut self, task: TaskId, held: Held, actions: &mut Vec<Action>) {
        let Some(Some(state)) = self.tasks.get_mut(task.0) else { return };
        let Held::Running { is_same, may_retry } = held else {
            self.not_out(task);
            return self.wait_again(task, actions);
        };
        state.attempts = if is_same { state.attempts + 1 } else { 1 };
        let (attempts, retries) = (state.attempts, state.retries);
        self.not_out(task);
        if let Some(Some(state)) = self.tasks.get_mut(task.0) {
            state.at = TaskStage::Delayed;
        }
        match self.phase {
            WorkerLife::Open | WorkerLife::Closed if may_retry && attempts <= retries => {
                actions.push(Action::Delay(task, attempts));
            }
            _ => actions.push(Action::Lose(task)),
        }
    }

    /// Returns whether a worker must be started in `place`.
    ///
    /// The place is empty, and fewer workers than wanted run, start or are awaited. An open pool fills its places even
    /// without tasks.
    fn is_wanted(&self, place: Place) -> bool {
        let needed = match self.phase {
            WorkerLife::Open => true,
            WorkerLife::Closed => self.live > 0,
            WorkerLife::Over(_) => false,
        };
        let staff = self.workers.iter().filter(|worker| worker.counts()).count();
        needed && staff < self.wanted && self.workers[place.0] == WorkerSlot::Gone
    }

    /// Starts a worker in `place` if one is wanted there.
    fn start_at(&mut self, place: Place, actions: &mut Vec<Action>) {
        if self.is_wanted(place) {
            self.workers[place.0] = WorkerSlot::Starting;
            actions.push(Action::Start(place));
        }
    }

    /// Starts workers in empty places, up to the wanted number.
    fn restaff(&mut self, actions: &mut Vec<Action>) {
        for at in 0..self.workers.len() {
            self.start_at(Place(at), actions);
        }
    }

    /// Handles a start that failed. If there is hope, tries again later, unless [`FAILED_START_LIMIT`] is reached while
    /// no worker is ready or ending. Otherwise leaves the place empty, and gives up if all places are.
    fn on_failed_start(&mut self, place: Place, hope: RetryHope, actions: &mut Vec<Action>) {
        self.failed_starts += 1;
        let alone = !self
            .workers
            .iter()
            .any(|worker| matches!(worker, WorkerSlot::Ready | WorkerSlot::Ending | WorkerSlot::Retiring));
        self.workers[place.0] = WorkerSlot::Gone;
        match (self.phase, hope) {
            (WorkerLife::Over(_), _) => {}
            (_, RetryHope::Some) if !alone || self.failed_starts < FAILED_START_LIMIT * self.count_u32() => {
                self.workers[place.0] = WorkerSlot::Awaited;
                actions.push(Action::StartLater(place, self.failed_starts / self.count_u32(), Pace::Slow));
            }
            _ if self.is_deserted() => self.give_up(Loss::NoWorkers, actions),
            _ => {}
        }
    }

    /// Returns the number of places, at least 1: limits and delays count rounds over all places.
    fn count_u32(&self) -> u32 {
        u32::try_from(self.workers.len()).unwrap_or(u32::MAX).max(1)
    }

    /// Changes the wanted number of workers. Retires surplus workers from the last place on, so that low places stay in
    /// use.
    fn resize(&mut self, wanted: usize, actions: &mut Vec<Action>) {
        if self.phase != WorkerLife::Open {
            return;
        }
        self.wanted = wanted;
        if self.workers.len() < wanted {
            self.workers.resize(wanted, WorkerSlot::Gone);
        }
        self.restaff(actions);
        let mut staff = self.workers.iter().filter(|worker| worker.counts()).count();
        for (at, worker) in self.workers.iter_mut().enumerate().rev() {
            if staff > wanted && matches!(worker, WorkerSlot::Starting | WorkerSlot::Ready | WorkerSlot::Awaited) {
                staff -= 1;
                if *worker == WorkerSlot::Awaited {
                    *worker = WorkerSlot::Gone;
                } else {
                    *worker = WorkerSlot::Ending;
                    actions.push(Action::Retire(Place(at)));
                }
            }
        }
    }

    /// Fails every task, and kills every worker.
    ///
    /// Does nothing if the pool is over already. The tasks are forgotten here; events that still come for them change
    /// nothing.
    fn give_up(&mut self, loss: Loss, actions: &mut Vec<Action>) {
        if matches!(self.phase, WorkerLife::Over(_)) {
            return;
        }
        self.phase = WorkerLife::Over(loss);
        for (at, task) in self.tasks.iter_mut().enumerate() {
            if task.take().is_some() {
                actions.push(Action::Fail(TaskId(at), loss));
            }
        }
        self.waiting.clear();
        self.out.clear();
        (self.live, self.waiting_count, self.passed_over, self.out_count) = (0, 0, 0, 0);
        for (at, worker) in self.workers.iter_mut().enumerate() {
            match worker {
                WorkerSlot::Gone => {}
                WorkerSlot::Awaited => *worker = WorkerSlot::Gone,
                WorkerSlot::Starting | WorkerSlot::Ready | WorkerSlot::Ending | WorkerSlot::Retiring => {
                    *worker = WorkerSlot::Ending;
                    actions.push(Action::Kill(Place(at)));
                }
            }
        }
    }

    /// In a closed pool without tasks, retires all workers, and cancels pending attempts to start some.
    fn retire_when_closed(&mut self, actions: &mut Vec<Action>) {
        if self.phase != WorkerLife::Closed || self.live > 0 {
            return;
        }
        for (at, worker) in self.workers.iter_mut().enumerate() {
            match worker {
                WorkerSlot::Starting | WorkerSlot::Ready => {
                    *worker = WorkerSlot::Ending;
                    actions.push(Action::Retire(Place(at)));
                }
                WorkerSlot::Awaited => *worker = WorkerSlot::Gone,
                WorkerSlot::Ending | WorkerSlot::Retiring | WorkerSlot::Gone => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;

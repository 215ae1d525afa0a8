//! Decides which worker runs which task and what a death means. Pure: no clock, no descriptor, no allocation of ids.
//!
//! Invariants, tested below with any order of events:
//! - a task ends exactly once, by `Complete` or by `Fail`;
//! - a worker holds at most one task, and only that one fails when the worker dies;
//! - tasks are assigned in the order of their submission;
//! - while the pool is open, every dead worker is replaced, unless workers keep dying before they are ready.

use std::collections::VecDeque;

/// A task, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TaskId(pub(crate) u64);

/// A worker's place in the pool, kept by its replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) usize);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Submitted(TaskId),
    /// The worker waits for its first task.
    Ready(Slot),
    /// The worker answered.
    Finished(Slot, TaskId),
    /// The worker is dead or useless: it gets no more tasks. What it sent before is still to be seen, then its death.
    Doomed(Slot),
    /// The task never reached the worker, which is dead or about to be.
    NotDelivered(Slot, TaskId),
    /// The worker is gone; all it sent before was seen.
    Died(Slot),
    /// No worker could be started in this place.
    NotStarted(Slot),
    /// No more tasks will be submitted; those that were are run.
    Closed,
    /// All ends now.
    Terminated,
}

/// Why a task fails without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Its worker died.
    WorkerDied(Slot),
    /// Nobody is left to run it: workers do not start, or die before they are ready.
    NoWorkers,
    /// The pool was terminated.
    Terminated,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Assign(Slot, TaskId),
    Complete(TaskId),
    Fail(TaskId, Loss),
    Start(Slot),
    /// Ask the worker to end: it has no task.
    Retire(Slot),
    /// End the worker, whatever it does.
    Kill(Slot),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    Starting,
    Idle,
    Busy(TaskId),
    /// It is dead, but perhaps it finished its task first.
    Doomed(TaskId),
    /// Told to end, or dead without a task.
    Ending,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    Terminated,
}

/// So many deaths in a row before anybody was ready, for each worker, mean that none will ever be. Many, as somebody who
/// kills workers at random kills new ones too.
const STILLBORN_LIMIT: usize = 50;

/// The state. See the module's text.
#[derive(Debug)]
pub(crate) struct Scheduler {
    workers: Vec<Worker>,
    queue: VecDeque<TaskId>,
    phase: Phase,
    stillborn: usize,
}

impl Scheduler {
    /// For `workers` workers that are being started.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers: vec![Worker::Starting; workers], queue: VecDeque::new(), phase: Phase::Open, stillborn: 0 }
    }

    /// No worker is left: the pool is over, if it was closed or broke.
    pub(crate) fn is_over(&self) -> bool {
        self.workers.iter().all(|worker| *worker == Worker::Gone)
    }

    /// What follows from `event`.
    pub(crate) fn on(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Submitted(task) => match self.phase {
                Phase::Open if !self.is_over() => self.queue.push_back(task),
                Phase::Open => actions.push(Action::Fail(task, Loss::NoWorkers)),
                Phase::Closed | Phase::Terminated => actions.push(Action::Fail(task, Loss::Terminated)),
            },
            Event::Ready(slot) => {
                if self.workers[slot.0] == Worker::Starting {
                    self.workers[slot.0] = Worker::Idle;
                    self.stillborn = 0;
                }
            }
            Event::Finished(slot, task) => {
                let then = match self.workers[slot.0] {
                    Worker::Busy(held) if held == task => Some(Worker::Idle),
                    Worker::Doomed(held) if held == task => Some(Worker::Ending),
                    _ => None,
                };
                if let Some(then) = then {
                    self.workers[slot.0] = then;
                    actions.push(Action::Complete(task));
                }
            }
            Event::Doomed(slot) => match self.workers[slot.0] {
                Worker::Busy(task) => self.workers[slot.0] = Worker::Doomed(task),
                Worker::Idle => self.workers[slot.0] = Worker::Ending,
                // Its death counts as that of one that was never ready.
                Worker::Starting | Worker::Doomed(_) | Worker::Ending | Worker::Gone => {}
            },
            Event::NotDelivered(slot, task) => {
                if self.workers[slot.0] == Worker::Busy(task) {
                    self.workers[slot.0] = Worker::Ending;
                    self.queue.push_front(task);
                }
            }
            Event::Died(slot) => self.on_death(slot, actions),
            Event::NotStarted(slot) => {
                self.workers[slot.0] = Worker::Gone;
            }
            Event::Closed => {
                if self.phase == Phase::Open {
                    self.phase = Phase::Closed;
                }
            }
            Event::Terminated => self.terminate(actions),
        }
        self.assign(actions);
        if self.is_over() {
            self.fail_queue(if self.phase == Phase::Open { Loss::NoWorkers } else { Loss::Terminated }, actions);
        }
    }

    fn on_death(&mut self, slot: Slot, actions: &mut Vec<Action>) {
        let was = std::mem::replace(&mut self.workers[slot.0], Worker::Gone);
        match was {
            Worker::Busy(task) | Worker::Doomed(task) => actions.push(Action::Fail(task, Loss::WorkerDied(slot))),
            Worker::Starting => self.stillborn += 1,
            Worker::Idle | Worker::Ending | Worker::Gone => {}
        }
        let needed = match self.phase {
            Phase::Open => true,
            Phase::Closed => !self.queue.is_empty(),
            Phase::Terminated => false,
        };
        if needed && was != Worker::Gone && self.stillborn < STILLBORN_LIMIT * self.workers.len() {
            self.workers[slot.0] = Worker::Starting;
            actions.push(Action::Start(slot));
        }
    }

    fn terminate(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Terminated;
        self.fail_queue(Loss::Terminated, actions);
        for (at, worker) in self.workers.iter_mut().enumerate() {
            match std::mem::replace(worker, Worker::Ending) {
                Worker::Gone => *worker = Worker::Gone,
                Worker::Busy(task) | Worker::Doomed(task) => {
                    actions.push(Action::Fail(task, Loss::Terminated));
                    actions.push(Action::Kill(Slot(at)));
                }
                Worker::Starting | Worker::Idle | Worker::Ending => actions.push(Action::Kill(Slot(at))),
            }
        }
    }

    fn fail_queue(&mut self, loss: Loss, actions: &mut Vec<Action>) {
        actions.extend(self.queue.drain(..).map(|task| Action::Fail(task, loss)));
    }

    fn assign(&mut self, actions: &mut Vec<Action>) {
        for (at, worker) in self.workers.iter_mut().enumerate().filter(|(_, worker)| **worker == Worker::Idle) {
            if let Some(task) = self.queue.pop_front() {
                *worker = Worker::Busy(task);
                actions.push(Action::Assign(Slot(at), task));
            } else if self.phase == Phase::Closed {
                *worker = Worker::Ending;
                actions.push(Action::Retire(Slot(at)));
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn after(scheduler: &mut Scheduler, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        scheduler.on(event, &mut actions);
        actions
    }

    #[test]
    fn a_death_fails_the_task_held_and_no_other() {
        let mut scheduler = Scheduler::new(1);
        assert_eq!(after(&mut scheduler, Event::Submitted(TaskId(1))), []);
        assert_eq!(after(&mut scheduler, Event::Submitted(TaskId(2))), []);
        assert_eq!(after(&mut scheduler, Event::Ready(Slot(0))), [Action::Assign(Slot(0), TaskId(1))]);
        assert_eq!(
            after(&mut scheduler, Event::Died(Slot(0))),
            [Action::Fail(TaskId(1), Loss::WorkerDied(Slot(0))), Action::Start(Slot(0))]
        );
        assert_eq!(after(&mut scheduler, Event::Ready(Slot(0))), [Action::Assign(Slot(0), TaskId(2))]);
        assert_eq!(after(&mut scheduler, Event::Finished(Slot(0), TaskId(2))), [Action::Complete(TaskId(2))]);
    }

    #[test]
    fn workers_that_never_get_ready_break_the_pool() {
        let mut scheduler = Scheduler::new(1);
        after(&mut scheduler, Event::Submitted(TaskId(1)));
        for _ in 1..STILLBORN_LIMIT {
            assert_eq!(after(&mut scheduler, Event::Died(Slot(0))), [Action::Start(Slot(0))]);
        }
        assert_eq!(after(&mut scheduler, Event::Died(Slot(0))), [Action::Fail(TaskId(1), Loss::NoWorkers)]);
        assert_eq!(after(&mut scheduler, Event::Submitted(TaskId(2))), [Action::Fail(TaskId(2), Loss::NoWorkers)]);
    }

    #[test]
    fn closing_runs_what_was_submitted_and_then_ends_the_workers() {
        let mut scheduler = Scheduler::new(1);
        after(&mut scheduler, Event::Ready(Slot(0)));
        after(&mut scheduler, Event::Submitted(TaskId(1)));
        assert_eq!(after(&mut scheduler, Event::Closed), []);
        assert_eq!(
            after(&mut scheduler, Event::Finished(Slot(0), TaskId(1))),
            [Action::Complete(TaskId(1)), Action::Retire(Slot(0))]
        );
        assert_eq!(after(&mut scheduler, Event::Died(Slot(0))), []);
        assert!(scheduler.is_over());
    }

    #[test]
    fn a_dead_worker_gets_no_task_and_an_undelivered_one_goes_to_another() {
        let mut scheduler = Scheduler::new(2);
        after(&mut scheduler, Event::Ready(Slot(0)));
        assert_eq!(after(&mut scheduler, Event::Submitted(TaskId(1))), [Action::Assign(Slot(0), TaskId(1))]);
        // It answered, and is dead: the answer counts, and the next task waits for its replacement.
        assert_eq!(after(&mut scheduler, Event::Submitted(TaskId(2))), []);
        assert_eq!(after(&mut scheduler, Event::Doomed(Slot(0))), []);
        assert_eq!(after(&mut scheduler, Event::Finished(Slot(0), TaskId(1))), [Action::Complete(TaskId(1))]);
        assert_eq!(after(&mut scheduler, Event::Died(Slot(0))), [Action::Start(Slot(0))]);
        // This one dies unseen before the task reaches it.
        assert_eq!(after(&mut scheduler, Event::Ready(Slot(0))), [Action::Assign(Slot(0), TaskId(2))]);
        assert_eq!(after(&mut scheduler, Event::NotDelivered(Slot(0), TaskId(2))), []);
        assert_eq!(after(&mut scheduler, Event::Ready(Slot(1))), [Action::Assign(Slot(1), TaskId(2))]);
        assert_eq!(after(&mut scheduler, Event::Died(Slot(0))), [Action::Start(Slot(0))]);
    }

    /// What may happen next: a number picks a worker and what it does.
    #[derive(Debug, Clone)]
    enum Step {
        Submit,
        Worker(usize, bool),
        StartFails(usize),
        Close,
        Terminate,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => Just(Step::Submit),
            12 => (0..3usize, prop::bool::weighted(0.2)).prop_map(|(at, dies)| Step::Worker(at, dies)),
            1 => (0..3usize).prop_map(Step::StartFails),
            1 => Just(Step::Close),
            1 => Just(Step::Terminate),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// The world around the scheduler: what each living worker was last told.
    #[derive(Default)]
    struct World {
        alive: HashMap<usize, Option<TaskId>>,
        ready: HashSet<usize>,
        submitted: u64,
        ended: HashSet<TaskId>,
        last_assigned: Option<TaskId>,
        retired: HashSet<usize>,
        killed: HashSet<usize>,
    }

    impl World {
        fn apply(&mut self, scheduler: &mut Scheduler, event: Event) {
            for action in after(scheduler, event) {
                match action {
                    Action::Assign(Slot(at), task) => {
                        assert!(
                            self.ready.contains(&at) && !self.retired.contains(&at),
                            "assigned to a worker that waits"
                        );
                        assert_eq!(self.alive.insert(at, Some(task)), Some(None), "one task at a time");
                        assert!(self.last_assigned < Some(task), "in the order of submission");
                        self.last_assigned = Some(task);
                    }
                    Action::Complete(task) | Action::Fail(task, _) => {
                        assert!(self.ended.insert(task), "a task ends once");
                        self.alive.values_mut().filter(|held| **held == Some(task)).for_each(|held| *held = None);
                    }
                    Action::Start(Slot(at)) => {
                        assert_eq!(self.alive.insert(at, None), None, "started in an empty place")
                    }
                    Action::Retire(Slot(at)) => assert!(self.alive.contains_key(&at) && self.retired.insert(at)),
                    Action::Kill(Slot(at)) => {
                        assert!(self.alive.contains_key(&at));
                        self.killed.insert(at);
                    }
                }
            }
        }

        fn die(&mut self, scheduler: &mut Scheduler, at: usize) {
            if self.alive.contains_key(&at) {
                self.ready.remove(&at); // no more tasks from here on
                self.apply(scheduler, Event::Doomed(Slot(at)));
                self.alive.remove(&at);
                self.retired.remove(&at);
                self.killed.remove(&at);
                self.apply(scheduler, Event::Died(Slot(at)));
            }
        }

        fn live(&mut self, scheduler: &mut Scheduler, at: usize) {
            match self.alive.get(&at).copied() {
                None => {}
                Some(_) if self.retired.contains(&at) || self.killed.contains(&at) => self.die(scheduler, at),
                Some(Some(task)) => self.apply(scheduler, Event::Finished(Slot(at), task)),
                Some(None) if self.ready.insert(at) => self.apply(scheduler, Event::Ready(Slot(at))),
                Some(None) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn every_task_ends_exactly_once(steps in steps()) {
            let mut scheduler = Scheduler::new(3);
            let mut world = World { alive: (0..3).map(|at| (at, None)).collect(), ..World::default() };
            for step in steps {
                match step {
                    Step::Submit => {
                        world.submitted += 1;
                        let task = TaskId(world.submitted);
                        world.apply(&mut scheduler, Event::Submitted(task));
                    }
                    Step::Worker(at, true) => world.die(&mut scheduler, at),
                    Step::Worker(at, false) => world.live(&mut scheduler, at),
                    Step::StartFails(at) => {
                        if world.alive.contains_key(&at) && !world.ready.contains(&at) {
                            world.alive.remove(&at);
                            world.retired.remove(&at);
                            world.killed.remove(&at);
                            world.apply(&mut scheduler, Event::NotStarted(Slot(at)));
                        }
                    }
                    Step::Close => world.apply(&mut scheduler, Event::Closed),
                    Step::Terminate => world.apply(&mut scheduler, Event::Terminated),
                }
            }
            // Whatever happened: closed and left alone, the pool comes to its end.
            world.apply(&mut scheduler, Event::Closed);
            for _ in 0..3 * (world.submitted + 2) {
                (0..3).for_each(|at| world.live(&mut scheduler, at));
            }
            prop_assert!(scheduler.is_over());
            prop_assert_eq!(world.ended.len() as u64, world.submitted);
        }
    }
}

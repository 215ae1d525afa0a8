//! Tests of the scheduler with arbitrary sequences of events, against a model of its environment with assertions at each step.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

const SLOTS: usize = 4;

fn after(scheduler: &mut Scheduler, event: SchedulerEvent) -> Vec<Action> {
    let mut actions = Vec::new();
    scheduler.on(event, &mut actions);
    actions
}

const DIED_RUNNING: Held = Held::Running { is_same: false, may_retry: true };

#[test]
fn a_death_costs_the_item_that_ran_and_no_other() {
    let (mut scheduler, task) = (Scheduler::new(1, SLOTS), TaskId(1));
    after(&mut scheduler, SchedulerEvent::Ready(Place(0)));
    assert_eq!(after(&mut scheduler, SchedulerEvent::Submitted(task, 0, 0)), [Action::Publish(task)]);
    let died = SchedulerEvent::Died(Place(0), Blame::Program, Some((task, DIED_RUNNING)));
    assert_eq!(after(&mut scheduler, died), [Action::Lose(task), Action::Start(Place(0))]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Requeued(task)), [Action::Publish(task)]);
    let died = SchedulerEvent::Died(Place(0), Blame::Program, Some((task, Held::NotBegun)));
    assert_eq!(after(&mut scheduler, died), [Action::Publish(task), Action::Start(Place(0))]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Ended(task)), []);
}

#[test]
fn an_item_is_tried_as_often_as_allowed() {
    let (mut scheduler, task) = (Scheduler::new(1, SLOTS), TaskId(0));
    after(&mut scheduler, SchedulerEvent::Submitted(task, 0, 2));
    let again = Held::Running { is_same: true, may_retry: true };
    for (attempt, held) in [(1, DIED_RUNNING), (2, again)] {
        let died = SchedulerEvent::Died(Place(0), Blame::Program, Some((task, held)));
        assert_eq!(after(&mut scheduler, died), [Action::Delay(task, attempt), Action::Start(Place(0))]);
        assert_eq!(after(&mut scheduler, SchedulerEvent::Due(task)), [Action::Publish(task)]);
    }
    let died = SchedulerEvent::Died(Place(0), Blame::Program, Some((task, again)));
    assert_eq!(after(&mut scheduler, died), [Action::Lose(task), Action::Start(Place(0))]);
}

#[test]
fn what_is_urgent_goes_first() {
    let mut scheduler = Scheduler::new(1, SLOTS);
    let (low, high) = (TaskId(0), TaskId(1));
    assert_eq!(after(&mut scheduler, SchedulerEvent::Submitted(low, 0, 0)), [Action::Publish(low)]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Submitted(high, 5, 0)), [Action::MakeWay(5)]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Withdrawn(low)), []);
    assert_eq!(after(&mut scheduler, SchedulerEvent::WayMade), [Action::Publish(high), Action::Publish(low)]);
}

#[test]
fn workers_that_never_get_ready_break_the_pool() {
    let (mut scheduler, task) = (Scheduler::new(1, SLOTS), TaskId(0));
    after(&mut scheduler, SchedulerEvent::Submitted(task, 0, 0));
    for _ in 1..STILLBORN_LIMIT {
        assert_eq!(
            after(&mut scheduler, SchedulerEvent::Died(Place(0), Blame::Program, None)),
            [Action::Start(Place(0))]
        );
    }
    assert_eq!(
        after(&mut scheduler, SchedulerEvent::Died(Place(0), Blame::Program, None)),
        [Action::Fail(task, Loss::NoWorkers)]
    );
    assert!(scheduler.is_over());
    assert_eq!(after(&mut scheduler, SchedulerEvent::Submitted(task, 0, 0)), [Action::Fail(task, Loss::NoWorkers)]);
}

#[test]
fn workers_killed_by_others_before_they_are_ready_are_started_again_for_ever() {
    let (mut scheduler, task) = (Scheduler::new(1, SLOTS), TaskId(0));
    after(&mut scheduler, SchedulerEvent::Submitted(task, 0, 0));
    for time in 0..1000 {
        let died = SchedulerEvent::Died(Place(0), Blame::Outside, None);
        assert_eq!(after(&mut scheduler, died), [Action::StartLater(Place(0), time, Pace::Fast)], "later each time");
        assert_eq!(after(&mut scheduler, SchedulerEvent::StartDue(Place(0))), [Action::Start(Place(0))]);
    }
    assert_eq!(after(&mut scheduler, SchedulerEvent::Ready(Place(0))), []);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Died(Place(0), Blame::Outside, None)), [Action::Start(Place(0))]);
}

#[test]
fn a_worker_that_cannot_start_now_may_start_later() {
    let (mut scheduler, task) = (Scheduler::new(1, SLOTS), TaskId(0));
    after(&mut scheduler, SchedulerEvent::Submitted(task, 0, 0));
    let failed = SchedulerEvent::NotStarted(Place(0), RetryHope::Some);
    assert_eq!(after(&mut scheduler, failed), [Action::StartLater(Place(0), 1, Pace::Slow)]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::StartDue(Place(0))), [Action::Start(Place(0))]);
    let failed = SchedulerEvent::NotStarted(Place(0), RetryHope::None);
    assert_eq!(after(&mut scheduler, failed), [Action::Fail(task, Loss::NoWorkers)]);
}

#[test]
fn the_number_of_workers_follows_what_is_wanted() {
    let mut scheduler = Scheduler::new(2, SLOTS);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Resized(3)), [Action::Start(Place(2))]);
    (0..3).for_each(|at| _ = after(&mut scheduler, SchedulerEvent::Ready(Place(at))));
    assert_eq!(after(&mut scheduler, SchedulerEvent::Resized(1)), [Action::Retire(Place(2)), Action::Retire(Place(1))]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Died(Place(2), Blame::Program, None)), []);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Idle(Place(0))), [Action::Retire(Place(0))]);
    assert_eq!(
        after(&mut scheduler, SchedulerEvent::Died(Place(0), Blame::Program, None)),
        [],
        "until there are tasks"
    );
    let task = SchedulerEvent::Submitted(TaskId(0), 0, 0);
    assert_eq!(after(&mut scheduler, task), [Action::Start(Place(0)), Action::Publish(TaskId(0))]);
    // A task that comes while the worker retires is run by its replacement.
    after(&mut scheduler, SchedulerEvent::Ready(Place(0)));
    after(&mut scheduler, SchedulerEvent::Ended(TaskId(0)));
    assert_eq!(after(&mut scheduler, SchedulerEvent::Idle(Place(0))), [Action::Retire(Place(0))]);
    assert_eq!(after(&mut scheduler, task), [Action::Start(Place(2)), Action::Publish(TaskId(0))]);
    assert_eq!(after(&mut scheduler, SchedulerEvent::Died(Place(0), Blame::Program, None)), []);
}

/// A step of the test; numbers select a worker or a task.
#[derive(Debug, Clone)]
enum Step {
    Submit { priority: Priority, retries: u32, items: u32 },
    Claim(usize),
    Finish(usize),
    Die(usize, bool),
    Ready(usize),
    NotStarted(usize, bool),
    Due(usize),
    Drop(usize),
    Idle(usize),
    Resize(usize),
    Close,
    Terminate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = || 0..4usize;
    let step = prop_oneof![
        8 => (-1..2i32, 0..3u32, 1..4u32).prop_map(|(priority, retries, items)| Step::Submit { priority, retries, items }),
        8 => at().prop_map(Step::Claim),
        6 => at().prop_map(Step::Finish),
        3 => (at(), any::<bool>()).prop_map(|(at, began)| Step::Die(at, began)),
        6 => at().prop_map(Step::Ready),
        1 => (at(), prop::bool::weighted(0.8)).prop_map(|(at, hope)| Step::NotStarted(at, hope)),
        3 => (0..8usize).prop_map(Step::Due),
        1 => (0..8usize).prop_map(Step::Drop),
        1 => at().prop_map(Step::Idle),
        1 => (1..5usize).prop_map(Step::Resize),
        1 => Just(Step::Close),
        1 => Just(Step::Terminate),
    ];
    prop::collection::vec(step, 0..200)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    Out,
    Claimed,
    Delayed,
    Ended,
}

#[derive(Debug)]
struct Job {
    priority: Priority,
    retries: u32,
    items: u32,
    attempts: u32,
    was_requeued: bool,
    status: Status,
}

#[derive(Debug, Default)]
struct Staff {
    ready: bool,
    told_to_end: bool,
    held: Option<TaskId>,
}

/// A model of the scheduler's environment. Tasks are numbered in the order of submission.
struct World {
    scheduler: Scheduler,
    jobs: BTreeMap<TaskId, Job>,
    /// The tasks on the table, in order.
    table: Vec<TaskId>,
    staff: HashMap<usize, Staff>,
    awaited: Vec<usize>,
    is_open: bool,
}

impl World {
    fn new(workers: usize) -> Self {
        Self {
            scheduler: Scheduler::new(workers, SLOTS),
            jobs: BTreeMap::new(),
            table: Vec::new(),
            staff: (0..workers).map(|at| (at, Staff::default())).collect(),
            awaited: Vec::new(),
            is_open: true,
        }
    }

    fn set(&mut self, task: TaskId, from: &[Status], to: Status) {
        let job = self.jobs.get_mut(&task).expect("a task that was submitted");
        assert!(from.contains(&job.status), "{task:?} is {:?}, not {from:?}", job.status);
        job.status = to;
        self.table.retain(|out| *out != task);
        if to == Status::Out {
            self.table.push(task);
        }
    }

    fn with_status(&self, status: Status) -> Vec<TaskId> {
        self.jobs.iter().filter(|(_, job)| job.status == status).map(|(task, _)| *task).collect()
    }

    /// Carries out the actions that follow from `event`. Events that these cause come after all of them, as in the driver.
    fn on(&mut self, event: SchedulerEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if let SchedulerEvent::Requeued(task) = event {
                self.set(task, &[Status::Delayed], Status::Waiting);
            }
            for action in after(&mut self.scheduler, event) {
                self.act(action, &mut events);
            }
        }
        let out = self.with_status(Status::Out).len() + self.with_status(Status::Claimed).len();
        assert!(out <= SLOTS, "{out} are out");
    }

    fn act(&mut self, action: Action, events: &mut VecDeque<SchedulerEvent>) {
        use Status::{Claimed, Delayed, Ended, Out, Waiting};
        match action {
            Action::Publish(task) => {
                self.set(task, &[Waiting], Out);
                let job = &self.jobs[&task];
                for waiting in self.with_status(Waiting) {
                    let other = &self.jobs[&waiting];
                    assert!(other.priority <= job.priority, "{waiting:?} is more urgent than {task:?}");
                    assert!(
                        other.priority < job.priority || waiting > task || job.was_requeued || other.was_requeued,
                        "{waiting:?} was submitted before {task:?}"
                    );
                }
            }
            Action::MakeWay(priority) => {
                for task in self.table.clone().into_iter().rev() {
                    if self.jobs[&task].priority < priority {
                        self.set(task, &[Out], Waiting);
                        assert_eq!(after(&mut self.scheduler, SchedulerEvent::Withdrawn(task)), []);
                    }
                }
                events.push_back(SchedulerEvent::WayMade);
            }
            Action::Fail(task, _) => self.set(task, &[Waiting, Out, Claimed, Delayed], Ended),
            Action::Lose(task) => {
                let job = self.jobs.get_mut(&task).expect("a task");
                job.items -= 1;
                job.attempts = 0;
                let is_last = job.items == 0;
                self.set(task, &[Delayed], if is_last { Ended } else { Delayed });
                events.push_back(if is_last { SchedulerEvent::Ended(task) } else { SchedulerEvent::Requeued(task) });
            }
            Action::Delay(task, attempt) => {
                let job = self.jobs.get_mut(&task).expect("a task");
                assert_eq!(job.status, Delayed);
                job.attempts += 1;
                assert_eq!(attempt, job.attempts);
                assert!(attempt <= job.retries, "tried more often than allowed");
            }
            Action::Start(Place(at)) => {
                assert!(self.staff.insert(at, Staff::default()).is_none(), "started in an empty place");
            }
            Action::StartLater(Place(at), ..) => self.awaited.push(at),
            Action::Retire(Place(at)) | Action::Kill(Place(at)) => {
                self.staff.get_mut(&at).expect("somebody to be told").told_to_end = true;
            }
        }
    }

    fn claim(&mut self, at: usize) {
        let first = self.table.first().copied();
        if let (Some(staff), Some(task)) = (self.staff.get_mut(&at), first)
            && staff.ready
            && !staff.told_to_end
            && staff.held.is_none()
        {
            staff.held = Some(task);
            self.set(task, &[Status::Out], Status::Claimed);
        }
    }

    fn finish(&mut self, at: usize) {
        if let Some(task) = self.staff.get_mut(&at).and_then(|staff| staff.held.take())
            && self.jobs[&task].status == Status::Claimed
        {
            self.set(task, &[Status::Claimed], Status::Ended);
            self.on(SchedulerEvent::Ended(task));
        }
    }

    fn die(&mut self, at: usize, began: bool) {
        let Some(staff) = self.staff.remove(&at) else { return };
        let held = staff.held.filter(|task| self.jobs[task].status == Status::Claimed).map(|task| {
            self.set(task, &[Status::Claimed], if began { Status::Delayed } else { Status::Waiting });
            self.jobs.get_mut(&task).expect("a task").was_requeued = true;
            let is_same = self.jobs[&task].attempts > 0;
            (task, if began { Held::Running { is_same, may_retry: true } } else { Held::NotBegun })
        });
        self.on(SchedulerEvent::Died(
            Place(at),
            if at.is_multiple_of(2) { Blame::Program } else { Blame::Outside },
            held,
        ));
    }

    fn ready(&mut self, at: usize) {
        if let Some(staff) = self.staff.get_mut(&at)
            && !staff.ready
        {
            staff.ready = true;
            self.on(SchedulerEvent::Ready(Place(at)));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { priority, retries, items } => {
                let task = TaskId(self.jobs.len());
                let (attempts, was_requeued, status) = (0, false, Status::Waiting);
                self.jobs.insert(task, Job { priority, retries, items, attempts, was_requeued, status });
                self.on(SchedulerEvent::Submitted(task, priority, retries));
            }
            Step::Claim(at) => self.claim(at),
            Step::Finish(at) => self.finish(at),
            Step::Die(at, began) => self.die(at, began),
            Step::Ready(at) => self.ready(at),
            Step::NotStarted(at, hope) => {
                if self.staff.get(&at).is_some_and(|staff| !staff.ready) {
                    self.staff.remove(&at);
                    self.on(SchedulerEvent::NotStarted(
                        Place(at),
                        if hope { RetryHope::Some } else { RetryHope::None },
                    ));
                }
            }
            Step::Due(n) => self.due(n),
            Step::Drop(n) => {
                let mut tasks = self.with_status(Status::Waiting);
                tasks.extend(self.with_status(Status::Delayed));
                if let Some(task) = tasks.get(n).copied() {
                    self.set(task, &[Status::Waiting, Status::Delayed], Status::Ended);
                    self.on(SchedulerEvent::Dropped(task));
                }
            }
            Step::Idle(at) => {
                if self.staff.get(&at).is_some_and(|staff| staff.ready && staff.held.is_none()) {
                    self.on(SchedulerEvent::Idle(Place(at)));
                }
            }
            Step::Resize(wanted) => self.on(SchedulerEvent::Resized(wanted)),
            Step::Close => {
                self.is_open = false;
                self.on(SchedulerEvent::Closed);
            }
            Step::Terminate => {
                self.is_open = false;
                self.on(SchedulerEvent::Terminated);
            }
        }
    }

    fn due(&mut self, n: usize) {
        if let Some(task) = self.with_status(Status::Delayed).get(n).copied() {
            self.set(task, &[Status::Delayed], Status::Waiting);
            self.on(SchedulerEvent::Due(task));
        } else if !self.awaited.is_empty() {
            let at = self.awaited.remove(0);
            self.on(SchedulerEvent::StartDue(Place(at)));
        }
    }

    /// Runs without further failures until every task has ended.
    fn run_down(&mut self) {
        for _ in 0..10 * (self.jobs.len() + 20) {
            self.due(0);
            for at in 0..8 {
                self.ready(at);
                self.claim(at);
                self.finish(at);
                if self.staff.get(&at).is_some_and(|staff| staff.told_to_end) {
                    self.die(at, true);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn every_task_ends_exactly_once(steps in steps()) {
        let mut world = World::new(3);
        for step in steps {
            world.step(step);
        }
        world.run_down();
        // Every submitted task has ended, even if the pool is still open. Once it is closed, it is over.
        prop_assert!(world.jobs.values().all(|job| job.status == Status::Ended), "{:?}", world.jobs);
        prop_assert!(world.table.is_empty());
        if world.scheduler.is_open() {
            prop_assert!(world.is_open && world.staff.len() <= world.scheduler.wanted());
        }
        world.on(SchedulerEvent::Closed);
        world.run_down();
        prop_assert!(world.scheduler.is_over());
        prop_assert!(world.staff.is_empty());
    }
}

#[test]
fn what_was_dropped_goes_before_nobody_when_its_number_is_used_again() {
    let mut scheduler = Scheduler::new(1, 1);
    after(&mut scheduler, SchedulerEvent::Submitted(TaskId(0), 0, 0));
    for number in 1..=3 {
        assert_eq!(after(&mut scheduler, SchedulerEvent::Submitted(TaskId(number), 0, 0)), []);
    }
    after(&mut scheduler, SchedulerEvent::Dropped(TaskId(1)));
    after(&mut scheduler, SchedulerEvent::Submitted(TaskId(1), 0, 0));
    let order = [2, 3, 1].map(TaskId);
    for (ended, next) in [TaskId(0)].iter().chain(&order).zip(order) {
        assert_eq!(after(&mut scheduler, SchedulerEvent::Ended(*ended)), [Action::Publish(next)]);
    }
}

#[test]
fn dropping_costs_the_same_for_each_and_leaves_nothing() {
    let mut scheduler = Scheduler::new(1, 1);
    for number in 0..10_000 {
        after(&mut scheduler, SchedulerEvent::Submitted(TaskId(number), 0, 0));
    }
    for number in 1..10_000 {
        after(&mut scheduler, SchedulerEvent::Dropped(TaskId(number)));
    }
    let kept: usize = scheduler.waiting.values().map(VecDeque::len).sum();
    assert!(kept <= 64, "{kept} of those that were dropped are still there");
    assert_eq!(after(&mut scheduler, SchedulerEvent::Ended(TaskId(0))), []);
}

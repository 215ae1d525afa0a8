//! What goes into the scheduler, events, and what comes out of it, actions.

/// A task: the key of its record, which is reused after the task has ended.
///
/// The parent chooses it, at [`SchedulerEvent::Submitted`] or [`SchedulerEvent::Resubmitted`]. Small numbers, since
/// they index a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TaskId(pub(crate) usize);

/// A worker's place in the pool. A replacement takes the place of its predecessor.
///
/// From 0, below the largest wanted number of workers so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place(pub(crate) usize);

/// Tasks of higher priority go out first.
///
/// 0 is the default of a call. Equal priorities are served in the order of submission.
pub(crate) type Priority = i32;

/// How far a worker was with its task when it died.
///
/// The parent finds it from the worker's ring and its revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// The worker had claimed the task, and begun none of its items.
    NotBegun,
    /// An item was running.
    Running {
        /// The previous attempt that was lost was at the same item.
        is_same: bool,
        /// The item may be tried again.
        may_retry: bool,
    },
}

/// An event that the scheduler reacts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SchedulerEvent {
    /// A new task, and how many times each of its items may be retried.
    ///
    /// If the pool is not open, [`Action::Fail`] follows at once.
    Submitted(TaskId, Priority, u32),
    /// A new task with items of an earlier one: delayed until `Due`.
    ///
    /// For items that the parent separates from a task that is out. Allowed when the pool is closed, too.
    Resubmitted(TaskId, Priority, u32),
    /// A task that went out has ended: its last item has, or the driver removed it.
    ///
    /// Makes room for the argument of another task.
    Ended(TaskId),
    /// The task was taken back from the table after `MakeWay`, and waits again. The newest task comes first.
    ///
    /// Passed without publication in between, so that all tasks are back before [`SchedulerEvent::WayMade`].
    Withdrawn(TaskId),
    /// There is no memory for the task's argument, so it waits again. Of several tasks, the last one to publish comes first.
    Full(TaskId),
    /// There may be memory for arguments again.
    Room,
    /// `MakeWay` is done: all less urgent tasks that no worker had claimed were taken back.
    WayMade,
    /// The driver removed a waiting or delayed task.
    Dropped(TaskId),
    /// A task still has items after `Lose`, and waits again.
    ///
    /// It goes out before other tasks of its priority, and its next item has all its attempts.
    Requeued(TaskId),
    /// The delay of a task is over.
    ///
    /// Ignored unless the task is delayed.
    Due(TaskId),
    /// The worker takes tasks from now on.
    ///
    /// Ends the series of failures of all workers: later ones count from 0 again.
    Ready(Place),
    /// The worker has died, everything that it sent was read, and it held this task.
    Died(Place, Blame, Option<(TaskId, Held)>),
    /// No worker could be started in the place.
    ///
    /// Answers [`Action::Start`].
    NotStarted(Place, RetryHope),
    /// The delay before the next attempt to start a worker is over.
    ///
    /// Answers [`Action::StartLater`]. Ignored if no attempt is pending in the place any more.
    StartDue(Place),
    /// The worker has been idle for the time after which workers retire.
    ///
    /// The worker retires only if no task is left in the pool.
    Idle(Place),
    /// The wanted number of workers has changed.
    ///
    /// Ignored unless the pool is open.
    Resized(usize),
    /// No more tasks will be submitted; submitted tasks still run.
    Closed,
    /// All tasks and workers end now.
    Terminated,
    /// The initializer fails in every worker.
    Broken,
}

/// How fast the delay between attempts to start a worker grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The system lacked a resource.
    Slow,
    /// Workers start, and are killed from outside, which may not happen again.
    Fast,
}

/// What caused the death of a worker.
///
/// Counts only for workers that die before they are ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The program: it exited, or a fault ended it. It may do so again.
    Program,
    /// A signal from outside: an operator, or the kernel when it was out of memory.
    Outside,
}

/// Whether a later attempt to start a worker may succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryHope {
    /// The system lacked a resource, or the fork server failed.
    Some,
    /// Any other error. If no worker is left then, the pool gives up.
    None,
}

/// Why a task fails without having been run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// No worker is left to run it: workers do not start, or die before they are ready.
    NoWorkers,
    /// The pool was closed or terminated.
    Terminated,
}

/// An action that the driver carries out.
///
/// The parent carries out all actions of an event, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Put the task on the table.
    ///
    /// If there is no memory for it, [`SchedulerEvent::Full`] follows, and tasks after it in the same list are not
    /// published.
    Publish(TaskId),
    /// Take less urgent tasks back from the table, the newest first: `Withdrawn` follows for each, then `WayMade`.
    MakeWay(Priority),
    /// End the task: all its remaining items fail for this reason.
    ///
    /// The scheduler has forgotten the task: no event follows.
    Fail(TaskId, Loss),
    /// Fail the item that ran. `Requeued` follows, or `Ended` if it was the last item.
    Lose(TaskId),
    /// Retry the task after a delay that grows with the number of attempts. `Due` follows.
    ///
    /// The number is that of the attempts so far.
    Delay(TaskId, u32),
    /// Start a worker. [`SchedulerEvent::Ready`], [`SchedulerEvent::Died`] or [`SchedulerEvent::NotStarted`] follows.
    Start(Place),
    /// Try to start a worker after a delay that grows with the number of failures. `StartDue` follows.
    StartLater(Place, u32, Pace),
    /// Ask the worker to exit when it has finished its task.
    ///
    /// The worker may still be starting; then the request waits for it.
    Retire(Place),
    /// Terminate the worker, even if it runs a task.
    ///
    /// Only when the pool is over. The worker may still be starting.
    Kill(Place),
}

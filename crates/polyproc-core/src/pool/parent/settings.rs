//! The settings of a pool and of a call.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::scheduler::Priority;
use crate::pool::shared::task::PoolEvent;
use crate::process::{EnvChange, ForkWithThreads, Function, Signal, StartMethod};
use crate::wire::Payload;

/// Called with a worker's process id and a record that it logged.
///
/// Called outside the pool's lock, one record at a time, in order, on any thread that uses the pool. May use the pool.
/// A panic is caught.
pub type OnLog = Arc<dyn Fn(u32, &[u8]) + Send + Sync>;

/// Called with events of workers, on the thread that detects them.
///
/// Called outside the pool's lock. Calls from several threads may overlap. A panic is caught.
pub type OnEvent = Arc<dyn Fn(&PoolEvent) + Send + Sync>;

/// The settings of a pool.
#[derive(Default)]
pub struct PoolSettings {
    /// Number of workers; `None` for one per processor that this process may use.
    pub workers: Option<usize>,
    /// How workers are started.
    pub method: StartMethod,
    /// Required for [`StartMethod::Fork`], since a pool forks replacements for its workers while other threads run.
    pub fork_with_threads: Option<ForkWithThreads>,
    /// Prefix of the workers' names; `None` for `PoolWorker`.
    pub name: Option<String>,
    /// Changes to the environment of workers.
    pub env: Vec<EnvChange>,
    /// A function that a worker runs before its first task.
    pub initializer: Option<(Function, Payload)>,
    /// A function that a worker runs after its last task, if it retires.
    pub finalizer: Option<Function>,
    /// Number of items after which a worker is replaced.
    pub max_tasks_per_child: Option<NonZeroU64>,
    /// The niceness of workers (`nice(2)`).
    pub nice: Option<i32>,
    /// The processors that each worker may use: a list for each place, used cyclically.
    pub cpus: Vec<Vec<u32>>,
    /// Bytes of memory of its own that a worker may have, without its results and loans. A worker above this is killed.
    pub memory_limit: Option<u64>,
    /// Bytes of arguments that may wait in this process before [`Pool::wait_to_submit`](crate::pool::Pool::wait_to_submit) blocks; `None` for no limit.
    pub max_waiting_bytes: Option<u64>,
    /// How long there may be nothing to do before workers retire; `None` for no limit.
    pub retire_idle: Option<Duration>,
    /// Called with the log records of tasks whose call has no callback of its own: see [`log`](crate::pool::log).
    pub on_log: Option<OnLog>,
    /// Called with events of workers.
    pub on_event: Option<OnEvent>,
}

impl fmt::Debug for PoolSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolSettings")
            .field("workers", &self.workers)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// How the tasks of a call run.
///
/// Fixed when the call is opened.
#[derive(Clone, Default)]
pub struct CallSettings {
    /// How many times an item is retried after its worker was lost.
    ///
    /// After a death of the worker, not after an error; see `retries_panics`.
    pub retries: u32,
    /// Delay before the first retry of an item, doubled for each further one.
    pub backoff: Duration,
    /// Items that panic are retried, too.
    pub retries_panics: bool,
    /// How long an item may run before its worker is killed.
    ///
    /// Measured by the worker's clock from the beginning of the item. The item ends with [`TaskEnd::TimedOut`](crate::pool::TaskEnd::TimedOut), and is
    /// not retried.
    pub limit: Option<Duration>,
    /// With `limit`: the signal sent to the worker when the time is over, and how long until it is killed after that.
    pub soft_signal: Option<(Signal, Duration)>,
    /// How long the whole call may take before its remaining items end with [`TaskEnd::TimedOut`](crate::pool::TaskEnd::TimedOut).
    ///
    /// Runs from the creation of the call.
    pub call_limit: Option<Duration>,
    /// Tasks of higher priority go first.
    pub priority: Priority,
    /// The submitter blocks on this task at once, so no wake-up of the pool thread is needed.
    pub is_awaited: bool,
    /// A thread waits for all results together, so it need not be woken for each.
    ///
    /// Then workers wake the waiting thread only when few tasks are left on the table.
    pub is_bulk: bool,
    /// Called with the log records of the call's tasks, instead of the pool's callback.
    pub on_log: Option<OnLog>,
}

impl fmt::Debug for CallSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSettings")
            .field("retries", &self.retries)
            .field("limit", &self.limit)
            .field("call_limit", &self.call_limit)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

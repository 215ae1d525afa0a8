//! [`Pool`]: what the faces use.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::call::{Call, CallSettings, FunctionId};
use super::driver::Driver;
use super::scheduler::SchedulerEvent;
use super::staff::WorkerStats;
use super::task::PoolEvent;
use crate::deadline::Deadline;
use crate::frame::Payload;
use crate::process::{
    EnvChange, ForkWithThreads, Function, FunctionError, StartError, StartMethod, is_interrupted, lock,
};
use crate::robust::WaitError;

/// Called with a worker's process id and what it logged.
pub type OnLog = Arc<dyn Fn(u32, &[u8]) + Send + Sync>;

/// Called with what happens to workers, by whichever thread sees it.
pub type OnEvent = Arc<dyn Fn(&PoolEvent) + Send + Sync>;

/// What a pool is to be.
#[derive(Default)]
pub struct PoolSettings {
    /// How many workers; `None` for one per processor that this process may use.
    pub workers: Option<usize>,
    /// How workers are started.
    pub method: StartMethod,
    /// For [`StartMethod::Fork`]: a pool replaces its workers from a thread, while others run.
    pub fork_with_threads: Option<ForkWithThreads>,
    /// What the names of its workers begin with; `None` for `PoolWorker`.
    pub name: Option<String>,
    /// Changes to the environment of workers.
    pub env: Vec<EnvChange>,
    /// What a worker runs before its first task.
    pub initializer: Option<(Function, Payload)>,
    /// What a worker runs after its last task, when it ends in peace.
    pub finalizer: Option<Function>,
    /// A worker that has run so many items is replaced.
    pub max_tasks_per_child: Option<NonZeroU64>,
    /// The niceness of workers (`nice(2)`).
    pub nice: Option<i32>,
    /// The processors that each worker may use, one list for each place, and so on in turn.
    pub cpus: Vec<Vec<u32>>,
    /// How many bytes of its own a worker may have in memory.
    pub memory_limit: Option<u64>,
    /// How many bytes of arguments of tasks may wait here before [`Pool::wait_to_submit`] waits; `None` for any.
    pub max_waiting_bytes: Option<u64>,
    /// Workers end when there has been nothing to do for so long.
    pub retire_idle: Option<Duration>,
    /// See [`log`](super::log); for what no call has a place of its own for.
    pub on_log: Option<OnLog>,
    /// Is told what happens to workers.
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

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool of no workers would never run anything.
    #[error("a pool needs at least one worker")]
    NoWorkers,
    /// Workers are told apart by a number of 18 bits, and each takes processes and descriptors.
    #[error("a pool can have at most {limit} workers: {workers} were asked for")]
    TooManyWorkers {
        /// What was asked for.
        workers: usize,
        /// What is possible.
        limit: usize,
    },
    /// Workers are replaced by a thread, which must not copy the program unless somebody promised that it is sound.
    #[error(
        "a pool does not start its workers by `fork`, as threads run beside it, its own among them: use `forkserver` or `spawn`, \
         or promise that it is sound by `fork_with_threads`"
    )]
    Fork,
    /// The number of processors is not known, and no number of workers was given.
    #[error("could not find out how many processors there are: {0}")]
    CpuCount(io::Error),
    /// A worker did not start.
    #[error("could not start a worker: {0}")]
    Start(#[from] StartError),
    /// The initializer or the finalizer has no name that a worker could find.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The face could not encode the initializer's argument.
    #[error(transparent)]
    Argument(Box<dyn std::error::Error + Send + Sync>),
    /// The pool's thread or its descriptors could not be made.
    #[error("could not start the thread of a pool: {0}")]
    Os(io::Error),
}

const MOST_WORKERS: usize = 1 << 16;

/// A function that a pool knows; see [`Pool::register`].
#[derive(Debug, Clone, Copy)]
pub struct Registered(FunctionId);

/// Worker processes that run tasks. Dropping it terminates them.
#[derive(Debug)]
pub struct Pool {
    driver: Arc<Driver>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Pool {
    /// Starts the workers.
    ///
    /// # Errors
    /// See [`PoolError`]; nothing is left running then.
    pub fn new(settings: PoolSettings) -> Result<Self, PoolError> {
        let workers = match settings.workers {
            Some(workers) => workers,
            None => std::thread::available_parallelism().map_err(PoolError::CpuCount)?.get(),
        };
        check(workers)?;
        if settings.method == StartMethod::Fork && settings.fork_with_threads.is_none() {
            return Err(PoolError::Fork);
        }
        let driver = Driver::new(workers, settings)?;
        if let Err((_, error)) = driver.start_next(&is_interrupted) {
            driver.kill_all();
            return Err(error.into());
        }
        let thread = driver.spawn_thread().map_err(PoolError::Os).inspect_err(|_| driver.kill_all())?;
        Ok(Self { driver, thread: Mutex::new(Some(thread)) })
    }

    /// How many workers it keeps.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.driver.with(|inner| inner.scheduler.wanted())
    }

    /// Keeps so many workers from now on: starts more, or has some end when they have finished their tasks.
    ///
    /// # Errors
    /// [`PoolError::NoWorkers`], [`PoolError::TooManyWorkers`].
    pub fn resize(&self, workers: usize) -> Result<(), PoolError> {
        check(workers)?;
        if self.driver.is_ours() {
            self.driver.resize(workers);
        }
        Ok(())
    }

    /// Begins a call of a function. `key` tells functions apart ([`Function::key`]), `name` gives its name when it is needed;
    /// with a context, that is sent to each worker once.
    ///
    /// # Errors
    /// What `name` fails with.
    pub fn call(
        &self,
        key: (usize, usize),
        name: impl FnOnce() -> Result<Function, FunctionError>,
        context: Option<&[u8]>,
        settings: CallSettings,
    ) -> Result<Call, FunctionError> {
        let known = if context.is_none() { self.driver.with(|inner| inner.known_function(key)) } else { None };
        let function = match known {
            Some(function) => function,
            None => {
                let name = name()?;
                self.driver.with(|inner| inner.new_function(key, &name, context))
            }
        };
        let (key, parker) = self.driver.open(function, context.is_some(), settings);
        Ok(Call { driver: Arc::clone(&self.driver), key, parker })
    }

    /// How many bytes the arguments of tasks have that wait for room on the table.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.driver.with(|inner| inner.waiting_bytes)
    }

    /// Waits while more bytes of arguments wait here than may; false when the deadline passed first. One item may then be submitted.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when a signal handler ran: wait again, or do what the signal asks.
    pub fn wait_to_submit(&self, deadline: Deadline) -> Result<bool, WaitError> {
        self.driver.wait_to_submit(deadline)
    }

    /// Names a function for many calls, with a context that is sent to each worker once. It is known as long as the pool is.
    #[must_use]
    pub fn register(&self, function: &Function, context: &[u8]) -> Registered {
        Registered(self.driver.with(|inner| inner.register(function, context)))
    }

    /// As [`Pool::call`], of a function that was registered.
    #[must_use]
    pub fn call_registered(&self, function: Registered, settings: CallSettings) -> Call {
        let (key, parker) = self.driver.open(function.0, false, settings);
        Call { driver: Arc::clone(&self.driver), key, parker }
    }

    /// Whether it takes tasks: it was neither closed nor terminated, and has workers or hopes for some.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.driver.with(|inner| inner.scheduler.is_open())
    }

    /// Refuses new tasks; those submitted are run, then the workers end.
    pub fn close(&self) {
        if self.driver.is_ours() {
            self.driver.with(|inner| {
                self.driver.handle(inner, SchedulerEvent::Closed);
                inner.told.driver = true;
            });
        }
    }

    /// Ends the workers at once; tasks that have not ended fail.
    pub fn terminate(&self) {
        if self.driver.is_ours() {
            self.driver.terminate();
        }
    }

    /// Waits until all workers have ended and all callbacks have run, after [`Pool::close`] or [`Pool::terminate`]; false when
    /// the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when a signal handler ran: wait again, or do what the signal asks.
    pub fn join(&self, deadline: Deadline) -> Result<bool, WaitError> {
        if !self.driver.is_ours() {
            return Ok(true);
        }
        if !self.driver.end.wait(deadline)? {
            return Ok(false);
        }
        if let Some(thread) = lock(&self.thread).take() {
            // A panic there was printed; the workers die with this process at the latest.
            let _ = thread.join();
        }
        self.driver.callbacks.join(deadline)
    }

    /// As [`Pool::join`], waiting on when a signal handler ran.
    pub fn join_through_signals(&self) {
        while self.join(Deadline::NEVER).is_err() {}
    }

    /// What each living worker has done so far.
    #[must_use]
    pub fn stats(&self) -> Vec<WorkerStats> {
        self.driver.with(|inner| inner.workers.iter().flatten().map(super::staff::WorkerHandle::stats).collect())
    }

    /// How many workers have died, other than by ending in peace.
    #[must_use]
    pub fn workers_lost(&self) -> u64 {
        self.driver.with(|inner| inner.lost)
    }
}

fn check(workers: usize) -> Result<(), PoolError> {
    match workers {
        0 => Err(PoolError::NoWorkers),
        1..=MOST_WORKERS => Ok(()),
        _ => Err(PoolError::TooManyWorkers { workers, limit: MOST_WORKERS }),
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.terminate();
        self.join_through_signals();
    }
}

//! [`Pool`]: the interface of the engine's pools for the faces.
//!
//! The faces are `crates/polyproc` and `crates/polyproc-py`. They encode functions, arguments and results; the engine
//! handles bytes, descriptors and deaths. All methods may be called on any thread, at the same time.
//!
//! A pool runs from [`Pool::new`] to [`Pool::close`] or [`Pool::terminate`], and ends when its workers have exited and
//! its thread has returned, for which [`Pool::join`] waits. In a forked copy of the process the workers belong to the
//! original: there, changes of the pool have no effect and [`Pool::join`] returns at once.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::call::Call;
use super::driver::Driver;
use super::error::PoolError;
use super::functions::FunctionId;
use super::scheduler::SchedulerEvent;
use super::settings::{CallSettings, PoolSettings};
use super::submission::CallOpening;
use super::worker_handle::{WorkerHandle, WorkerStats};
use crate::deadline::Deadline;
use crate::process::{Function, FunctionError, StartMethod, is_interrupted, lock};
use crate::robust::WaitError;

/// Maximum number of workers. Below [`WORKERS`](crate::pool::shared::claim::WORKERS), so that a free number can be found quickly.
const MOST_WORKERS: usize = 1 << 16;

/// A function that a pool knows; see [`Pool::register`].
///
/// Valid in the pool that returned it.
#[derive(Debug, Clone, Copy)]
pub struct Registered(FunctionId);

/// Worker processes that run tasks. Dropping it terminates them.
///
/// The faces share it by reference; a [`Call`] keeps the state of the pool, but not its workers, after the drop.
#[derive(Debug)]
pub struct Pool {
    /// The state, shared with calls and with the pool's thread.
    driver: Arc<Driver>,
    /// The pool's thread, until it is joined.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Pool {
    /// Starts the workers.
    ///
    /// # Errors
    /// See [`PoolError`]. No worker is left running in that case.
    ///
    /// Returns when all worker processes exist; they may not be ready yet. Workers that die from now on are replaced.
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

    /// Returns the number of workers that the pool keeps.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.driver.with(|pool| pool.scheduler.wanted())
    }

    /// Changes the number of workers: starts more, or retires some when they have finished their tasks.
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

    /// Begins a call of a function. `key` identifies the function in this process ([`Function::key`]); `name` returns its name,
    /// and is called only if the pool does not know the function. A context is sent to each worker once.
    ///
    /// # Errors
    /// The error of `name`.
    pub fn call(
        &self,
        key: (usize, usize),
        name: impl FnOnce() -> Result<Function, FunctionError>,
        context: Option<&[u8]>,
        settings: CallSettings,
    ) -> Result<Call, FunctionError> {
        let known = if context.is_none() { self.driver.functions.known(key) } else { None };
        let function = match known {
            Some(function) => function,
            None => {
                let name = name()?;
                match context {
                    None => self.driver.functions.add(key, &name),
                    Some(context) => self.driver.functions.add_with_context(&name, context),
                }
            }
        };
        Ok(Call::new(&self.driver, CallOpening::new(function, context.is_some(), settings)))
    }

    /// Returns how many bytes of arguments wait in this process for room on the table.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.driver.with(|pool| pool.tasks.waiting_bytes())
    }

    /// Blocks while more bytes of arguments wait in this process than [`PoolSettings::max_waiting_bytes`]. One item may be
    /// submitted then. Returns false if the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran. The wait may be repeated.
    pub fn wait_to_submit(&self, deadline: Deadline) -> Result<bool, WaitError> {
        self.driver.wait_to_submit(deadline)
    }

    /// Registers a function for many calls, with a context that is sent to each worker once. It stays registered as long as the
    /// pool exists.
    #[must_use]
    pub fn register(&self, function: &Function, context: &[u8]) -> Registered {
        Registered(self.driver.functions.add_with_context(function, context))
    }

    /// As [`Pool::call`], for a registered function.
    #[must_use]
    pub fn call_registered(&self, function: Registered, settings: CallSettings) -> Call {
        Call::new(&self.driver, CallOpening::new(function.0, false, settings))
    }

    /// Returns whether the pool accepts tasks: it was neither closed nor terminated, and has not given up on its workers.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.driver.with(|pool| pool.scheduler.is_open())
    }

    /// Refuses new tasks. Submitted tasks still run, then the workers exit.
    pub fn close(&self) {
        if self.driver.is_ours() {
            self.driver.with(|pool| {
                self.driver.handle(pool, SchedulerEvent::Closed);
                pool.notifications.pool_thread = true;
            });
        }
    }

    /// Terminates the workers at once. Tasks that have not ended fail.
    pub fn terminate(&self) {
        if self.driver.is_ours() {
            self.driver.terminate();
        }
    }

    /// Blocks until all workers have exited and all callbacks have run, after [`Pool::close`] or [`Pool::terminate`]. Returns
    /// false if the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran. The wait may be repeated.
    pub fn join(&self, deadline: Deadline) -> Result<bool, WaitError> {
        if !self.driver.is_ours() {
            return Ok(true);
        }
        if !self.driver.end.wait(deadline)? {
            return Ok(false);
        }
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the thread was printed; the workers die with this process at the latest.
            let _ = thread.join();
        }
        self.driver.callbacks.join(deadline)
    }

    /// As [`Pool::join`] without a deadline, but continues after signal handlers.
    pub fn join_through_signals(&self) {
        while self.join(Deadline::NEVER).is_err() {}
    }

    /// Returns the statistics of each living worker.
    #[must_use]
    pub fn stats(&self) -> Vec<WorkerStats> {
        self.driver.with(|pool| pool.workers.iter().map(WorkerHandle::stats).collect())
    }

    /// Returns how many workers have ended other than with exit code 0.
    #[must_use]
    pub fn workers_lost(&self) -> u64 {
        self.driver.with(|pool| pool.lost)
    }
}

/// Fails unless a pool may have this number of workers.
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

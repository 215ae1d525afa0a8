//! [`Pool`]: worker processes that run many tasks each.
//!
//! | file | purpose |
//! |---|---|
//! | `builder` | the settings of a pool |
//! | `options`, `calls` | the options of a call, and the calls |
//! | `with_state`, `with_context` | the calls of functions that take a worker's state or a context |
//! | `run` | how all of them run a function |
//! | `call` | submits items as tasks, and takes their results |
//! | `function` | the kinds of functions, and how a worker calls each |
//! | `async_result`, `imap` | results that arrive later, iterators over results |
//! | `failure` | why a task has no result |
//! | `stats` | statistics of the workers |

mod async_result;
mod builder;
mod call;
mod calls;
mod failure;
mod function;
mod imap;
mod options;
mod run;
mod stats;
mod with_context;
mod with_state;

use std::marker::PhantomData;

use polyproc_core::pool::{self as core, PoolError};

use crate::codec::Transfer;

pub use async_result::AsyncResult;
pub use builder::PoolBuilder;
pub use failure::{Failure, NoWorkers, TaskError};
pub use imap::{Imap, ImapUnordered};
pub use options::CallOptions;
pub use stats::{PoolStats, WorkerStats};
pub use with_context::WithContext;
pub use with_state::WithState;

/// Worker processes that run functions over arguments.
///
/// If a worker dies, only the item that it was running fails, with [`Failure::WorkerLost`]. The worker is replaced, and all
/// other items continue. Ctrl-C does not reach the workers, only this process. Dropping the pool terminates it, as the end of
/// Python's `with` block does.
///
/// ```
/// let pool = polyproc::Pool::new(2)?;
/// assert_eq!(pool.map(|x: i64| x * x, 0..5)?, [0, 1, 4, 9, 16]);
/// assert_eq!(pool.starmap(|a: i32, b: i32| a + b, [(1, 2), (3, 4)])?, [3, 7]);
/// assert_eq!(pool.apply(|(a, b): (i32, i32)| a + b, (1, 2))?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Options come before the call: `pool.options().chunksize(10).retries(2).map(...)`.
#[derive(Debug)]
pub struct Pool<S = ()> {
    core: core::Pool,
    /// True if traces of workers are emitted inside the span of their call.
    traces: bool,
    state: PhantomData<fn() -> S>,
}

/// The pool still accepts tasks, so [`Pool::join`] would block forever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pool is still open: call `close` or `terminate` before `join`")]
pub struct StillOpen;

impl Pool {
    /// Starts a pool of `workers` workers; `None` for one per processor that this process may use
    /// ([`cpu_count`](crate::cpu_count)).
    ///
    /// # Errors
    /// [`PoolError`], whose variants name the causes. No worker is left running then.
    pub fn new(workers: impl Into<Option<usize>>) -> Result<Self, PoolError> {
        match workers.into() {
            Some(workers) => Self::builder().workers(workers),
            None => Self::builder(),
        }
        .build()
    }

    /// Returns a builder, for a pool with other settings.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }
}

impl<S: 'static> Pool<S> {
    /// Returns options for one call: chunk size, time limits, retries, priority.
    ///
    /// ```
    /// use std::time::Duration;
    /// use polyproc::{Failure, Pool};
    ///
    /// let pool = Pool::new(2)?;
    /// let sleep = |ms: u64| std::thread::sleep(Duration::from_millis(ms));
    /// let error = pool.options().timeout(Duration::from_millis(50)).apply(sleep, 60_000).unwrap_err();
    /// assert!(matches!(error.failure, Failure::TimedOut));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn options(&self) -> CallOptions<'_> {
        CallOptions::new(&self.core, self.traces)
    }

    /// Returns options for functions that take the worker's state, which [`PoolBuilder::initializer`] creates.
    pub fn state(&self) -> WithState<'_, S> {
        self.options().state()
    }

    /// As [`Pool::state`], with the given options.
    pub fn state_with<'a>(&self, options: CallOptions<'a>) -> WithState<'a, S> {
        options.state()
    }

    /// Returns options with a chunk size: see [`CallOptions::chunksize`].
    ///
    /// # Panics
    /// Panics if `items` is 0.
    pub fn chunksize(&self, items: usize) -> CallOptions<'_> {
        self.options().chunksize(items)
    }

    /// Runs `function` on `argument` in a worker, and returns the result: see [`CallOptions::apply`].
    ///
    /// # Errors
    /// [`TaskError`], with index 0, when the task failed.
    pub fn apply<A: Transfer, R: Transfer>(&self, function: fn(A) -> R, argument: A) -> Result<R, TaskError> {
        self.options().apply(function, argument)
    }

    /// Starts `function` on `argument` in a worker: see [`CallOptions::apply_async`].
    pub fn apply_async<A: Transfer, R: Transfer + Send>(&self, function: fn(A) -> R, argument: A) -> AsyncResult<R> {
        self.options().apply_async(function, argument)
    }

    /// Runs `function` on all `items`, and returns the results in order: see [`CallOptions::map`].
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
    pub fn map<A: Transfer, R: Transfer>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError> {
        self.options().map(function, items)
    }

    /// Starts `function` on all `items`: see [`CallOptions::map_async`].
    pub fn map_async<A: Transfer, R: Transfer + Send>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> AsyncResult<Vec<R>> {
        self.options().map_async(function, items)
    }

    /// Runs a `function` of two arguments on all `items`, and returns the results in order: see [`CallOptions::starmap`].
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
    pub fn starmap<A: Transfer, B: Transfer, R: Transfer>(
        &self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> Result<Vec<R>, TaskError> {
        self.options().starmap(function, items)
    }

    /// Starts a `function` of two arguments on all `items`: see [`CallOptions::starmap_async`].
    pub fn starmap_async<A: Transfer, B: Transfer, R: Transfer + Send>(
        &self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> AsyncResult<Vec<R>> {
        self.options().starmap_async(function, items)
    }

    /// Returns an iterator over the results of `function`, in the order of `items`: see [`CallOptions::imap`].
    pub fn imap<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        &self,
        function: fn(A) -> R,
        items: I,
    ) -> Imap<'_, I::IntoIter, A, R> {
        self.options().imap(function, items)
    }

    /// Returns an iterator over the results of `function`, in the order of arrival: see [`CallOptions::imap_unordered`].
    ///
    /// ```
    /// let pool = polyproc::Pool::new(2)?;
    /// let some: Result<Vec<u64>, _> = pool.imap_unordered(|x: u64| x + 1, 0..).take(10).collect();
    /// assert_eq!(some?.len(), 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap_unordered<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        &self,
        function: fn(A) -> R,
        items: I,
    ) -> ImapUnordered<'_, I::IntoIter, A, R> {
        self.options().imap_unordered(function, items)
    }

    /// Returns the number of workers that the pool keeps.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.core.workers()
    }

    /// Sets the number of workers: starts more, or ends some once they have finished their tasks.
    ///
    /// # Errors
    /// [`PoolError::NoWorkers`] for 0 workers, [`PoolError::TooManyWorkers`] for more than 65,536.
    pub fn resize(&self, workers: usize) -> Result<(), PoolError> {
        self.core.resize(workers)
    }

    /// Returns statistics of the workers so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let core = &self.core;
        PoolStats { workers: core.stats(), lost: core.workers_lost(), waiting_bytes: core.waiting_bytes() }
    }

    /// Closes the pool to new tasks. The workers run the submitted tasks, then end.
    pub fn close(&self) {
        self.core.close();
    }

    /// Ends the workers at once: sends `SIGTERM`, and `SIGKILL` 1 second later. Tasks that have not ended fail with
    /// [`Failure::Terminated`].
    pub fn terminate(&self) {
        self.core.terminate();
    }

    /// Blocks until the workers have ended and all callbacks have run, after [`Pool::close`] or [`Pool::terminate`].
    ///
    /// # Errors
    /// [`StillOpen`] when neither was called and the pool accepts tasks.
    pub fn join(&self) -> Result<(), StillOpen> {
        if self.core.is_open() {
            return Err(StillOpen);
        }
        self.core.join_through_signals();
        Ok(())
    }
}

//! [`Pool`]: the same workers for many tasks.
//!
//! | file | what it holds |
//! |---|---|
//! | `builder` | what a pool is to be |
//! | `options` | how a call is to be made, and the calls |
//! | `call` | items into tasks, results out of them |
//! | `function` | the kinds of functions, and how a worker calls each |
//! | `async_result`, `imap` | results later, results one by one |
//! | `failure` | why a task gave no result |
//! | `stats` | what the workers did |

mod async_result;
mod builder;
mod call;
mod failure;
mod function;
mod imap;
mod options;
mod stats;

use std::marker::PhantomData;

use polyproc_core::pool::{self as core, PoolError};

use crate::codec::Transfer;

pub use async_result::AsyncResult;
pub use builder::PoolBuilder;
pub use failure::{Failure, NoWorkers, TaskError};
pub use imap::{Imap, ImapUnordered};
pub use options::{CallOptions, WithContext, WithState};
pub use stats::{PoolStats, WorkerStats};

/// Worker processes that run functions over arguments.
///
/// A worker that dies takes the one item with it that it ran: that item's result is [`Failure::WorkerLost`], the worker is
/// replaced, and all else goes on. Workers leave Ctrl-C to this process. Dropping the pool terminates it, as the end of
/// Python's `with` does.
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
    /// What workers trace goes where a call is made.
    traces: bool,
    state: PhantomData<fn() -> S>,
}

/// The pool still takes tasks: [`Pool::join`] would wait for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pool is still open: call `close` or `terminate` before `join`")]
pub struct StillOpen;

impl Pool {
    /// Starts `workers` workers; `None` for as many as this process may use processors ([`cpu_count`](crate::cpu_count)).
    ///
    /// # Errors
    /// See [`PoolError`]; nothing is left running then.
    pub fn new(workers: impl Into<Option<usize>>) -> Result<Self, PoolError> {
        match workers.into() {
            Some(workers) => Self::builder().workers(workers),
            None => Self::builder(),
        }
        .build()
    }

    /// What else a pool can be.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }
}

impl<S: 'static> Pool<S> {
    /// How one call is to be made: chunks, time limits, attempts, priority.
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

    /// Calls of functions that get the worker's state, which [`PoolBuilder::initializer`] made there.
    pub fn state(&self) -> WithState<'_, S> {
        self.options().state()
    }

    /// As [`Pool::state`], with options.
    pub fn state_with<'a>(&self, options: CallOptions<'a>) -> WithState<'a, S> {
        options.state()
    }

    /// See [`CallOptions::chunksize`].
    ///
    /// # Panics
    /// When `items` is 0.
    pub fn chunksize(&self, items: usize) -> CallOptions<'_> {
        self.options().chunksize(items)
    }

    /// See [`CallOptions::apply`].
    ///
    /// # Errors
    /// [`TaskError`], with index 0.
    pub fn apply<A: Transfer, R: Transfer>(&self, function: fn(A) -> R, argument: A) -> Result<R, TaskError> {
        self.options().apply(function, argument)
    }

    /// See [`CallOptions::apply_async`].
    pub fn apply_async<A: Transfer, R: Transfer + Send>(&self, function: fn(A) -> R, argument: A) -> AsyncResult<R> {
        self.options().apply_async(function, argument)
    }

    /// See [`CallOptions::map`].
    ///
    /// # Errors
    /// The failed item of the lowest index, after all have ended.
    pub fn map<A: Transfer, R: Transfer>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError> {
        self.options().map(function, items)
    }

    /// See [`CallOptions::map_async`].
    pub fn map_async<A: Transfer, R: Transfer + Send>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> AsyncResult<Vec<R>> {
        self.options().map_async(function, items)
    }

    /// See [`CallOptions::starmap`].
    ///
    /// # Errors
    /// The failed item of the lowest index, after all have ended.
    pub fn starmap<A: Transfer, B: Transfer, R: Transfer>(
        &self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> Result<Vec<R>, TaskError> {
        self.options().starmap(function, items)
    }

    /// See [`CallOptions::starmap_async`].
    pub fn starmap_async<A: Transfer, B: Transfer, R: Transfer + Send>(
        &self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> AsyncResult<Vec<R>> {
        self.options().starmap_async(function, items)
    }

    /// See [`CallOptions::imap`].
    pub fn imap<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        &self,
        function: fn(A) -> R,
        items: I,
    ) -> Imap<'_, I::IntoIter, A, R> {
        self.options().imap(function, items)
    }

    /// See [`CallOptions::imap_unordered`].
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

    /// How many workers it keeps.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.core.workers()
    }

    /// Keeps so many workers from now on: starts more, or has some end when they have finished their tasks.
    ///
    /// # Errors
    /// [`PoolError::NoWorkers`] for 0, [`PoolError::TooManyWorkers`] for more than 65,536.
    pub fn resize(&self, workers: usize) -> Result<(), PoolError> {
        self.core.resize(workers)
    }

    /// What the workers did so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let core = &self.core;
        PoolStats { workers: core.stats(), lost: core.workers_lost(), waiting_bytes: core.waiting_bytes() }
    }

    /// Refuses new tasks: those submitted are run, then the workers end.
    pub fn close(&self) {
        self.core.close();
    }

    /// Ends the workers at once: `SIGTERM`, and `SIGKILL` a second later. Tasks that have not ended fail with
    /// [`Failure::Terminated`].
    pub fn terminate(&self) {
        self.core.terminate();
    }

    /// Waits until the workers have ended and all callbacks have run, after [`Pool::close`] or [`Pool::terminate`].
    ///
    /// # Errors
    /// [`StillOpen`] when neither was called.
    pub fn join(&self) -> Result<(), StillOpen> {
        if self.core.is_open() {
            return Err(StillOpen);
        }
        self.core.join_through_signals();
        Ok(())
    }
}

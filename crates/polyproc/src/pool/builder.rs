//! [`PoolBuilder`]: the settings of a pool.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use polyproc_core::Payload;
use polyproc_core::pool::{self as core, PoolError, PoolEvent, PoolSettings};
use polyproc_core::process::{EnvChange, ForkWithThreads, Function, StartMethod};

use super::Pool;
use super::function::{Finish, Initialise, InitialiseForwarding};
use crate::codec::{self, Transfer};
use crate::forward::{self, Forwarded};

/// The settings of a pool; see [`Pool::builder`].
#[must_use = "a builder does nothing until `build`"]
pub struct PoolBuilder<S = ()> {
    settings: PoolSettings,
    /// The error of a setting, for [`PoolBuilder::build`].
    error: Option<PoolError>,
    /// Returns the initializer for workers that forward these records.
    initializer: Option<Initializer>,
    forwarded: Forwarded,
    state: PhantomData<fn() -> S>,
}

type Initializer = Box<dyn FnOnce(Forwarded) -> Result<(Function, Payload), PoolError>>;

/// Returns an initializer with its argument, for workers that forward the records that `forwarded` names.
fn initialiser<A: Transfer, T: 'static>(
    function: fn(A) -> T,
    argument: Payload,
    forwarded: Forwarded,
) -> Result<(Function, Payload), PoolError> {
    if forwarded.any() {
        let head = [&forwarded.levels()[..], &argument.bytes].concat();
        let name = Function::new::<fn(A) -> T, InitialiseForwarding>(function)?;
        return Ok((name, Payload { bytes: head, ..argument }));
    }
    Ok((Function::new::<fn(A) -> T, Initialise>(function)?, argument))
}

impl<S> fmt::Debug for PoolBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl PoolBuilder {
    pub(crate) fn new() -> Self {
        Self {
            settings: PoolSettings::default(),
            error: None,
            initializer: None,
            forwarded: Forwarded::default(),
            state: PhantomData,
        }
    }
}

impl<S: 'static> PoolBuilder<S> {
    /// Sets the number of workers, by default one per processor that this process may use.
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = Some(workers);
        self
    }

    /// Sets how workers are started, [`StartMethod::Forkserver`] by default. [`StartMethod::Fork`] requires
    /// [`fork_with_threads`](PoolBuilder::fork_with_threads).
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.settings.method = method;
        self
    }

    /// Allows [`StartMethod::Fork`] while other threads run, such as the pool's own. `promise` states that this is sound: see
    /// [`ForkWithThreads::new`].
    pub fn fork_with_threads(mut self, promise: ForkWithThreads) -> Self {
        self.settings.fork_with_threads = Some(promise);
        self
    }

    /// Sets the names of the workers: `name-1`, `name-2` and so on. A replacement has the name of the worker that it replaces.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Sets a function that each worker calls before its first task. The returned value is the worker's state, for
    /// [`Pool::state`]: for example a model or a connection, created once per worker.
    ///
    /// If the function panics, tasks fail at once, with [`Failure::NoWorkers`](crate::Failure::NoWorkers).
    ///
    /// ```
    /// let squares = |limit: usize| (0..limit).map(|x| x * x).collect::<Vec<_>>();
    /// let pool = polyproc::Pool::builder().workers(2).initializer(squares, 100).build()?;
    /// let found = pool.state().map(|squares: &mut Vec<usize>, at: usize| squares[at], [3, 4])?;
    /// assert_eq!(found, [9, 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn initializer<A: Transfer, T: 'static>(mut self, function: fn(A) -> T, argument: A) -> PoolBuilder<T> {
        match codec::encode("the argument", &argument) {
            Ok(argument) => {
                self.initializer = Some(Box::new(move |forwarded| initialiser(function, argument, forwarded)))
            }
            Err(error) => self.error = Some(PoolError::Argument(error.into())),
        }
        PoolBuilder {
            settings: self.settings,
            error: self.error,
            initializer: self.initializer,
            forwarded: self.forwarded,
            state: PhantomData,
        }
    }

    /// Forwards the log records of workers, of the crate `log`, to this process's logger, at its level during
    /// [`build`](Self::build).
    ///
    /// The records of a worker arrive in order, and before the result of their task. Workers then have no other logger.
    #[cfg(feature = "log")]
    pub fn forward_logs(mut self) -> Self {
        self.forwarded.logs = true;
        self
    }

    /// Forwards the events of workers, of the crate `tracing`, to this process's subscriber, at its level during
    /// [`build`](Self::build).
    ///
    /// The events of a worker arrive in order, before the result of their task, and inside the span in which the call was
    /// made. Their fields are `message`, `worker` (the process id), `fields` and `spans` (the worker's own, as text).
    #[cfg(feature = "tracing")]
    pub fn forward_traces(mut self) -> Self {
        self.forwarded.traces = true;
        self
    }

    /// Sets a function that each worker calls with its state after its last task, unless it is killed, as by
    /// [`Pool::terminate`].
    pub fn finalizer(mut self, function: fn(S)) -> Self {
        match Function::new::<fn(S), Finish>(function) {
            Ok(function) => self.settings.finalizer = Some(function),
            Err(error) => self.error = Some(error.into()),
        }
        self
    }

    /// Replaces each worker that has run `items` items, once it has finished its chunk.
    pub fn max_tasks_per_child(mut self, items: NonZeroU64) -> Self {
        self.settings.max_tasks_per_child = Some(items);
        self
    }

    /// Sets an environment variable of the workers.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.settings.env.push(EnvChange::Set(name.into(), value.into()));
        self
    }

    /// Removes an environment variable of the workers.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.settings.env.push(EnvChange::Remove(name.into()));
        self
    }

    /// Sets the processors that each worker may use (`sched_setaffinity(2)`): one list per worker, repeated if there are more
    /// workers than lists.
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = Vec<u32>>) -> Self {
        self.settings.cpus = cpus.into_iter().collect();
        self
    }

    /// Sets the niceness of the workers (`nice(2)`): from -20, the most urgent, which requires privileges, to 19.
    pub fn nice(mut self, nice: i32) -> Self {
        self.settings.nice = Some(nice);
        self
    }

    /// Limits the memory of each worker, in bytes. A worker above the limit is killed and replaced, and its task fails with
    /// [`Failure::OutOfMemory`](crate::Failure::OutOfMemory).
    ///
    /// The measure counts the worker's resident private memory, the values that it put in queues and no process has taken,
    /// and the shared memory that it created and still holds. It does not count files, or memory that others shared with the
    /// worker. The pool measures every 20 ms while tasks are out.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// Limits the encoded arguments that wait for a worker, in bytes.
    ///
    /// Above the limit, calls that return before their tasks have ended (`apply_async`, `map_async`) block before they submit
    /// more. By default they never block, as in Python.
    pub fn max_waiting_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_waiting_bytes = Some(bytes);
        self
    }

    /// Ends workers that have been idle for `time`, and starts workers again when there are tasks.
    pub fn retire_idle(mut self, time: Duration) -> Self {
        self.settings.retire_idle = Some(time);
        self
    }

    /// Calls `see` when a worker starts, is ready, ends, or cannot be started, and when an item is lost or retried.
    ///
    /// The call is made on the thread that detects the event, so `see` should return quickly.
    pub fn on_event(mut self, see: impl Fn(&PoolEvent) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(see));
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// [`PoolError`], whose variants name the causes. No worker is left running then.
    pub fn build(self) -> Result<Pool<S>, PoolError> {
        let mut settings = self.settings;
        settings.initializer = match (self.error, self.initializer) {
            (Some(error), _) => return Err(error),
            (None, Some(initializer)) => Some(initializer(self.forwarded)?),
            (None, None) if self.forwarded.any() => {
                let nothing = codec::encode("the argument", &()).map_err(|error| PoolError::Argument(error.into()))?;
                Some(initialiser::<(), ()>(|()| (), nothing, self.forwarded)?)
            }
            (None, None) => None,
        };
        #[cfg(feature = "tracing")]
        let _inside = tracing::debug_span!("pool", name = settings.name.as_deref()).or_current().entered();
        if self.forwarded.any() {
            settings.on_log = Some(forward::on_log());
        }
        #[cfg(feature = "tracing")]
        {
            settings.on_event = Some(crate::traces::on_event(settings.on_event.take()));
        }
        let traces = self.forwarded.traces;
        let core = core::Pool::new(settings)?;
        crate::forward::report_refused_forkserver();
        Ok(Pool { core, traces, state: PhantomData })
    }
}

//! [`PoolBuilder`]: what a pool is to be.

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

/// What a pool is to be; see [`Pool::builder`].
#[must_use = "a builder does nothing until `build`"]
pub struct PoolBuilder<S = ()> {
    settings: PoolSettings,
    /// What went wrong already.
    error: Option<PoolError>,
    /// What workers run first, once it is known whether they log to this process.
    initializer: Option<Initializer>,
    forwarded: Forwarded,
    state: PhantomData<fn() -> S>,
}

type Initializer = Box<dyn FnOnce(Forwarded) -> Result<(Function, Payload), PoolError>>;

/// An initializer with its argument, for workers that forward what they log, or do not.
fn initialiser<A: Transfer, T: 'static>(
    function: fn(A) -> T,
    argument: Payload,
    forwarded: Forwarded,
) -> Result<(Function, Payload), PoolError> {
    if forwarded.any() {
        let head = [&forwarded.levels()[..], &argument.head].concat();
        let name = Function::new::<fn(A) -> T, InitialiseForwarding>(function)?;
        return Ok((name, Payload { head, ..argument }));
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
    /// So many workers; one per processor that this process may use unless told otherwise.
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = Some(workers);
        self
    }

    /// How workers are started, [`StartMethod::Forkserver`] by default. `fork` takes
    /// [`fork_with_threads`](PoolBuilder::fork_with_threads).
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.settings.method = method;
        self
    }

    /// Starts workers by `fork` even though other threads run, the pool's own among them, on your word that it is sound: see
    /// [`ForkWithThreads::new`].
    pub fn fork_with_threads(mut self, promise: ForkWithThreads) -> Self {
        self.settings.fork_with_threads = Some(promise);
        self
    }

    /// Workers are called `name-1`, `name-2` and so on, by their places.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Each worker calls `function` before its first task; what it returns is that worker's state, for
    /// [`Pool::state`]: a model, a connection, an arena, made once for each worker. When it panics the pool says so at once:
    /// its tasks fail with [`Failure::NoWorkers`](crate::Failure::NoWorkers).
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

    /// What workers log with the crate `log` goes to this process's logger, at its present level: in the order in which one
    /// worker logged it, and before the result of its task is seen. Workers have no other logger then.
    #[cfg(feature = "log")]
    pub fn forward_logs(mut self) -> Self {
        self.forwarded.logs = true;
        self
    }

    /// What workers trace with the crate `tracing` goes to this process's subscriber, at its present level: in the order in which
    /// one worker traced it, before the result of its task is seen, and inside the span in which the call was made. Its fields
    /// are `message`, `worker` (the process id), `fields` and `spans` (the worker's own, as text).
    #[cfg(feature = "tracing")]
    pub fn forward_traces(mut self) -> Self {
        self.forwarded.traces = true;
        self
    }

    /// Each worker calls `function` with its state after its last task, unless it is killed ([`Pool::terminate`] kills).
    pub fn finalizer(mut self, function: fn(S)) -> Self {
        match Function::new::<fn(S), Finish>(function) {
            Ok(function) => self.settings.finalizer = Some(function),
            Err(error) => self.error = Some(error.into()),
        }
        self
    }

    /// A worker that has run so many items is replaced by a new one, when it has finished its chunk.
    pub fn max_tasks_per_child(mut self, items: NonZeroU64) -> Self {
        self.settings.max_tasks_per_child = Some(items);
        self
    }

    /// Sets a variable in the environment of workers.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.settings.env.push(EnvChange::Set(name.into(), value.into()));
        self
    }

    /// Removes a variable from the environment of workers.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.settings.env.push(EnvChange::Remove(name.into()));
        self
    }

    /// The processors that each worker may use (`sched_setaffinity(2)`), one list for each place, and so on in turn.
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = Vec<u32>>) -> Self {
        self.settings.cpus = cpus.into_iter().collect();
        self
    }

    /// The niceness of workers (`nice(2)`): from -20, the most urgent, which takes privileges, to 19.
    pub fn nice(mut self, nice: i32) -> Self {
        self.settings.nice = Some(nice);
        self
    }

    /// How many bytes of its own a worker may have: resident, without files and what others shared with it, and with what it put in
    /// queues and nobody has taken, and the shared memory that it made and has. Looked at every 20 ms while tasks are out: above it
    /// the worker is killed and replaced, and its task fails with [`Failure::OutOfMemory`](crate::Failure::OutOfMemory).
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// How many bytes of encoded arguments may wait for a worker: above that, calls that return before their tasks have ended
    /// (`apply_async`, `map_async`) wait before they submit more. Without it they never wait, as in Python.
    pub fn max_waiting_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_waiting_bytes = Some(bytes);
        self
    }

    /// Workers end when they have had nothing to do for so long, and start again when there is something.
    pub fn retire_idle(mut self, time: Duration) -> Self {
        self.settings.retire_idle = Some(time);
        self
    }

    /// Calls `see` when workers start, get ready, end, or cannot be started, and when items are lost or tried again; on
    /// whichever thread sees it, so it should be quick.
    pub fn on_event(mut self, see: impl Fn(&PoolEvent) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(see));
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// See [`PoolError`]; nothing is left running then.
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
        crate::forward::tell_of_refused_forkserver();
        Ok(Pool { core, traces, state: PhantomData })
    }
}

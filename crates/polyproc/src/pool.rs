//! [`Pool`]: the same workers for many tasks.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use polyproc_core::Payload;
use polyproc_core::pool::{self as core, PoolError, PoolSettings, TaskEnd};
use polyproc_core::process::{Function, FunctionError, Handler, Outcome, Panic, StartError};

use crate::codec::{self, CodecError, Transfer};
use crate::process::Death;

/// How a function is called for a chunk: once for each item, in order.
struct Each;

impl<A: Transfer, R: Transfer> Handler<fn(A) -> R> for Each {
    fn handle(function: fn(A) -> R, input: Payload) -> Result<Payload, Payload> {
        codec::through(input, |items: Vec<A>| items.into_iter().map(function).collect::<Vec<R>>())
    }
}

/// Why a task gave no result.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The function panicked. The worker lives on.
    #[error("the task {0}")]
    Panicked(Panic),
    /// The worker died while it held the task: a signal killed it, or the task called [`std::process::exit`]. The worker
    /// was replaced.
    #[error("the worker was lost while it ran the task: {0}")]
    WorkerLost(Death),
    /// The task never ran; the text says why.
    #[error("the task could not be run: {0}")]
    Refused(String),
    /// The argument or the result could not be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The function has no name that a worker could find.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The pool was closed or terminated before the task was run.
    #[error("the pool was closed or terminated before the task ended")]
    Terminated,
    /// No worker could be started, or none lived long enough to take a task.
    #[error("the pool has no workers: {}", .0.as_ref().map_or("they die before they take a task".to_owned(), ToString::to_string))]
    NoWorkers(Option<Arc<StartError>>),
}

/// A task that gave no result: which and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("item {index}: {failure}")]
pub struct TaskError {
    /// The position of the argument in what the call was given, from 0.
    pub index: usize,
    /// Why.
    #[source]
    pub failure: Failure,
}

/// Worker processes that run functions over arguments.
///
/// A worker that dies takes its one task with it: that task's result is [`Failure::WorkerLost`], the worker is replaced,
/// and the others go on. Workers leave Ctrl-C to this process. Dropping the pool terminates it.
///
/// ```
/// let pool = polyproc::Pool::new(2)?;
/// assert_eq!(pool.map(|x: i64| x * x, 0..5)?, [0, 1, 4, 9, 16]);
/// assert_eq!(pool.apply(|(a, b): (i32, i32)| a + b, (1, 2))?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pool {
    core: core::Pool,
}

impl Pool {
    /// Starts `workers` workers; `None` for as many as this process may use processors ([`cpu_count`](crate::cpu_count)).
    ///
    /// # Errors
    /// See [`PoolError`]; nothing is left running then.
    pub fn new(workers: impl Into<Option<usize>>) -> Result<Self, PoolError> {
        let settings = PoolSettings { workers: workers.into(), ..PoolSettings::default() };
        Ok(Self { core: core::Pool::new(&settings)? })
    }

    /// How many workers it keeps.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.core.workers()
    }

    /// `function(argument)` in a worker; waits for the result.
    ///
    /// # Errors
    /// [`TaskError`], with index 0.
    pub fn apply<A: Transfer, R: Transfer>(&self, function: fn(A) -> R, argument: A) -> Result<R, TaskError> {
        let failed = |failure| TaskError { index: 0, failure };
        let mut call = Call::new(self, function);
        call.submit(&mut [argument].into_iter(), 1);
        let (_, chunk) = call.receive().ok_or(failed(Failure::Terminated))?;
        chunk.map_err(failed)?.pop().ok_or(failed(Failure::Terminated))
    }

    /// `function` over all `items`; waits, and gives the results in the order of the items. Items go to the workers in
    /// chunks, four for each worker, or as [`Pool::chunksize`] says.
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

    /// `function` over `items`, results as they come. Reads ahead two chunks for each worker, so that `items` may be endless.
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
    ) -> ImapUnordered<'_, I::IntoIter, R> {
        self.options().imap_unordered(function, items)
    }

    /// For the call that follows: so many items go to a worker at once. Larger chunks cost less for each item; a worker
    /// that dies, or an item that panics, fails its whole chunk.
    ///
    /// # Panics
    /// When `items` is 0.
    ///
    /// ```
    /// let pool = polyproc::Pool::new(2)?;
    /// assert_eq!(pool.chunksize(2).map(|x: u8| x + 100, 0..4)?, [100, 101, 102, 103]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn chunksize(&self, items: usize) -> CallOptions<'_> {
        assert!(items > 0, "a chunk holds at least one item");
        CallOptions { chunksize: Some(items), ..self.options() }
    }

    fn options(&self) -> CallOptions<'_> {
        CallOptions { pool: self, chunksize: None }
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

    /// Closes the pool and waits until its workers have ended.
    pub fn join(mut self) {
        self.core.close();
        self.core.join();
    }
}

/// How one call is to be made; see [`Pool::chunksize`].
#[derive(Debug, Clone, Copy)]
#[must_use = "options do nothing without a call"]
pub struct CallOptions<'a> {
    pool: &'a Pool,
    chunksize: Option<usize>,
}

impl<'a> CallOptions<'a> {
    /// As [`Pool::map`].
    ///
    /// # Errors
    /// The failed item of the lowest index, after all have ended.
    pub fn map<A: Transfer, R: Transfer>(
        self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError> {
        let items: Vec<A> = items.into_iter().collect();
        let len = items.len();
        let chunksize = self.chunksize.unwrap_or_else(|| len.div_ceil(4 * self.pool.workers()).max(1));
        let mut call = Call::new(self.pool, function);
        let mut items = items.into_iter();
        while call.submit(&mut items, chunksize) {}
        let mut results: Vec<Option<R>> = std::iter::repeat_with(|| None).take(len).collect();
        let mut first_error: Option<TaskError> = None;
        while let Some((at, chunk)) = call.receive() {
            match chunk {
                Ok(chunk) => at.zip(chunk).for_each(|(index, result)| results[index] = Some(result)),
                Err(failure) if first_error.as_ref().is_none_or(|first| at.start < first.index) => {
                    first_error = Some(TaskError { index: at.start, failure });
                }
                Err(_) => {}
            }
        }
        match first_error {
            Some(error) => Err(error),
            // Every chunk was received without an error, so every place is filled.
            None => Ok(results.into_iter().flatten().collect()),
        }
    }

    /// As [`Pool::imap_unordered`]; one item is a chunk unless [`Pool::chunksize`] says otherwise.
    pub fn imap_unordered<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        self,
        function: fn(A) -> R,
        items: I,
    ) -> ImapUnordered<'a, I::IntoIter, R> {
        ImapUnordered {
            call: Call::new(self.pool, function),
            encode: Call::<R>::submit::<A>,
            items: items.into_iter(),
            chunksize: self.chunksize.unwrap_or(1),
            ready: VecDeque::new(),
        }
    }
}

/// The positions of a chunk's items, and their results or why there are none.
type Ended<R> = (Range<usize>, Result<Vec<R>, Failure>);

/// The chunks of one call that are under way.
struct Call<'a, R> {
    pool: &'a core::Pool,
    function: Result<Function, FunctionError>,
    submitted: usize,
    under_way: usize,
    sender: Sender<Chunk>,
    receiver: Receiver<Chunk>,
    result: PhantomData<fn() -> R>,
}

/// Position of the first item, number of items, and what came of them.
struct Chunk {
    start: usize,
    len: usize,
    end: Result<TaskEnd, Failure>,
}

impl<'a, R: Transfer> Call<'a, R> {
    fn new<A: Transfer>(pool: &'a Pool, function: fn(A) -> R) -> Self {
        let (sender, receiver) = channel();
        let function = Function::new::<_, Each>(function);
        Self { pool: &pool.core, function, submitted: 0, under_way: 0, sender, receiver, result: PhantomData }
    }

    /// Hands the next `chunksize` items to the pool; false when there are none.
    fn submit<A: Transfer>(&mut self, items: &mut dyn Iterator<Item = A>, chunksize: usize) -> bool {
        let chunk: Vec<A> = items.take(chunksize).collect();
        if chunk.is_empty() {
            return false;
        }
        let (start, len) = (self.submitted, chunk.len());
        self.submitted += len;
        self.under_way += 1;
        let sender = self.sender.clone();
        // Fails when the caller has dropped the call and wants no results.
        let send = move |end| _ = sender.send(Chunk { start, len, end });
        match (&self.function, codec::encode("the argument", &chunk)) {
            (Ok(function), Ok(input)) => self.pool.submit(function, input, move |end| send(Ok(end))),
            (Err(error), _) => send(Err(error.clone().into())),
            (_, Err(error)) => send(Err(error.into())),
        }
        true
    }

    /// Waits for the next chunk that has ended; `None` when none is under way.
    fn receive(&mut self) -> Option<Ended<R>> {
        if self.under_way == 0 {
            return None;
        }
        self.under_way -= 1;
        let Chunk { start, len, end } = self.receiver.recv().expect("the call holds a sender itself");
        Some((start..start + len, Self::results(len, end)))
    }

    fn results(len: usize, end: Result<TaskEnd, Failure>) -> Result<Vec<R>, Failure> {
        let results: Vec<R> = match end? {
            TaskEnd::Outcome(Outcome::Returned(payload)) => codec::decode("the result", payload)?,
            TaskEnd::Outcome(Outcome::Raised(payload)) => return Err(codec::raised(payload).into()),
            TaskEnd::Outcome(Outcome::Panicked(panic)) => return Err(Failure::Panicked(panic)),
            TaskEnd::Outcome(Outcome::Refused(why)) => return Err(Failure::Refused(why)),
            TaskEnd::WorkerLost(ending) => {
                let death = Death { status: ending.status, stack_overflow: ending.stack_overflow };
                return Err(Failure::WorkerLost(death));
            }
            TaskEnd::Terminated => return Err(Failure::Terminated),
            TaskEnd::NoWorkers(error) => return Err(Failure::NoWorkers(error.map(Arc::new))),
        };
        if results.len() == len {
            return Ok(results);
        }
        Err(Failure::Refused(format!("the worker answered with {} results for {len} items", results.len())))
    }
}

/// The results of [`Pool::imap_unordered`] as they come: one for each item, in any order.
pub struct ImapUnordered<'a, I: Iterator, R> {
    call: Call<'a, R>,
    encode: fn(&mut Call<'a, R>, &mut dyn Iterator<Item = I::Item>, usize) -> bool,
    items: I,
    chunksize: usize,
    ready: VecDeque<Result<R, TaskError>>,
}

impl<I: Iterator, R> fmt::Debug for ImapUnordered<'_, I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImapUnordered").field("under_way", &self.call.under_way).finish_non_exhaustive()
    }
}

impl<I: Iterator, R: Transfer> Iterator for ImapUnordered<'_, I, R> {
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.call.under_way < 2 * self.call.pool.workers()
            && (self.encode)(&mut self.call, &mut self.items, self.chunksize)
        {}
        while self.ready.is_empty() {
            let (at, chunk) = self.call.receive()?;
            match chunk {
                Ok(results) => self.ready.extend(results.into_iter().map(Ok)),
                Err(failure) => {
                    self.ready.extend(at.map(|index| Err(TaskError { index, failure: failure.clone() })));
                }
            }
        }
        self.ready.pop_front()
    }
}

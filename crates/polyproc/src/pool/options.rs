//! [`CallOptions`]: the options of a call, and the calls themselves.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::pool::{self as core, CallSettings, Want};

use super::call::Call;
use super::function::Named;
use super::{AsyncResult, Failure, Imap, ImapUnordered, TaskError};
use crate::codec::{self, Transfer};
use crate::{Signal, progress::Progress};

/// The largest default chunk size, in items, so that workers can begin before all items are encoded.
const LARGEST_CHUNK: usize = 2048;
/// How many tasks per worker `imap` reads ahead by default.
const LOOK_AHEAD: usize = 64;

type OnProgress<'a> = Box<dyn FnMut(Progress) + 'a>;

/// The options of one call; see [`Pool::options`](crate::Pool::options).
#[must_use = "options do nothing without a call"]
pub struct CallOptions<'a> {
    pool: &'a core::Pool,
    chunksize: Option<usize>,
    look_ahead: Option<usize>,
    look_ahead_bytes: Option<u64>,
    settings: CallSettings,
    on_progress: Option<OnProgress<'a>>,
}

impl fmt::Debug for CallOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallOptions")
            .field("chunksize", &self.chunksize)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<'a> CallOptions<'a> {
    pub(crate) fn new(pool: &'a core::Pool, traces: bool) -> Self {
        let on_log = traces.then(|| {
            #[cfg(feature = "tracing")]
            let _inside = tracing::debug_span!("call").or_current().entered();
            crate::forward::on_log()
        });
        let settings = CallSettings { backoff: Duration::from_millis(10), on_log, ..CallSettings::default() };
        Self { pool, chunksize: None, look_ahead: None, look_ahead_bytes: None, settings, on_progress: None }
    }

    /// Sets how many items go to a worker together.
    ///
    /// Larger chunks cost less per item. Each item has its own outcome: if one panics or kills its worker, only that item
    /// fails.
    ///
    /// # Panics
    /// Panics if `items` is 0.
    pub fn chunksize(mut self, items: usize) -> Self {
        assert!(items > 0, "a chunk holds at least one item");
        self.chunksize = Some(items);
        self
    }

    /// Sets the maximum number of items that `imap` and `imap_unordered` read ahead of the results that the caller has taken.
    ///
    /// # Panics
    /// Panics if `items` is 0.
    pub fn look_ahead(mut self, items: usize) -> Self {
        assert!(items > 0, "at least one item is under way");
        self.look_ahead = Some(items);
        self
    }

    /// Limits the arguments and results that `imap` and `imap_unordered` read ahead, to about `bytes` bytes.
    ///
    /// They read enough items to keep all workers busy, whatever the limit. The default is an eighth of the memory budget
    /// ([`set_memory_budget`](crate::set_memory_budget)), at most 256 MiB.
    pub fn look_ahead_bytes(mut self, bytes: u64) -> Self {
        self.look_ahead_bytes = Some(bytes);
        self
    }

    /// Limits how long each item may run, from when a worker begins it.
    ///
    /// On timeout the worker is killed, and the item fails with [`Failure::TimedOut`].
    pub fn timeout(mut self, each: Duration) -> Self {
        self.settings.limit = Some(each);
        self
    }

    /// With [`CallOptions::timeout`]: on timeout, sends `signal` to the worker first, and kills it only if the item has not
    /// ended after `grace`. A signal handler in the worker may end the item in its own way.
    pub fn soft_signal(mut self, signal: Signal, grace: Duration) -> Self {
        self.settings.soft_signal = Some((signal, grace));
        self
    }

    /// Limits how long the whole call may take, from its start. Items that have not ended by then fail with
    /// [`Failure::TimedOut`].
    pub fn call_timeout(mut self, all: Duration) -> Self {
        self.settings.call_limit = Some(all);
        self
    }

    /// Sets how many times an item is retried after its worker was lost while running it. An item may thus run more than once.
    ///
    /// If its worker is lost in each attempt, only that item fails, with [`Failure::WorkerLost`] or [`Failure::OutOfMemory`].
    pub fn retries(mut self, retries: u32) -> Self {
        self.settings.retries = retries;
        self
    }

    /// Sets the delay before the first retry of an item, 10 ms by default. The delay doubles with each retry, up to 1 minute.
    pub fn backoff(mut self, first: Duration) -> Self {
        self.settings.backoff = first;
        self
    }

    /// Also retries items that panic, as often as [`CallOptions::retries`] allows.
    pub fn retry_panics(mut self) -> Self {
        self.settings.retries_panics = true;
        self
    }

    /// Sets the priority, 0 by default. Workers take tasks of higher priority first. Running tasks are not interrupted.
    pub fn priority(mut self, priority: i32) -> Self {
        self.settings.priority = priority;
        self
    }

    /// Calls `see` on the calling thread as results arrive: in [`CallOptions::map`] after each batch of results, in `imap` and
    /// `imap_unordered` with each result that is taken.
    pub fn on_progress(mut self, see: impl FnMut(Progress) + 'a) -> Self {
        self.on_progress = Some(Box::new(see));
        self
    }

    /// Draws a progress bar on standard error.
    #[cfg(feature = "indicatif")]
    pub fn progress(self) -> Self {
        self.on_progress(crate::progress::bar())
    }

    /// Returns options for functions that take a context, which each worker receives and decodes once.
    ///
    /// ```
    /// let pool = polyproc::Pool::new(2)?;
    /// let words = vec!["a".to_owned(), "b".to_owned()];
    /// let found = pool.options().context(&words).map(|words: &Vec<String>, at: usize| words[at].clone(), [1, 0, 1])?;
    /// assert_eq!(found, ["b", "a", "b"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn context<C: Transfer>(self, context: &C) -> WithContext<'a, C> {
        let mut bytes = Vec::new();
        let encoded = codec::encode_to("the context", context, &mut bytes).and_then(|fds| match fds.is_empty() {
            true => Ok(bytes),
            false => Err(codec::CodecError::new::<C>("encode", "the context", "it holds handles")),
        });
        WithContext { options: self, context: encoded, types: PhantomData }
    }

    pub(crate) fn state<S>(self) -> WithState<'a, S> {
        WithState { options: self, types: PhantomData }
    }

    fn imap_window(&self) -> core::ReadAhead {
        let items = self.look_ahead.unwrap_or(LOOK_AHEAD * self.pool.workers() * self.chunksize.unwrap_or(1));
        core::ReadAhead::new(items, self.look_ahead_bytes)
    }
}

/// [`CallOptions`] for functions with a context; see [`CallOptions::context`].
#[must_use = "options do nothing without a call"]
#[derive(Debug)]
pub struct WithContext<'a, C> {
    options: CallOptions<'a>,
    context: Result<Vec<u8>, codec::CodecError>,
    types: PhantomData<fn(C)>,
}

/// [`CallOptions`] for functions that take the worker's own state; see [`Pool::state`](crate::Pool::state).
#[must_use = "options do nothing without a call"]
#[derive(Debug)]
pub struct WithState<'a, S> {
    options: CallOptions<'a>,
    types: PhantomData<fn(S)>,
}

impl CallOptions<'_> {
    fn call_one<A: Transfer, R: Transfer>(mut self, named: Named<A, R>, argument: &A, is_awaited: bool) -> Call<A, R> {
        self.settings.is_awaited = is_awaited;
        if !is_awaited {
            wait_to_submit(self.pool);
        }
        let mut call = Call::new(self.pool, named, 1, self.settings);
        call.push(argument);
        call.seal();
        call
    }

    fn apply_named<A: Transfer, R: Transfer>(self, named: Named<A, R>, argument: &A) -> Result<R, TaskError> {
        let mut call = self.call_one(named, argument, true);
        call.wait(Want::Next, Deadline::NEVER);
        let mut result = Err(Failure::Terminated);
        call.take(|_, end| result = end);
        result.map_err(|failure| TaskError { index: 0, failure })
    }

    fn chunk_for(&self, len: usize) -> usize {
        let default = || len.div_ceil(4 * self.pool.workers()).clamp(1, LARGEST_CHUNK);
        self.chunksize.unwrap_or_else(default)
    }

    fn map_named<A: Transfer, R: Transfer>(
        mut self,
        named: Named<A, R>,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError> {
        let items = items.into_iter();
        let (at_least, at_most) = items.size_hint();
        // The default chunk size depends on the number of items. If that is unknown, collect the items first.
        if self.chunksize.is_none() && at_most != Some(at_least) {
            let items: Vec<A> = items.collect();
            return self.map_named(named, items);
        }
        let chunksize = self.chunk_for(at_least);
        self.settings.is_bulk = self.on_progress.is_none();
        let total = (at_most == Some(at_least)).then_some(at_least);
        let call = Call::new(self.pool, named, chunksize, self.settings);
        let mut map = Map { call, results: Vec::with_capacity(at_least), done: 0, total, error: None, is_over: false };
        for item in items {
            map.results.push(None);
            if map.call.push(&item) && !map.call.has_room() {
                map.call.wait(if self.on_progress.is_some() { Want::Next } else { Want::Room }, Deadline::NEVER);
                map.take(&mut self.on_progress);
            }
        }
        map.call.seal();
        let want = if self.on_progress.is_some() { Want::Next } else { Want::All };
        loop {
            map.call.wait(want, Deadline::NEVER);
            if map.take(&mut self.on_progress) == 0 {
                break;
            }
        }
        map.is_over = true;
        match map.error.take() {
            Some(error) => Err(error),
            // All items have ended without an error, so every entry is `Some`.
            None => Ok(std::mem::take(&mut map.results).into_iter().flatten().collect()),
        }
    }

    fn map_async_named<A: Transfer, R: Transfer + Send>(
        self,
        named: Named<A, R>,
        items: impl IntoIterator<Item = A>,
    ) -> AsyncResult<Vec<R>> {
        let items: Vec<A> = items.into_iter().collect();
        let chunksize = self.chunk_for(items.len());
        let pool = self.pool;
        let mut call = Call::new(pool, named, chunksize, self.settings);
        for item in &items {
            wait_to_submit(pool);
            call.push(item);
        }
        call.seal();
        AsyncResult::many(call)
    }
}

/// Blocks while too many bytes of arguments wait: see
/// [`PoolBuilder::max_waiting_bytes`](crate::PoolBuilder::max_waiting_bytes).
fn wait_to_submit(pool: &core::Pool) {
    while pool.wait_to_submit(Deadline::NEVER).is_err() {} // interrupted by a signal handler
}

/// A running `map`. If the calling thread unwinds, items that no worker has begun do not run.
struct Map<A, R: Transfer> {
    call: Call<A, R>,
    results: Vec<Option<R>>,
    done: usize,
    total: Option<usize>,
    error: Option<TaskError>,
    is_over: bool,
}

impl<A, R: Transfer> Map<A, R> {
    fn take(&mut self, on_progress: &mut Option<OnProgress<'_>>) -> u64 {
        let left = self.call.take(|index, end| {
            self.done += 1;
            match end {
                Ok(result) => {
                    if let Some(place) = self.results.get_mut(index) {
                        *place = Some(result);
                    }
                }
                Err(failure) if self.error.as_ref().is_none_or(|first| index < first.index) => {
                    self.error = Some(TaskError { index, failure });
                }
                Err(_) => {}
            }
        });
        if let Some(see) = on_progress {
            see(Progress { done: self.done, total: self.total });
        }
        left
    }
}

impl<A, R: Transfer> Drop for Map<A, R> {
    fn drop(&mut self) {
        if !self.is_over {
            self.call.give_up();
        }
    }
}

/// Implements the calls for one kind of function.
macro_rules! calls {
    ($options:ty, [$($generic:tt)*], $function:ty, $self:ident => ($own:expr, $name:expr)) => {
        impl<'a, $($generic)*> $options {
            /// Runs `function` on `argument` in a worker, and returns the result. Blocks until the task has ended.
            ///
            /// # Errors
            /// [`TaskError`], with index 0, when the task failed.
            pub fn apply<A: Transfer, R: Transfer>($self, function: $function, argument: A) -> Result<R, TaskError> {
                let (options, named) = ($own, $name(function));
                options.apply_named(named, &argument)
            }

            /// Starts `function` on `argument` in a worker, and returns without waiting for the result.
            pub fn apply_async<A: Transfer, R: Transfer + Send>($self, function: $function, argument: A) -> AsyncResult<R> {
                let (options, named) = ($own, $name(function));
                AsyncResult::single(options.call_one(named, &argument, false))
            }

            /// Runs `function` on all `items`, and returns the results in the order of the items. Blocks until all have ended.
            ///
            /// By default the items are split into four chunks per worker, or into more if a chunk would exceed 2048 items.
            ///
            /// # Errors
            /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
            pub fn map<A: Transfer, R: Transfer>(
                $self,
                function: $function,
                items: impl IntoIterator<Item = A>,
            ) -> Result<Vec<R>, TaskError> {
                let (options, named) = ($own, $name(function));
                options.map_named(named, items)
            }

            /// Starts `function` on all `items`, and returns without waiting for the results. Reads all items first.
            pub fn map_async<A: Transfer, R: Transfer + Send>(
                $self,
                function: $function,
                items: impl IntoIterator<Item = A>,
            ) -> AsyncResult<Vec<R>> {
                let (options, named) = ($own, $name(function));
                options.map_async_named(named, items)
            }

            /// Returns an iterator over the results of `function`, in the order of `items`.
            ///
            /// It reads ahead within a limit (64 tasks per worker, or [`CallOptions::look_ahead`]), so `items` may be endless.
            /// Each item is a task of its own unless a chunk size is set.
            pub fn imap<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
                $self,
                function: $function,
                items: I,
            ) -> Imap<'a, I::IntoIter, A, R> {
                let (options, named) = ($own, $name(function));
                Imap::new(options.imap_unordered_named(named, items.into_iter()))
            }

            /// Returns an iterator over the results of `function`, in the order of arrival. Otherwise as `imap`.
            pub fn imap_unordered<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
                $self,
                function: $function,
                items: I,
            ) -> ImapUnordered<'a, I::IntoIter, A, R> {
                let (options, named) = ($own, $name(function));
                options.imap_unordered_named(named, items.into_iter())
            }
        }
    };
}

calls!(CallOptions<'a>, [], fn(A) -> R, self => (self, Named::plain));
calls!(WithState<'a, S>, [S: 'static], fn(&mut S, A) -> R, self => (self.options, Named::stateful));
calls!(WithContext<'a, C>, [C: Transfer], fn(&C, A) -> R, self => (
    self.options,
    |function| Named::contextual(function, self.context)
));

impl<'a> CallOptions<'a> {
    /// As [`CallOptions::map`], but passes the two parts of each item as separate arguments.
    ///
    /// For more than two parts, use `map` with a pattern: `|(a, b, c)| ...`.
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
    pub fn starmap<A: Transfer, B: Transfer, R: Transfer>(
        self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> Result<Vec<R>, TaskError> {
        self.map_named(Named::star(function), items)
    }

    /// As [`CallOptions::map_async`], but passes the two parts of each item as separate arguments.
    pub fn starmap_async<A: Transfer, B: Transfer, R: Transfer + Send>(
        self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> AsyncResult<Vec<R>> {
        self.map_async_named(Named::star(function), items)
    }

    fn imap_unordered_named<A: Transfer, R: Transfer, I: Iterator<Item = A>>(
        self,
        named: Named<A, R>,
        items: I,
    ) -> ImapUnordered<'a, I, A, R> {
        let window = self.imap_window();
        let call = Call::new(self.pool, named, self.chunksize.unwrap_or(1), self.settings);
        ImapUnordered::new(call, items, window, self.on_progress)
    }
}

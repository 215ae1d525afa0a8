//! How [`CallOptions`] runs a function of any kind: once, over all items, or as an iterator over results.

use polyproc_core::Deadline;
use polyproc_core::pool::{self as core, WaitFor};

use super::call::Call;
use super::function::Named;
use super::options::OnProgress;
use super::{AsyncResult, CallOptions, Failure, ImapUnordered, TaskError};
use crate::codec::Transfer;
use crate::progress::Progress;

/// The largest default chunk size, in items, so that workers can begin before all items are encoded.
const LARGEST_CHUNK: usize = 2048;
/// How many tasks per worker `imap` reads ahead by default.
const LOOK_AHEAD: usize = 64;

impl<'a> CallOptions<'a> {
    pub(super) fn call_one<A: Transfer, R: Transfer>(
        mut self,
        named: Named<A, R>,
        argument: &A,
        is_awaited: bool,
    ) -> Call<A, R> {
        self.settings.is_awaited = is_awaited;
        if !is_awaited {
            wait_to_submit(self.pool);
        }
        let mut call = Call::new(self.pool, named, 1, self.settings);
        call.push(argument);
        call.seal();
        call
    }

    pub(super) fn apply_named<A: Transfer, R: Transfer>(
        self,
        named: Named<A, R>,
        argument: &A,
    ) -> Result<R, TaskError> {
        let mut call = self.call_one(named, argument, true);
        call.wait(WaitFor::Next, Deadline::NEVER);
        let mut result = Err(Failure::Terminated);
        call.take(|_, end| result = end);
        result.map_err(|failure| TaskError { index: 0, failure })
    }

    fn chunk_for(&self, len: usize) -> usize {
        let default = || len.div_ceil(4 * self.pool.workers()).clamp(1, LARGEST_CHUNK);
        self.chunksize.unwrap_or_else(default)
    }

    pub(super) fn map_named<A: Transfer, R: Transfer>(
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
                map.call.wait(if self.on_progress.is_some() { WaitFor::Next } else { WaitFor::Room }, Deadline::NEVER);
                map.take(&mut self.on_progress);
            }
        }
        map.call.seal();
        let want = if self.on_progress.is_some() { WaitFor::Next } else { WaitFor::All };
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

    pub(super) fn map_async_named<A: Transfer, R: Transfer + Send>(
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

    fn imap_window(&self) -> core::ReadAhead {
        let items = self.look_ahead.unwrap_or(LOOK_AHEAD * self.pool.workers() * self.chunksize.unwrap_or(1));
        core::ReadAhead::new(items, self.look_ahead_bytes)
    }

    pub(super) fn imap_unordered_named<A: Transfer, R: Transfer, I: Iterator<Item = A>>(
        self,
        named: Named<A, R>,
        items: I,
    ) -> ImapUnordered<'a, I, A, R> {
        let window = self.imap_window();
        let call = Call::new(self.pool, named, self.chunksize.unwrap_or(1), self.settings);
        ImapUnordered::new(call, items, window, self.on_progress)
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

//! One call: submits items as tasks, and takes their results.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;

use polyproc_core::pool::{self as core, ItemEnd, Submitter, WaitFor};
use polyproc_core::{Deadline, retry_interrupted};

use super::Failure;
use super::function::Named;
use crate::codec::{self, Transfer};

/// The tasks of one call, and the results that have arrived.
pub(crate) struct Call<A, R> {
    /// An error if the function cannot be named or the context cannot be encoded: then all items fail with it.
    feed: Result<Submitter, Failure>,
    /// The number of items so far.
    count: usize,
    /// The items that failed in this process, by index.
    failed: Vec<(usize, Failure)>,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> fmt::Debug for Call<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("items", &self.count).finish_non_exhaustive()
    }
}

/// Decodes the result of an item.
pub(crate) fn decode<R: Transfer>(end: ItemEnd<'_>) -> Result<R, Failure> {
    let (bytes, fds) = end?;
    Ok(codec::decode_from("the result", bytes, fds)?)
}

impl<A: Transfer, R: Transfer> Call<A, R> {
    pub(crate) fn new(pool: &core::Pool, named: Named<A, R>, chunksize: usize, settings: core::CallSettings) -> Self {
        let call = match named.context.transpose() {
            Ok(context) => pool.call(named.key, named.name, context.as_deref(), settings).map_err(Failure::from),
            Err(error) => Err(error.into()),
        };
        let feed = call.map(|call| Submitter::new(call, chunksize, pool.workers()));
        Self { feed, count: 0, failed: Vec::new(), types: PhantomData }
    }

    /// Adds an item, which is submitted with the rest of its chunk. Returns true if the chunk was submitted, or the item
    /// failed.
    pub(crate) fn push(&mut self, item: &A) -> bool {
        let index = self.count;
        self.count += 1;
        let pushed = match &mut self.feed {
            Ok(feed) => feed.push(|out| codec::encode_to("the argument", item, out)).map_err(Failure::from),
            Err(failure) => Err(failure.clone()),
        };
        pushed.unwrap_or_else(|failure| {
            self.failed.push((index, failure));
            true
        })
    }

    /// Submits the unfinished chunk.
    pub(crate) fn flush(&mut self) {
        if let Ok(feed) = &mut self.feed {
            feed.flush();
        }
    }

    /// Submits the unfinished chunk, and ends the call's list of items.
    pub(crate) fn seal(&mut self) {
        if let Ok(feed) = &mut self.feed {
            feed.seal();
        }
    }
}

impl<A, R: Transfer> Call<A, R> {
    /// Returns the number of items so far.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Returns whether the caller may add one more item, given that it has consumed `taken` results.
    pub(crate) fn may_read_on(&self, taken: usize, ahead: core::ReadAhead) -> bool {
        match &self.feed {
            Ok(feed) => feed.may_read_on(taken, ahead),
            Err(_) => self.count - taken < ahead.items,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.core().is_none_or(|core| core.has_room())
    }

    /// Blocks until `want` is satisfied. Returns false if the deadline passed first.
    pub(crate) fn wait(&mut self, want: WaitFor, deadline: Deadline) -> bool {
        let Ok(feed) = &mut self.feed else { return true };
        if !self.failed.is_empty() && want == WaitFor::Next {
            return true;
        }
        retry_interrupted(|| feed.wait(want, deadline)).unwrap_or(false)
    }

    /// Passes each result that has arrived to `see`. Returns how many of the submitted items have not ended.
    pub(crate) fn take(&mut self, mut see: impl FnMut(usize, Result<R, Failure>)) -> u64 {
        for (index, failure) in mem::take(&mut self.failed) {
            see(index, Err(failure));
        }
        let Ok(feed) = &mut self.feed else { return 0 };
        feed.take(|index, end| see(usize::try_from(index).unwrap_or(usize::MAX), decode(end)))
    }

    /// Returns the engine's call, if there is one.
    pub(crate) fn core(&self) -> Option<&Arc<core::Call>> {
        self.feed.as_ref().ok().map(Submitter::call)
    }

    /// Withdraws the tasks that no worker has taken. The others run on.
    pub(crate) fn give_up(&self) {
        if let Some(core) = self.core() {
            core.give_up();
        }
    }
}

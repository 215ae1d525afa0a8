//! One call: items into tasks, results out of them.

use std::fmt;
use std::marker::PhantomData;
use std::mem;

use polyproc_core::Deadline;
use polyproc_core::pool::{self as core, Feed, ItemEnd, Want};

use super::Failure;
use super::function::Named;
use crate::codec::{self, Transfer};

/// The tasks of one call, and the results that came.
pub(crate) struct Call<A, R> {
    /// `None` where the function cannot be named: then all items fail, so.
    feed: Result<Feed, Failure>,
    /// How many items there were so far.
    count: usize,
    /// Items that failed here.
    failed: Vec<(usize, Failure)>,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> fmt::Debug for Call<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("items", &self.count).finish_non_exhaustive()
    }
}

/// A result as it came, or why there is none.
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
        let feed = call.map(|call| Feed::new(call, chunksize, pool.workers()));
        Self { feed, count: 0, failed: Vec::new(), types: PhantomData }
    }

    /// Adds an item; it goes to a worker with the rest of its chunk. True when that went.
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

    /// Hands on what is left of the last chunk.
    pub(crate) fn flush(&mut self) {
        if let Ok(feed) = &mut self.feed {
            feed.flush();
        }
    }

    /// There are no more items.
    pub(crate) fn seal(&mut self) {
        if let Ok(feed) = &mut self.feed {
            feed.seal();
        }
    }
}

impl<A, R: Transfer> Call<A, R> {
    /// How many items there were so far.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether one more item may be taken, when so many results were taken.
    pub(crate) fn may_read_on(&self, taken: usize, ahead: core::ReadAhead) -> bool {
        match &self.feed {
            Ok(feed) => feed.may_read_on(taken, ahead),
            Err(_) => self.count - taken < ahead.items,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.core().is_none_or(core::Call::has_room)
    }

    /// Waits for what is wanted; false when the deadline passed first.
    pub(crate) fn wait(&self, want: Want, deadline: Deadline) -> bool {
        let Some(core) = self.core() else { return true };
        if !self.failed.is_empty() && want == Want::Next {
            return true;
        }
        loop {
            // A signal handler ran, and that is all.
            if let Ok(done) = core.wait(want, deadline) {
                return done;
            }
        }
    }

    /// Takes what has come. Gives how many items are to come.
    pub(crate) fn take(&mut self, mut see: impl FnMut(usize, Result<R, Failure>)) -> u64 {
        for (index, failure) in mem::take(&mut self.failed) {
            see(index, Err(failure));
        }
        let Ok(feed) = &mut self.feed else { return 0 };
        feed.take(|index, end| see(usize::try_from(index).unwrap_or(usize::MAX), decode(end)))
    }

    /// The engine's call, where there is one.
    pub(crate) fn core(&self) -> Option<&core::Call> {
        self.feed.as_ref().ok().map(|feed| &**feed.call())
    }

    /// What has not begun is not run.
    pub(crate) fn give_up(&self) {
        if let Some(core) = self.core() {
            core.give_up();
        }
    }

    pub(crate) fn cancel(&self) {
        if let Some(core) = self.core() {
            core.cancel();
        }
    }
}

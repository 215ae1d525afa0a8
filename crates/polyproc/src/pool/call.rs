//! One call: items into tasks, results out of them.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::time::{Duration, Instant};

use polyproc_core::Deadline;
use polyproc_core::pool::{self as core, Ends, ItemEnd, Items, Want};

use super::Failure;
use super::function::Named;
use crate::codec::{self, Transfer};

/// Arguments of a task above this are not joined by another item.
const FULL_LEN_BYTES: usize = 64 << 10;

/// The tasks of one call, and the results that came.
pub(crate) struct Call<A, R> {
    /// `None` where the function cannot be named: then all items fail, so.
    core: Result<core::Call, Failure>,
    chunksize: usize,
    /// Where items are tasks of their own: how many of them travel together.
    batching: Option<Batching>,
    /// Items that are to go together.
    chunk: Items,
    /// How many items there were so far.
    count: usize,
    /// Items that failed here.
    failed: Vec<(usize, Failure)>,
    ends: Ends,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> fmt::Debug for Call<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("items", &self.count).finish_non_exhaustive()
    }
}

/// Short tasks travel together, though each is a task of its own: so many as take about [`BATCH_TIME`].
#[derive(Debug)]
struct Batching {
    workers: usize,
    size: usize,
    /// Since when how many have ended.
    since: Instant,
    ended: usize,
}

const BATCH_TIME: Duration = Duration::from_micros(30);
const LARGEST_BATCH: usize = 64;
/// So many tell how long they take.
const SAMPLE: usize = 256;

impl Batching {
    fn new(workers: usize) -> Self {
        Self { workers, size: 1, since: Instant::now(), ended: 0 }
    }

    /// Some more tasks have ended.
    fn ended(&mut self, count: usize) {
        self.ended += count;
        if self.ended < SAMPLE {
            return;
        }
        // Of one task, what it waited for its like included; not below a nanosecond.
        let each = self.since.elapsed().as_nanos() * self.workers as u128 / self.ended as u128;
        let fits = usize::try_from(BATCH_TIME.as_nanos() / each.max(1)).unwrap_or(LARGEST_BATCH);
        // Twice as many at most: it grows by what was seen, and shrinks at once.
        self.size = fits.clamp(1, LARGEST_BATCH).min(self.size * 2);
        (self.since, self.ended) = (Instant::now(), 0);
    }
}

/// A result as it came, or why there is none.
pub(crate) fn decode<R: Transfer>(end: ItemEnd<'_>) -> Result<R, Failure> {
    let (bytes, fds) = end?;
    Ok(codec::decode_from("the result", bytes, fds)?)
}

impl<A: Transfer, R: Transfer> Call<A, R> {
    pub(crate) fn new(pool: &core::Pool, named: Named<A, R>, chunksize: usize, settings: core::CallSettings) -> Self {
        let core = match named.context.transpose() {
            Ok(context) => pool.call(named.key, named.name, context.as_deref(), settings).map_err(Failure::from),
            Err(error) => Err(error.into()),
        };
        Self {
            core,
            chunksize,
            batching: (chunksize == 1).then(|| Batching::new(pool.workers())),
            chunk: Items::new(),
            count: 0,
            failed: Vec::new(),
            ends: Ends::default(),
            types: PhantomData,
        }
    }

    /// Adds an item; it goes to a worker with the rest of its chunk. True when that went.
    pub(crate) fn push(&mut self, item: &A) -> bool {
        let index = self.count;
        self.count += 1;
        if let Err(failure) = &self.core {
            self.failed.push((index, failure.clone()));
            return true;
        }
        match self.chunk.push(|out| codec::encode_to("the argument", item, out)) {
            Ok(fds) if fds.is_empty() => {
                let is_full = self.chunk.count() as usize >= self.chunksize || self.chunk.len_bytes() >= FULL_LEN_BYTES;
                if is_full {
                    self.submit(self.count);
                }
                return is_full;
            }
            // An item with handles is a task of its own.
            Ok(fds) => {
                let mut item = self.chunk.split_off_last();
                self.submit(index);
                if let Ok(core) = &self.core {
                    core.submit(index as u64, &mut item, fds, false);
                }
            }
            Err(error) => {
                self.submit(index);
                self.failed.push((index, error.into()));
            }
        }
        true
    }

    /// Hands on the chunk, the last item of which comes before `end`.
    fn submit(&mut self, end: usize) {
        if let Ok(core) = &self.core {
            let first = (end - self.chunk.count() as usize) as u64;
            core.submit(first, &mut self.chunk, Vec::new(), self.batching.is_some());
        }
    }

    /// Hands on what is left of the last chunk.
    pub(crate) fn flush(&mut self) {
        self.submit(self.count);
    }

    /// There are no more items.
    pub(crate) fn seal(&mut self) {
        self.flush();
        if let Ok(core) = &self.core {
            core.seal();
        }
    }
}

impl<A, R: Transfer> Call<A, R> {
    /// How many items there were so far.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn has_room(&self) -> bool {
        self.core.as_ref().is_ok_and(core::Call::has_room) || self.core.is_err()
    }

    /// Waits for what is wanted; false when the deadline passed first.
    pub(crate) fn wait(&self, want: Want, deadline: Deadline) -> bool {
        let Ok(core) = &self.core else { return true };
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
        let Ok(core) = &self.core else { return 0 };
        let left = core.take(&mut self.ends);
        let mut count = 0;
        self.ends.drain(|index, end| {
            count += 1;
            see(usize::try_from(index).unwrap_or(usize::MAX), decode(end));
        });
        if let Some(batching) = &mut self.batching {
            batching.ended(count);
            self.chunksize = batching.size;
        }
        left
    }

    /// The engine's call, where there is one.
    pub(crate) fn core(&self) -> Option<&core::Call> {
        self.core.as_ref().ok()
    }

    /// What has not begun is not run.
    pub(crate) fn give_up(&self) {
        if let Ok(core) = &self.core {
            core.give_up();
        }
    }

    pub(crate) fn cancel(&self) {
        if let Ok(core) = &self.core {
            core.cancel();
        }
    }
}

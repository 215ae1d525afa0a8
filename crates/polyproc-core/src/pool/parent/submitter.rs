//! [`Submitter`]: the items of a call, in chunks.
//!
//! Used by both faces. It groups items into tasks, counts bytes for the limit on read-ahead, and adapts the size of
//! batches. It belongs to one thread at a time and has no lock of its own; the [`Call`] that it fills has.
//!
//! An item becomes part of a task as soon as its chunk is full: after `chunksize` items, or [`FULL_LEN_BYTES`]. Items
//! with descriptors are tasks of their own, since a task has descriptors for its first item only. Before an item that
//! is sent alone or cannot be encoded, the pending chunk is submitted, so that the indices in a task are consecutive.
//!
//! It never blocks and enforces no limit itself: [`Submitter::may_read_on`] and [`Call::has_room`] say when the caller
//! should wait.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::Call;
use super::ends::{Ends, ItemEnd};
use super::leader::WaitFor;
use crate::deadline::Deadline;
use crate::pool::shared::task::Items;
use crate::robust::WaitError;
use crate::shm::memory_budget;

/// A chunk of this many bytes is full.
///
/// With it, a task of large items has few of them, so that workers share them.
const FULL_LEN_BYTES: usize = 64 << 10;

/// How far a call may read its items ahead of the consumer of its results.
#[derive(Debug, Clone, Copy)]
pub struct ReadAhead {
    /// Maximum number of items that are in progress, or have ended and whose results were not taken.
    pub items: usize,
    /// Maximum bytes of these items and their results, estimated from earlier ones; ignored below two items per worker.
    pub bytes: u64,
}

/// Default limit: reading further ahead does not make a call faster.
const AHEAD_BYTES: u64 = 256 << 20;
/// Divisor of the memory budget for the default limit.
///
/// Other calls, queues and processes of the program use the same budget.
const AHEAD_SHARE: u64 = 8;

impl ReadAhead {
    /// Limits read-ahead to `items` items and `bytes` bytes; `None` takes an eighth of the memory budget, 256 MiB at most.
    #[must_use]
    pub fn new(items: usize, bytes: Option<u64>) -> Self {
        let suits = || AHEAD_BYTES.min(memory_budget().limit / AHEAD_SHARE);
        Self { items: items.max(1), bytes: bytes.unwrap_or_else(suits) }
    }
}

/// A call that takes its items one by one, and submits them in chunks.
///
/// `push` it items, then [`Submitter::seal`] it; take results in between and after that.
#[derive(Debug)]
pub struct Submitter {
    call: Arc<Call>,
    /// Number of workers of the pool, as given at the start.
    workers: usize,
    /// Bytes of all items so far.
    argument_bytes: u64,
    /// Number of results that have arrived, and their bytes.
    ended: u64,
    /// Bytes of the results that have arrived, and of memory that descriptors lent.
    result_bytes: u64,
    /// Number of items in a full chunk: fixed, or the current size of a batch.
    chunksize: usize,
    /// If each item is a task of its own: how many items travel together.
    batching: Option<Batching>,
    /// Items that were not submitted yet.
    chunk: Items,
    /// Number of items so far.
    count: usize,
    /// The buffer for results between the call and the caller.
    ends: Ends,
    /// [`Submitter::wait`] has taken results: the number of submitted items that had not ended then.
    taken: Option<u64>,
}

/// Short tasks travel together, though each is a task of its own: as many as take [`BATCH_TIME`].
///
/// It measures how fast the items of this call end on all workers together, so no clock in the workers is needed.
#[derive(Debug)]
struct Batching {
    /// Number of workers: that many tasks run at the same time.
    workers: usize,
    /// Number of items that travel together, from 1 to [`LARGEST_BATCH`].
    size: usize,
    /// The start of the sample, and the number of tasks that have ended since.
    since: Instant,
    ended: usize,
}

/// Work for about this time travels together: then the cost of publishing and claiming a task is small beside it.
const BATCH_TIME: Duration = Duration::from_micros(30);
/// Maximum number of items that travel together.
const LARGEST_BATCH: usize = 64;
/// Number of tasks that are measured together.
const SAMPLE: usize = 256;

impl Batching {
    /// Begins with single items: their durations are not known.
    fn new(workers: usize) -> Self {
        Self { workers, size: 1, since: Instant::now(), ended: 0 }
    }

    /// Counts tasks that have ended. Adjusts the size of batches after each sample.
    fn ended(&mut self, count: usize) {
        self.ended += count;
        if self.ended < SAMPLE {
            return;
        }
        // Nanoseconds per task, including its time in queues.
        let each = self.since.elapsed().as_nanos() * self.workers as u128 / self.ended as u128;
        let fits = usize::try_from(BATCH_TIME.as_nanos() / each.max(1)).unwrap_or(LARGEST_BATCH);
        // The size at most doubles with each sample, and shrinks at once.
        self.size = fits.clamp(1, LARGEST_BATCH).min(self.size * 2);
        (self.since, self.ended) = (Instant::now(), 0);
    }
}

impl Submitter {
    /// Creates a feed with chunks of `chunksize` items, for `workers` workers. If `chunksize` is 1, short tasks still travel
    /// together.
    ///
    /// `call` was created by the caller, with the settings that its use needs.
    #[must_use]
    pub fn new(call: Call, chunksize: usize, workers: usize) -> Self {
        let batching = (chunksize == 1).then(|| Batching::new(workers));
        Self {
            call: Arc::new(call),
            workers,
            argument_bytes: 0,
            ended: 0,
            result_bytes: 0,
            chunksize,
            batching,
            chunk: Items::new(),
            count: 0,
            ends: Ends::default(),
            taken: None,
        }
    }

    /// Adds an item. `encode` appends it to the given bytes, and returns its descriptors. The item is submitted with the rest
    /// of its chunk. Returns whether the chunk was submitted. An item that cannot be encoded still counts.
    ///
    /// # Errors
    /// The error of `encode`.
    ///
    /// `encode` must only append to the bytes.
    pub fn push<E>(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> Result<Vec<OwnedFd>, E>) -> Result<bool, E> {
        let index = self.count;
        self.count += 1;
        let len_before = self.chunk.len_bytes();
        let pushed = self.chunk.push(encode);
        self.argument_bytes += self.chunk.len_bytes().saturating_sub(len_before) as u64;
        match pushed {
            Ok(fds) if fds.is_empty() => {
                let is_full = self.chunk.count() as usize >= self.chunksize || self.chunk.len_bytes() >= FULL_LEN_BYTES;
                if is_full {
                    self.submit(self.count);
                }
                Ok(is_full)
            }
            // An item with descriptors is a task of its own.
            Ok(fds) => {
                let mut item = self.chunk.split_off_last();
                self.submit(index);
                self.call.submit(index as u64, &mut item, fds, false);
                Ok(true)
            }
            Err(error) => {
                self.submit(index);
                Err(error)
            }
        }
    }

    /// Submits the chunk, whose last item has the index `end - 1`.
    ///
    /// Does nothing if the chunk is empty. If chunks are batches, workers may take single items of it from each other.
    fn submit(&mut self, end: usize) {
        let first = (end - self.chunk.count() as usize) as u64;
        self.call.submit(first, &mut self.chunk, Vec::new(), self.batching.is_some());
    }

    /// Submits the items that were not submitted yet.
    pub fn flush(&mut self) {
        self.submit(self.count);
    }

    /// Submits the remaining items, and declares that there are no more.
    pub fn seal(&mut self) {
        let first = (self.count - self.chunk.count() as usize) as u64;
        self.call.submit_last(first, &mut self.chunk, self.batching.is_some());
    }

    /// Returns the number of items so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the number of items that were not submitted yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.chunk.count() as usize
    }

    /// Returns the call.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// Seals the call and returns it.
    #[must_use]
    pub fn into_call(mut self) -> Arc<Call> {
        self.seal();
        self.call
    }

    /// Counts bytes that descriptors carried in addition to arguments or results.
    pub fn count_lent(&mut self, bytes: u64) {
        self.result_bytes += bytes;
    }

    /// Returns whether the caller may submit one more item, given that it has consumed `taken` results.
    ///
    /// Items that were not submitted count as in progress.
    #[must_use]
    pub fn may_read_on(&self, taken: usize, ahead: ReadAhead) -> bool {
        let least = 2 * self.workers;
        let most = match self.ended {
            0 => 2 * least, // the size of results is not known yet
            ended => {
                let each = self.result_bytes / ended + self.argument_bytes / (self.count as u64).max(1);
                usize::try_from(ahead.bytes / each.max(1)).unwrap_or(usize::MAX).max(least)
            }
        };
        self.count - taken < most.min(ahead.items)
    }

    /// Blocks until the wanted condition of the call holds, and gets the results that have arrived for [`Submitter::take`].
    /// Returns false if the deadline passed first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran. The wait may be repeated.
    pub fn wait(&mut self, want: WaitFor, deadline: Deadline) -> Result<bool, WaitError> {
        if self.taken.is_none() {
            self.taken = self.call.wait_and_take(want, deadline, &mut self.ends)?;
        }
        Ok(self.taken.is_some())
    }

    /// Calls `see` with each result that has arrived, and its index. Returns how many of the submitted items have not ended.
    pub fn take(&mut self, mut see: impl FnMut(u64, ItemEnd<'_>)) -> u64 {
        let left = self.taken.take().unwrap_or_else(|| self.call.take(&mut self.ends));
        let (mut count, mut bytes) = (0, 0);
        self.ends.drain(|index, end| {
            count += 1;
            bytes += end.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64);
            see(index, end);
        });
        self.ended += count as u64;
        self.result_bytes += bytes;
        if let Some(batching) = &mut self.batching {
            batching.ended(count);
            self.chunksize = batching.size;
        }
        left
    }
}

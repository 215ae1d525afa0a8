//! [`Feed`]: the items of a call, in chunks.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::{Call, Ends, ItemEnd};
use super::task::Items;
use crate::shm::memory_budget;

/// Arguments of a task above this are not joined by another item.
const FULL_LEN_BYTES: usize = 64 << 10;

/// How far a call may read ahead of who takes its results.
#[derive(Debug, Clone, Copy)]
pub struct ReadAhead {
    /// So many items at most are under way, or have ended and were not taken.
    pub items: usize,
    /// So many bytes at most these have, with their results, by what was seen of them; but enough items for all workers.
    pub bytes: u64,
}

/// More bytes ahead do not make it faster.
const AHEAD_BYTES: u64 = 256 << 20;
/// So much of the budget at most.
const AHEAD_SHARE: u64 = 8;

impl ReadAhead {
    /// Limits read-ahead to `items` items and `bytes` bytes; `None` takes an eighth of the memory budget, 256 MiB at most.
    #[must_use]
    pub fn new(items: usize, bytes: Option<u64>) -> Self {
        let suits = || AHEAD_BYTES.min(memory_budget().limit / AHEAD_SHARE);
        Self { items: items.max(1), bytes: bytes.unwrap_or_else(suits) }
    }
}

/// A call that takes its items one by one, and gives chunks of them to workers.
#[derive(Debug)]
pub struct Feed {
    call: Arc<Call>,
    workers: usize,
    /// Of all items so far.
    argument_bytes: u64,
    /// How many results came, and how many bytes they had.
    ended: u64,
    result_bytes: u64,
    chunksize: usize,
    /// Where items are tasks of their own: how many of them travel together.
    batching: Option<Batching>,
    /// Items that are to go together.
    chunk: Items,
    /// How many items there were so far.
    count: usize,
    ends: Ends,
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

impl Feed {
    /// Chunks of `chunksize` items, for so many workers. Where that is 1, short tasks travel together all the same.
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
        }
    }

    /// Adds an item, which `encode` puts at the end of the bytes that it is given, with its descriptors; it goes to a worker
    /// with the rest of its chunk. True when that went. An item that cannot be encoded counts all the same.
    ///
    /// # Errors
    /// What `encode` fails with.
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
            // An item with handles is a task of its own.
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

    /// Hands on the chunk, the last item of which comes before `end`.
    fn submit(&mut self, end: usize) {
        let first = (end - self.chunk.count() as usize) as u64;
        self.call.submit(first, &mut self.chunk, Vec::new(), self.batching.is_some());
    }

    /// Hands on what is left of the last chunk.
    pub fn flush(&mut self) {
        self.submit(self.count);
    }

    /// There are no more items.
    pub fn seal(&mut self) {
        self.flush();
        self.call.seal();
    }

    /// How many items there were so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many items wait for the rest of their chunk.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.chunk.count() as usize
    }

    /// The call.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// The call, of which all is submitted.
    #[must_use]
    pub fn into_call(mut self) -> Arc<Call> {
        self.seal();
        self.call
    }

    /// So many bytes went beside the arguments, or came beside the results, behind descriptors.
    pub fn count_lent(&mut self, bytes: u64) {
        self.result_bytes += bytes;
    }

    /// Returns whether the caller may submit one more item, given that it has consumed `taken` results.
    #[must_use]
    pub fn may_read_on(&self, taken: usize, ahead: ReadAhead) -> bool {
        let least = 2 * self.workers;
        let most = match self.ended {
            0 => 2 * least, // until it is seen how large results are
            ended => {
                let each = self.result_bytes / ended + self.argument_bytes / (self.count as u64).max(1);
                usize::try_from(ahead.bytes / each.max(1)).unwrap_or(usize::MAX).max(least)
            }
        };
        self.count - taken < most.min(ahead.items)
    }

    /// Takes the results that have come. Gives how many of the submitted items have not ended.
    pub fn take(&mut self, mut see: impl FnMut(u64, ItemEnd<'_>)) -> u64 {
        let left = self.call.take(&mut self.ends);
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

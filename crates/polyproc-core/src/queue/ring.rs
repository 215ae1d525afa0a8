//! The memory of a queue, which both sides use.
//!
//! Each side works under its own lock, prepares its changes beside the valid data, and *commits by one store*: that of its
//! count. A process that dies before the commit has changed nothing; a process that dies after it has put or taken one message.
//! The next owner of a dead process's lock first repairs the states of blocks, which the counts alone do not decide
//! (`repair_put`, `repair_get`).

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::bell::PollSocket;
use super::index::IndexPlace;
use super::layout::{ARENA, QueueLayout};
use crate::deadline::Deadline;
use crate::prim::{AtomicU64, Ordering, fence};
use crate::shm::arena::{Block, BlockRecord};
use crate::shm::{Arena, MemoryError, Segment};

/// The memory of a queue, as this process has mapped it.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) segment: Segment,
    pub(super) bell: PollSocket,
    /// If a consumer's death matters: the blocks of messages that this process took and has not reported as done, by position.
    /// Only an index to find the oldest; records are authoritative.
    pub(super) held: Mutex<BTreeMap<u64, Block>>,
}

impl IndexPlace {
    /// Returns the start of a chunk.
    pub(super) fn start_of(chunk: Block, record: &BlockRecord) -> Result<Self, MemoryError> {
        let room = u32::try_from(record.capacity()).map_err(|_| MemoryError::Corrupt)?;
        Ok(Self { at: record.offset(), chunk: chunk.0, room })
    }
}

impl Ring {
    #[inline]
    pub(super) fn layout(&self) -> &QueueLayout {
        self.segment.fixed(0)
    }

    #[inline]
    pub(super) fn arena(&self) -> Arena<'_> {
        Arena::new(&self.segment, ARENA)
    }

    #[inline]
    pub(super) fn word(&self, at: u64) -> Result<&AtomicU64, MemoryError> {
        self.segment.view(at)
    }

    /// Notes a message that this process took. The caller holds the consumers' lock, so `held` is locked only in a process that
    /// was forked while another thread held it.
    pub(super) fn note_held(&self, position: u64, block: Block) {
        if let Ok(mut held) = self.held.try_lock() {
            held.insert(position, block);
        }
    }

    /// Returns the number of messages that consumers can take.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        let layout = self.layout();
        // Both pair with the Release in `commit`. The consumers' count is read first, so that it never exceeds the
        // producers'.
        let taken = layout.get.count.load(Ordering::Acquire);
        let waiting = layout.put.count.load(Ordering::Acquire).wrapping_sub(taken);
        // Pairs with the Release in `count_returned` and `take_returned`. Only the number is used.
        waiting.saturating_add(layout.tasks.returned.load(Ordering::Acquire).into())
    }

    /// Makes the receiving end readable for pollers, if there are any and no ring is in the socket. Needs no lock.
    #[inline]
    pub(super) fn ring_once(&self) {
        let layout = self.layout();
        // The swap pairs with the store of 0 and the fence in `silence` and `ring_if_silent`, the load of `polled` with
        // the fence in `start_ringing`. The caller has made news, then passed a full barrier: a fence, or the release
        // of a lock with a wake-up.
        if layout.settings.polled.load(Ordering::Relaxed) != 0 && layout.polled.rung.swap(1, Ordering::SeqCst) == 0 {
            self.bell.ring();
        }
    }

    /// Rings again after a search for descriptors, which removes the rings before them. The caller holds the consumers' lock.
    pub(super) fn ring_again(&self) {
        let layout = self.layout();
        if layout.settings.polled.load(Ordering::Relaxed) != 0 && self.has_news() {
            // Pairs with the swap in `ring_once`: producers leave the ring to this process.
            layout.polled.rung.store(1, Ordering::SeqCst);
            self.bell.ring();
        }
    }

    /// Makes the receiving end readable, from now on, while there are messages or the queue is closed.
    pub(super) fn start_ringing(&self) {
        // Between setting `polled` and the check. Pairs with the barrier between a commit and `ring_once`, by the
        // release of the producers' lock and `wake_one`: the producer reads `polled` as 1, or this process finds the
        // message.
        self.layout().settings.polled.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.has_news() {
            self.ring_once();
        }
    }

    /// Returns whether the receiving end should be readable for pollers.
    pub(super) fn has_news(&self) -> bool {
        // Pairs with the Release in `close`. Only the flag is used.
        self.len() > 0 || self.layout().settings.closed.load(Ordering::Acquire) != 0
    }

    /// Rings if a ring was lost with a process that died before it sent it.
    pub(super) fn ring_if_silent(&self) {
        let [_, receiving] = self.bell.ends();
        if !crate::sys::watch::is_readable(receiving, Deadline::PASSED).unwrap_or(true) {
            // Pairs with the swap in `ring_once`.
            self.layout().polled.rung.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst); // a producer whose message `has_news` misses reads `rung` as 0
            if self.has_news() {
                self.ring_once();
            }
        }
    }
}

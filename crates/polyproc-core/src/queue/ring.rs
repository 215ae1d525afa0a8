//! The memory of a queue, which both sides use.
//!
//! Each side works under its own lock, prepares its changes beside the valid data, and *commits by one store*: that of its
//! count. A process that dies before the commit has changed nothing; a process that dies after it has put or taken one
//! message. The next owner of a dead process's lock first repairs the states of blocks, which the counts alone do not decide
//! (`repair_put`, `repair_get`).
//!
//! The modules `put` and `get` add the operations to [`Ring`]. This one has what both need: access to the header and the
//! arena, and the socket message for pollers (a *ring*). `polled` decides when that is sent and removed, `bell` has the
//! socket.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::bell::PollSocket;
use super::index::IndexPlace;
use super::layout::{ARENA, QueueLayout};
use crate::deadline::Deadline;
use crate::prim::AtomicU64;
use crate::shm::arena::{Block, BlockRecord};
use crate::shm::{Arena, MemoryError, Segment};

/// The memory of a queue, as this process has mapped it.
#[derive(Debug)]
pub(super) struct Ring {
    /// The memory file, which `handle` has created or opened: its header is mapped as long as the value exists.
    pub(super) segment: Segment,
    /// The socket pair. Receiving needs the consumers' lock.
    pub(super) bell: PollSocket,
    /// If a consumer's death matters: the blocks of messages that this process took and has not reported as done, by position.
    /// Only an index to find the oldest; records are authoritative.
    pub(super) held: Mutex<BTreeMap<u64, Block>>,
}

impl IndexPlace {
    /// Returns the start of a chunk.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the capacity does not fit in 32 bits. The offset is checked at each access.
    pub(super) fn start_of(chunk: Block, record: &BlockRecord) -> Result<Self, MemoryError> {
        let room = u32::try_from(record.capacity()).map_err(|_| MemoryError::Corrupt)?;
        Ok(Self { at: record.offset(), chunk: chunk.0, room })
    }
}

impl Ring {
    /// Returns the header. Any peer may change any word at any time.
    #[inline]
    pub(super) fn layout(&self) -> &QueueLayout {
        self.segment.fixed(0)
    }

    /// Returns the allocator of chunks and blocks.
    #[inline]
    pub(super) fn arena(&self) -> Arena<'_> {
        Arena::new(&self.segment, ARENA)
    }

    /// Returns the word at a file offset, which may come from shared memory.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if there is no aligned word in the data; [`MemoryError::System`] if its region cannot be
    /// mapped.
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
        self.layout().len()
    }

    /// Makes the receiving end readable for pollers, if there are any and no ring is in the socket. Needs no lock. A failure
    /// to send is ignored: see [`PollSocket::ring`].
    #[inline]
    pub(super) fn ring_once(&self) {
        self.layout().ring_once(|| self.bell.ring());
    }

    /// Rings again after a search for descriptors, which removes the rings before them. The caller holds the consumers' lock.
    pub(super) fn ring_again(&self) {
        self.layout().ring_again(|| self.bell.ring());
    }

    /// Makes the receiving end readable, from now on, while there are messages or the queue is closed.
    pub(super) fn start_ringing(&self) {
        self.layout().start_ringing(|| self.bell.ring());
    }

    /// Rings if a ring was lost with a process that died before it sent it. A poller calls it after each interval, by way of
    /// the registry.
    pub(super) fn ring_if_silent(&self) {
        let [_, receiving] = self.bell.ends();
        if !crate::sys::watch::is_readable(receiving, Deadline::PASSED).unwrap_or(true) {
            self.layout().ring_for_news(|| self.bell.ring());
        }
    }
}

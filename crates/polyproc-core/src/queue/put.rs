//! The producers' side: puts a message in a short section under the producers' lock.
//!
//! [`Ring::put`] is called by `handle`, [`Ring::lock_put`] also by `get`, to clear the bell. `docs/design/ring.md`, "put",
//! lists the steps, the state that a death leaves after each, and the process that repairs it.
//!
//! - Only the owner of the producers' lock writes the producers' [`Side`](super::layout::Side) and the entries behind its
//!   count, gives out tickets and sends descriptors.
//! - The arena's lock may be acquired in the section, for a new chunk; the consumers' lock is not.
//! - Nothing that the section writes counts before the commit. A put that fails leaves entries that the next one overwrites,
//!   and perhaps descriptors under a ticket that no message has, which a consumer drops.
//! - Inside the section the order of stores is free. The commit, a Release, publishes all of them.

use std::os::fd::BorrowedFd;

use super::block::BlockState;
use super::entry::Entry;
use super::error::PutError;
use super::index::IndexPlace;
use super::layout::{CHUNK_LEN, QueueLayout};
use super::ring::Ring;
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{Guard, WaitError};
use crate::shm::arena::Block;
use crate::shm::{MemoryError, OutOfSpace};
use crate::sys::crash::{self, Step};

/// The bytes of a message, or the block that holds them. [`Queue::put_parts`](super::Queue::put_parts) chooses.
#[derive(Debug, Clone, Copy)]
pub(super) enum MessageBody<'a> {
    /// At most [`INLINE_LEN`](super::layout::INLINE_LEN) bytes, so that a new chunk holds them. They are copied under the
    /// lock.
    Bytes(&'a [u8]),
    /// A block that this process owns and has filled. After a put that failed, the caller frees it.
    Block(Block),
}

impl Ring {
    /// Acquires the producers' lock. Repairs the states of blocks if its owner died; if that fails, the next owner tries
    /// again.
    ///
    /// # Errors
    /// A [`WaitError`] from [`Mutex::lock`](crate::robust::Mutex::lock), or a [`MemoryError`] from the repair, as `E`.
    #[inline(always)]
    pub(super) fn lock_put<E: From<WaitError> + From<MemoryError>>(&self, deadline: Deadline) -> Result<Guard<'_>, E> {
        let mut guard = self.layout().put.lock.lock(deadline)?;
        if guard.owner_died {
            guard.repair(|| self.repair_put())?;
        }
        crash::point(Step::PutLocked);
        Ok(guard)
    }

    /// Frees blocks that a dead producer marked for a message that it did not commit: a message of its own, or the next chunk.
    /// Then wakes the consumers.
    ///
    /// The caller holds the producers' lock. A block that is queued for a message at or above the count belongs to no living
    /// producer, as only the owner of this lock marks blocks so.
    #[cold]
    fn repair_put(&self) -> Result<(), MemoryError> {
        let count = self.layout().put.count.load(Ordering::Relaxed);
        let arena = self.arena();
        for block in arena.blocks() {
            let record = arena.record(block)?;
            if record.state() == Some(BlockState::Queued) && record.position() >= count {
                arena.free(block)?;
            }
        }
        // The dead producer may not have sent its wake-up.
        self.layout().items.wake_generation();
        Ok(())
    }

    /// Puts one message. Does not wait while the queue is full, only for locks: for each until the deadline or for 100 ms,
    /// whichever is later. Wakes one consumer, and rings if a process polls, after the lock was released.
    ///
    /// # Errors
    /// - [`PutError::Closed`].
    /// - [`PutError::Full`]: the queue or its socket is full, or a stopped process holds a lock.
    /// - [`PutError::OutOfSpace`]: the budget has no room for a chunk, or the message exceeds the limit in bytes.
    /// - [`PutError::Interrupted`], [`PutError::Descriptors`], [`PutError::Memory`].
    ///
    /// Nothing was put then, and the caller still owns the block of the message.
    #[inline]
    pub(super) fn put(
        &self,
        body: MessageBody<'_>,
        fds: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), PutError> {
        let layout = self.layout();
        let side = &layout.put;
        let guard = self.lock_put::<PutError>(deadline)?;
        if layout.settings.closed.load(Ordering::Relaxed) != 0 {
            return Err(PutError::Closed);
        }
        let (count, mut place) = side.place();
        if !side.may_put(count, &layout.get, layout.settings.maxsize.load(Ordering::Relaxed)) {
            return Err(PutError::Full);
        }
        let max_bytes = layout.settings.max_bytes.load(Ordering::Relaxed);
        if max_bytes > 0 {
            self.count_bytes(count, body, max_bytes)?;
        }
        let ticket = match fds {
            [] => None,
            _ => Some(self.leave(fds)?),
        };
        let entry = match body {
            MessageBody::Bytes(bytes) => Entry::Inline { len: bytes.len() as u64 },
            MessageBody::Block(block) => Entry::InBlock(block),
        };
        let len = entry.len(ticket.is_some()).ok_or(MemoryError::Corrupt)?;
        if len.saturating_add(8) > place.room {
            place = self.next_chunk(place, count, deadline)?;
        }
        let mut at = place.at.wrapping_add(8);
        if let Some(ticket) = ticket {
            self.word(at)?.store(ticket, Ordering::Relaxed);
            at = at.wrapping_add(8);
        }
        match body {
            MessageBody::Bytes(bytes) => self.segment.copy_in(at, bytes)?,
            MessageBody::Block(block) => {
                let record = self.arena().record(block)?;
                record.set_position(count);
                record.set_state(BlockState::Queued);
            }
        }
        self.word(place.at)?.store(entry.to_word(ticket.is_some()), Ordering::Relaxed);
        crash::point(Step::PutWritten);
        side.prepare(count.wrapping_add(1), place.after(len));
        side.commit(count);
        crash::point(Step::PutCommitted);
        drop(guard);
        crash::point(Step::PutUnlocked);
        layout.items.wake_one();
        self.ring_once();
        Ok(())
    }

    /// Checks the limit of the queue in bytes, and writes the number of bytes of all messages put, including this one, beside
    /// the valid number.
    ///
    /// # Errors
    /// [`PutError::OutOfSpace`] if the message alone exceeds the limit, so that waiting is in vain; [`PutError::Full`] if it
    /// does not fit now.
    ///
    /// Each side's number is kept twice, for even and odd counts, as its place is. The limit is exact: the consumers' number
    /// never counts a message that may still be put back before its commit.
    #[cold]
    fn count_bytes(&self, count: u64, body: MessageBody<'_>, max_bytes: u64) -> Result<(), PutError> {
        let QueueLayout { put, get, .. } = self.layout();
        let wanted = match body {
            MessageBody::Bytes(bytes) => bytes.len() as u64,
            MessageBody::Block(block) => self.arena().record(block)?.len(),
        };
        // The bytes of a message that is being taken may already count as taken.
        // Acquire pairs with the consumers' Release in `commit`: the bytes for that count are written before.
        let taken = get.bytes(get.count.load(Ordering::Acquire)).load(Ordering::Relaxed);
        let put_so_far = put.bytes(count).load(Ordering::Relaxed);
        let in_use = put_so_far.wrapping_sub(taken);
        if wanted > max_bytes {
            return Err(PutError::OutOfSpace(OutOfSpace { wanted, in_use, limit: max_bytes, largest: max_bytes }));
        }
        if in_use.saturating_add(wanted) > max_bytes {
            return Err(PutError::Full);
        }
        put.bytes(count.wrapping_add(1)).store(put_so_far.wrapping_add(wanted), Ordering::Relaxed);
        Ok(())
    }

    /// Continues the messages from `count` on in a new chunk. Returns its start. The link in the old chunk counts with the
    /// next commit; until then the old place stays valid, and a further attempt overwrites the link. The old chunk has room
    /// for the link: entries leave one word free.
    ///
    /// # Errors
    /// Any error of [`Arena::allocate`](crate::shm::Arena::allocate).
    fn next_chunk(&self, place: IndexPlace, count: u64, deadline: Deadline) -> Result<IndexPlace, MemoryError> {
        let arena = self.arena();
        let block = arena.allocate(CHUNK_LEN, deadline)?;
        let record = arena.record(block)?;
        record.set_position(count);
        record.set_state(BlockState::Queued);
        crash::point(Step::PutLinked);
        self.word(place.at)?.store(Entry::NextChunk(block).to_word(false), Ordering::Relaxed);
        IndexPlace::start_of(block, record)
    }

    /// Sends the descriptors of a message to the socket, under the next ticket, which is returned. The ticket is stored first:
    /// after a death, no other message gets the same one. The caller holds the producers' lock. A put that fails later leaves
    /// them in the socket.
    ///
    /// # Errors
    /// [`PutError::Full`] if the socket has no room; [`PutError::Descriptors`] if the system refuses.
    fn leave(&self, fds: &[BorrowedFd<'_>]) -> Result<u64, PutError> {
        let last = &self.layout().polled.ticket;
        let ticket = last.load(Ordering::Relaxed).wrapping_add(1);
        last.store(ticket, Ordering::Relaxed);
        if self.bell.leave(ticket, fds)? { Ok(ticket) } else { Err(PutError::Full) }
    }
}

//! The producers' side: puts a message in a short section under the producers' lock.

use std::os::fd::BorrowedFd;

use super::error::PutError;
use super::index::IndexPlace;
use super::layout::{CHUNK_LEN, Entry, QueueLayout};
use super::ring::Ring;
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{Guard, WaitError};
use crate::shm::arena::{Block, BlockState};
use crate::shm::{MemoryError, OutOfSpace};
use crate::sys::crash::{self, Step};

/// The bytes of a message, or the block that holds them.
#[derive(Debug, Clone, Copy)]
pub(super) enum MessageBody<'a> {
    Bytes(&'a [u8]),
    Block(Block),
}

impl Ring {
    /// Acquires the producers' lock. Repairs the states of blocks if its owner died.
    #[inline(always)]
    pub(super) fn lock_put<E: From<WaitError> + From<MemoryError>>(&self, deadline: Deadline) -> Result<Guard<'_>, E> {
        let mut guard = self.layout().put.lock.lock(deadline)?;
        if guard.owner_died {
            guard.repair(|| self.repair_put())?;
        }
        crash::point(Step::PutLocked);
        Ok(guard)
    }

    /// Frees blocks that a dead producer marked for a message that it did not commit.
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

    /// Puts one message. Blocks only for locks, not while the queue is full.
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

    /// Writes the number of bytes of all messages put, including this one, beside the valid number.
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

    /// Continues the messages from `count` on in a new chunk. Returns its start.
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

    fn leave(&self, fds: &[BorrowedFd<'_>]) -> Result<u64, PutError> {
        let last = &self.layout().polled.ticket;
        let ticket = last.load(Ordering::Relaxed).wrapping_add(1);
        last.store(ticket, Ordering::Relaxed);
        if self.bell.leave(ticket, fds)? { Ok(ticket) } else { Err(PutError::Full) }
    }
}

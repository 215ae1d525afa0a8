//! The consumers' side: takes a message in a short section under the consumers' lock.

use std::os::fd::OwnedFd;

use super::error::{GetError, PutError};
use super::index::IndexPlace;
use super::layout::Entry;
use super::ring::Ring;
use super::task::{self, OnConsumerDeath};
use crate::deadline::Deadline;
use crate::prim::{Ordering, fence};
use crate::robust::{Guard, WaitError};
use crate::shm::MemoryError;
use crate::shm::arena::{Block, BlockRecord, BlockState};
use crate::sys::crash::{self, Step};
use crate::sys::process_stamp::ProcessStamp;

/// The destination of a message.
#[derive(Debug)]
pub(super) struct Out<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
    pub(super) fds: &'a mut Vec<OwnedFd>,
}

/// The entry of the next message.
struct NextEntry {
    entry: Entry,
    has_fds: bool,
    place: IndexPlace,
    /// The number of bytes from `place` to the entry after it.
    len: u32,
    /// The previous chunk, if this message is the first one of a new chunk.
    old_chunk: Option<Block>,
}

/// Returns the record if its block is queued for message number `count`.
#[inline]
fn queued(record: &BlockRecord, count: u64) -> Result<&BlockRecord, MemoryError> {
    let is_queued = record.state() == Some(BlockState::Queued) && record.position() == count;
    if is_queued { Ok(record) } else { Err(MemoryError::Corrupt) }
}

impl Ring {
    /// Acquires the consumers' lock. Repairs the states of blocks if its owner died.
    #[inline(always)]
    pub(super) fn lock_get<E: From<WaitError> + From<MemoryError>>(&self, deadline: Deadline) -> Result<Guard<'_>, E> {
        let mut guard = self.layout().get.lock.lock(deadline)?;
        if guard.owner_died {
            guard.repair(|| self.repair_get())?;
        }
        crash::point(Step::GetLocked);
        Ok(guard)
    }

    /// Restores the blocks that a dead consumer marked for a message that it did not take, and frees the chunks that it left.
    #[cold]
    fn repair_get(&self) -> Result<(), MemoryError> {
        let count = self.layout().get.count.load(Ordering::Relaxed);
        let arena = self.arena();
        for block in arena.blocks() {
            let record = arena.record(block)?;
            match record.state() {
                Some(BlockState::Leaving) if record.position() < count => arena.free(block)?,
                Some(BlockState::Held) if record.position() >= count => record.set_state(BlockState::Queued),
                _ => {}
            }
        }
        task::repair(self)?;
        self.layout().space.wake_generation();
        Ok(())
    }

    /// Takes the next message. Appends its bytes to `out`, or returns the block that holds them. The numbered comments refer to
    /// the steps in `docs/design/ring.md`.
    #[inline]
    pub(super) fn get(&self, out: &mut Out<'_>, deadline: Deadline) -> Result<Option<Block>, GetError> {
        let layout = self.layout();
        let side = &layout.get;
        let guard = self.lock_get::<GetError>(deadline)?; // 1
        if layout.tasks.returned.load(Ordering::Relaxed) > 0
            && let Some(block) = task::take_returned(self)?
        {
            return Ok(Some(block)); // 2
        }
        let (count, place) = side.place();
        // Acquire pairs with the Release in `close`. Before the producers' count: if the flag is set, the count is
        // final.
        let closed = layout.settings.closed.load(Ordering::Acquire) != 0;
        if !side.may_get(count, &layout.put) {
            self.silence();
            return Err(if closed { GetError::Closed } else { GetError::Empty });
        }
        let next = self.next_entry(place, count)?; // 3
        let fds = if next.has_fds { self.peek_fds(next.place)? } else { None }; // 4
        let block = self.claim_message(&next, count, out.bytes)?; // 5
        let is_limited = layout.settings.max_bytes.load(Ordering::Relaxed) > 0;
        if is_limited {
            self.count_taken_bytes(&next, count)?;
        }
        crash::point(Step::GetClaimed);
        side.prepare(count.wrapping_add(1), next.place.after(next.len));
        side.commit(count); // 6
        crash::point(Step::GetCommitted);
        if let Some(block) = block
            && task::on_death(self) != OnConsumerDeath::Nothing
        {
            self.note_held(count, block);
        }
        if let Some(old_chunk) = next.old_chunk {
            self.arena().free(old_chunk)?; // 7
        }
        crash::point(Step::GetFreed);
        if fds.is_some() {
            self.bell.taken();
        }
        if next.has_fds {
            self.ring_again();
        }
        self.silence();
        drop(guard); // 8
        crash::point(Step::GetUnlocked);
        if next.has_fds || is_limited || layout.settings.maxsize.load(Ordering::Relaxed) > 0 {
            layout.space.wake_one();
        }
        if next.has_fds {
            *out.fds = fds.ok_or(GetError::DescriptorsLost)?;
        }
        Ok(block)
    }

    /// Reads the entry of message number `count`. If it is in the next chunk, marks the old one as leaving.
    #[inline]
    fn next_entry(&self, mut place: IndexPlace, count: u64) -> Result<NextEntry, MemoryError> {
        let mut old_chunk = None;
        let mut word = self.word(place.at)?.load(Ordering::Relaxed);
        if let Some((Entry::NextChunk(chunk), _)) = Entry::from_word(word) {
            let arena = self.arena();
            let old = Block(place.chunk);
            place = IndexPlace::start_of(chunk, queued(arena.record(chunk)?, count)?)?;
            word = self.word(place.at)?.load(Ordering::Relaxed);
            let record = arena.record(old)?;
            record.set_position(count);
            record.set_state(BlockState::Leaving);
            old_chunk = Some(old);
        }
        let (entry, has_fds) = Entry::from_word(word).ok_or(MemoryError::Corrupt)?;
        let len = entry.len(has_fds).filter(|len| *len <= place.room).ok_or(MemoryError::Corrupt)?;
        Ok(NextEntry { entry, has_fds, place, len, old_chunk })
    }

    /// Receives the descriptors of the message at `place`, and leaves them in the socket until the message is taken.
    fn peek_fds(&self, place: IndexPlace) -> Result<Option<Vec<OwnedFd>>, GetError> {
        let ticket = self.word(place.at.wrapping_add(8))?.load(Ordering::Relaxed);
        Ok(self.bell.look_for(ticket).inspect_err(|_| self.ring_again())?)
    }

    /// Copies the message to `out`, or marks its block as held by this process.
    #[inline]
    fn claim_message(&self, next: &NextEntry, count: u64, out: &mut Vec<u8>) -> Result<Option<Block>, MemoryError> {
        match next.entry {
            Entry::Inline { len } => {
                let start = next.place.at.wrapping_add(if next.has_fds { 16 } else { 8 });
                self.segment.copy_out(start, len, out)?;
                Ok(None)
            }
            Entry::InBlock(block) => {
                let record = queued(self.arena().record(block)?, count)?;
                record.set_owner(ProcessStamp::own());
                record.set_state(BlockState::Held);
                Ok(Some(block))
            }
            Entry::NextChunk(_) => Err(MemoryError::Corrupt),
        }
    }

    /// Writes the number of bytes of all messages taken, for the count after this message, beside the valid number.
    #[cold]
    fn count_taken_bytes(&self, next: &NextEntry, count: u64) -> Result<(), MemoryError> {
        let side = &self.layout().get;
        let len = match next.entry {
            Entry::Inline { len } => len,
            Entry::InBlock(block) => self.arena().record(block)?.len(),
            Entry::NextChunk(_) => 0,
        };
        let taken = side.bytes(count).load(Ordering::Relaxed).wrapping_add(len);
        side.bytes(count.wrapping_add(1)).store(taken, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the receiving end unreadable if the queue is empty. The caller holds the consumers' lock.
    #[inline]
    fn silence(&self) {
        let layout = self.layout();
        let ends = layout.settings.closed.load(Ordering::Relaxed) != 0; // then it stays readable
        if layout.settings.polled.load(Ordering::Relaxed) == 0 || ends || self.len() != 0 {
            return;
        }
        if !self.bell.silence()
            && let Ok(_put) = self.lock_put::<PutError>(Deadline::PASSED)
            && self.len() == 0
        {
            self.bell.clear();
        }
        // Pairs with the swap in `ring_once`.
        layout.polled.rung.store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst); // a producer whose message `has_news` misses reads `rung` as 0
        if self.has_news() {
            self.ring_once();
        }
    }
}

//! The consumers' side: takes a message in a short section under the consumers' lock.
//!
//! [`Ring::get`] is called by `handle`, [`Ring::lock_get`] also by `done`. `docs/design/ring.md`, "get", lists the steps, the
//! state that a death leaves after each, and the process that repairs it.
//!
//! - Only the owner of the consumers' lock writes the consumers' [`Side`](super::layout::Side), marks blocks `Held`, `Leaving`
//!   or `Returned`, and receives from the bell.
//! - Locks are acquired in this order: consumers', producers' (only in `silence`, without waiting for long), the arena's.
//! - The section does not wait for messages, and a message in a block is copied by the caller, after the lock was released.
//!
//! All that is read from shared memory is checked: an entry that no process of this version writes, or a block that is not
//! queued for this message, is [`MemoryError::Corrupt`].

use std::os::fd::OwnedFd;

use super::block::BlockState;
use super::entry::Entry;
use super::error::{GetError, PutError};
use super::index::IndexPlace;
use super::ring::Ring;
use super::task::{self, OnConsumerDeath};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{Guard, WaitError};
use crate::shm::MemoryError;
use crate::shm::arena::{Block, BlockRecord};
use crate::sys::crash::{self, Step};
use crate::sys::process_stamp::ProcessStamp;

/// The destination of a message.
#[derive(Debug)]
pub(super) struct Out<'a> {
    /// The message is appended. After an error the contents are unspecified.
    pub(super) bytes: &'a mut Vec<u8>,
    /// Replaced by the descriptors of a message that has some, else unchanged.
    pub(super) fds: &'a mut Vec<OwnedFd>,
}

/// The entry of the next message, as read and checked under the lock, before the message is taken. It lives for one call of
/// [`Ring::get`].
struct NextEntry {
    /// Any but [`Entry::NextChunk`], which is followed once and is corrupt thereafter.
    entry: Entry,
    /// A ticket follows the entry's word.
    has_fds: bool,
    /// The place of the entry's word.
    place: IndexPlace,
    /// The number of bytes from `place` to the entry after it.
    len: u32,
    /// The previous chunk, if this message is the first one of a new chunk.
    old_chunk: Option<Block>,
}

/// Returns the record if its block is queued for message number `count`: a peer may have written any block number into an
/// entry. Under the consumers' lock the answer stays true, as only its owner takes blocks out of the queue.
///
/// # Errors
/// [`MemoryError::Corrupt`] if it is not.
#[inline]
fn queued(record: &BlockRecord, count: u64) -> Result<&BlockRecord, MemoryError> {
    let is_queued = record.state() == Some(BlockState::Queued) && record.position() == count;
    if is_queued { Ok(record) } else { Err(MemoryError::Corrupt) }
}

impl Ring {
    /// Acquires the consumers' lock. Repairs the states of blocks if its owner died; if that fails, the next owner tries
    /// again.
    ///
    /// # Errors
    /// A [`WaitError`] from [`Mutex::lock`](crate::robust::Mutex::lock), or a [`MemoryError`] from the repair, as `E`.
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
    /// Then finishes a begun `task_done`, and wakes the producers, as the dead consumer may not have done so.
    ///
    /// The caller holds the consumers' lock. The count decides: marks for a message below it are valid, others are undone.
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

    /// Takes the next message. Appends its bytes to `out`, or returns the block that holds them. The numbered comments refer
    /// to the steps in `docs/design/ring.md`.
    ///
    /// Waits only for locks, for each until the deadline or for 100 ms, whichever is later. The returned block is held by this
    /// process: the caller reads it, and frees it or keeps it until `task_done`. Wakes one producer if producers may wait for
    /// what was freed: a message, its bytes or its descriptors.
    ///
    /// # Errors
    /// - [`GetError::Empty`]: there is no message, or a stopped process holds the lock.
    /// - [`GetError::Closed`]: there is none, and none will come.
    /// - [`GetError::Descriptors`], [`GetError::Interrupted`]: the message stays in the queue.
    /// - [`GetError::DescriptorsLost`]: the message was taken.
    /// - [`GetError::Memory`]: before the commit; or after it, if the old chunk cannot be freed.
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

    /// Reads the entry of message number `count`. If it is in the next chunk, marks the old one as leaving, which has no
    /// effect until the message is taken: a chunk always has room for the word that names the next one.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the word is no entry, the chunk is not queued from this message on, or the entry does not
    /// fit in what is left of its chunk.
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

    /// Receives the descriptors of the message at `place`, and leaves them in the socket until the message is taken. Returns
    /// `None` if they are lost.
    ///
    /// # Errors
    /// [`GetError::Descriptors`], for example if this process has no room for them. The rings that were removed from the
    /// socket are sent again.
    fn peek_fds(&self, place: IndexPlace) -> Result<Option<Vec<OwnedFd>>, GetError> {
        let ticket = self.word(place.at.wrapping_add(8))?.load(Ordering::Relaxed);
        Ok(self.bell.look_for(ticket).inspect_err(|_| self.ring_again())?)
    }

    /// Copies the message to `out`, or marks its block as held by this process. Before the commit neither has an effect on
    /// others: the mark counts only once the number of the message is below the consumers' count.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the block is not queued for this message, or the bytes are outside the data.
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

    /// Writes the number of bytes of all messages taken, for the count after this message, beside the valid number. Called
    /// only if the bytes of the queue are limited. Producers read the value for the count that they have read.
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

    /// Makes the receiving end unreadable if the queue is empty and not closed, and a process polls. The caller holds the
    /// consumers' lock.
    ///
    /// Descriptors in the socket of an empty queue are of dead producers, of a put that failed, or of one that is about to
    /// commit. So they are removed only under the producers' lock, too. If a stopped process holds that, they stay, and
    /// pollers find the end readable. The check after `rung` is cleared finds messages whose producer has left the ring to
    /// this process.
    #[inline]
    fn silence(&self) {
        let empty = || {
            if !self.bell.silence()
                && let Ok(_put) = self.lock_put::<PutError>(Deadline::PASSED)
                && self.len() == 0
            {
                self.bell.clear();
            }
        };
        self.layout().silence(empty, || self.bell.ring());
    }
}

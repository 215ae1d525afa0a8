//! The two sides of a queue.
//!
//! Each side works under its own lock, prepares everything beside what is valid, and *commits by one store*: that of its
//! count. A process that dies before it has changed nothing; one that dies after it has put, or taken, one message.
//! Whoever takes a lock from a dead owner first repairs what is not decided by the counts alone: the states of blocks
//! (`repair_put`, `repair_get`).

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;

use super::bell::PollSocket;
use super::handle::{GetError, PutError};
use super::index::IndexPlace;
use super::layout::{ARENA, CHUNK_LEN, Entry, QueueLayout};
use super::task::{self, OnConsumerDeath};
use crate::deadline::Deadline;
use crate::prim::{AtomicU64, Ordering, fence};
use crate::robust::{Guard, WaitError};
use crate::shm::OutOfSpace;
use crate::shm::arena::{Block, BlockRecord, BlockState};
use crate::shm::{Arena, MemoryError, Segment};
use crate::sys::crash::{self, Step};
use crate::sys::identity::Identity;

/// The memory of a queue, as this process sees it.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) segment: Segment,
    pub(super) bell: PollSocket,
    /// Where a consumer's death matters: the blocks of messages that this process took and has not reported as done, by position.
    /// Only so that the oldest is found at once; records are authoritative.
    pub(super) held: Mutex<BTreeMap<u64, Block>>,
}

/// Where a message's bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum MessageBody<'a> {
    Bytes(&'a [u8]),
    Block(Block),
}

/// Where a message that is taken goes.
#[derive(Debug)]
pub(super) struct Out<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
    pub(super) fds: &'a mut Vec<OwnedFd>,
}

impl IndexPlace {
    /// The start of a chunk.
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
    fn word(&self, at: u64) -> Result<&AtomicU64, MemoryError> {
        self.segment.view(at)
    }

    /// The producers' lock, with the blocks in order.
    #[inline(always)]
    pub(super) fn lock_put<E: From<WaitError> + From<MemoryError>>(&self, deadline: Deadline) -> Result<Guard<'_>, E> {
        let mut guard = self.layout().put.lock.lock(deadline)?;
        if guard.owner_died {
            guard.repair(|| self.repair_put())?;
        }
        crash::point(Step::PutLocked);
        Ok(guard)
    }

    /// The consumers' lock, with the blocks in order.
    #[inline(always)]
    pub(super) fn lock_get<E: From<WaitError> + From<MemoryError>>(&self, deadline: Deadline) -> Result<Guard<'_>, E> {
        let mut guard = self.layout().get.lock.lock(deadline)?;
        if guard.owner_died {
            guard.repair(|| self.repair_get())?;
        }
        crash::point(Step::GetLocked);
        Ok(guard)
    }

    /// Blocks that a dead producer had marked for a message that never came to count.
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
        // The dead one may have owed a wake-up.
        self.layout().items.wake_generation();
        Ok(())
    }

    /// Blocks that a dead consumer had marked for a message that it never took, or took and left behind.
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

    /// Puts one message, or says why not.
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

    /// Writes how many bytes there will have been with this message, beside what is valid.
    #[cold]
    fn count_bytes(&self, count: u64, body: MessageBody<'_>, max_bytes: u64) -> Result<(), PutError> {
        let QueueLayout { put, get, .. } = self.layout();
        let wanted = match body {
            MessageBody::Bytes(bytes) => bytes.len() as u64,
            MessageBody::Block(block) => self.arena().record(block)?.len(),
        };
        // Of a message that is being taken just now, the bytes may be counted as gone already.
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

    /// Has the messages from `count` on go on in a new chunk.
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

    /// Takes the next message. Its bytes go to the end of `out`, unless they are in the block that is returned.
    #[inline]
    pub(super) fn get(&self, out: &mut Out<'_>, deadline: Deadline) -> Result<Option<Block>, GetError> {
        let layout = self.layout();
        let side = &layout.get;
        let guard = self.lock_get::<GetError>(deadline)?;
        if layout.tasks.returned.load(Ordering::Relaxed) > 0
            && let Some(block) = task::take_returned(self)?
        {
            return Ok(Some(block));
        }
        let (count, mut place) = side.place();
        let closed = layout.settings.closed.load(Ordering::Acquire) != 0; // before the other count: then that is the last
        if !side.may_get(count, &layout.put) {
            self.silence();
            return Err(if closed { GetError::Closed } else { GetError::Empty });
        }
        let mut leaving = None;
        let mut word = self.word(place.at)?.load(Ordering::Relaxed);
        if let Some((Entry::NextChunk(block), _)) = Entry::from_word(word) {
            let arena = self.arena();
            let old = Block(place.chunk);
            let record = arena.record(block)?;
            if record.state() != Some(BlockState::Queued) || record.position() != count {
                return Err(MemoryError::Corrupt.into());
            }
            place = IndexPlace::start_of(block, record)?;
            word = self.word(place.at)?.load(Ordering::Relaxed);
            let record = arena.record(old)?;
            record.set_position(count);
            record.set_state(BlockState::Leaving);
            leaving = Some(old);
        }
        let (entry, with_fds) = Entry::from_word(word).ok_or(MemoryError::Corrupt)?;
        let len = entry.len(with_fds).ok_or(MemoryError::Corrupt)?;
        if len > place.room {
            return Err(MemoryError::Corrupt.into());
        }
        let fds = match with_fds {
            true => {
                let ticket = self.word(place.at.wrapping_add(8))?.load(Ordering::Relaxed);
                self.bell.look_for(ticket).inspect_err(|_| self.ring_again())?
            }
            false => None,
        };
        let block = match entry {
            Entry::Inline { len } => {
                self.segment.copy_out(place.at.wrapping_add(if with_fds { 16 } else { 8 }), len, out.bytes)?;
                None
            }
            Entry::InBlock(block) => {
                let record = self.arena().record(block)?;
                if record.state() != Some(BlockState::Queued) || record.position() != count {
                    return Err(MemoryError::Corrupt.into());
                }
                record.set_owner(Identity::own());
                record.set_state(BlockState::Held);
                Some(block)
            }
            Entry::NextChunk(_) => return Err(MemoryError::Corrupt.into()),
        };
        let is_limited = layout.settings.max_bytes.load(Ordering::Relaxed) > 0;
        if is_limited {
            let len = match (entry, block) {
                (_, Some(block)) => self.arena().record(block)?.len(),
                (Entry::Inline { len }, None) => len,
                _ => 0,
            };
            let taken = side.bytes(count).load(Ordering::Relaxed).wrapping_add(len);
            side.bytes(count.wrapping_add(1)).store(taken, Ordering::Relaxed);
        }
        crash::point(Step::GetClaimed);
        side.prepare(count.wrapping_add(1), place.after(len));
        side.commit(count);
        crash::point(Step::GetCommitted);
        if let Some(block) = block
            && task::on_death(self) != OnConsumerDeath::Nothing
        {
            self.note_held(count, block);
        }
        if let Some(old) = leaving {
            self.arena().free(old)?;
        }
        crash::point(Step::GetFreed);
        if fds.is_some() {
            self.bell.taken();
        }
        if with_fds {
            self.ring_again();
        }
        self.silence();
        drop(guard);
        crash::point(Step::GetUnlocked);
        if with_fds || is_limited || layout.settings.maxsize.load(Ordering::Relaxed) > 0 {
            layout.space.wake_one();
        }
        if with_fds {
            *out.fds = fds.ok_or(GetError::DescriptorsLost)?;
        }
        Ok(block)
    }

    /// Under the consumers' lock, so that it is taken only in a copy of a process that was made in the middle of this.
    pub(super) fn note_held(&self, position: u64, block: Block) {
        if let Ok(mut held) = self.held.try_lock() {
            held.insert(position, block);
        }
    }

    /// How many messages there are for consumers.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        let layout = self.layout();
        let taken = layout.get.count.load(Ordering::Acquire); // first: it never passes the other
        let waiting = layout.put.count.load(Ordering::Acquire).wrapping_sub(taken);
        waiting.saturating_add(layout.tasks.returned.load(Ordering::Acquire).into())
    }

    /// For who polls: the bell rings while there is something. Nobody has to be under a lock.
    #[inline]
    pub(super) fn ring_once(&self) {
        let layout = self.layout();
        if layout.settings.polled.load(Ordering::Relaxed) != 0 && layout.polled.rung.swap(1, Ordering::SeqCst) == 0 {
            self.bell.ring();
        }
    }

    /// After descriptors were looked for, which takes the rings before them. Under the consumers' lock.
    fn ring_again(&self) {
        let layout = self.layout();
        if layout.settings.polled.load(Ordering::Relaxed) != 0 && self.has_news() {
            layout.polled.rung.store(1, Ordering::SeqCst);
            self.bell.ring();
        }
    }

    /// Under the consumers' lock: the bell is silent when there is nothing.
    #[inline]
    fn silence(&self) {
        let layout = self.layout();
        let ends = layout.settings.closed.load(Ordering::Relaxed) != 0; // then it rings for ever
        if layout.settings.polled.load(Ordering::Relaxed) == 0 || ends || self.len() != 0 {
            return;
        }
        if !self.bell.silence()
            && let Ok(_put) = self.lock_put::<PutError>(Deadline::PASSED)
            && self.len() == 0
        {
            self.bell.clear();
        }
        layout.polled.rung.store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst); // whoever puts from here on sees that the bell does not ring
        if self.has_news() {
            self.ring_once();
        }
    }

    /// From now on the bell rings while there is something.
    pub(super) fn start_ringing(&self) {
        self.layout().settings.polled.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.has_news() {
            self.ring_once();
        }
    }

    /// Whether who polls should find the receiving end readable.
    fn has_news(&self) -> bool {
        self.len() > 0 || self.layout().settings.closed.load(Ordering::Acquire) != 0
    }

    /// Rings where the ring was lost with the process that was to ring.
    pub(super) fn ring_if_silent(&self) {
        let [_, receiving] = self.bell.ends();
        if !crate::sys::watch::is_readable(receiving, Deadline::PASSED).unwrap_or(true) {
            self.layout().polled.rung.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst); // whoever puts from here on sees that the bell does not ring
            if self.has_news() {
                self.ring_once();
            }
        }
    }
}

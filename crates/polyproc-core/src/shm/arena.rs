//! [`Arena`]: blocks of any size in a segment, each with a state and an owner, so that what a dead process held is found.
//!
//! A block keeps its place and size for ever; freed, it waits in the list of its size class for the next one who wants such
//! a block, its memory still warm. Above a limit of warm bytes the memory goes back to the system, and only the place is
//! kept. The records are the truth; the lists are made anew from them when somebody died while changing them.
//!
//! Size classes: four steps a doubling, as in "A Scalable Concurrent malloc(3) Implementation for FreeBSD" (J. Evans, 2006)
//! and its successors; at most a fifth of a block is unused.

use std::io;

use super::budget::Share;
use super::{MemoryError, Segment};
use crate::deadline::Deadline;
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::robust::{Guard, Mutex, WaitError};
use crate::sys::crash::{self, Step};
use crate::sys::identity::Identity;
use crate::sys::shared::shared;

const CLASSES: usize = 160;
const TABLES: usize = 22;
const SMALLEST: u64 = 256;
/// Blocks from here on are whole pages, so that their memory can be given back.
pub(super) const PAGED: u64 = 4096;
const RECORD: u64 = size_of::<BlockRecord>() as u64;
/// Records in the first table; each further one has twice as many.
const FIRST_TABLE: u64 = 256;
/// Free memory above this goes back to the system where a quarter of the budget is in use.
const WARM_WHEN_TIGHT: u64 = 2 << 20;
/// Free memory above this goes back to the system.
const WARM_LIMIT: u64 = 64 << 20;

shared! {
    /// What the arena of a segment is made of.
    ///
    /// | offset | bytes | field | who writes it, when (all under `lock`) |
    /// |---|---|---|---|
    /// | 0 | 64 | lock | see [`Mutex`] |
    /// | 64 | 8 | used | file offset behind the last place given out; before that place's record counts |
    /// | 72 | 8 | count | number of records; the one store that makes a record count |
    /// | 80 | 8 | warm | bytes of free blocks that still have memory |
    /// | 88 | 176 | tables | file offsets of the tables of records, 0 for none |
    /// | 264 | 640 | free | for each class, 1 + the number of its first free record, 0 for none |
    /// | 904 | 4 | unlisted | 1 when there may be free blocks in no list: of a process that could not have the lock; without the lock |
    /// | 912 | 8 | in_use | bytes of blocks that are not free |
    pub(crate) struct Header {
        lock: Mutex,
        used: AtomicU64,
        count: AtomicU64,
        warm: AtomicU64,
        tables: [AtomicU64; TABLES],
        free: [AtomicU32; CLASSES],
        unlisted: AtomicU32,
        unused: AtomicU32,
        in_use: AtomicU64,
    }
}

shared! {
    /// One block.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 4 | state | a [`BlockState`]; see there |
    /// | 4 | 4 | is_warm | a free block still has its memory; who frees it |
    /// | 8 | 8 | owner | the [`Identity`] that holds it, before its state says so |
    /// | 16 | 8 | position | the number of the message that it belongs to, before its state says so |
    /// | 24 | 8 | offset | where in the file it is; who made the record, once |
    /// | 32 | 8 | capacity | its size in bytes, once |
    /// | 40 | 8 | len | how many of these are used; its owner |
    /// | 48 | 4 | next | 1 + the number of the next free record of the class; under the arena's lock |
    pub(crate) struct BlockRecord {
        state: AtomicU32,
        is_warm: AtomicU32,
        owner: AtomicU64,
        position: AtomicU64,
        offset: AtomicU64,
        capacity: AtomicU64,
        len: AtomicU64,
        next: AtomicU32,
    }
}
const _: () = assert!(size_of::<BlockRecord>() == 64 && size_of::<Header>() <= 1024);

/// What a block is used for. The queue's page tells who changes it when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum BlockState {
    /// In the list of its class, or about to be: nobody's.
    Free = 0,
    /// Its owner fills it. Nobody else knows of it.
    Owned = 1,
    /// Part of a queue, from the message of its position on, once that message counts.
    Queued = 2,
    /// A chunk that is done with once the message of its position is taken.
    Leaving = 3,
    /// Its owner has taken it out of the queue, once the message of its position is taken.
    Held = 4,
    /// Its owner died, and it waits for another.
    Returned = 5,
}

/// A block's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block(pub(crate) u32);

impl BlockRecord {
    /// `None` when it holds no state.
    pub(crate) fn state(&self) -> Option<BlockState> {
        use BlockState::{Free, Held, Leaving, Owned, Queued, Returned};
        let number = self.state.load(Ordering::Acquire);
        [Free, Owned, Queued, Leaving, Held, Returned].into_iter().find(|state| *state as u32 == number)
    }

    /// Release: what the state speaks of was written before.
    pub(crate) fn set_state(&self, state: BlockState) {
        self.state.store(state as u32, Ordering::Release);
    }

    pub(crate) fn owner(&self) -> Identity {
        Identity::from_bits(self.owner.load(Ordering::Relaxed))
    }

    pub(crate) fn set_owner(&self, owner: Identity) {
        self.owner.store(owner.bits(), Ordering::Relaxed);
    }

    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    pub(crate) fn set_position(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }
}

/// Class and size of the smallest block that holds `len` bytes.
pub(super) fn class_of(len: u64) -> Option<(usize, u64)> {
    if len <= SMALLEST {
        return Some((0, SMALLEST));
    }
    let len = if len > PAGED { len.checked_next_multiple_of(PAGED)? } else { len };
    let doubling = (len - 1).ilog2();
    let step = 1u64 << (doubling - 2);
    let steps = (len - 1) / step + 1; // 5 to 8
    let class = usize::try_from(u64::from(doubling - SMALLEST.ilog2()) * 4 + steps - 4).ok()?;
    (class < CLASSES).then_some((class, steps.checked_mul(step)?))
}

/// The arena of a segment. See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arena<'a> {
    segment: &'a Segment,
    header: &'a Header,
}

impl<'a> Arena<'a> {
    /// The arena whose header stands at `header` in the segment's first region.
    #[inline]
    pub(crate) fn new(segment: &'a Segment, header: u64) -> Self {
        Self { segment, header: segment.fixed(header) }
    }

    /// Makes a fresh one: the first table of records goes to `start`, blocks behind it.
    pub(crate) fn initialise(&self, start: u64) {
        self.header.tables[0].store(start, Ordering::Relaxed);
        self.header.used.store(start + FIRST_TABLE * RECORD, Ordering::Relaxed);
    }

    /// The lists are whole while the guard lives.
    ///
    /// # Errors
    /// [`MemoryError::Busy`] when the deadline passes, which it does only while the lock's owner stands still;
    /// [`MemoryError::Interrupted`].
    pub(crate) fn lock(&self, deadline: Deadline) -> Result<Guard<'a>, MemoryError> {
        let mut guard = loop {
            match self.header.lock.lock(deadline) {
                Ok(guard) => break guard,
                Err(WaitError::TimedOut) => return Err(MemoryError::Busy),
                // Only a wait for as long as it takes is given up because of a signal.
                Err(WaitError::Interrupted) if deadline == Deadline::NEVER => return Err(MemoryError::Interrupted),
                Err(WaitError::Interrupted) => {}
            }
        };
        let is_whole = !guard.owner_died && self.header.unlisted.swap(0, Ordering::AcqRel) == 0;
        if !is_whole {
            guard.repair(|| self.rebuild())?;
        }
        Ok(guard)
    }

    /// Whether the lock can be had soon: nobody was stopped while holding it.
    pub(crate) fn is_available(&self) -> bool {
        self.lock(Deadline::PASSED).is_ok()
    }

    /// Makes the lists anew from the records.
    fn rebuild(&self) -> Result<(), MemoryError> {
        self.header.free.iter().for_each(|head| head.store(0, Ordering::Relaxed));
        self.header.warm.store(0, Ordering::Relaxed);
        let mut in_use = 0_u64;
        for block in self.blocks() {
            let record = self.record(block)?;
            if record.state() == Some(BlockState::Free) {
                self.push(block)?;
            } else {
                in_use = in_use.saturating_add(record.capacity());
            }
        }
        self.header.in_use.store(in_use, Ordering::Relaxed);
        Ok(())
    }

    /// All records there are.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let count = self.header.count.load(Ordering::Acquire).min(FIRST_TABLE << TABLES);
        (0..u32::try_from(count).unwrap_or(u32::MAX)).map(Block)
    }

    pub(crate) fn record(&self, block: Block) -> Result<&'a BlockRecord, MemoryError> {
        let number = u64::from(block.0);
        let table = (number / FIRST_TABLE + 1).ilog2();
        let index = number - FIRST_TABLE * ((1 << table) - 1);
        let start = self.header.tables.get(table as usize).ok_or(MemoryError::Corrupt)?.load(Ordering::Acquire);
        if start == 0 {
            return Err(MemoryError::Corrupt);
        }
        self.segment.view(start.wrapping_add(index * RECORD))
    }

    /// Places `len` bytes behind all that is used, in one region.
    fn place(&self, len: u64) -> Result<u64, MemoryError> {
        let start = self.segment.place(self.header.used.load(Ordering::Relaxed), len)?;
        crash::point(Step::GrownUncounted);
        self.header.used.store(start.wrapping_add(len), Ordering::Relaxed);
        Ok(start)
    }

    /// A new record, not in any list.
    fn add(&self, capacity: u64) -> Result<Block, MemoryError> {
        let number = self.header.count.load(Ordering::Relaxed);
        let block = Block(u32::try_from(number).map_err(|_| MemoryError::Corrupt)?);
        let table = (number / FIRST_TABLE + 1).ilog2();
        let start = self.header.tables.get(table as usize).ok_or(MemoryError::Corrupt)?;
        if start.load(Ordering::Relaxed) == 0 {
            // Its first record comes when the table before it is full: another count is nonsense, and a table may be large.
            let is_next = number == FIRST_TABLE * ((1 << table) - 1);
            let is_there = |before: u32| self.header.tables[before as usize].load(Ordering::Relaxed) != 0;
            if !is_next || !(0..table).all(is_there) {
                return Err(MemoryError::Corrupt);
            }
            let len = (FIRST_TABLE << table) * RECORD;
            let at = self.place(len)?;
            self.segment.reserve(at, len)?;
            start.store(at, Ordering::Release);
        }
        let record = self.record(block)?;
        record.offset.store(self.place(capacity)?, Ordering::Relaxed);
        record.capacity.store(capacity, Ordering::Relaxed);
        Ok(block)
    }

    /// A block for `len` bytes, owned by this process until its state says otherwise.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`] or [`MemoryError::System`] when there is no memory; [`MemoryError::Busy`].
    pub(crate) fn allocate(&self, len: u64, deadline: Deadline) -> Result<Block, MemoryError> {
        let too_large = || MemoryError::System(io::ErrorKind::FileTooLarge.into());
        let (class, capacity) = class_of(len).ok_or_else(too_large)?;
        let (block, record, is_warm, in_use);
        {
            let _guard = self.lock(deadline)?;
            let first = &self.header.free[class];
            let popped = first.load(Ordering::Relaxed).checked_sub(1).map(Block);
            block = match popped {
                Some(block) => block,
                None => self.add(capacity)?,
            };
            record = self.record(block)?;
            if record.capacity() != capacity {
                return Err(MemoryError::Corrupt);
            }
            is_warm = record.is_warm.load(Ordering::Relaxed) != 0;
            in_use = self.header.in_use.load(Ordering::Relaxed);
            record.len.store(len, Ordering::Relaxed);
            record.set_owner(Identity::own());
            crash::point(Step::AllocateUnclaimed);
            record.set_state(BlockState::Owned);
            crash::point(Step::AllocateListed);
            match popped {
                Some(_) => {
                    first.store(record.next.load(Ordering::Relaxed), Ordering::Relaxed);
                    let warm = self.header.warm.load(Ordering::Relaxed);
                    let left = if is_warm { warm.saturating_sub(capacity) } else { warm };
                    self.header.warm.store(left, Ordering::Relaxed);
                }
                None => self.header.count.store(u64::from(block.0) + 1, Ordering::Release),
            }
            self.header.in_use.store(in_use.saturating_add(capacity), Ordering::Relaxed);
        }
        if !is_warm {
            if let Err(error) = self.segment.claim(record.offset(), capacity, Share::of(in_use)) {
                self.free_quietly(block)?;
                return Err(error);
            }
            record.is_warm.store(1, Ordering::Relaxed);
        }
        Ok(block)
    }

    /// Gives a block of this process back.
    pub(crate) fn free(&self, block: Block) -> Result<(), MemoryError> {
        self.free_quietly(block)?;
        if self.record(block)?.capacity() >= PAGED {
            super::wake_waiting(); // it may be what somebody waits for
        }
        Ok(())
    }

    /// Frees a block without waking the waiters for budget space: the caller may wait for space next and would wake itself.
    pub(crate) fn free_quietly(&self, block: Block) -> Result<(), MemoryError> {
        let record = self.record(block)?;
        let may_stay = || {
            let warm = self.header.warm.load(Ordering::Relaxed).saturating_add(record.capacity());
            record.capacity() < PAGED || warm <= WARM_WHEN_TIGHT || warm <= WARM_LIMIT && !self.segment.is_tight()
        };
        // Warm is what was reserved, and not released: a death before either leaves it cold.
        if record.is_warm.load(Ordering::Relaxed) != 0 && !may_stay() {
            record.is_warm.store(0, Ordering::Relaxed);
            self.segment.release(record.offset(), record.capacity());
            self.segment.settle_quietly();
        }
        // Once somebody found that the lock's owner stands still, nobody else waits to see it.
        let stands_still = self.header.unlisted.load(Ordering::Relaxed) != 0;
        match if stands_still { Err(MemoryError::Busy) } else { self.lock(Deadline::PASSED) } {
            Ok(_guard) => self.free_locked(block),
            // Nobody waits for a process that stands still: it is free, and whoever has the lock next lists it.
            Err(MemoryError::Busy) => {
                record.set_state(BlockState::Free);
                self.header.unlisted.store(1, Ordering::Release);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Arena::free`], for who holds the arena's lock; the memory stays as it is.
    pub(crate) fn free_locked(&self, block: Block) -> Result<(), MemoryError> {
        // The owner stays as it is: a block without one, and not free yet, would look like one of the dead.
        let record = self.record(block)?;
        record.set_state(BlockState::Free);
        crash::point(Step::FreedUnlisted);
        let in_use = self.header.in_use.load(Ordering::Relaxed).saturating_sub(record.capacity());
        self.header.in_use.store(in_use, Ordering::Relaxed);
        self.push(block)
    }

    /// Gives the memory of free blocks back. Nothing, when that has to wait for somebody.
    pub(crate) fn trim(&self) -> Result<(), MemoryError> {
        if self.header.warm.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let _guard = self.lock(Deadline::PASSED)?;
        let mut kept = 0;
        for block in self.blocks() {
            let record = self.record(block)?;
            if record.state() != Some(BlockState::Free) || record.is_warm.load(Ordering::Relaxed) == 0 {
                continue;
            }
            if record.capacity() < PAGED {
                kept += record.capacity();
                continue;
            }
            record.is_warm.store(0, Ordering::Relaxed);
            self.segment.release(record.offset(), record.capacity());
        }
        self.header.warm.store(kept, Ordering::Relaxed);
        self.segment.settle();
        Ok(())
    }

    fn push(&self, block: Block) -> Result<(), MemoryError> {
        let record = self.record(block)?;
        let (class, capacity) = class_of(record.capacity()).ok_or(MemoryError::Corrupt)?;
        let first = &self.header.free[class];
        record.next.store(first.load(Ordering::Relaxed), Ordering::Relaxed);
        first.store(block.0.wrapping_add(1), Ordering::Relaxed);
        if record.is_warm.load(Ordering::Relaxed) != 0 {
            let warm = self.header.warm.load(Ordering::Relaxed).saturating_add(capacity);
            self.header.warm.store(warm, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies `parts`, one after the other, to the start of a block of this process.
    pub(crate) fn fill(&self, block: Block, parts: &[&[u8]]) -> Result<(), MemoryError> {
        let mut at = self.record(block)?.offset();
        for part in parts {
            self.segment.copy_in(at, part)?;
            at = at.checked_add(part.len() as u64).ok_or(MemoryError::Corrupt)?;
        }
        Ok(())
    }

    /// Puts the bytes of a block at the end of `out`.
    pub(crate) fn read(&self, block: Block, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        let record = self.record(block)?;
        let len = record.len();
        if len > record.capacity() {
            return Err(MemoryError::Corrupt);
        }
        self.segment.copy_out(record.offset(), len, out)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::memory;

    const LEN: u64 = 256 << 10;

    fn segment() -> Segment {
        let segment = Segment::create(c"test", LEN, 1024, 4096).expect("memory");
        Arena::new(&segment, 2048).initialise(4096);
        segment
    }

    proptest! {
        #[test]
        fn a_class_holds_what_it_was_chosen_for(bits in 0u32..40, below: u64) {
            let len = below & ((1 << bits) - 1);
            let (class, capacity) = class_of(len).expect("not too large");
            prop_assert!(capacity >= len);
            prop_assert!(len <= 1024 || capacity <= (len + len / 4).max(PAGED).next_multiple_of(PAGED));
            prop_assert_eq!(class_of(capacity), Some((class, capacity)), "a block goes back to the list it came from");
        }
    }

    #[test]
    fn blocks_are_used_again_and_do_not_overlap() {
        let segment = segment();
        let arena = Arena::new(&segment, 2048);
        let contents: Vec<Vec<u8>> =
            (0..=255).cycle().take(600).zip(0..).map(|(fill, at)| vec![fill; 100 + at * 37]).collect();
        for round in 0..3 {
            let blocks: Vec<_> = contents
                .iter()
                .map(|bytes| arena.allocate(bytes.len() as u64, Deadline::NEVER).expect("memory"))
                .collect();
            for (block, bytes) in blocks.iter().zip(&contents) {
                arena.fill(*block, &[bytes]).expect("room");
            }
            for (block, expected) in blocks.into_iter().zip(&contents) {
                let mut bytes = Vec::new();
                arena.read(block, &mut bytes).expect("its own");
                assert_eq!(&bytes, expected);
                arena.free(block).expect("its own");
            }
            assert_eq!(arena.blocks().count(), 600, "round {round}");
        }
    }

    #[test]
    fn large_memory_goes_back() {
        let segment = segment();
        let arena = Arena::new(&segment, 2048);
        let blocks: Vec<_> = (0..5).map(|_| arena.allocate(30 << 20, Deadline::NEVER).expect("memory")).collect();
        blocks.into_iter().for_each(|block| arena.free(block).expect("its own"));
        let stat = rustix::fs::fstat(&segment).expect("a file");
        assert!(stat.st_blocks * 512 <= 70 << 20, "{} bytes are still there", stat.st_blocks * 512);
    }

    #[test]
    fn lists_are_made_anew_from_the_records() {
        let segment = segment();
        let arena = Arena::new(&segment, 2048);
        let blocks: Vec<_> = (0..4).map(|_| arena.allocate(5000, Deadline::NEVER).expect("memory")).collect();
        arena.free(blocks[1]).expect("its own");
        arena.free(blocks[2]).expect("its own");
        arena.header.free.iter().for_each(|head| head.store(77, Ordering::Relaxed));
        arena.rebuild().expect("good records");
        let again: Vec<_> = (0..3).map(|_| arena.allocate(5000, Deadline::NEVER).expect("memory").0).collect();
        assert!(again.contains(&blocks[1].0) && again.contains(&blocks[2].0) && again.contains(&4));
    }

    #[test]
    fn a_count_that_is_nonsense_reserves_nothing() {
        let segment = segment();
        let arena = Arena::new(&segment, 2048);
        arena.allocate(5000, Deadline::NEVER).expect("memory");
        let before = memory::reserved_bytes(segment.as_fd()).expect("a file");
        // A table of half a gigabyte would begin there.
        arena.header.count.store(FIRST_TABLE * ((1 << 15) - 1), Ordering::Relaxed);
        assert!(matches!(arena.allocate(5000, Deadline::NEVER), Err(MemoryError::Corrupt)));
        arena.header.count.store(FIRST_TABLE + 7, Ordering::Relaxed);
        assert!(matches!(arena.allocate(5000, Deadline::NEVER), Err(MemoryError::Corrupt)));
        assert_eq!(memory::reserved_bytes(segment.as_fd()).expect("a file"), before);
    }

    #[test]
    fn corrupt_records_are_errors() {
        let segment = segment();
        let arena = Arena::new(&segment, 2048);
        let block = arena.allocate(5000, Deadline::NEVER).expect("memory");
        let record = arena.record(block).expect("there");
        record.offset.store(u64::MAX - 10, Ordering::Relaxed);
        assert!(arena.read(block, &mut Vec::new()).is_err());
        record.len.store(u64::MAX, Ordering::Relaxed);
        assert!(arena.read(block, &mut Vec::new()).is_err());
        arena.header.free[class_of(5000).expect("small").0].store(999_999_999, Ordering::Relaxed);
        assert!(arena.allocate(5000, Deadline::NEVER).is_err());
        arena.header.tables[0].store(LEN * 99, Ordering::Relaxed);
        assert!(arena.record(block).is_err());
    }
}

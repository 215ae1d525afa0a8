//! [`Arena`]: blocks of any size in a segment. Each has a state and an owner, so that the blocks of a dead process are found.
//!
//! Users: `queue`, for the chunks of a queue and for its large messages. Every process that has the segment allocates and
//! frees. `docs/design/segment.md`, "Arena", lists the steps of allocate and free and the state that a death leaves after
//! each.
//!
//! - A block keeps its offset and size permanently. A freed block goes to the free list of its size class, still *warm*: its
//!   memory stays reserved. Above a limit of warm bytes the memory goes back to the system, and only the file offset is kept.
//! - Records are authoritative. Free lists, `warm` and `in_use` can be computed from them, and are rebuilt after a crash
//!   inside the lock.
//! - The free lists, the counts and the tables change only under the lock in [`Header`]. A record that is not free is changed
//!   by its owner or under the lock of the structure that the block belongs to; of a queue, that is the lock of one of its
//!   sides.
//! - The arena's lock is acquired last: its owner waits for no other lock in shared memory.
//!
//! Every offset, size and number is read from memory that any peer may overwrite. Reads check them and fail with
//! [`MemoryError::Corrupt`]; at worst a block is handed out twice, and messages are wrong.
//!
//! Blocks are neither split nor merged, and the file does not shrink. The arena detects no dead owners: `queue::done` reclaims
//! their blocks.

use std::io;

use super::budget::Share;
use super::size_class::{CLASSES, PAGED, WARM_LIMIT, class_of};
use super::{MemoryError, Segment};
use crate::deadline::Deadline;
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::robust::{Guard, Mutex, WaitError};
use crate::sys::crash::{self, Step};
use crate::sys::process_stamp::ProcessStamp;
use crate::sys::shared::shared;

/// Maximum number of tables of records. They hold about 2^30 records, which fit in a [`Block`].
const TABLES: usize = 22;
/// Size of a record in bytes.
const RECORD: u64 = size_of::<BlockRecord>() as u64;
/// Number of records in the first table. Each further table has twice as many.
const FIRST_TABLE: u64 = 256;
/// Bytes of free memory that are kept while more than a quarter of the budget is in use.
const WARM_WHEN_TIGHT: u64 = 2 << 20;

shared! {
    /// The header of an arena. All fields but `unlisted` are written under `lock`.
    ///
    /// | offset | bytes | field | meaning |
    /// |---|---|---|---|
    /// | 0 | 64 | lock | see [`Mutex`] |
    /// | 64 | 8 | used | file offset of the end of the allocated range; written before the new record counts |
    /// | 72 | 8 | count | number of records; its store commits a new record |
    /// | 80 | 8 | warm | bytes of free blocks whose memory is still reserved |
    /// | 88 | 176 | tables | file offsets of the tables of records, 0 for none |
    /// | 264 | 640 | free | for each size class, 1 + the number of its first free record, 0 for none |
    /// | 904 | 4 | unlisted | 1: some free blocks may be in no list, as the process that freed them could not acquire the lock |
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
    /// The record of a block.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 4 | state | [`FREE`], [`OWNED`], or a state of the arena's user |
    /// | 4 | 4 | is_warm | 1: the block's memory is reserved; its owner, the process that frees it, or `trim` |
    /// | 8 | 8 | owner | the [`ProcessStamp`] of the process that holds the block; before the state |
    /// | 16 | 8 | position | the number of the message that the block belongs to; before the state |
    /// | 24 | 8 | offset | file offset of the block; once, by the process that adds the record |
    /// | 32 | 8 | capacity | size of the block in bytes; as `offset` |
    /// | 40 | 8 | len | number of bytes in use; the owner |
    /// | 48 | 4 | next | 1 + the number of the next free record of the size class; under the arena's lock |
    ///
    /// A process that reads a field without the lock that protects the record reads the state first: see [`BlockRecord::tag`].
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

/// The state of a block in the free list of its size class, or about to be put there. It has no owner.
pub(crate) const FREE: u32 = 0;
/// The state of a block that its owner fills. No other process uses it. Further states belong to the user of the arena.
pub(crate) const OWNED: u32 = 1;

/// A block's number: the index of its record, from 0. It stays valid as long as the file exists. A number that was read from
/// shared memory may have any value; [`Arena::record`] checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block(pub(crate) u32);

impl BlockRecord {
    /// Returns the state: [`FREE`], [`OWNED`], or one of the arena's user.
    pub(crate) fn tag(&self) -> u32 {
        // Pairs with the Release in `set_tag`: fields that are read after the state belong to it, or to a later one.
        self.state.load(Ordering::Acquire)
    }

    /// Stores the state. The caller owns the block, or holds the lock that protects it.
    pub(crate) fn set_tag(&self, tag: u32) {
        self.state.store(tag, Ordering::Release); // pairs with the Acquire in `tag`: fields of the state were written before
    }

    /// Returns the owner: the process that last allocated or took the block. Meaningful if the state is [`OWNED`] or one of
    /// the arena's user.
    pub(crate) fn owner(&self) -> ProcessStamp {
        ProcessStamp::from_bits(self.owner.load(Ordering::Relaxed))
    }

    /// Stores the owner. The caller stores the state afterwards, which makes it valid.
    pub(crate) fn set_owner(&self, owner: ProcessStamp) {
        self.owner.store(owner.bits(), Ordering::Relaxed);
    }

    /// Returns the message number that the state refers to. In a block that is only [`OWNED`] it is that of an earlier use.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Stores the message number. The caller stores the state afterwards, which makes it valid.
    pub(crate) fn set_position(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    /// Returns the file offset of the block's first byte. Unchecked: [`Segment`] checks each access.
    pub(crate) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Returns the size of the block in bytes: that of its size class. Unchecked.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes in use, as requested from [`Arena::allocate`]. Unchecked: it may exceed the capacity.
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }
}

/// The arena of a segment: a view that is created for each call and holds no state of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arena<'a> {
    segment: &'a Segment,
    header: &'a Header,
}

impl<'a> Arena<'a> {
    /// Returns the arena whose header is at offset `header` in the segment's first region.
    ///
    /// # Panics
    /// If the header is not inside that region, or `header` is not a multiple of 64.
    #[inline]
    pub(crate) fn new(segment: &'a Segment, header: u64) -> Self {
        Self { segment, header: segment.fixed(header) }
    }

    /// Initialises a new arena: the first table of records is at file offset `start`, the blocks behind it.
    ///
    /// The caller has reserved the memory of the header and of the first table, which are still zero. No other process has the
    /// segment yet.
    pub(crate) fn initialise(&self, start: u64) {
        self.header.tables[0].store(start, Ordering::Relaxed);
        self.header.used.store(start + FIRST_TABLE * RECORD, Ordering::Relaxed);
    }

    /// Acquires the arena's lock. Rebuilds the free lists if they may be incomplete: the last owner died, or a block was freed
    /// without the lock. If the rebuild fails, the next owner of the lock tries again.
    ///
    /// # Errors
    /// [`MemoryError::Busy`] once the deadline and 100 ms have passed, which happens only while the lock's owner is stopped;
    /// [`MemoryError::Interrupted`] if there is no deadline and a signal handler ran; [`MemoryError::Corrupt`] and
    /// [`MemoryError::System`] from the rebuild.
    pub(crate) fn lock(&self, deadline: Deadline) -> Result<Guard<'a>, MemoryError> {
        let mut guard = loop {
            match self.header.lock.lock(deadline) {
                Ok(guard) => break guard,
                Err(WaitError::TimedOut) => return Err(MemoryError::Busy),
                // A signal ends only a wait without a deadline.
                Err(WaitError::Interrupted) if deadline == Deadline::NEVER => return Err(MemoryError::Interrupted),
                Err(WaitError::Interrupted) => {}
            }
        };
        // Acquire pairs with the Release in `free_quietly`: the rebuild finds the block free.
        let is_whole = !guard.owner_died && self.header.unlisted.swap(0, Ordering::AcqRel) == 0;
        if !is_whole {
            guard.repair(|| self.rebuild())?;
        }
        Ok(guard)
    }

    /// Returns whether the lock can be acquired soon: false while its owner is stopped, and if the free lists cannot be
    /// rebuilt. Waits for at most 100 ms, and rebuilds as [`Arena::lock`] does.
    pub(crate) fn is_available(&self) -> bool {
        self.lock(Deadline::PASSED).is_ok()
    }

    /// Rebuilds the free lists, `warm` and `in_use` from the records. The caller holds the lock. A rebuild that a death ends
    /// is started again by the next owner. A record whose state is unknown counts as in use.
    fn rebuild(&self) -> Result<(), MemoryError> {
        self.header.free.iter().for_each(|head| head.store(0, Ordering::Relaxed));
        self.header.warm.store(0, Ordering::Relaxed);
        let mut in_use = 0_u64;
        for block in self.blocks() {
            let record = self.record(block)?;
            if record.tag() == FREE {
                self.push(block)?;
            } else {
                in_use = in_use.saturating_add(record.capacity());
            }
        }
        self.header.in_use.store(in_use, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the numbers of all records that count now. Needs no lock: records are never removed, and one that is added
    /// later is not among them.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        // Pairs with the Release in `allocate`: a record is written before it counts.
        let count = self.header.count.load(Ordering::Acquire).min(FIRST_TABLE << TABLES);
        (0..u32::try_from(count).unwrap_or(u32::MAX)).map(Block)
    }

    /// Returns the record of a block. Table *k* holds the numbers from 256 * (2^k - 1) on.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if there is no such table or its offset is invalid; [`MemoryError::System`] if this process
    /// cannot map the region.
    pub(crate) fn record(&self, block: Block) -> Result<&'a BlockRecord, MemoryError> {
        let number = u64::from(block.0);
        let table = (number / FIRST_TABLE + 1).ilog2();
        let index = number - FIRST_TABLE * ((1 << table) - 1);
        // Pairs with the Release in `add`: the memory of the table is reserved.
        let start = self.header.tables.get(table as usize).ok_or(MemoryError::Corrupt)?.load(Ordering::Acquire);
        if start == 0 {
            return Err(MemoryError::Corrupt);
        }
        self.segment.view(start.wrapping_add(index * RECORD))
    }

    /// Allocates `len` bytes of the file behind the used range, in one region. Returns their offset. The caller holds the
    /// lock. A range whose block is never committed is lost, but takes no memory.
    fn place(&self, len: u64) -> Result<u64, MemoryError> {
        let start = self.segment.place(self.header.used.load(Ordering::Relaxed), len)?;
        crash::point(Step::GrownUncounted);
        self.header.used.store(start.wrapping_add(len), Ordering::Relaxed);
        Ok(start)
    }

    /// Writes a new record, which is in no list and counts once the caller stores `count`. The caller holds the lock.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the count does not fit the tables; [`MemoryError::System`] if the file cannot grow, or a
    /// new table gets no memory.
    fn add(&self, capacity: u64) -> Result<Block, MemoryError> {
        let number = self.header.count.load(Ordering::Relaxed);
        let block = Block(u32::try_from(number).map_err(|_| MemoryError::Corrupt)?);
        let table = (number / FIRST_TABLE + 1).ilog2();
        let start = self.header.tables.get(table as usize).ok_or(MemoryError::Corrupt)?;
        if start.load(Ordering::Relaxed) == 0 {
            // Tables are created in order, each with its first record: a corrupt count must not reserve a large one.
            let is_next = number == FIRST_TABLE * ((1 << table) - 1);
            let is_there = |before: u32| self.header.tables[before as usize].load(Ordering::Relaxed) != 0;
            if !is_next || !(0..table).all(is_there) {
                return Err(MemoryError::Corrupt);
            }
            let len = (FIRST_TABLE << table) * RECORD;
            let at = self.place(len)?;
            self.segment.reserve(at, len)?;
            // Pairs with the Acquire in `record`.
            start.store(at, Ordering::Release);
        }
        let record = self.record(block)?;
        record.offset.store(self.place(capacity)?, Ordering::Relaxed);
        record.capacity.store(capacity, Ordering::Relaxed);
        Ok(block)
    }

    /// Allocates a block for `len` bytes, owned by this process until its state changes. Its memory is reserved, and may
    /// contain the bytes of an earlier use. The deadline bounds the wait for the lock; a lack of memory fails at once.
    ///
    /// The lock is released before memory is reserved, so a reservation of many bytes delays no other process. The share of
    /// the budget depends on the bytes that the segment had in use before this block ([`Share::of`]).
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`] or [`MemoryError::System`] if there is no memory: then no block is in use;
    /// [`MemoryError::Corrupt`] if the free list names a block of another class; any error of [`Arena::lock`].
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
            record.set_owner(ProcessStamp::own());
            crash::point(Step::AllocateUnclaimed);
            record.set_tag(OWNED);
            crash::point(Step::AllocateListed);
            match popped {
                Some(_) => {
                    first.store(record.next.load(Ordering::Relaxed), Ordering::Relaxed);
                    let warm = self.header.warm.load(Ordering::Relaxed);
                    let left = if is_warm { warm.saturating_sub(capacity) } else { warm };
                    self.header.warm.store(left, Ordering::Relaxed);
                }
                // The commit of a new record. Pairs with the Acquire in `blocks`.
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

    /// Frees a block. Wakes the waiters for budget space if it has whole pages. The caller owns the block, or holds the lock
    /// that protects it; after a death in between, the block still has its state, or is free.
    ///
    /// # Errors
    /// As [`Arena::lock`], but neither [`MemoryError::Busy`] nor [`MemoryError::Interrupted`].
    pub(crate) fn free(&self, block: Block) -> Result<(), MemoryError> {
        self.free_quietly(block)?;
        if self.record(block)?.capacity() >= PAGED {
            super::wake_waiting(); // a waiter may need this block
        }
        Ok(())
    }

    /// Frees a block without waking the waiters for budget space: the caller may wait for space next and would wake itself.
    /// Behind a stopped owner of the lock it waits for at most 100 ms, then leaves the block to the next owner's rebuild.
    ///
    /// # Errors
    /// As [`Arena::free`].
    pub(crate) fn free_quietly(&self, block: Block) -> Result<(), MemoryError> {
        let record = self.record(block)?;
        let may_stay = || {
            let warm = self.header.warm.load(Ordering::Relaxed).saturating_add(record.capacity());
            record.capacity() < PAGED || warm <= WARM_WHEN_TIGHT || warm <= WARM_LIMIT && !self.segment.is_tight()
        };
        // `is_warm` is set after the reservation and cleared before the release: a death in between leaves the block cold.
        if record.is_warm.load(Ordering::Relaxed) != 0 && !may_stay() {
            record.is_warm.store(0, Ordering::Relaxed);
            self.segment.release(record.offset(), record.capacity());
            self.segment.settle_quietly();
        }
        // If a process has already found that the lock's owner is stopped, do not wait again to find out.
        let is_stopped = self.header.unlisted.load(Ordering::Relaxed) != 0;
        match if is_stopped { Err(MemoryError::Busy) } else { self.lock(Deadline::PASSED) } {
            Ok(_guard) => self.free_locked(block),
            // Do not wait for a stopped process: the block is marked free, and the next owner of the lock lists it.
            Err(MemoryError::Busy) => {
                record.set_tag(FREE);
                // Pairs with the Acquire in `lock`: the state is stored before.
                self.header.unlisted.store(1, Ordering::Release);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Marks a block free and lists it. The caller holds the arena's lock, and the block is in no list. The block's memory
    /// stays as it is: `warm` grows if it is warm.
    pub(crate) fn free_locked(&self, block: Block) -> Result<(), MemoryError> {
        // The owner is kept: a block that is not free yet and has no owner would look like a dead process's.
        let record = self.record(block)?;
        record.set_tag(FREE);
        crash::point(Step::FreedUnlisted);
        let in_use = self.header.in_use.load(Ordering::Relaxed).saturating_sub(record.capacity());
        self.header.in_use.store(in_use, Ordering::Relaxed);
        self.push(block)
    }

    /// Returns the memory of free blocks of whole pages to the system, and wakes the waiters for budget space if there was
    /// any.
    ///
    /// # Errors
    /// [`MemoryError::Busy`] if the lock's owner is stopped, after 100 ms; as [`Arena::lock`].
    pub(crate) fn trim(&self) -> Result<(), MemoryError> {
        if self.header.warm.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let _guard = self.lock(Deadline::PASSED)?;
        let mut kept = 0;
        for block in self.blocks() {
            let record = self.record(block)?;
            if record.tag() != FREE || record.is_warm.load(Ordering::Relaxed) == 0 {
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

    /// Puts a free block at the head of the list of its class, and counts its warm bytes. The caller holds the lock, and the
    /// block is in no list.
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

    /// Copies `parts`, one after the other, to the start of a block of this process. Together they have at most the length
    /// with which the block was allocated; this is not checked.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the bytes are not inside one region; [`MemoryError::System`] if it cannot be mapped.
    pub(crate) fn fill(&self, block: Block, parts: &[&[u8]]) -> Result<(), MemoryError> {
        let mut at = self.record(block)?.offset();
        for part in parts {
            self.segment.copy_in(at, part)?;
            at = at.checked_add(part.len() as u64).ok_or(MemoryError::Corrupt)?;
        }
        Ok(())
    }

    /// Appends the bytes of a block to `out`. The caller holds the block, or the lock that protects it: otherwise another
    /// process may overwrite it meanwhile.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the length exceeds the capacity, or as [`Segment::copy_out`].
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
        // With this count the next table would take 512 MiB.
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

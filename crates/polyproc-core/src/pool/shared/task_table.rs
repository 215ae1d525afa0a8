//! [`TaskTable`]: the words that a pool and all its workers write: which tasks can be claimed, and which worker has
//! claimed which. The contents of tasks are in [`Orders`](super::orders::Orders).
//!
//! | offset | bytes | content | writer |
//! |---|---|---|---|
//! | 0 | 64 | [`Doorbell`] | see `doorbell` |
//! | 64 | 64 | low water: up to this many tasks on the table are few | the parent |
//! | 128 | 64 | head: the position of the next task to claim | see `claim` |
//! | 192 | 64 | tail: the position of the next task to publish | see `claim` |
//! | 256 | 64 | [`EventCount`]: workers without a task | see there |
//! | 320 | 64 | [`Lookers`]: workers that poll for tasks | a worker, from 0 and back; the parent, after a death |
//! | 4096 | 8192 | the ring of slot numbers | the parent, before it advances `tail` |
//! | 12288 | 65536 | the state of each slot, in a cache line of its own | see `claim` |
//!
//! The parent creates the memory file, and sends its descriptor to each worker; all map it for reading and writing, so
//! any word may be overwritten by a faulty worker. It has a fixed length, and is reserved when it is created. Counts
//! and states have a cache line each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::claim::{ClaimTable, TableWords};
use super::count::Count;
use super::doorbell::Doorbell;
use super::lookers::Lookers;
use crate::prim::{AtomicU32, AtomicU64};
use crate::robust::EventCount;
use crate::sys::memory::{self, Mapping, PAGE};
use crate::sys::shared::{Shared, shared};

/// Maximum number of tasks that are out.
pub(in crate::pool) const SLOTS: u32 = 1024;
/// Places in the ring of slot numbers. With as many spare places as slots, publishing a task moves at most one other to a new
/// place, on average.
const PLACES: u32 = 2 * SLOTS;
/// Offset of the ring of slot numbers.
const RING: u64 = 4096;
/// Offset of the state of slot 0.
const STATES: u64 = RING + size_of::<TaskRing>() as u64;
/// Distance between two states in bytes: a cache line.
const STATE_LEN: u64 = size_of::<Count>() as u64;
/// Length of the memory file in bytes.
const LEN_BYTES: u64 = (STATES + SLOTS as u64 * STATE_LEN).next_multiple_of(PAGE);

shared! {
    struct TaskRing { numbers: [AtomicU32; PLACES as usize], }
}

/// The table, as mapped by one process: the parent, or a worker.
#[derive(Debug)]
pub(in crate::pool) struct TaskTable {
    memfd: OwnedFd,
    mapping: Mapping,
}

impl TaskTable {
    /// Creates the table of a new pool, all slots empty.
    ///
    /// # Errors
    /// The process has no descriptor, or the system no memory.
    pub(in crate::pool) fn new() -> io::Result<Self> {
        let memfd = memory::create(c"polyproc-pool", LEN_BYTES)?;
        memory::reserve(memfd.as_fd(), 0, LEN_BYTES)?;
        Self::open(memfd)
    }

    /// Maps the table of the pool in a worker.
    pub(in crate::pool) fn open(memfd: OwnedFd) -> io::Result<Self> {
        let mapping = Mapping::new(memfd.as_fd(), 0, LEN_BYTES)?;
        Ok(Self { memfd, mapping })
    }

    /// Returns the object at `offset`.
    ///
    /// # Panics
    /// If it does not lie in the table, or `offset` is not aligned: an error in this file.
    fn at<T: Shared>(&self, offset: u64) -> &T {
        self.mapping.view(offset).expect("an aligned place inside")
    }

    /// Returns the word by which workers wake the parent.
    pub(in crate::pool) fn doorbell(&self) -> &Doorbell {
        self.at(0)
    }

    /// Up to this many tasks on the table are few: see [`Doorbell::ring`].
    pub(in crate::pool) fn low_water(&self) -> &AtomicU64 {
        &self.at::<Count>(64).count
    }

    /// Returns the event count on which workers without a task sleep.
    pub(in crate::pool) fn waiters(&self) -> &EventCount {
        self.at(256)
    }

    /// Returns the list of polling workers.
    pub(in crate::pool) fn lookers(&self) -> &Lookers {
        self.at(320)
    }

    /// Returns the part that is used to publish and claim tasks.
    pub(in crate::pool) fn table(&self) -> ClaimTable<'_, Self> {
        ClaimTable { words: self }
    }
}

impl TableWords for TaskTable {
    fn head(&self) -> &AtomicU64 {
        &self.at::<Count>(128).count
    }

    fn tail(&self) -> &AtomicU64 {
        &self.at::<Count>(192).count
    }

    fn places(&self) -> u64 {
        PLACES.into()
    }

    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    fn number(&self, position: u64) -> &AtomicU32 {
        &self.at::<TaskRing>(RING).numbers[(position % u64::from(PLACES)) as usize]
    }

    fn state(&self, slot: u32) -> Option<&AtomicU64> {
        (slot < SLOTS).then(|| &self.at::<Count>(STATES + u64::from(slot) * STATE_LEN).count)
    }
}

impl AsFd for TaskTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prim::Ordering;

    #[test]
    fn tasks_are_taken_in_order_once_and_not_after_they_were_taken_back() {
        let board = TaskTable::new().expect("memory");
        let table = board.table();
        let positions: Vec<u64> = (0..4).collect();
        assert!((0..4).zip(&positions).all(|(slot, position)| table.publish(slot, *position)));
        assert_eq!(table.claim(7), Some((0, positions[0])));
        assert!(table.withdraw(1, positions[1]));
        assert!(!table.withdraw(0, positions[0]), "somebody has it");
        assert_eq!(table.claim(9), Some((2, positions[2])));
        assert_eq!((table.holder(0, positions[0]), table.holder(2, positions[2])), (Some(7), Some(9)));
        assert_eq!(table.holder(1, positions[1]), None);
        assert_eq!(table.claim(7), Some((3, positions[3])));
        assert_eq!(table.claim(7), None);
    }

    #[test]
    fn what_is_taken_back_makes_room() {
        let board = TaskTable::new().expect("memory");
        let table = board.table();
        let mut positions = 0..;
        for _ in 0..3 {
            let published: Vec<(u32, u64)> = (0..SLOTS).zip(&mut positions).collect();
            assert!(published.iter().all(|(slot, position)| table.publish(*slot, *position)));
            assert!(published.iter().all(|(slot, position)| table.withdraw(*slot, *position)));
        }
        assert!(table.publish(5, u64::from(3 * SLOTS)));
        assert_eq!(table.claim(1).map(|(slot, _)| slot), Some(5));
        assert_eq!(table.claim(1), None);
    }

    #[test]
    fn a_corrupt_table_gives_nothing() {
        let board = TaskTable::new().expect("memory");
        let table = board.table();
        assert!(table.publish(0, 0));
        table.words.number(0).store(SLOTS + 7, Ordering::Relaxed);
        assert_eq!(table.claim(1), None);
    }
}

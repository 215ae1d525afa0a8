//! [`TaskTable`]: the words that a pool and all its workers write: which tasks can be claimed, and which worker has claimed which.
//! The contents of tasks are in [`Orders`](super::orders::Orders).
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

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{ClaimTable, Count, Doorbell};
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::robust::EventCount;
use crate::sys::memory::{self, Mapping, PAGE};
use crate::sys::shared::{Shared, shared};

/// Maximum number of tasks that are out.
pub(super) const SLOTS: u32 = 1024;
/// Places in the ring of slot numbers. With as many spare places as slots, at most one task is moved to a new place for each
/// one that is published, on average.
const PLACES: u32 = 2 * SLOTS;
const RING: u64 = 4096;
const STATES: u64 = RING + size_of::<TaskRing>() as u64;
const STATE_LEN: u64 = size_of::<Count>() as u64;
const LEN_BYTES: u64 = (STATES + SLOTS as u64 * STATE_LEN).next_multiple_of(PAGE);

/// Maximum number of workers that poll for tasks at a time; the others sleep.
const LOOKERS: usize = 4;

shared! {
    /// Workers that poll for tasks before they sleep. They find a new task without a wake-up.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 8 each | 1 + the number of a polling worker, or 0 | that worker, at begin and end; the parent, after its death |
    pub(super) struct Lookers { numbers: [AtomicU64; LOOKERS], }
}

impl Lookers {
    /// Enters a worker that begins to poll. Returns its place, or `None` if there are enough.
    pub(super) fn enter(&self, worker: u32) -> Option<usize> {
        let me = u64::from(worker) + 1;
        // Pairs with the loads in `count`. A poller that the parent misses costs a wake-up in vain, so no order is
        // needed.
        self.numbers.iter().position(|place| place.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok())
    }

    /// Removes a worker that ends polling, or has died. A living one must check the table once more after this.
    pub(super) fn leave(&self, worker: u32) {
        let me = u64::from(worker) + 1;
        for place in &self.numbers {
            // Before the last check, in `EventCount::wait`, whose fence pairs with the one in `Driver::to_wake`: the
            // parent finds that this worker does not poll, or the worker finds the task.
            let _ = place.compare_exchange(me, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Removes the entries for which `is_one`, called with 1 + the worker's number, returns false.
    pub(super) fn retain(&self, is_one: impl Fn(u64) -> bool) {
        for place in &self.numbers {
            let number = place.load(Ordering::Relaxed);
            if number != 0 && !is_one(number) {
                // Pairs with `enter` and `leave` of workers. `count` is called under the same lock of the parent.
                let _ = place.compare_exchange(number, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// Returns how many workers poll. The caller has put a task on the table, followed by a full barrier.
    pub(super) fn count(&self) -> u64 {
        self.numbers.iter().filter(|place| place.load(Ordering::Relaxed) != 0).count() as u64
    }
}

shared! {
    struct TaskRing { numbers: [AtomicU32; PLACES as usize], }
}

/// See the module.
#[derive(Debug)]
pub(super) struct TaskTable {
    memfd: OwnedFd,
    mapping: Mapping,
}

impl TaskTable {
    pub(super) fn new() -> io::Result<Self> {
        let memfd = memory::create(c"polyproc-pool", LEN_BYTES)?;
        memory::reserve(memfd.as_fd(), 0, LEN_BYTES)?;
        Self::open(memfd)
    }

    pub(super) fn open(memfd: OwnedFd) -> io::Result<Self> {
        let mapping = Mapping::new(memfd.as_fd(), 0, LEN_BYTES)?;
        Ok(Self { memfd, mapping })
    }

    fn at<T: Shared>(&self, offset: u64) -> &T {
        self.mapping.view(offset).expect("an aligned place inside")
    }

    pub(super) fn doorbell(&self) -> &Doorbell {
        self.at(0)
    }

    /// Up to this many tasks on the table are few: see [`Doorbell::ring`].
    pub(super) fn low_water(&self) -> &AtomicU64 {
        &self.at::<Count>(64).count
    }

    pub(super) fn waiters(&self) -> &EventCount {
        self.at(256)
    }

    pub(super) fn lookers(&self) -> &Lookers {
        self.at(320)
    }

    pub(super) fn table(&self) -> ClaimTable<'_> {
        ClaimTable { board: self }
    }
}

impl<'a> ClaimTable<'a> {
    pub(super) fn head(&self) -> &'a AtomicU64 {
        &self.board.at::<Count>(128).count
    }

    pub(super) fn tail(&self) -> &'a AtomicU64 {
        &self.board.at::<Count>(192).count
    }

    pub(super) fn places(&self) -> u64 {
        PLACES.into()
    }

    /// Returns the entry of the ring for a position: the number of a slot.
    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    pub(super) fn number(&self, position: u64) -> &'a AtomicU32 {
        &self.board.at::<TaskRing>(RING).numbers[(position % u64::from(PLACES)) as usize]
    }

    pub(super) fn state(&self, slot: u32) -> Option<&'a AtomicU64> {
        (slot < SLOTS).then(|| &self.board.at::<Count>(STATES + u64::from(slot) * STATE_LEN).count)
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
        table.number(0).store(SLOTS + 7, Ordering::Relaxed);
        assert_eq!(table.claim(1), None);
    }
}

//! [`Board`]: the memory that a pool shares with all its workers: the table of tasks, and what they lie in.
//!
//! | offset | bytes | what | who writes it, when |
//! |---|---|---|---|
//! | 0 | 64 | [`Doorbell`] | see `doorbell` |
//! | 64 | 64 | low water: how many tasks on the table are few | the parent |
//! | 128 | 64 | head: how many tasks were taken | see `claim` |
//! | 192 | 64 | tail: how many tasks were laid down | see `claim` |
//! | 256 | 64 | [`Sleepers`]: workers without a task | see there |
//! | 320 | 64 | [`Lookers`]: workers without a task that look again and again | a worker, from 0 and back; the parent, when that one died |
//! | 1024 | 256 | the segment's regions | see [`Segment`] |
//! | 4096 | 8192 | the ring of slot numbers | the parent, before `tail` counts them |
//! | 12288 | 262144 | [`Slot`]s | the parent, before their state says *queued*; of claims see `claim` |
//! | 274432 | | large arguments | the parent, before a slot speaks of them |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Count, Doorbell, Table};
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::robust::Sleepers;
use crate::shm::{MemoryError, Segment};
use crate::sys::shared::shared;

/// How many tasks can be with the workers or ahead of them.
pub(super) const SLOTS: u32 = 1024;
/// Places in the ring of slot numbers. With as many spare places as slots, tasks are moved to new places at most once for
/// each that is published.
const PLACES: u32 = 2 * SLOTS;
/// Arguments up to this length lie in the slot itself.
pub(super) const INLINE_LEN: usize = 192;
const REGION_TABLE: u64 = 1024;
const RING: u64 = 4096;
const FIRST_SLOT: u64 = RING + PLACES as u64 * 4;
const SLOT_LEN: u64 = 256;
const INLINE: u64 = 64;
/// Where the parent's blocks begin.
pub(super) const FIRST_BLOCK: u64 = FIRST_SLOT + SLOTS as u64 * SLOT_LEN;
const FIRST_REGION: u64 = 5 * 65536;
const _: () = assert!(FIRST_BLOCK < FIRST_REGION && size_of::<Slot>() as u64 == INLINE);
const _: () = assert!(INLINE + INLINE_LEN as u64 == SLOT_LEN);

/// So many workers look for tasks at a time; the others sleep.
const LOOKERS: usize = 4;

shared! {
    /// Workers that look for tasks again and again, before they sleep: who lays down a task need not wake another one.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 8 each | 1 + the number of such a worker, 0 for none | the worker, when it begins to look and when it ends; the parent, when it died |
    pub(super) struct Lookers { numbers: [AtomicU64; LOOKERS], }
}

impl Lookers {
    /// A worker begins to look: as which of them; `None` when there are enough.
    pub(super) fn enter(&self, worker: u32) -> Option<usize> {
        let me = u64::from(worker) + 1;
        self.numbers.iter().position(|place| place.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok())
    }

    /// It looks no more, or died. It looks a last time after this.
    pub(super) fn leave(&self, worker: u32) {
        let me = u64::from(worker) + 1;
        for place in &self.numbers {
            let _ = place.compare_exchange(me, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Takes those out, by one more than their numbers, that are none.
    pub(super) fn retain(&self, is_one: impl Fn(u64) -> bool) {
        for place in &self.numbers {
            let number = place.load(Ordering::Relaxed);
            if number != 0 && !is_one(number) {
                let _ = place.compare_exchange(number, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// How many there are. To be called after a full barrier that comes after a task was laid down.
    pub(super) fn count(&self) -> u64 {
        self.numbers.iter().filter(|place| place.load(Ordering::Relaxed) != 0).count() as u64
    }
}

shared! {
    struct Ring { numbers: [AtomicU32; PLACES as usize], }
}

shared! {
    /// A task. The argument's bytes lie behind this when `offset` is 0.
    ///
    /// | offset | bytes | field |
    /// |---|---|---|
    /// | 0 | 8 | state: see `claim` |
    /// | 8 | 8 | id of the function: its name goes over channels, as it says what to run |
    /// | 16 | 8 | where the argument lies, 0 for behind this |
    /// | 24 | 8 | and how long it is |
    /// | 32 | 4 | how many items |
    /// | 36 | 4 | [`LIMITED`], [`WITH_FDS`], [`STEPWISE`] |
    struct Slot {
        state: AtomicU64,
        function: AtomicU64,
        argument_at: AtomicU64,
        argument_len: AtomicU64,
        items: AtomicU32,
        flags: AtomicU32,
    }
}

/// The items have a time limit: the worker says when it begins each.
pub(super) const LIMITED: u32 = 1;
/// The worker says which item it runs, and leaves the task when it is cut.
pub(super) const STEPWISE: u32 = 4;
/// Descriptors belong to the argument: the worker asks for them.
pub(super) const WITH_FDS: u32 = 2;

/// What stands in a slot beside its state and its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) function: u64,
    /// 0 when it lies in the slot.
    pub(super) argument_at: u64,
    pub(super) argument_len: u64,
    pub(super) items: u32,
    pub(super) flags: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Board {
    segment: Segment,
}

impl Board {
    pub(super) fn new() -> io::Result<Self> {
        let segment = Segment::create(c"polyproc-pool", FIRST_REGION, REGION_TABLE, RING)?;
        segment.reserve(0, FIRST_BLOCK)?;
        Ok(Self { segment })
    }

    pub(super) fn open(memfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { segment: Segment::open(memfd, FIRST_REGION, REGION_TABLE, RING)? })
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(super) fn doorbell(&self) -> &Doorbell {
        self.segment.fixed(0)
    }

    /// So many tasks on the table are few.
    pub(super) fn low_water(&self) -> &AtomicU64 {
        &self.segment.fixed::<Count>(64).count
    }

    pub(super) fn sleepers(&self) -> &Sleepers {
        self.segment.fixed(256)
    }

    pub(super) fn lookers(&self) -> &Lookers {
        self.segment.fixed(320)
    }

    pub(super) fn table(&self) -> Table<'_> {
        Table { board: self }
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        (number < SLOTS).then(|| self.segment.fixed(FIRST_SLOT + u64::from(number) * SLOT_LEN))
    }

    /// Writes a task that is not on the table.
    pub(super) fn write(&self, number: u32, order: &Order, inline: &[u8]) -> Result<(), MemoryError> {
        let slot = self.slot(number).ok_or(MemoryError::Corrupt)?;
        for (field, value) in [
            (&slot.function, order.function),
            (&slot.argument_at, order.argument_at),
            (&slot.argument_len, order.argument_len),
        ] {
            field.store(value, Ordering::Relaxed);
        }
        slot.items.store(order.items, Ordering::Relaxed);
        slot.flags.store(order.flags, Ordering::Relaxed);
        self.segment.copy_in(Self::inline_at(number), inline)
    }

    /// What was written.
    pub(super) fn read(&self, number: u32) -> Result<Order, MemoryError> {
        let slot = self.slot(number).ok_or(MemoryError::Corrupt)?;
        let load = |field: &AtomicU64| field.load(Ordering::Relaxed);
        Ok(Order {
            function: load(&slot.function),
            argument_at: load(&slot.argument_at),
            argument_len: load(&slot.argument_len),
            items: slot.items.load(Ordering::Relaxed),
            flags: slot.flags.load(Ordering::Relaxed),
        })
    }

    /// Where the bytes behind a slot lie in the file.
    pub(super) fn inline_at(number: u32) -> u64 {
        FIRST_SLOT + u64::from(number) * SLOT_LEN + INLINE
    }

    /// Puts the argument of a slot at the end of `out`.
    pub(super) fn read_argument(&self, number: u32, order: &Order, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        match order.argument_at {
            0 if order.argument_len <= INLINE_LEN as u64 => {
                self.segment.copy_out(Self::inline_at(number), order.argument_len, out)
            }
            0 => Err(MemoryError::Corrupt),
            at => self.segment.copy_out(at, order.argument_len, out),
        }
    }
}

impl<'a> Table<'a> {
    pub(super) fn head(&self) -> &'a AtomicU64 {
        &self.board.segment.fixed::<Count>(128).count
    }

    pub(super) fn tail(&self) -> &'a AtomicU64 {
        &self.board.segment.fixed::<Count>(192).count
    }

    pub(super) fn places(&self) -> u64 {
        PLACES.into()
    }

    /// The slot number at the place of a position.
    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    pub(super) fn number(&self, position: u64) -> &'a AtomicU32 {
        &self.board.segment.fixed::<Ring>(RING).numbers[(position % u64::from(PLACES)) as usize]
    }

    pub(super) fn state(&self, slot: u32) -> Option<&'a AtomicU64> {
        Some(&self.board.slot(slot)?.state)
    }
}

impl AsFd for Board {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_taken_in_order_once_and_not_after_they_were_taken_back() {
        let board = Board::new().expect("memory");
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
        let board = Board::new().expect("memory");
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
        let board = Board::new().expect("memory");
        let table = board.table();
        assert!(table.publish(0, 0));
        table.number(0).store(SLOTS + 7, Ordering::Relaxed);
        assert_eq!(table.claim(1), None);
        let order = Order { function: 0, argument_at: u64::MAX - 5, argument_len: 100, items: 1, flags: 0 };
        assert!(board.read_argument(0, &order, &mut Vec::new()).is_err());
        assert!(
            board.read_argument(0, &Order { argument_at: 0, argument_len: 1 << 40, ..order }, &mut Vec::new()).is_err()
        );
    }
}

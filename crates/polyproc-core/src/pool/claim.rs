//! How workers take tasks off the table, so that the taking is itself the record of who holds what.
//!
//! The parent numbers tasks: the task of position `p` lies in the slot whose number stands at place `p` of a ring, and the
//! slot's state says *queued at p*. A worker takes it by one compare-and-swap of that state to *claimed at p by me*. The
//! count of positions taken (`head`) follows; whoever finds it behind helps it on, so a worker may die, or be stopped,
//! between any two steps without keeping another one from anything. The position in the state makes a claim by a worker
//! that slept through a slot's whole life fail. The parent takes a task back in the same way, with a state of its own.
//!
//! After the ring of M. Michael and M. Scott, *Simple, Fast, and Practical Non-Blocking and Blocking Concurrent Queue
//! Algorithms* (1996): the tail is one process's own here, and the claimed state is what stays. Compiled a second time in
//! `tests/loom`, and in `tests/claim_model.rs` on a table of four.
//!
//! A task that the parent takes back from the middle frees its slot, but its place in the ring only when the head has passed
//! it. The ring has more places than the table has slots; when all are used, [`Table::publish`] refuses, and the parent moves
//! the tasks that still wait to the end of the ring, in their order.

use super::Table;
use super::os::Ordering;

/// What a slot's state says: two bits of what, 18 bits of worker, 44 bits of position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    /// Nothing is to be taken there.
    Empty,
    Queued {
        position: u64,
    },
    Claimed {
        position: u64,
        worker: u32,
    },
}

const POSITION_SHIFT: u32 = 20;
const WORKER_SHIFT: u32 = 2;
/// Workers' numbers are below this.
pub(super) const WORKERS: u32 = 1 << (POSITION_SHIFT - WORKER_SHIFT);
/// Positions are below this: enough for twenty days of ten million tasks a second, and then they begin anew.
pub(super) const POSITIONS: u64 = 1 << (64 - POSITION_SHIFT);

impl SlotState {
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Queued { position } => 1 | position << POSITION_SHIFT,
            Self::Claimed { position, worker } => 2 | u64::from(worker) << WORKER_SHIFT | position << POSITION_SHIFT,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the worker's bits are 18")]
    pub(super) fn from_bits(bits: u64) -> Self {
        let position = bits >> POSITION_SHIFT;
        match bits & 3 {
            1 => Self::Queued { position },
            2 => Self::Claimed { position, worker: (bits >> WORKER_SHIFT) as u32 % WORKERS },
            _ => Self::Empty,
        }
    }
}

/// The position after another.
pub(super) fn next(position: u64) -> u64 {
    (position + 1) % POSITIONS
}

impl Table<'_> {
    /// How many tasks wait to be taken, those taken back included.
    pub(super) fn waiting(&self) -> u64 {
        let head = self.head().load(Ordering::Relaxed);
        self.tail().load(Ordering::Relaxed).wrapping_sub(head) % POSITIONS
    }

    /// Whether the ring has a free place at `tail`, the position that the parent gives out next. The head first leaves tasks behind
    /// that were taken back.
    pub(super) fn has_place(&self, tail: u64) -> bool {
        // Not more often than there are places: the head may have been written over.
        for _ in 0..=self.places() {
            let head = self.head().load(Ordering::Acquire);
            if tail.wrapping_sub(head) % POSITIONS < self.places() {
                return true;
            }
            if !self.skip(head) {
                return false;
            }
        }
        false
    }

    /// The parent lays the task in `slot` on the table, at the position `tail`; everything else about it is written. False when the
    /// ring has no free place: the task at the head is waiting, and tasks behind it were taken back.
    pub(super) fn publish(&self, slot: u32, tail: u64) -> bool {
        if !self.has_place(tail) {
            return false;
        }
        self.number(tail).store(slot, Ordering::Relaxed);
        if let Some(state) = self.state(slot) {
            state.store(SlotState::Queued { position: tail }.bits(), Ordering::Release); // pairs with the claim
        }
        self.tail().store(next(tail), Ordering::Release); // pairs with the load in `claim`
        true
    }

    /// What a slot's state says.
    pub(super) fn slot_state(&self, slot: u32) -> SlotState {
        self.state(slot).map_or(SlotState::Empty, |state| SlotState::from_bits(state.load(Ordering::Acquire)))
    }

    /// Whether a task that is queued at `position` in `slot` will be claimed by whoever comes to it.
    pub(super) fn is_reachable(&self, slot: u32, position: u64, tail: u64) -> bool {
        let head = self.head().load(Ordering::Acquire);
        let (ahead, all) = (position.wrapping_sub(head) % POSITIONS, tail.wrapping_sub(head) % POSITIONS);
        self.number(position).load(Ordering::Relaxed) == slot && ahead < all && all <= self.places()
    }

    /// After a worker may have written over the counts: whatever they say, they are right again.
    pub(super) fn repair(&self, first_queued: u64, tail: u64) {
        self.tail().store(tail, Ordering::Release);
        if tail.wrapping_sub(self.head().load(Ordering::Acquire)) % POSITIONS > self.places() {
            self.head().store(first_queued, Ordering::Release);
        }
    }

    /// Nothing is to be taken in a slot, whatever was written there.
    pub(super) fn clear(&self, slot: u32) {
        if let Some(state) = self.state(slot) {
            state.store(SlotState::Empty.bits(), Ordering::Release);
        }
    }

    /// The parent takes the task back, unless a worker has it.
    pub(super) fn withdraw(&self, slot: u32, position: u64) -> bool {
        self.take(slot, position, SlotState::Empty)
    }

    /// Which worker has taken the task of `position`.
    pub(super) fn holder(&self, slot: u32, at: u64) -> Option<u32> {
        match SlotState::from_bits(self.state(slot)?.load(Ordering::Acquire)) {
            SlotState::Claimed { position, worker } if position == at => Some(worker),
            _ => None,
        }
    }

    /// `worker` takes the next task: its slot and position. `None` when there is none.
    pub(super) fn claim(&self, worker: u32) -> Option<(u32, u64)> {
        loop {
            let position = self.head().load(Ordering::Acquire);
            if position == self.tail().load(Ordering::Acquire) {
                return None;
            }
            // Overwritten meanwhile when others have passed this position: then that slot's state names another one.
            let slot = self.number(position).load(Ordering::Relaxed);
            let claimed = self.take(slot, position, SlotState::Claimed { position, worker });
            self.advance(position);
            if claimed {
                return Some((slot, position));
            }
        }
    }

    fn take(&self, slot: u32, position: u64, to: SlotState) -> bool {
        let queued = SlotState::Queued { position }.bits();
        self.state(slot)
            .is_some_and(|state| state.compare_exchange(queued, to.bits(), Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// The head leaves `position` behind, whoever sees to it.
    fn advance(&self, position: u64) {
        // Fails when another one was first.
        let _ = self.head().compare_exchange(position, next(position), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Has the head leave `position` behind if nothing is to be taken there.
    fn skip(&self, position: u64) -> bool {
        let slot = self.number(position).load(Ordering::Relaxed);
        let queued = SlotState::Queued { position }.bits();
        if self.state(slot).is_some_and(|state| state.load(Ordering::Acquire) == queued) {
            return false;
        }
        self.advance(position);
        true
    }
}

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

impl Table<'_> {
    /// How many tasks wait to be taken, those taken back included.
    pub(super) fn waiting(&self) -> u64 {
        let head = self.head().load(Ordering::Relaxed);
        self.tail().load(Ordering::Relaxed).wrapping_sub(head) % POSITIONS
    }

    /// Whether the ring has a free place. The head first leaves tasks behind that were taken back.
    pub(super) fn has_place(&self) -> bool {
        while self.waiting() >= self.places() {
            if !self.skip(self.head().load(Ordering::Acquire)) {
                return false;
            }
        }
        true
    }

    /// The parent lays the task in `slot` on the table; everything else about it is written. Returns its position, or `None`
    /// when the ring has no free place: the task at the head is waiting, and tasks behind it were taken back.
    pub(super) fn publish(&self, slot: u32) -> Option<u64> {
        if !self.has_place() {
            return None;
        }
        let position = self.tail().load(Ordering::Relaxed);
        self.number(position).store(slot, Ordering::Relaxed);
        if let Some(state) = self.state(slot) {
            state.store(SlotState::Queued { position }.bits(), Ordering::Release); // pairs with the claim
        }
        self.tail().store((position + 1) % POSITIONS, Ordering::Release); // pairs with the load in `claim`
        Some(position)
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
        let next = (position + 1) % POSITIONS;
        // Fails when another one was first.
        let _ = self.head().compare_exchange(position, next, Ordering::AcqRel, Ordering::Relaxed);
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

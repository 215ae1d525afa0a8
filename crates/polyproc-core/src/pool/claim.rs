//! How workers claim tasks on the table. The claim itself records which worker holds which task.
//!
//! The parent numbers tasks: the task of position `p` is in the slot whose number is at place `p` of a ring, and the slot's
//! state is *queued at p*. A worker claims it by one compare-and-swap of that state to *claimed at p by this worker*. Then
//! `head`, the position of the next task, advances; any process that finds it behind advances it, so a worker may die or be
//! stopped between any two steps without delaying the others. The position in the state makes a claim fail if the slot was
//! used again since the worker read its number. The parent withdraws a task in the same way, to *empty*.
//!
//! After the queue of M. Michael and M. Scott, *Simple, Fast, and Practical Non-Blocking and Blocking Concurrent Queue
//! Algorithms* (1996). Departures: one process alone writes the tail, and the claimed state remains as the record. Compiled a
//! second time in `tests/loom`, and in `tests/claim_model.rs` on a table of four slots.
//!
//! A task that the parent withdraws from the middle frees its slot at once, but its place in the ring only when the head has
//! passed it. The ring has more places than the table has slots; when all are used, [`ClaimTable::publish`] refuses, and the parent
//! moves the queued tasks to the end of the ring, in their order.

use super::ClaimTable;
use super::os::Ordering;

/// The state of a slot. In a word: the variant in the lowest two bits, then 18 bits of worker and 44 bits of position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    /// There is no task to claim.
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
/// The numbers of workers are below this.
pub(super) const WORKERS: u32 = 1 << (POSITION_SHIFT - WORKER_SHIFT);
/// Positions are below this, and wrap around: after twenty days at ten million tasks per second.
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

/// Returns the position after `position`.
pub(super) fn next(position: u64) -> u64 {
    (position + 1) % POSITIONS
}

impl ClaimTable<'_> {
    /// Returns the number of tasks that wait to be claimed, including withdrawn ones that the head has not passed.
    pub(super) fn waiting(&self) -> u64 {
        let head = self.head().load(Ordering::Relaxed);
        self.tail().load(Ordering::Relaxed).wrapping_sub(head) % POSITIONS
    }

    /// Returns whether the ring has a free place at `tail`, the position of the next task to publish. Advances the head past
    /// withdrawn tasks if necessary.
    pub(super) fn has_place(&self, tail: u64) -> bool {
        // Bounded by the number of places, since the head may have been overwritten.
        for _ in 0..=self.places() {
            // Pairs with the Release in `advance`: the worker that advanced the head has read the place before.
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

    /// Puts the task in `slot`, whose order was written before, on the table at the position `tail`. Returns false if the ring
    /// has no free place: the task at the head is queued, and tasks behind it were withdrawn.
    pub(super) fn publish(&self, slot: u32, tail: u64) -> bool {
        if !self.has_place(tail) {
            return false;
        }
        self.number(tail).store(slot, Ordering::Relaxed);
        if let Some(state) = self.state(slot) {
            // Pairs with the Acquire in `take`: the order and its argument are written before.
            state.store(SlotState::Queued { position: tail }.bits(), Ordering::Release);
        }
        // Pairs with the Acquire in `claim`: number and state are stored before.
        self.tail().store(next(tail), Ordering::Release);
        true
    }

    /// Returns the state of a slot.
    pub(super) fn slot_state(&self, slot: u32) -> SlotState {
        // Pairs with the Release in `take`.
        self.state(slot).map_or(SlotState::Empty, |state| SlotState::from_bits(state.load(Ordering::Acquire)))
    }

    /// Returns whether workers will find the task that is queued at `position` in `slot`.
    pub(super) fn is_reachable(&self, slot: u32, position: u64, tail: u64) -> bool {
        // Pairs with the Release in `advance`.
        let head = self.head().load(Ordering::Acquire);
        let (ahead, all) = (position.wrapping_sub(head) % POSITIONS, tail.wrapping_sub(head) % POSITIONS);
        self.number(position).load(Ordering::Relaxed) == slot && ahead < all && all <= self.places()
    }

    /// Restores the counts, which a worker may have overwritten.
    pub(super) fn repair(&self, first_queued: u64, tail: u64) {
        // As `publish` and `advance` store them: Release pairs with the Acquire in `claim`, Acquire with the Release in
        // `advance`.
        self.tail().store(tail, Ordering::Release);
        if tail.wrapping_sub(self.head().load(Ordering::Acquire)) % POSITIONS > self.places() {
            self.head().store(first_queued, Ordering::Release);
        }
    }

    /// Empties a slot, whatever its state is.
    pub(super) fn clear(&self, slot: u32) {
        if let Some(state) = self.state(slot) {
            // For the parent alone, which publishes the slot again. It pairs with no load of a worker: `take` fails and
            // reads nothing more.
            state.store(SlotState::Empty.bits(), Ordering::Release);
        }
    }

    /// Takes the task back. Returns false if a worker has claimed it.
    pub(super) fn withdraw(&self, slot: u32, position: u64) -> bool {
        self.take(slot, position, SlotState::Empty)
    }

    /// Returns the worker that has claimed the task of the position `at`.
    pub(super) fn holder(&self, slot: u32, at: u64) -> Option<u32> {
        // Pairs with the Release in `take`: what the worker wrote before its claim is visible.
        match SlotState::from_bits(self.state(slot)?.load(Ordering::Acquire)) {
            SlotState::Claimed { position, worker } if position == at => Some(worker),
            _ => None,
        }
    }

    /// Claims the next task for `worker`. Returns its slot and position, or `None` if there is no task.
    pub(super) fn claim(&self, worker: u32) -> Option<(u32, u64)> {
        loop {
            // The head pairs with the Release in `advance`, by a worker that has read a tail beyond it: so the tail is
            // never read behind the head. The tail pairs with the Release in `publish`.
            let position = self.head().load(Ordering::Acquire);
            if position == self.tail().load(Ordering::Acquire) {
                return None;
            }
            // May be overwritten if other workers have passed this position: then the state of that slot names another one.
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
        // Acquire pairs with the Release in `publish`, Release with the Acquire in `holder`.
        self.state(slot)
            .is_some_and(|state| state.compare_exchange(queued, to.bits(), Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Advances the head past `position`, if no other process has.
    fn advance(&self, position: u64) {
        // Release pairs with the Acquire in `claim` and `has_place`. Fails if another process was first.
        let _ = self.head().compare_exchange(position, next(position), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Advances the head past `position` if no task is queued there. Returns false if there is one.
    fn skip(&self, position: u64) -> bool {
        let slot = self.number(position).load(Ordering::Relaxed);
        let queued = SlotState::Queued { position }.bits();
        // Pairs with the Release in `take`.
        if self.state(slot).is_some_and(|state| state.load(Ordering::Acquire) == queued) {
            return false;
        }
        self.advance(position);
        true
    }
}

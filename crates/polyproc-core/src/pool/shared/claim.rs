//! How workers claim tasks on the table. The claim itself records which worker holds which task.
//!
//! The parent numbers tasks: the task of position `p` is in the slot whose number is at place `p` of a ring, and the slot's
//! state is *queued at p*. A worker claims it by one compare-and-swap of that state to *claimed at p by this worker*. Then
//! `head`, the position of the next task, advances; any process that finds it behind advances it, so a worker may die or be
//! stopped between any two steps without delaying the others. The position in the state makes a claim fail if the slot was
//! used again since the worker read its number. The parent withdraws a task in the same way, to *empty*.
//!
//! After the queue of M. Michael and M. Scott, *Simple, Fast, and Practical Non-Blocking and Blocking Concurrent Queue
//! Algorithms* (1996). Departures: one process alone writes the tail, and the claimed state remains as the record.
//!
//! A task that the parent withdraws from the middle frees its slot at once, but its place in the ring only when the
//! head has passed it. The ring has more places than the table has slots; when all are used, [`ClaimTable::publish`]
//! refuses, and the parent moves the queued tasks to the end of the ring, in their order.
//!
//! Callers: the parent, under the pool's lock, publishes, withdraws and repairs; workers only claim. There is no lock
//! between them. `docs/design/pool.md` lists what a death after each step costs, and the partners of each memory order.
//!
//! Every word may be overwritten by a faulty worker. All functions end after a bounded number of steps for any content,
//! except [`ClaimTable::claim`], in a worker; the parent relies on its own tail and on its own record of the task in
//! each slot, and `audit` repairs the table.
//!
//! This file knows no descriptors or arguments: the caller writes them before it publishes, and reads them after a
//! claim.

use crate::prim::{AtomicU32, AtomicU64, Ordering};

/// The shared words of a table.
///
/// In the engine, [`TaskTable`](super::task_table::TaskTable); in tests, a small table in private memory.
pub(crate) trait TableWords {
    /// The position of the next task to claim.
    fn head(&self) -> &AtomicU64;
    /// The position of the next task to publish.
    fn tail(&self) -> &AtomicU64;
    /// Returns the number of places in the ring.
    fn places(&self) -> u64;
    /// Returns the entry of the ring for a position: the number of a slot.
    fn number(&self, position: u64) -> &AtomicU32;
    /// Returns the state of a slot; `None` if there is no such slot.
    fn state(&self, slot: u32) -> Option<&AtomicU64>;
}

/// The table of tasks.
///
/// A view of the words, made for each use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimTable<'a, T> {
    pub(crate) words: &'a T,
}

/// The state of a slot. In a word: the variant in the lowest two bits, then 18 bits of worker and 44 bits of position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// There is no task to claim.
    Empty,
    /// A worker may claim the task of this position.
    Queued {
        /// Number of the task, below [`POSITIONS`].
        position: u64,
    },
    /// A worker has claimed the task. The state stays until the parent publishes another task in this slot.
    Claimed {
        /// As in `Queued`.
        position: u64,
        /// Number of the worker, below [`WORKERS`].
        worker: u32,
    },
}

/// Lowest bit of the position in a word.
const POSITION_SHIFT: u32 = 20;
/// Lowest bit of the worker's number in a word.
const WORKER_SHIFT: u32 = 2;
/// The numbers of workers are below this.
pub(crate) const WORKERS: u32 = 1 << (POSITION_SHIFT - WORKER_SHIFT);
/// Positions are below this, and wrap around: after twenty days at ten million tasks per second.
pub(crate) const POSITIONS: u64 = 1 << (64 - POSITION_SHIFT);

impl SlotState {
    /// Returns the word of a state. `position` is below [`POSITIONS`], `worker` below [`WORKERS`].
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Queued { position } => 1 | position << POSITION_SHIFT,
            Self::Claimed { position, worker } => 2 | u64::from(worker) << WORKER_SHIFT | position << POSITION_SHIFT,
        }
    }

    /// Returns the state of any word; an unknown variant is *empty*.
    #[expect(clippy::cast_possible_truncation, reason = "the worker's bits are 18")]
    pub(crate) fn from_bits(bits: u64) -> Self {
        let position = bits >> POSITION_SHIFT;
        match bits & 3 {
            1 => Self::Queued { position },
            2 => Self::Claimed { position, worker: (bits >> WORKER_SHIFT) as u32 % WORKERS },
            _ => Self::Empty,
        }
    }
}

/// Returns the position after `position`.
pub(crate) fn next(position: u64) -> u64 {
    (position + 1) % POSITIONS
}

impl<T: TableWords> ClaimTable<'_, T> {
    /// Returns the number of tasks that wait to be claimed, including withdrawn ones that the head has not passed.
    pub(crate) fn waiting(&self) -> u64 {
        let head = self.words.head().load(Ordering::Relaxed);
        self.words.tail().load(Ordering::Relaxed).wrapping_sub(head) % POSITIONS
    }

    /// Returns whether the ring has a free place at `tail`, the position of the next task to publish. Advances the head past
    /// withdrawn tasks if necessary.
    pub(crate) fn has_place(&self, tail: u64) -> bool {
        // Bounded by the number of places, since the head may have been overwritten.
        for _ in 0..=self.words.places() {
            // Pairs with the Release in `advance`: the worker that advanced the head has read the place before.
            let head = self.words.head().load(Ordering::Acquire);
            if tail.wrapping_sub(head) % POSITIONS < self.words.places() {
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
    ///
    /// `tail` is the parent's own count; [`next`] returns its new value. The slot is not queued at any position. The
    /// caller wakes a worker.
    pub(crate) fn publish(&self, slot: u32, tail: u64) -> bool {
        if !self.has_place(tail) {
            return false;
        }
        self.words.number(tail).store(slot, Ordering::Relaxed);
        if let Some(state) = self.words.state(slot) {
            // Pairs with the Acquire in `take`: the order and its argument are written before.
            state.store(SlotState::Queued { position: tail }.bits(), Ordering::Release);
        }
        // Pairs with the Acquire in `claim`: number and state are stored before.
        self.words.tail().store(next(tail), Ordering::Release);
        true
    }

    /// Returns the state of a slot.
    ///
    /// `Empty` if there is no such slot.
    pub(crate) fn slot_state(&self, slot: u32) -> SlotState {
        // Pairs with the Release in `take`.
        self.words.state(slot).map_or(SlotState::Empty, |state| SlotState::from_bits(state.load(Ordering::Acquire)))
    }

    /// Returns whether workers will find the task that is queued at `position` in `slot`.
    pub(crate) fn is_reachable(&self, slot: u32, position: u64, tail: u64) -> bool {
        // Pairs with the Release in `advance`.
        let head = self.words.head().load(Ordering::Acquire);
        let (ahead, all) = (position.wrapping_sub(head) % POSITIONS, tail.wrapping_sub(head) % POSITIONS);
        self.words.number(position).load(Ordering::Relaxed) == slot && ahead < all && all <= self.words.places()
    }

    /// Restores the counts, which a worker may have overwritten.
    ///
    /// `first_queued` is the position of the first task that is queued, or `tail`. The head is kept if it is within the
    /// ring behind `tail`, since workers may advance it just now.
    pub(crate) fn repair(&self, first_queued: u64, tail: u64) {
        // As `publish` and `advance` store them: Release pairs with the Acquire in `claim`, Acquire with the Release in
        // `advance`.
        self.words.tail().store(tail, Ordering::Release);
        if tail.wrapping_sub(self.words.head().load(Ordering::Acquire)) % POSITIONS > self.words.places() {
            self.words.head().store(first_queued, Ordering::Release);
        }
    }

    /// Empties a slot, whatever its state is.
    pub(crate) fn clear(&self, slot: u32) {
        if let Some(state) = self.words.state(slot) {
            // For the parent alone, which publishes the slot again. It pairs with no load of a worker: `take` fails and
            // reads nothing more.
            state.store(SlotState::Empty.bits(), Ordering::Release);
        }
    }

    /// Takes the task back. Returns false if a worker has claimed it.
    ///
    /// If it returns true, no worker can claim the task any more, and its place is skipped. False, too, if the slot is
    /// not queued at `position` for another reason.
    pub(crate) fn withdraw(&self, slot: u32, position: u64) -> bool {
        self.take(slot, position, SlotState::Empty)
    }

    /// Returns the worker that has claimed the task of the position `at`.
    pub(crate) fn holder(&self, slot: u32, at: u64) -> Option<u32> {
        // Pairs with the Release in `take`: what the worker wrote before its claim is visible.
        match SlotState::from_bits(self.words.state(slot)?.load(Ordering::Acquire)) {
            SlotState::Claimed { position, worker } if position == at => Some(worker),
            _ => None,
        }
    }

    /// Claims the next task for `worker`. Returns its slot and position, or `None` if there is no task.
    ///
    /// `worker` is the number of the calling worker. A worker that dies in here has claimed one task or none.
    pub(crate) fn claim(&self, worker: u32) -> Option<(u32, u64)> {
        loop {
            // The head pairs with the Release in `advance`, by a worker that has read a tail beyond it: so the tail is
            // never read behind the head. The tail pairs with the Release in `publish`.
            let position = self.words.head().load(Ordering::Acquire);
            if position == self.words.tail().load(Ordering::Acquire) {
                return None;
            }
            // May be overwritten if other workers have passed this position: then the state of that slot names another one.
            let slot = self.words.number(position).load(Ordering::Relaxed);
            let claimed = self.take(slot, position, SlotState::Claimed { position, worker });
            self.advance(position);
            if claimed {
                return Some((slot, position));
            }
        }
    }

    /// Changes the state of a slot from *queued at `position`* to `to`. Returns false if it is another state by now.
    fn take(&self, slot: u32, position: u64, to: SlotState) -> bool {
        let queued = SlotState::Queued { position }.bits();
        // Acquire pairs with the Release in `publish`, Release with the Acquire in `holder`.
        self.words
            .state(slot)
            .is_some_and(|state| state.compare_exchange(queued, to.bits(), Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Advances the head past `position`, if no other process has.
    fn advance(&self, position: u64) {
        // Release pairs with the Acquire in `claim` and `has_place`. Fails if another process was first.
        let _ = self.words.head().compare_exchange(position, next(position), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Advances the head past `position` if no task is queued there. Returns false if there is one.
    fn skip(&self, position: u64) -> bool {
        let slot = self.words.number(position).load(Ordering::Relaxed);
        let queued = SlotState::Queued { position }.bits();
        // Pairs with the Release in `take`.
        if self.words.state(slot).is_some_and(|state| state.load(Ordering::Acquire) == queued) {
            return false;
        }
        self.advance(position);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    //! After any sequence of publications, claims and withdrawals, every published task that was not withdrawn is claimed once,
    //! in the order of publication.

    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const SLOTS: u32 = 4;

    #[derive(Default)]
    struct Board {
        head: AtomicU64,
        tail: AtomicU64,
        numbers: [AtomicU32; 2 * SLOTS as usize],
        states: [AtomicU64; SLOTS as usize],
    }

    impl TableWords for Board {
        fn head(&self) -> &AtomicU64 {
            &self.head
        }

        fn tail(&self) -> &AtomicU64 {
            &self.tail
        }

        fn places(&self) -> u64 {
            self.numbers.len() as u64
        }

        fn number(&self, position: u64) -> &AtomicU32 {
            &self.numbers[usize::try_from(position % self.places()).expect("a small number")]
        }

        fn state(&self, slot: u32) -> Option<&AtomicU64> {
            self.states.get(slot as usize)
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Publish,
        Claim,
        /// Withdraw the nth waiting task.
        Withdraw(usize),
        /// End the nth claimed task.
        End(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Publish),
            2 => Just(Op::Claim),
            3 => (0..4usize).prop_map(Op::Withdraw),
            2 => (0..4usize).prop_map(Op::End),
        ]
    }

    /// Slot, position and number of each task.
    type Tasks = VecDeque<(u32, u64, u32)>;

    fn publish(table: &ClaimTable<'_, Board>, slot: u32, number: u32, tail: &mut u64, waiting: &mut Tasks) {
        let mut publish = |slot| {
            let position = *tail;
            let is_published = table.publish(slot, position);
            *tail += u64::from(is_published);
            is_published.then_some(position)
        };
        let position = publish(slot).unwrap_or_else(|| {
            // The ring is full: moves the waiting tasks, as `Driver::make_places` does.
            for (slot, position, _) in waiting.iter().rev() {
                assert!(table.withdraw(*slot, *position), "it waits");
            }
            for (slot, position, _) in waiting.iter_mut() {
                *position = publish(*slot).expect("all places before this are free");
            }
            publish(slot).expect("there are more places than slots")
        });
        waiting.push_back((slot, position, number));
    }

    proptest! {
        #[test]
        fn every_task_is_claimed_once_in_order(ops in proptest::collection::vec(op(), 1..400)) {
            let board = Board::default();
            let table = ClaimTable { words: &board };
            let mut free: Vec<u32> = (0..SLOTS).collect();
            let (mut waiting, mut claimed) = (Tasks::new(), Tasks::new());
            let (mut next, mut tail) = (0, 0);
            for op in ops {
                match op {
                    Op::Publish => {
                        if let Some(slot) = free.pop() {
                            publish(&table, slot, next, &mut tail, &mut waiting);
                            next += 1;
                        }
                    }
                    Op::Claim => {
                        let expected = waiting.pop_front();
                        prop_assert_eq!(table.claim(3), expected.map(|(slot, position, _)| (slot, position)));
                        claimed.extend(expected);
                    }
                    Op::Withdraw(nth) => {
                        if let Some((slot, position, _)) = waiting.remove(nth) {
                            prop_assert!(table.withdraw(slot, position));
                            free.push(slot);
                        }
                    }
                    Op::End(nth) => {
                        if let Some((slot, position, _)) = claimed.remove(nth) {
                            prop_assert_eq!(table.holder(slot, position), Some(3));
                            prop_assert!(!table.withdraw(slot, position), "somebody has it");
                            free.push(slot);
                        }
                    }
                }
            }
            while let Some((slot, position, _)) = waiting.pop_front() {
                prop_assert_eq!(table.claim(5), Some((slot, position)));
            }
            prop_assert_eq!(table.claim(5), None);
        }
    }
}

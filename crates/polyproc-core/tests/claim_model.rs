//! Runs the sources of `claim` on a table of four slots and compares them with a model: after any sequence of publications,
//! claims and withdrawals, every published task that was not withdrawn is claimed once, in the order of publication.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64};

use proptest::prelude::*;

#[expect(dead_code, reason = "the parent uses more of it")]
#[path = "../src/pool/claim.rs"]
mod claim;

mod os {
    pub(super) use std::sync::atomic::Ordering;
}

const SLOTS: u32 = 4;

struct ClaimTable<'a> {
    board: &'a Board,
}

#[derive(Default)]
struct Board {
    head: AtomicU64,
    tail: AtomicU64,
    numbers: [AtomicU32; 2 * SLOTS as usize],
    states: [AtomicU64; SLOTS as usize],
}

impl<'a> ClaimTable<'a> {
    fn head(&self) -> &'a AtomicU64 {
        &self.board.head
    }

    fn tail(&self) -> &'a AtomicU64 {
        &self.board.tail
    }

    fn places(&self) -> u64 {
        self.board.numbers.len() as u64
    }

    fn number(&self, position: u64) -> &'a AtomicU32 {
        &self.board.numbers[usize::try_from(position % self.places()).expect("a small number")]
    }

    fn state(&self, slot: u32) -> Option<&'a AtomicU64> {
        self.board.states.get(slot as usize)
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

fn publish(table: &ClaimTable<'_>, slot: u32, number: u32, tail: &mut u64, waiting: &mut Tasks) {
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
        let table = ClaimTable { board: &board };
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

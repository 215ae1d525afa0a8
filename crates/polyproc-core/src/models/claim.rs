//! The table of a pool: `pool/shared/claim.rs`.

use loom::sync::Arc;
use loom::thread;

use super::model;
use crate::pool::shared::claim::{ClaimTable, TableWords};
use crate::prim::{AtomicU32, AtomicU64};
use crate::sys::plain::Plain;

/// A table with two slots and two places.
#[derive(Debug, Default)]
struct Board {
    head: AtomicU64,
    tail: AtomicU64,
    numbers: [AtomicU32; 2],
    states: [AtomicU64; 2],
    /// The descriptor of the task in each slot.
    orders: [Plain; 2],
}

impl Board {
    /// As `Driver::publish`: the order, then the task.
    fn publish(&self, slot: u32, position: u64) -> bool {
        self.orders[slot as usize].write(position + 1);
        self.table().publish(slot, position)
    }

    /// As a worker: claims a task, then reads its order.
    fn claim(&self, worker: u32) -> Option<(u32, u64)> {
        let claimed = self.table().claim(worker);
        claimed.inspect(|(slot, position)| {
            assert_eq!(self.orders[*slot as usize].read(), position + 1, "the order is that of the task");
        })
    }

    fn table(&self) -> ClaimTable<'_, Self> {
        ClaimTable { words: self }
    }
}

impl TableWords for Board {
    fn head(&self) -> &AtomicU64 {
        &self.head
    }

    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }

    fn places(&self) -> u64 {
        2
    }

    fn number(&self, position: u64) -> &AtomicU32 {
        &self.numbers[usize::from(position % 2 == 1)]
    }

    fn state(&self, slot: u32) -> Option<&AtomicU64> {
        self.states.get(slot as usize)
    }
}

/// Two workers claim tasks; the parent publishes two, withdraws the first if it can, and then reuses its slot.
#[test]
fn each_task_is_taken_once_and_none_is_passed_over() {
    model(|| {
        let board = Arc::new(Board::default());
        let (first, second) = (0, 1);
        assert!(board.publish(0, first) && board.publish(1, second));
        let workers: Vec<_> = (1..3)
            .map(|worker| {
                let board = board.clone();
                thread::spawn(move || {
                    let claimed = board.claim(worker);
                    claimed.inspect(|(slot, position)| {
                        assert_eq!(board.table().holder(*slot, *position), Some(worker), "the claim is the record");
                    })
                })
            })
            .collect();
        let withdrawn = board.table().withdraw(0, first);
        let third = withdrawn.then_some(2);
        // After the withdrawal the place at the head is free.
        assert!(third.is_none_or(|third| board.publish(0, third)));
        let mut seen: Vec<_> = workers.into_iter().filter_map(|worker| worker.join().expect("no panic")).collect();
        while let Some(claimed) = board.claim(9) {
            seen.push(claimed);
        }
        seen.sort_unstable_by_key(|(_, position)| *position);
        let expected: Vec<_> = match third {
            Some(third) => vec![(1, second), (0, third)],
            None => vec![(0, first), (1, second)],
        };
        assert_eq!(seen, expected);
    });
}

/// The parent publishes two tasks, the first one in the second slot, while two workers claim tasks.
#[test]
fn a_worker_reads_the_order_of_the_task_that_it_claims() {
    model(|| {
        let board = Arc::new(Board::default());
        let workers: Vec<_> = (1..3)
            .map(|worker| {
                let board = board.clone();
                thread::spawn(move || board.claim(worker))
            })
            .collect();
        assert!(board.publish(1, 0) && board.publish(0, 1));
        let claimed = workers.into_iter().filter_map(|worker| worker.join().expect("no panic"));
        let mut seen: Vec<_> = claimed.collect();
        seen.extend(std::iter::from_fn(|| board.claim(9)));
        seen.sort_unstable_by_key(|(_, position)| *position);
        assert_eq!(seen, [(1, 0), (0, 1)]);
    });
}

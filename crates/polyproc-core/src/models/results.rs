//! The ring of results, and the blocks that return to the worker: `pool/shared/result_index.rs`. Under loom a ring has room for two
//! records of one byte, and for two returned blocks.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::model;
use crate::deadline::Deadline;
use crate::pool::shared::result_index::{RETURN_SLOTS, RING_LEN, ResultIndex, Returns};
use crate::robust::{RecheckInterval, WaitError};
use crate::sys::plain::Plain;

struct Ring {
    index: ResultIndex,
    returns: Returns,
    bytes: [Plain; 2],
    blocks: [Plain; RETURN_SLOTS + 1],
}

impl Ring {
    fn new() -> Arc<Self> {
        let (index, returns) = (ResultIndex::default(), Returns::default());
        Arc::new(Self { index, returns, bytes: [(); _].map(|()| Plain::new()), blocks: [(); _].map(|()| Plain::new()) })
    }

    fn byte(&self, position: u64) -> &Plain {
        assert_eq!(RING_LEN, self.bytes.len() as u64);
        &self.bytes[usize::from(position % RING_LEN == 1)]
    }

    /// As `WorkerLoop::write`: writes the record number `tail`, and blocks until there is room.
    fn write(&self, tail: u64) {
        while !self.index.has_room(tail, 1) {
            let has_room = || Ok::<_, WaitError>((self.index.unread() <= RING_LEN / 2).then_some(()));
            let waited =
                self.index.space.wait(Deadline::NEVER, &RecheckInterval::new(Duration::from_secs(1)), has_room);
            waited.expect("no signal");
        }
        self.byte(tail).write(tail + 1);
        self.index.commit(tail + 1);
    }

    /// As `Results::read`: reads all records from `head` on. Returns the new head.
    fn read(&self, head: u64) -> u64 {
        let tail = self.index.written();
        assert!(tail - head <= RING_LEN, "no record is overwritten");
        for position in head..tail {
            assert_eq!(self.byte(position).read(), position + 1, "records are whole and in order");
        }
        if tail > head {
            self.index.free(tail);
        }
        tail
    }
}

/// The worker writes twice as many records as the ring holds; the parent reads them.
#[test]
fn records_are_read_whole_and_a_full_ring_wakes_its_worker() {
    model(|| {
        let ring = Ring::new();
        let worker = thread::spawn({
            let ring = ring.clone();
            move || (0..2 * RING_LEN).for_each(|tail| ring.write(tail))
        });
        let mut head = 0;
        while head < 2 * RING_LEN {
            head = ring.read(head);
            thread::yield_now();
        }
        worker.join().expect("no panic");
    });
}

/// The parent copies each of three blocks and returns it; the worker takes two of them back and reuses them.
#[test]
fn a_block_returns_once_and_is_reused_after_it_was_copied() {
    model(|| {
        let ring = Ring::new();
        let worker = thread::spawn({
            let ring = ring.clone();
            move || {
                for expected in 0..2 {
                    while !ring.index.has_returned() {
                        thread::yield_now();
                    }
                    let offset = ring.index.take_back(&ring.returns).expect("it has returned");
                    assert_eq!(offset, expected, "blocks return in order");
                    ring.blocks[usize::from(offset == 1)].write(1);
                }
            }
        });
        let mut returned = 0;
        for (offset, block) in (0..).zip(&ring.blocks) {
            assert_eq!(block.read(), 0, "the block is not reused");
            while !ring.index.give_back(&ring.returns, &mut returned, offset) {
                thread::yield_now();
            }
        }
        worker.join().expect("no panic");
        assert_eq!(ring.index.take_back(&ring.returns), Some(2));
        assert_eq!(ring.index.take_back(&ring.returns), None);
    });
}

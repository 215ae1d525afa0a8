//! [`Orders`]: function and arguments of each task on the table. The parent writes them. Workers have a descriptor and a
//! mapping that can only read, so that no worker can change the work of another.
//!
//! | offset | bytes | content | writer |
//! |---|---|---|---|
//! | 0 | 256 | the segment's regions | see [`Segment`] |
//! | 4096 | 262144 | orders ([`TaskDescriptor`]), 256 bytes each | the parent, before the slot's state says *queued* |
//! | 266240 | | large arguments | the parent, before the order that refers to them |
//!
//! An order:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | id of the function; its name, which determines the code to run, is sent over channels |
//! | 8 | 8 | offset of the argument, or 0 if it is inline |
//! | 16 | 8 | length of the argument in bytes |
//! | 24 | 4 | number of items |
//! | 28 | 4 | [`LIMITED`], [`WITH_FDS`], [`SPLITTABLE`] |
//! | 32 | 224 | an inline argument |

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::task_table::SLOTS;
use crate::shm::budget::Share;
use crate::shm::{Blocks, Extent, MemoryError, Segment};
use crate::sys::memory;

/// Arguments up to this length in bytes are inline, in the order itself.
const INLINE_LEN: usize = 224;
const FIRST_ORDER: u64 = 4096;
const ORDER_LEN: u64 = 256;
/// Number of words of an order before the inline argument.
const WORDS: usize = 4;
const INLINE: u64 = (WORDS * size_of::<u64>()) as u64;
const _: () = assert!(INLINE + INLINE_LEN as u64 == ORDER_LEN);
const FIRST_BLOCK: u64 = FIRST_ORDER + SLOTS as u64 * ORDER_LEN;
const FIRST_REGION: u64 = FIRST_BLOCK.next_multiple_of(memory::PAGE);

/// The items have a time limit: the worker reports when it begins each.
pub(in crate::pool) const LIMITED: u32 = 1;
/// Descriptors belong to the argument: the worker asks for them.
pub(in crate::pool) const WITH_FDS: u32 = 2;
/// The worker reports which item it runs, and leaves the task when it is cut.
pub(in crate::pool) const SPLITTABLE: u32 = 4;

/// An order: the function and items of a task. See the module.
///
/// Written before the task is published; copied out by the worker that claimed the task and by the parent. The parent
/// is the only writer, so the content is trusted; offsets are still checked when bytes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct TaskDescriptor {
    /// The number of the function, as `FunctionId`.
    pub(in crate::pool) function: u64,
    pub(in crate::pool) items: u32,
    pub(in crate::pool) flags: u32,
    /// Offset, or 0 if the argument is inline.
    argument_at: u64,
    argument_len: u64,
}

impl TaskDescriptor {
    pub(in crate::pool) fn new(function: u64, items: u32, flags: u32) -> Self {
        Self { function, items, flags, argument_at: 0, argument_len: 0 }
    }

    fn to_words(self) -> [u64; WORDS] {
        [self.function, self.argument_at, self.argument_len, u64::from(self.items) | u64::from(self.flags) << 32]
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    fn from_words([function, argument_at, argument_len, last]: [u64; WORDS]) -> Self {
        Self { function, argument_at, argument_len, items: last as u32, flags: (last >> 32) as u32 }
    }
}

/// See the module.
#[derive(Debug)]
pub(in crate::pool) struct Orders {
    segment: Segment,
}

impl Orders {
    /// Creates the memory of a new pool, in the parent. Its blocks count as in flight. All descriptors are reserved, so
    /// that writing one cannot fail.
    ///
    /// # Errors
    /// The process has no descriptor, or the system no memory.
    pub(in crate::pool) fn new() -> io::Result<Self> {
        let segment = Segment::create(c"polyproc-orders", FIRST_REGION, 0, FIRST_ORDER)?.counted();
        segment.reserve(0, FIRST_BLOCK)?;
        Ok(Self { segment })
    }

    /// Opens the orders of the parent, in a worker: `memfd` is a descriptor from [`Orders::for_a_worker`].
    pub(in crate::pool) fn open(memfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { segment: Segment::open_read_only(memfd, FIRST_REGION, 0, FIRST_ORDER)? })
    }

    /// Returns a read-only descriptor of the memory.
    ///
    /// It is not a duplicate, so the kernel refuses writing and writable mappings through it. Without `/proc` it is
    /// one, and writable: see [`memory::reopen_read_only`].
    pub(in crate::pool) fn for_a_worker(&self) -> io::Result<OwnedFd> {
        memory::reopen_read_only(self.segment.as_fd())
    }

    /// Returns the allocator for the blocks of large arguments, which the parent keeps.
    pub(in crate::pool) fn blocks() -> Blocks {
        Blocks::new(FIRST_BLOCK)
    }

    /// Frees the block of a large argument.
    pub(in crate::pool) fn free(&self, blocks: &mut Blocks, extent: Extent) {
        blocks.free(&self.segment, extent);
    }

    /// Returns the memory of free blocks to the system.
    pub(in crate::pool) fn trim(&self, blocks: &mut Blocks) {
        let _ = blocks.trim(&self.segment);
    }

    fn order_at(slot: u32) -> Result<u64, MemoryError> {
        if slot < SLOTS { Ok(FIRST_ORDER + u64::from(slot) * ORDER_LEN) } else { Err(MemoryError::Corrupt) }
    }

    /// Writes a task that is not on the table, with its argument, which may fill the budget up to `share`. Returns the block of
    /// the argument if it is large.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`] or [`MemoryError::System`] if there is no memory for it.
    pub(in crate::pool) fn write(
        &self,
        blocks: &mut Blocks,
        slot: u32,
        order: TaskDescriptor,
        argument: &[u8],
        share: Share,
    ) -> Result<Option<Extent>, MemoryError> {
        let (at, len) = (Self::order_at(slot)?, argument.len() as u64);
        let block = match argument.len() {
            ..=INLINE_LEN => None,
            _ => Some(blocks.allocate(&self.segment, len, share)?),
        };
        let order = TaskDescriptor { argument_at: block.map_or(0, |block| block.offset), argument_len: len, ..order };
        let written = self.segment.copy_in(at, order.to_words().map(u64::to_ne_bytes).as_flattened());
        let written = written.and_then(|()| self.segment.copy_in(Self::argument_at(slot, &order)?, argument));
        if let (Err(_), Some(block)) = (&written, block) {
            self.free(blocks, block);
        }
        written.map(|()| block)
    }

    fn argument_at(slot: u32, order: &TaskDescriptor) -> Result<u64, MemoryError> {
        if order.argument_at == 0 { Ok(Self::order_at(slot)? + INLINE) } else { Ok(order.argument_at) }
    }

    /// Returns the order in a slot.
    pub(in crate::pool) fn read(&self, slot: u32) -> Result<TaskDescriptor, MemoryError> {
        Ok(TaskDescriptor::from_words(self.segment.copy_words(Self::order_at(slot)?)?))
    }

    /// Appends the argument of a task to `out`.
    pub(in crate::pool) fn read_argument(
        &self,
        slot: u32,
        order: &TaskDescriptor,
        out: &mut Vec<u8>,
    ) -> Result<(), MemoryError> {
        self.segment.copy_out(Self::argument_at(slot, order)?, order.argument_len, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_not_written_by_a_worker() {
        let orders = Orders::new().expect("memory");
        let worker = Orders::open(orders.for_a_worker().expect("a descriptor")).expect("memory");
        let mut blocks = Orders::blocks();
        for (slot, len) in [(0, 0), (SLOTS - 1, INLINE_LEN), (7, INLINE_LEN + 1), (8, 3 << 20)] {
            let argument = vec![len.to_ne_bytes()[0]; len];
            let block = orders
                .write(&mut blocks, slot, TaskDescriptor::new(5, u32::MAX, SPLITTABLE), &argument, Share::All)
                .expect("memory");
            assert_eq!(block.is_some(), len > INLINE_LEN);
            let (order, mut read) = (worker.read(slot).expect("an order"), Vec::new());
            assert_eq!((order.function, order.items, order.flags), (5, u32::MAX, SPLITTABLE));
            worker.read_argument(slot, &order, &mut read).expect("memory");
            assert_eq!(read, argument);
            assert!(worker.write(&mut blocks, slot, order, &[1], Share::All).is_err(), "the mapping reads only");
        }
        let written = rustix::io::pwrite(&worker.segment, &[1], 0);
        assert_eq!(written, Err(rustix::io::Errno::BADF), "the descriptor reads only");
    }

    #[test]
    fn nonsense_gives_errors() {
        let orders = Orders::new().expect("memory");
        let read = |slot, argument_at, argument_len| {
            let order = TaskDescriptor { argument_at, argument_len, ..TaskDescriptor::new(0, 1, 0) };
            orders.read_argument(slot, &order, &mut Vec::new()).is_ok()
        };
        assert!(read(SLOTS - 1, 0, 100) && !read(0, u64::MAX - 5, 100) && !read(0, 0, 1 << 40));
        assert!(!read(SLOTS, 0, 100) && orders.read(SLOTS).is_err());
    }
}

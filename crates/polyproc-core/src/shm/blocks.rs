//! [`Blocks`]: memory in a segment, allocated by one process alone and read by others.
//!
//! Users: the parent of a pool, for arguments (`pool::orders`), and a worker, for its results (`pool::worker`). The allocation
//! state is in that process's private memory, so there is no lock, and a death leaves nothing inconsistent: the file is of no
//! use without that process. Readers get the offset in a task's descriptor or in the record of a result:
//! `docs/design/segment.md`, "Blocks of one owner".
//!
//! A freed block goes to the free list of its size, its memory still reserved (*warm*); above a limit the memory goes back to
//! the system. While more than a quarter of the budget is in use, the limit is 0 for blocks of whole pages.

use std::collections::HashMap;

use super::budget::Share;
use super::size_class::{PAGED, WARM_LIMIT, class_of};
use super::{MemoryError, Segment};

/// A block: its file offset and its capacity in bytes. Not freed on drop: the owner gives it to [`Blocks::free`], once no
/// reader uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The place for the owner's bytes, a multiple of 64; of whole pages, a multiple of 4,096.
    pub(crate) offset: u64,
    /// That of the size class; the caller keeps the length in use.
    capacity: u64,
}

/// A free block of the capacity under which it is listed.
#[derive(Debug)]
struct Freed {
    offset: u64,
    /// Its memory is reserved.
    is_warm: bool,
}

/// The blocks of a segment. Each call gets the same segment.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// File offset of the end of the last block.
    used: u64,
    /// Bytes of free blocks that are warm.
    warm: u64,
    /// Bytes of blocks that are not free.
    in_use: u64,
    /// Free blocks, by capacity in bytes.
    free: HashMap<u64, Vec<Freed>>,
}

impl Blocks {
    /// Creates an allocator of the segment's bytes from file offset `start` on.
    pub(crate) fn new(start: u64) -> Self {
        Self { used: start, warm: 0, in_use: 0, free: HashMap::new() }
    }

    /// Returns the capacity in bytes of all blocks that are not free. The owner chooses its share of the budget by it
    /// ([`Share::of`]).
    pub(crate) fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Allocates a block for `len` bytes, with the contents of an earlier use. If its memory must be reserved, it must be
    /// within `share` of the budget.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`] or [`MemoryError::System`] if there is no memory: then the block is in the free list, cold.
    /// [`MemoryError::Corrupt`] if a peer has overwritten the table of regions.
    pub(crate) fn allocate(&mut self, segment: &Segment, len: u64, share: Share) -> Result<Extent, MemoryError> {
        let too_large = || MemoryError::System(std::io::ErrorKind::FileTooLarge.into());
        let (_, capacity) = class_of(len).ok_or_else(too_large)?;
        let (offset, is_warm) = match self.free.get_mut(&capacity).and_then(Vec::pop) {
            Some(freed) => (freed.offset, freed.is_warm),
            None => {
                let offset = segment.place(self.used, capacity)?;
                self.used = offset + capacity;
                (offset, false)
            }
        };
        let extent = Extent { offset, capacity };
        if is_warm {
            self.warm -= capacity;
        } else if let Err(error) = segment.claim(offset, capacity, share) {
            self.free.entry(capacity).or_default().push(Freed { offset, is_warm: false });
            return Err(error);
        }
        self.in_use += capacity;
        Ok(extent)
    }

    /// Frees a block of this allocator, once. Wakes the waiters for room if its memory goes back to the system.
    pub(crate) fn free(&mut self, segment: &Segment, Extent { offset, capacity }: Extent) {
        self.in_use -= capacity;
        let is_warm = capacity < PAGED || self.warm + capacity <= WARM_LIMIT && !segment.is_tight();
        if is_warm {
            self.warm += capacity;
        } else {
            segment.release(offset, capacity);
            segment.settle();
        }
        self.free.entry(capacity).or_default().push(Freed { offset, is_warm });
    }

    /// Returns the memory of free blocks to the system. Returns whether there was any. Blocks that are smaller than a page
    /// keep theirs.
    pub(crate) fn trim(&mut self, segment: &Segment) -> bool {
        let before = self.warm;
        for (capacity, freed) in self.free.iter_mut().filter(|(capacity, _)| **capacity >= PAGED) {
            for freed in freed.iter_mut().filter(|freed| freed.is_warm) {
                freed.is_warm = false;
                self.warm -= capacity;
                segment.release(freed.offset, *capacity);
            }
        }
        if self.warm < before {
            segment.settle();
        }
        self.warm < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_used_again_and_do_not_overlap() {
        let segment = Segment::create(c"test", 128 << 10, 1024, 4096).expect("memory");
        let mut blocks = Blocks::new(4096);
        let mut first_round = Vec::new();
        for round in 0..2 {
            let mut extents: Vec<_> =
                (0..200).map(|n| blocks.allocate(&segment, 100 + n * 500, Share::All).expect("memory")).collect();
            extents.sort_by_key(|extent| extent.offset);
            assert!(extents.windows(2).all(|pair| pair[0].offset + pair[0].capacity <= pair[1].offset));
            for extent in &extents {
                segment.copy_in(extent.offset, &[1; 100]).expect("in the segment");
                blocks.free(&segment, *extent);
            }
            if round == 0 {
                first_round = extents;
            } else {
                assert_eq!(extents, first_round);
            }
        }
    }

    #[test]
    fn large_memory_goes_back() {
        let segment = Segment::create(c"test", 128 << 10, 1024, 4096).expect("memory");
        let mut blocks = Blocks::new(4096);
        let extents: Vec<_> =
            (0..5).map(|_| blocks.allocate(&segment, 30 << 20, Share::All).expect("memory")).collect();
        extents.into_iter().for_each(|extent| blocks.free(&segment, extent));
        let stat = rustix::fs::fstat(&segment).expect("a file");
        assert!(stat.st_blocks * 512 <= 70 << 20, "{} bytes are still there", stat.st_blocks * 512);
    }
}

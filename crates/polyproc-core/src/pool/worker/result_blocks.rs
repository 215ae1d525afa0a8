//! [`ResultBlocks`]: the memory of large results, in the worker's own file.

use std::collections::HashMap;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::pool::shared::result_ring::{self, ResultRing};
use crate::process;
use crate::shm::budget::Share;
use crate::shm::{Blocks, Extent, MemoryError, wait_for_room};

/// How long a worker waits for room for its only result before it takes more than its share.
const SOON: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct ResultBlocks {
    /// The allocator.
    blocks: Blocks,
    /// Blocks of results that the parent has not returned, by offset.
    lent: HashMap<u64, Extent>,
}

impl ResultBlocks {
    /// Creates the allocator of a new file.
    pub(super) fn new() -> Self {
        Self { blocks: Blocks::new(result_ring::FIRST_BLOCK), lent: HashMap::new() }
    }

    /// Copies a result to a block of its own. Returns the offset of the block, which stays allocated until the parent returns
    /// it.
    ///
    /// Blocks while too much memory is in flight; the parent can kill the worker then as at any other time. `ring` wakes the
    /// parent, which frees memory when it reads results. A worker with no other result in flight blocks for [`SOON`] only:
    /// other processes may hold memory until they have its answer.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`] if the result can never fit in the budget; [`MemoryError::System`] if the system is
    /// out of memory.
    pub(super) fn lend(&mut self, stream: &ResultRing, bytes: &[u8], ring: impl Fn()) -> Result<u64, MemoryError> {
        let extent = self.room_for(stream, bytes.len() as u64, ring)?;
        self.lent.insert(extent.offset, extent);
        stream.segment().copy_in(extent.offset, bytes)?;
        Ok(extent.offset)
    }

    /// Frees the blocks of results that the parent has read.
    ///
    /// An offset that is not in `lent` ends the loop: only a faulty parent would write one.
    pub(super) fn take_back(&mut self, stream: &ResultRing) {
        while let Some(extent) = stream.take_back().and_then(|offset| self.lent.remove(&offset)) {
            self.blocks.free(stream.segment(), extent);
        }
    }

    /// Returns the memory of free blocks to the system.
    pub(super) fn trim(&mut self, stream: &ResultRing) {
        let _ = self.blocks.trim(stream.segment());
    }

    /// Allocates a block within `share` of the memory budget, after it has freed all returned blocks. If the budget is
    /// exhausted, returns the memory of free blocks to the system and tries again, once.
    fn allocate(&mut self, stream: &ResultRing, len: u64, share: Share) -> Result<Extent, MemoryError> {
        self.take_back(stream);
        let segment = stream.segment();
        match self.blocks.allocate(segment, len, share) {
            Err(MemoryError::OutOfSpace(_)) if self.blocks.trim(segment) => self.blocks.allocate(segment, len, share),
            allocated => allocated,
        }
    }

    /// Allocates a block. Blocks as [`ResultBlocks::lend`].
    fn room_for(&mut self, stream: &ResultRing, len: u64, ring: impl Fn()) -> Result<Extent, MemoryError> {
        let mut allocated = self.allocate(stream, len, Share::of(self.blocks.in_use()));
        while matches!(allocated, Err(MemoryError::OutOfSpace(error)) if error.is_passing())
            || matches!(allocated, Err(MemoryError::Interrupted))
        {
            process::idle(|| {
                allocated = wait_for_room(Deadline::after(SOON), MemoryError::out_of_space, || {
                    // Each time, since earlier results take room until the parent reads them.
                    self.allocate(stream, len, Share::of(self.blocks.in_use())).inspect_err(|_| ring())
                });
                if matches!(allocated, Err(MemoryError::OutOfSpace(_))) && Share::of(self.blocks.in_use()) == Share::All
                {
                    allocated = self.allocate(stream, len, Share::More);
                }
            });
        }
        allocated
    }
}

//! The states of a queue's blocks.

use crate::shm::arena::{BlockRecord, FREE, OWNED};

/// The use of a block. The tables in `docs/design/ring.md` list the steps that change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum BlockState {
    /// In the free list of its size class, or about to be put there. It has no owner.
    Free = FREE,
    /// Its owner fills it. No other process uses it.
    Owned = OWNED,
    /// Part of a queue from the message at its position on, once that message is committed.
    Queued = 2,
    /// A chunk that is no longer needed once the message at its position is taken.
    Leaving = 3,
    /// Taken out of the queue by its owner, once the message at its position is taken.
    Held = 4,
    /// Its owner died. It waits for another consumer.
    Returned = 5,
}

impl BlockRecord {
    /// Returns the state, or `None` if the word is not a state. See [`BlockRecord::tag`] for the memory order.
    pub(super) fn state(&self) -> Option<BlockState> {
        use BlockState::{Free, Held, Leaving, Owned, Queued, Returned};
        let tag = self.tag();
        [Free, Owned, Queued, Leaving, Held, Returned].into_iter().find(|state| *state as u32 == tag)
    }

    /// Stores the state. See [`BlockRecord::set_tag`].
    pub(super) fn set_state(&self, state: BlockState) {
        self.set_tag(state as u32);
    }
}

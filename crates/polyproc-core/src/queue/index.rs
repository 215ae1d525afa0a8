//! How the two sides of a queue agree on its contents: the counts, and the places that belong to them.
//!
//! Each side's fields are written only under that side's lock. The other side reads only the count, which is stored with
//! Release and loaded with Acquire. `tests/loom` compiles this file a second time.

use super::Side;
use super::os::Ordering;

/// The place of a side's next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexPlace {
    /// File offset of the next entry.
    pub(super) at: u64,
    /// The number of the block that is its chunk.
    pub(super) chunk: u32,
    /// Bytes left in the chunk.
    pub(super) room: u32,
}

impl IndexPlace {
    /// Returns the place `len` bytes further on in the same chunk.
    #[inline]
    pub(super) fn after(self, len: u32) -> Self {
        Self { at: self.at.wrapping_add(len.into()), room: self.room.wrapping_sub(len), ..self }
    }
}

impl Side {
    /// Returns the number of the next message to put or take, and its place. The caller holds this side's lock.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub(super) fn place(&self) -> (u64, IndexPlace) {
        let count = self.count.load(Ordering::Relaxed);
        let (at, rest) = self.slot(count % 2 == 1);
        let rest = rest.load(Ordering::Relaxed);
        (count, IndexPlace { at: at.load(Ordering::Relaxed), chunk: (rest >> 32) as u32, room: rest as u32 })
    }

    /// Writes the place for `count` beside the valid one.
    #[inline]
    pub(super) fn prepare(&self, count: u64, next: IndexPlace) {
        let (at, rest) = self.slot(count % 2 == 1);
        at.store(next.at, Ordering::Relaxed);
        rest.store(u64::from(next.chunk) << 32 | u64::from(next.room), Ordering::Relaxed);
    }

    /// The commit: message number `count` is put or taken, and the next one is at the prepared place.
    #[inline]
    pub(super) fn commit(&self, count: u64) {
        // Release pairs with the Acquire in `may_put`, `may_get` and `count_bytes`, and in `len`, `unfinished` and
        // `task_done`, which use only the counts.
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Returns whether this side may put message number `count`, if the queue may hold `maxsize` messages (0 for no limit).
    #[inline]
    pub(super) fn may_put(&self, count: u64, getting: &Self, maxsize: u64) -> bool {
        if maxsize == 0 || count.wrapping_sub(self.other().load(Ordering::Relaxed)) < maxsize {
            return true;
        }
        // Pairs with the consumers' Release in `commit`. A chunk returns to producers by the arena's lock; in the ring
        // of the model, this count frees an entry.
        let taken = getting.count.load(Ordering::Acquire);
        self.other().store(taken, Ordering::Relaxed);
        count.wrapping_sub(taken) < maxsize
    }

    /// Returns whether this side may take message number `count`, that is, whether it was put.
    #[inline]
    pub(super) fn may_get(&self, count: u64, putting: &Self) -> bool {
        if count != self.other().load(Ordering::Relaxed) {
            return true;
        }
        // Pairs with the producers' Release in `commit`: the entry, its bytes and its block are written before.
        let put = putting.count.load(Ordering::Acquire);
        self.other().store(put, Ordering::Relaxed);
        count != put
    }
}

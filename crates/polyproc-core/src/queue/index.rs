//! How the two sides of a queue agree on its contents: the counts, and the places that belong to them.
//!
//! Each side's fields are written only under that side's lock. The other side reads only the count, which is stored with
//! Release and loaded with Acquire. `put` and `get` call [`Side::place`], then check ([`Side::may_put`], [`Side::may_get`]),
//! write the entry or read it, [`Side::prepare`] the next place and [`Side::commit`]. A death before the commit leaves the
//! count and the place that belongs to it as they were.
//!
//! Counts wrap at 2^64; only differences and equality are used here. The models compile this file, with a ring in the place of
//! chunks.

use super::layout::Side;
use crate::prim::Ordering;

/// The place of a side's next entry. A peer may have written any value: each access to the memory there is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexPlace {
    /// File offset of the next entry.
    pub(crate) at: u64,
    /// The number of the block that is its chunk.
    pub(crate) chunk: u32,
    /// Bytes left in the chunk.
    pub(crate) room: u32,
}

impl IndexPlace {
    /// Returns the place `len` bytes further on in the same chunk.
    #[inline]
    pub(crate) fn after(self, len: u32) -> Self {
        Self { at: self.at.wrapping_add(len.into()), room: self.room.wrapping_sub(len), ..self }
    }
}

impl Side {
    /// Returns the number of the next message to put or take, and its place. The caller holds this side's lock.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub(crate) fn place(&self) -> (u64, IndexPlace) {
        let count = self.count.load(Ordering::Relaxed);
        let (at, rest) = self.slot(count % 2 == 1);
        let rest = rest.load(Ordering::Relaxed);
        (count, IndexPlace { at: at.load(Ordering::Relaxed), chunk: (rest >> 32) as u32, room: rest as u32 })
    }

    /// Writes the place for `count` beside the valid one, for the other parity. The caller holds this side's lock, and commits
    /// the count before this one next. A place that was prepared and not committed is overwritten by the next owner of the
    /// lock.
    #[inline]
    pub(crate) fn prepare(&self, count: u64, next: IndexPlace) {
        let (at, rest) = self.slot(count % 2 == 1);
        at.store(next.at, Ordering::Relaxed);
        rest.store(u64::from(next.chunk) << 32 | u64::from(next.room), Ordering::Relaxed);
    }

    /// The commit: message number `count` is put or taken, and the next one is at the prepared place. The caller holds this
    /// side's lock.
    #[inline]
    pub(crate) fn commit(&self, count: u64) {
        // Release pairs with the Acquire in `may_put`, `may_get` and `count_bytes`, and in `len`, `unfinished` and
        // `task_done`, which use only the counts.
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Returns whether this side may put message number `count`, if the queue may hold `maxsize` messages (0 for no limit).
    /// The other side's count is read only if the last value of it says "full": that is a lower bound, so the answer is never
    /// a wrong yes.
    #[inline]
    pub(crate) fn may_put(&self, count: u64, getting: &Self, maxsize: u64) -> bool {
        if maxsize == 0 || count.wrapping_sub(self.other().load(Ordering::Relaxed)) < maxsize {
            return true;
        }
        // Pairs with the consumers' Release in `commit`. A chunk returns to producers by the arena's lock; in the ring
        // of the model, this count frees an entry.
        let taken = getting.count.load(Ordering::Acquire);
        self.other().store(taken, Ordering::Relaxed);
        count.wrapping_sub(taken) < maxsize
    }

    /// Returns whether this side may take message number `count`, that is, whether it was put. The other side's count is read
    /// only if the last value of it says "empty".
    #[inline]
    pub(crate) fn may_get(&self, count: u64, putting: &Self) -> bool {
        if count != self.other().load(Ordering::Relaxed) {
            return true;
        }
        // Pairs with the producers' Release in `commit`: the entry, its bytes and its block are written before.
        let put = putting.count.load(Ordering::Acquire);
        self.other().store(put, Ordering::Relaxed);
        count != put
    }
}

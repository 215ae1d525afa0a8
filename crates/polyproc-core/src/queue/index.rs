//! How the two sides of a queue agree on what is there: the counts, and the places that belong to them.
//!
//! Each side's fields are written under that side's lock only; what crosses over is the count, stored with Release and
//! loaded with Acquire. Compiled a second time in `tests/loom`.

use super::Side;
use super::os::Ordering;

/// Where a side stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexPlace {
    /// File offset of the next entry.
    pub(super) at: u64,
    /// The block that is its chunk.
    pub(super) chunk: u32,
    /// How many bytes are left in the chunk.
    pub(super) room: u32,
}

impl IndexPlace {
    /// `len` bytes further on in the same chunk.
    #[inline]
    pub(super) fn after(self, len: u32) -> Self {
        Self { at: self.at.wrapping_add(len.into()), room: self.room.wrapping_sub(len), ..self }
    }
}

impl Side {
    /// The number of the next message, and the place where it stands or is to stand. Under this side's lock.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub(super) fn place(&self) -> (u64, IndexPlace) {
        let count = self.count.load(Ordering::Relaxed);
        let (at, rest) = self.slot(count % 2 == 1);
        let rest = rest.load(Ordering::Relaxed);
        (count, IndexPlace { at: at.load(Ordering::Relaxed), chunk: (rest >> 32) as u32, room: rest as u32 })
    }

    /// Writes the place that `count` is going to have, beside the one that is valid.
    #[inline]
    pub(super) fn prepare(&self, count: u64, next: IndexPlace) {
        let (at, rest) = self.slot(count % 2 == 1);
        at.store(next.at, Ordering::Relaxed);
        rest.store(u64::from(next.chunk) << 32 | u64::from(next.room), Ordering::Relaxed);
    }

    /// The commit: message number `count` is put, or taken, and the next one stands at the prepared place.
    #[inline]
    pub(super) fn commit(&self, count: u64) {
        self.count.store(count.wrapping_add(1), Ordering::Release); // pairs with the Acquire in `may_put` and `may_get`
    }

    /// Whether message number `count` may be put by this side, when no more than `maxsize` (0 for any) may wait.
    #[inline]
    pub(super) fn may_put(&self, count: u64, getting: &Self, maxsize: u64) -> bool {
        if maxsize == 0 || count.wrapping_sub(self.other().load(Ordering::Relaxed)) < maxsize {
            return true;
        }
        let taken = getting.count.load(Ordering::Acquire);
        self.other().store(taken, Ordering::Relaxed);
        count.wrapping_sub(taken) < maxsize
    }

    /// Whether message number `count` may be taken by this side: whether it was put.
    #[inline]
    pub(super) fn may_get(&self, count: u64, putting: &Self) -> bool {
        if count != self.other().load(Ordering::Relaxed) {
            return true;
        }
        let put = putting.count.load(Ordering::Acquire);
        self.other().store(put, Ordering::Relaxed);
        count != put
    }
}

//! [`ResultIndex`]: the counts by which a worker and its parent share a [`ResultRing`](super::result_ring::ResultRing), without
//! its bytes. Each count has one writer.
//!
//! - *Records.* The worker stores the tail after a whole record; the parent stores the head after it has copied the records. A
//!   worker that finds the ring full sleeps on `space`; the parent wakes it after it has stored the head.
//! - *Blocks.* The parent writes the offset of a block that it has copied to a ring of offsets, then stores `returned`; the
//!   worker reads the offset, then stores `taken`.
//!
//! A worker may overwrite the parent's counts, so the parent keeps them in private memory as well, and passes them to the
//! functions of its side.

use super::count::Count;
use crate::prim::{AtomicU64, Ordering, fence};
use crate::robust::EventCount;
use crate::sys::shared::shared;

/// Length of the ring in bytes.
pub(crate) const RING_LEN: u64 = if cfg!(loom) { 2 } else { 131_072 };
/// Maximum number of returned blocks that the worker has not taken.
pub(crate) const RETURN_SLOTS: usize = if cfg!(loom) { 2 } else { 1024 };

shared! {
    /// See the module.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 64 | head: bytes read so far | the parent |
    /// | 64 | 64 | space: the worker, while the ring is full | see [`EventCount`] |
    /// | 128 | 64 | returned: number of blocks returned | the parent, after the entry |
    /// | 192 | 64 | taken: number of returned blocks that the worker has taken | the worker |
    /// | 256 | 64 | tail: bytes written so far | the worker, after a whole record: the store that commits it |
    pub(crate) struct ResultIndex {
        head: Count,
        pub(crate) space: EventCount,
        returned: Count,
        taken: Count,
        tail: Count,
    }
}
const _: () = assert!(cfg!(loom) || size_of::<ResultIndex>() == 320);

shared! {
    /// The ring of offsets of returned blocks.
    pub(crate) struct Returns { offsets: [AtomicU64; RETURN_SLOTS], }
}

impl Returns {
    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    fn place(&self, at: u64) -> &AtomicU64 {
        &self.offsets[(at % RETURN_SLOTS as u64) as usize]
    }
}

/// The worker's side.
impl ResultIndex {
    /// Returns whether a record of `len` bytes fits at `tail`.
    #[inline]
    pub(crate) fn has_room(&self, tail: u64, len: u64) -> bool {
        // Pairs with the Release in `free`: the parent has copied the bytes that the record overwrites.
        tail.wrapping_sub(self.head.count.load(Ordering::Acquire)).saturating_add(len) <= RING_LEN
    }

    /// The commit: all bytes before `tail` are written.
    #[inline]
    pub(crate) fn commit(&self, tail: u64) {
        // Pairs with the Acquire in `written`.
        self.tail.count.store(tail, Ordering::Release);
    }

    /// Returns the number of bytes that the parent has not read, from the shared counts.
    #[inline]
    pub(crate) fn unread(&self) -> u64 {
        // The head pairs with the Release in `free`. The tail is the worker's own.
        self.tail.count.load(Ordering::Acquire).wrapping_sub(self.head.count.load(Ordering::Acquire))
    }

    /// Returns whether there are returned blocks that the worker has not taken.
    #[inline]
    pub(crate) fn has_returned(&self) -> bool {
        // Pairs with the Release in `give_back`.
        self.returned.count.load(Ordering::Acquire) != self.taken.count.load(Ordering::Relaxed)
    }

    /// Takes the next returned block. Returns its offset.
    #[inline]
    pub(crate) fn take_back(&self, returns: &Returns) -> Option<u64> {
        let at = self.taken.count.load(Ordering::Relaxed);
        // Pairs with the Release in `give_back`: the parent has copied the block, and written its offset.
        if at == self.returned.count.load(Ordering::Acquire) {
            return None;
        }
        let offset = returns.place(at).load(Ordering::Relaxed);
        // Pairs with the Acquire in `give_back`: the offset was read before its place is used again.
        self.taken.count.store(at.wrapping_add(1), Ordering::Release);
        Some(offset)
    }
}

/// The parent's side.
impl ResultIndex {
    /// Returns the number of bytes that the worker has written so far.
    #[inline]
    pub(crate) fn written(&self) -> u64 {
        // Pairs with the Release in `commit`.
        self.tail.count.load(Ordering::Acquire)
    }

    /// Frees the bytes before `head`, which were copied, and wakes the worker if it waits for room.
    #[inline]
    pub(crate) fn free(&self, head: u64) {
        self.head.count.store(head, Ordering::Release); // pairs with the Acquire in `has_room` and `unread`
        // Pairs with the fence in `EventCount::wait`: the worker sets the flag of the event count, then reads the head, so one
        // of the two sees the other.
        fence(Ordering::SeqCst);
        self.space.wake_all();
    }

    /// Returns a block to the worker. `own` is the parent's count of returned blocks. Returns false if [`RETURN_SLOTS`] blocks
    /// wait to be taken.
    #[inline]
    pub(crate) fn give_back(&self, returns: &Returns, own: &mut u64, offset: u64) -> bool {
        // Pairs with the Release in `take_back`.
        if own.wrapping_sub(self.taken.count.load(Ordering::Acquire)) >= RETURN_SLOTS as u64 {
            return false;
        }
        returns.place(*own).store(offset, Ordering::Relaxed);
        *own = own.wrapping_add(1);
        self.returned.count.store(*own, Ordering::Release); // pairs with the Acquire in `take_back`
        true
    }

    /// Restores the shared counts from the parent's own, and wakes the worker.
    pub(crate) fn repair(&self, head: u64, returned: u64) {
        // Pair with the Acquire in `has_room` and `unread`, and in `take_back`.
        self.head.count.store(head, Ordering::Release);
        self.returned.count.store(returned, Ordering::Release);
        self.space.wake_generation();
    }
}

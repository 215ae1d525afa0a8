//! The layout of a queue's memory.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 64 | [`OptionsLine`] |
//! | 64 | 128 | the producers' [`Side`] |
//! | 192 | 128 | the consumers' [`Side`] |
//! | 320, 384, 448 | 64 each | [`EventCount`]s: consumers that wait for items, producers that wait for space, joiners |
//! | 512 | 64 | [`UnfinishedTasks`] |
//! | 576 | 64 | [`Polled`] |
//! | 1024 | 256 | the table of regions |
//! | 1280 | 960 | the header of the arena |
//! | 4096 | 16384 | the first table of blocks |
//! | 20480 | | blocks |

use crate::prim::{AtomicU32, AtomicU64};
use crate::robust::{EventCount, Mutex};
use crate::sys::shared::shared;

pub(crate) const FIRST_REGION: u64 = 256 << 10;
pub(crate) const REGION_TABLE: u64 = 1024;
pub(crate) const ARENA: u64 = 1280;
pub(crate) const FIRST_BLOCK_TABLE: u64 = 4096;
/// Bytes of the header and the first table of blocks.
pub(crate) const HEADER_LEN: u64 = 20480;
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"polyprq1");

/// The number of the first message. The first chunk has position 0, so a position at or above the producers' count always means
/// a block that is not committed.
pub(crate) const FIRST: u64 = 1;
/// Size of a chunk in bytes.
pub(crate) const CHUNK_LEN: u64 = 64 << 10;
/// Messages of more bytes have a block of their own.
pub(crate) const INLINE_LEN: usize = 16 << 10;

shared! {
    /// The settings. Written once, at creation, except for `closed` and `polled`, which change from 0 to 1.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 8 | magic | [`MAGIC`]; written last |
    /// | 8 | 8 | maxsize | maximum number of messages; 0 for no limit |
    /// | 16 | 4 | on_death | the treatment of a dead consumer's items |
    /// | 20 | 4 | closed | 1: puts fail; under the producers' lock |
    /// | 24 | 4 | polled | 1: a process has asked for the descriptor to poll |
    /// | 32 | 8 | max_bytes | maximum number of bytes of all messages; 0 for no limit |
    pub(crate) struct OptionsLine {
        pub(crate) magic: AtomicU64,
        pub(crate) maxsize: AtomicU64,
        pub(crate) on_death: AtomicU32,
        pub(crate) closed: AtomicU32,
        pub(crate) polled: AtomicU32,
        unused: AtomicU32,
        pub(crate) max_bytes: AtomicU64,
    }
}

shared! {
    /// One side of a queue. The place of the next entry is kept twice, for even and for odd counts: the place for the next
    /// count is written beside the valid one, and the store of the count makes it valid. Fields that only this side uses are in
    /// the lock's cache line.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 4 | lock | see [`Mutex`] |
    /// | 8 | 16 | place, even | file offset of the next entry; then the number of its chunk (high half) and the bytes left in it (low half); under the lock, before the count |
    /// | 40 | 16 | place, odd | as above |
    /// | 56 | 8 | other | the other side's count when it was last read; under the lock |
    /// | 64 | 8 | count | the number of the next message to put or take; under the lock. *The commit* |
    /// | 72 | 16 | bytes, for even and for odd counts | bytes of all messages before that; under the lock, before the count; only if bytes are limited |
    pub(crate) struct Side {
        pub(crate) lock: Mutex,
        pub(crate) count: AtomicU64,
        bytes: [AtomicU64; 2],
    }
}

impl Side {
    /// Returns the number of bytes of all messages before number `count`.
    pub(crate) fn bytes(&self, count: u64) -> &AtomicU64 {
        &self.bytes[usize::from(count % 2 == 1)]
    }

    /// Returns the two words of the place for even or odd counts: its offset, and its chunk with the bytes left.
    #[inline]
    pub(crate) fn slot(&self, odd: bool) -> (&AtomicU64, &AtomicU64) {
        let robust = &self.lock.robust;
        if odd { (&robust.far[0], &robust.far[1]) } else { (&robust.near[0], &robust.near[1]) }
    }

    /// Returns the other side's count when it was last read.
    #[inline]
    pub(crate) fn other(&self) -> &AtomicU64 {
        &self.lock.robust.far[2]
    }
}

shared! {
    /// The counts of messages that are done or returned.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 8 | done | [`FIRST`] + the number of messages that are done |
    /// | 8 | 8 | target | the value of `done` once `retiring` is counted; under the consumers' lock |
    /// | 16 | 4 | retiring | 1 + the block whose message is being counted as done, 0 for none; as `target` |
    /// | 20 | 4 | returned | number of messages of dead consumers that wait for another consumer; as `target` |
    pub(crate) struct UnfinishedTasks {
        pub(crate) done: AtomicU64,
        pub(crate) target: AtomicU64,
        pub(crate) retiring: AtomicU32,
        pub(crate) returned: AtomicU32,
    }
}

shared! {
    /// The state of the bell.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 8 | ticket | the last ticket given to a message with descriptors; under the producers' lock |
    /// | 8 | 4 | rung | 1: a ring is in the socket, or about to be sent |
    pub(crate) struct Polled {
        pub(crate) ticket: AtomicU64,
        pub(crate) rung: AtomicU32,
    }
}

shared! {
    /// The header of a queue, up to the table of regions.
    pub(crate) struct QueueLayout {
        pub(crate) settings: OptionsLine,
        pub(crate) put: Side,
        pub(crate) get: Side,
        pub(crate) items: EventCount,
        pub(crate) space: EventCount,
        pub(crate) unfinished: EventCount,
        pub(crate) tasks: UnfinishedTasks,
        pub(crate) polled: Polled,
    }
}
const _: () = assert!(cfg!(loom) || size_of::<QueueLayout>() == 640 && size_of::<Side>() == 128);

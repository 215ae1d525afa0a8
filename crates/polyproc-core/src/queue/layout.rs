//! The layout of a queue's memory.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 64 | [`OptionsLine`] |
//! | 64 | 128 | the producers' [`Side`] |
//! | 192 | 128 | the consumers' [`Side`] |
//! | 320, 384, 448 | 64 each | [`EventCount`]s: consumers that wait for items, producers that wait for space, joiners |
//! | 512 | 64 | [`Tasks`] |
//! | 576 | 64 | [`Polled`] |
//! | 1024 | 256 | the table of regions |
//! | 1280 | 960 | the header of the arena |
//! | 4096 | 16384 | the first table of blocks |
//! | 20480 | | blocks |
//!
//! Messages are stored one after the other in chunks, which are blocks of the arena. An entry begins with a word:
//!
//! | bits | meaning |
//! |---|---|
//! | 0 to 2 | 1: the message's bytes follow; 2: they are in a block; 3: the messages continue in another chunk |
//! | 3 | a second word follows: the ticket of the message's descriptors, see `bell` |
//! | 8 to 63 | number of bytes that follow, or number of the block |
//!
//! Bytes are padded to a multiple of eight. A chunk always has room for one more word.

use crate::prim::{AtomicU32, AtomicU64};
use crate::robust::{EventCount, Mutex};
use crate::shm::arena::Block;
use crate::sys::shared::shared;

pub(super) const FIRST_REGION: u64 = 256 << 10;
pub(super) const REGION_TABLE: u64 = 1024;
pub(super) const ARENA: u64 = 1280;
pub(super) const FIRST_BLOCK_TABLE: u64 = 4096;
/// Bytes of the header and the first table of blocks.
pub(super) const HEADER_LEN: u64 = 20480;
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"polyprq1");

/// The number of the first message. The first chunk has position 0, so a position at or above the producers' count always means
/// a block that is not committed.
pub(super) const FIRST: u64 = 1;
/// Size of a chunk in bytes.
pub(super) const CHUNK_LEN: u64 = 64 << 10;
/// Messages of more bytes have a block of their own.
pub(super) const INLINE_LEN: usize = 16 << 10;

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
    pub(super) struct OptionsLine {
        pub(super) magic: AtomicU64,
        pub(super) maxsize: AtomicU64,
        pub(super) on_death: AtomicU32,
        pub(super) closed: AtomicU32,
        pub(super) polled: AtomicU32,
        unused: AtomicU32,
        pub(super) max_bytes: AtomicU64,
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
    pub(super) struct Side {
        pub(super) lock: Mutex,
        pub(super) count: AtomicU64,
        bytes: [AtomicU64; 2],
    }
}

impl Side {
    /// Returns the number of bytes of all messages before number `count`.
    pub(super) fn bytes(&self, count: u64) -> &AtomicU64 {
        &self.bytes[usize::from(count % 2 == 1)]
    }

    /// Returns the two words of the place for even or odd counts: its offset, and its chunk with the bytes left.
    #[inline]
    pub(super) fn slot(&self, odd: bool) -> (&AtomicU64, &AtomicU64) {
        let robust = &self.lock.robust;
        if odd { (&robust.far[0], &robust.far[1]) } else { (&robust.near[0], &robust.near[1]) }
    }

    /// Returns the other side's count when it was last read.
    #[inline]
    pub(super) fn other(&self) -> &AtomicU64 {
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
    pub(super) struct Tasks {
        pub(super) done: AtomicU64,
        pub(super) target: AtomicU64,
        pub(super) retiring: AtomicU32,
        pub(super) returned: AtomicU32,
    }
}

shared! {
    /// The state of the bell.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 8 | ticket | the last ticket given to a message with descriptors; under the producers' lock |
    /// | 8 | 4 | rung | 1: a ring is in the socket, or about to be sent |
    pub(super) struct Polled {
        pub(super) ticket: AtomicU64,
        pub(super) rung: AtomicU32,
    }
}

shared! {
    /// The header of a queue, up to the table of regions.
    pub(super) struct QueueLayout {
        pub(super) settings: OptionsLine,
        pub(super) put: Side,
        pub(super) get: Side,
        pub(super) items: EventCount,
        pub(super) space: EventCount,
        pub(super) unfinished: EventCount,
        pub(super) tasks: Tasks,
        pub(super) polled: Polled,
    }
}
const _: () = assert!(size_of::<QueueLayout>() == 640 && size_of::<Side>() == 128);

/// The first word of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Inline { len: u64 },
    InBlock(Block),
    NextChunk(Block),
}

const WITH_FDS: u64 = 1 << 3;

impl Entry {
    #[inline]
    pub(super) fn to_word(self, with_fds: bool) -> u64 {
        let (kind, value) = match self {
            Self::Inline { len } => (1, len),
            Self::InBlock(block) => (2, u64::from(block.0)),
            Self::NextChunk(block) => (3, u64::from(block.0)),
        };
        value << 8 | kind | if with_fds { WITH_FDS } else { 0 }
    }

    /// Returns the entry, and whether a ticket follows; `None` for a word that no process of this version writes.
    #[inline]
    pub(super) fn from_word(word: u64) -> Option<(Self, bool)> {
        let block = || u32::try_from(word >> 8).ok().map(Block);
        let entry = match word & 0xF7 {
            1 => Self::Inline { len: word >> 8 },
            2 => Self::InBlock(block()?),
            3 => Self::NextChunk(block()?),
            _ => return None,
        };
        Some((entry, word & WITH_FDS != 0))
    }

    /// Returns the bytes that the entry takes in its chunk, including the word and the ticket; `None` if no chunk has as many.
    #[inline]
    pub(super) fn len(self, with_fds: bool) -> Option<u32> {
        let bytes = if let Self::Inline { len } = self { len.checked_next_multiple_of(8)? } else { 0 };
        let all = bytes.checked_add(if with_fds { 16 } else { 8 })?;
        u32::try_from(all).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_word_is_an_entry_or_refused(word: u64) {
            if let Some((entry, with_fds)) = Entry::from_word(word) {
                prop_assert_eq!(entry.to_word(with_fds), word);
            }
        }

        #[test]
        fn entries_are_read_as_written(len in 0u64..1 << 50, block: u32, with_fds: bool) {
            for entry in [Entry::Inline { len }, Entry::InBlock(Block(block)), Entry::NextChunk(Block(block))] {
                prop_assert_eq!(Entry::from_word(entry.to_word(with_fds)), Some((entry, with_fds)));
            }
        }
    }
}

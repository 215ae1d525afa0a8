//! The entries of a queue: how messages are stored in its chunks.
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
//!
//! `put` writes entries under the producers' lock, `get` reads them under the consumers' lock, once the producers' count
//! covers them. A peer may write any word: [`Entry::from_word`] refuses what is no entry, and `get` checks lengths and blocks.

use crate::shm::arena::Block;

/// The first word of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The message's bytes follow, after the ticket if there is one.
    Inline { len: u64 },
    /// The message fills a block of its own.
    InBlock(Block),
    /// No message: the next entry is the first one of another chunk. It never has a ticket.
    NextChunk(Block),
}

const WITH_FDS: u64 = 1 << 3;

impl Entry {
    /// Returns the word. `len` is below 2^56: a chunk holds less.
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

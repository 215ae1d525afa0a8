//! [`Ends`]: how items of a call ended, from the thread that reads results to the face.

use std::os::fd::OwnedFd;

use crate::pool::TaskEnd;
use crate::pool::shared::result_ring::{ReceivedBlocks, next_result};
use crate::wire::Payload;

/// Results that have arrived, each with the index of its item.
///
/// Filled by the thread that reads results, emptied by the face. Plain results share one vector, so that they cost no
/// allocation each.
#[derive(Debug, Default)]
pub struct Ends {
    /// Records of plain results, one after the other. [`End::Returned`] refers to ranges of them.
    bytes: Vec<u8>,
    /// The index of the first item, and how it and its successors ended. In order of arrival.
    list: Vec<(u64, End)>,
}

/// How one item ended, or several in a row that returned.
#[derive(Debug)]
pub(super) enum End {
    /// `count` results of consecutive items, as records in the bytes of [`Ends`].
    Returned {
        /// At least 1.
        count: u32,
        /// Offset of the first record in the bytes.
        start: usize,
        /// Length of all records in bytes.
        len: usize,
    },
    /// A large result, or one with descriptors, which count as held by the parent until the result is taken.
    Payload(Box<(Payload, Option<ReceivedBlocks>)>),
    /// The item has no result.
    Failed(Box<TaskEnd>),
}

/// The encoded result of an item, or the reason why there is none.
pub type ItemEnd<'a> = Result<(&'a [u8], Vec<OwnedFd>), TaskEnd>;

impl Ends {
    /// Adds plain results, as [`take_results`](crate::pool::shared::result_ring::take_results) returns them.
    pub(super) fn push_returned(&mut self, index: u64, count: u32, results: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(results);
        self.list.push((index, End::Returned { count, start, len: results.len() }));
    }

    /// Adds the end of the item with this index.
    pub(super) fn push(&mut self, index: u64, end: End) {
        self.list.push((index, end));
    }

    /// Returns whether there are no results.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Removes all results, and calls `see` with each, in order of arrival. Keeps the allocated memory.
    ///
    /// Descriptors that `see` does not take are closed.
    pub fn drain(&mut self, mut see: impl FnMut(u64, ItemEnd<'_>)) {
        for (index, end) in self.list.drain(..) {
            match end {
                End::Returned { count, start, len } => {
                    let mut results = self.bytes.get(start..start + len).unwrap_or_default();
                    for item in 0..u64::from(count) {
                        see(index + item, Ok((next_result(&mut results).unwrap_or_default(), Vec::new())));
                    }
                }
                End::Payload(payload) => {
                    let (Payload { bytes: head, fds }, received) = *payload;
                    see(index, Ok((&head, fds)));
                    drop(received); // `see` has mapped or closed the descriptors
                }
                End::Failed(end) => see(index, Err(*end)),
            }
        }
        self.bytes.clear();
    }
}

//! Messages of queues and pipes, which have one value each (`queue.rs`, `connection.rs`): reused memory, and decoding.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyo3::prelude::*;

use super::pickle::{PICKLE_HEAD, loads};
use super::source::Source;
use super::tag::PICKLE;
use crate::buffer::Owned;

/// A message with tag PICKLE and at least this many bytes is unpickled in place. A smaller one is copied to a `bytes` object,
/// so that its vector can be reused.
const LARGE: usize = 64 << 10;
/// The most bytes of memory that a thread keeps for its next message. Larger memory is freed.
const KEPT: usize = 4 << 20;

thread_local! {
    /// Memory of an earlier message of this thread; empty during [`with_memory`].
    static MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `use_it` with an empty vector for a message, whose memory this thread reuses. A nested call, as from a user's
/// `__reduce__`, gets another vector.
pub(crate) fn with_memory<T>(use_it: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut bytes = MEMORY.take();
    bytes.clear();
    let result = use_it(&mut bytes);
    if bytes.capacity() <= KEPT {
        MEMORY.set(bytes);
    }
    result
}

/// Decodes a message of one value. Takes the vector out of `bytes` if the message is a large pickle, so that it is not copied.
#[inline]
pub(crate) fn decode_message<'py>(
    py: Python<'py>,
    bytes: &mut Vec<u8>,
    fds: Vec<OwnedFd>,
) -> PyResult<Bound<'py, PyAny>> {
    if bytes.len() >= LARGE && bytes.first() == Some(&PICKLE) {
        return loads(py, Owned::new(std::mem::take(bytes), PICKLE_HEAD), fds, None);
    }
    Source::new(bytes, fds).decode(py)
}

/// Borrows the descriptors of a message.
pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

//! Actions of a faulty worker, for tests. To be called in a worker.

use std::io;
use std::os::fd::BorrowedFd;

use super::{channel, stream};
use crate::pool::shared::result_ring::{ResultKind, WORD_LEN};
use crate::pool::shared::task::tag;
use crate::shm::MemoryError;

/// Sends descriptors for a result that never follows.
///
/// # Errors
/// Fails if the message cannot be sent.
pub fn send_fds(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    channel().ok_or(io::ErrorKind::NotConnected)?.send(tag::RESULT_FDS, &[], fds)
}

/// Asks for a function, and does not read the answer.
///
/// # Errors
/// As [`send_fds`].
pub fn ask() -> io::Result<()> {
    channel().ok_or(io::ErrorKind::NotConnected)?.send(tag::NEED_FUNCTION, &[0; 8], &[])
}

/// Writes that this worker begins the task of a slot and position, which another worker runs, and a result for its only item.
///
/// # Errors
/// [`MemoryError`].
pub fn answer_for(slot: u32, position: u64, bytes: &[u8]) -> Result<(), MemoryError> {
    let ring = stream().ok_or(MemoryError::Corrupt)?;
    let mut record = [&[0; WORD_LEN], bytes].concat();
    ring.write_begin(slot, position)?;
    ring.write_end(ResultKind::Returned, 0, &mut record)?;
    Ok(())
}

//! Leases: shared `flock(2)` locks by which the owner of a memory file finds out whether a borrower still has it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Returns whether no descriptor by [`give`] exists for this file. Only one thread of the file's owner may call this at a time.
pub(crate) fn is_free(file: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock)?;
            Ok(true)
        }
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns a descriptor for a borrower: a new open file description with a shared lock, which lasts as long as any copy of the
/// descriptor, in any process or in transit in a socket, or any mapping by one.
pub(crate) fn give(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // Read-only: a borrower maps the file privately and cannot write to bytes that others borrow.
    let given = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&given, FlockOperation::NonBlockingLockShared)?;
    Ok(given)
}

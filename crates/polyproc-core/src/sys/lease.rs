//! Leases: shared `flock(2)` locks by which the owner of a memory file finds out whether a borrower still has it. See
//! `docs/design/loan.md`; `shm/loan.rs` is the only user.
//!
//! Such a lock belongs to an open file description and not to a process. So the kernel counts descriptors, also those in
//! transit in a socket, and mappings, and drops the lock with the last of them, also when a process dies. No message returns a
//! loan.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Returns whether no descriptor by [`give`] exists for this file. Only one thread of the file's owner may call this at a time:
/// it acquires the exclusive lock for a moment, which another call would take for a borrower's.
///
/// # Errors
/// `ENOLCK` if the kernel has no memory for the lock.
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
///
/// # Errors
/// `ENOENT` without `/proc`; `EMFILE` or `ENFILE` if there is no descriptor left. No lease exists then.
pub(crate) fn give(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // Read-only: a borrower maps the file privately and cannot write to bytes that others borrow.
    let given = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&given, FlockOperation::NonBlockingLockShared)?;
    Ok(given)
}

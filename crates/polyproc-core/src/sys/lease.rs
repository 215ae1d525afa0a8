//! Who has a memory file, as the kernel knows.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Whether nobody has a descriptor that [`give`] made of this file. Only one thread of the file's owner asks at a time.
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

/// A descriptor of the file, an open file description of its own with a shared lock (`flock(2)`), which lasts as long as any
/// copy of it, in any process or on its way in a socket.
pub(crate) fn give(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // For reading: a borrower maps it privately, and has no way to write to what others borrow.
    let given = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&given, FlockOperation::NonBlockingLockShared)?;
    Ok(given)
}

//! Who has a memory file, as the kernel knows.

use std::io;
use std::ops::Range;
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

/// Whether this process has written nothing to these bytes of a private mapping at `base`: a page that was written to is no page
/// of the file any more (`proc_pid_pagemap(5)`). False where the kernel does not tell.
pub(crate) fn is_unchanged(base: usize, bytes: Range<usize>) -> bool {
    /// Of an entry: the page is in memory, or in the swap; it is one of the file.
    const THERE: u64 = 3 << 62;
    const OF_FILE: u64 = 1 << 61;
    const ENTRY: usize = size_of::<u64>();
    let page = rustix::param::page_size();
    let (first, last) = ((base + bytes.start) / page, (base + bytes.end - 1) / page);
    let mut entries = vec![0; (last - first + 1) * ENTRY];
    let mut read = || -> io::Result<usize> {
        let pages = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(&pages, &mut entries, (first * ENTRY) as u64))?)
    };
    let is_whole = read().is_ok_and(|read| read == entries.len());
    let (entries, _) = entries.as_chunks::<ENTRY>();
    let mut entries = entries.iter().map(|entry| u64::from_ne_bytes(*entry));
    is_whole && entries.all(|entry| entry & THERE == 0 || entry & OF_FILE != 0)
}

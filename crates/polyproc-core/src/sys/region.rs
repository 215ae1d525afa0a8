//! [`Region`], a mapped part of a file: the owner of an address range, and nothing else.
//!
//! [`memory`](super::memory), [`bytes`](super::bytes) and [`pid_slot`](super::pid_slot) decide how the memory is accessed. The
//! first two check files of peers before they map them.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A mapped part of a file, unmapped on drop. Its users decide how the memory is accessed: a shared mapping may change at any
/// time.
///
/// A forked child has the mapping, too. After [`Region::keep_from_children`] it has not, and must not drop its copy of the
/// value, as another mapping may have the range there.
#[derive(Debug)]
pub(super) struct Region {
    /// The address of the first byte, at a page; dangling if `len` is 0.
    base: NonNull<u8>,
    /// The length in bytes that was requested. The kernel maps whole pages; the rest of the last page is not used.
    len: usize,
}

// SAFETY: an address range that belongs to `self`; each access to the memory is argued at its place.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes from `offset` on; maps nothing if `len` is 0. `offset` must be a multiple of the page size. Access
    /// behind the end of the file raises `SIGBUS`, so the caller has checked its length and, for files of peers, the seals.
    ///
    /// # Errors
    /// An error of `mmap(2)`: `EINVAL` for a wrong offset, `ENOMEM` without address space, `EACCES` or `EPERM` if the
    /// descriptor or a seal does not allow the access.
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { base: NonNull::dangling(), len });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, flags, fd, offset) }?;
        Ok(Self { base: NonNull::new(base.cast()).ok_or(Errno::FAULT)?, len })
    }

    /// Returns the address of the first byte, valid as long as `self` lives; dangling if the length is 0.
    #[inline]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the length in bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps forked children from inheriting the mapping (`MADV_DONTFORK`). A child that accesses it faults, or accesses
    /// another mapping that was made there: the owner checks the process id, or its users never run in a child.
    pub(super) fn keep_from_children(&self) -> io::Result<()> {
        if self.len > 0 {
            // SAFETY: the range is `self`'s own mapping, which stays as it is in this process.
            unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxDontFork) }?;
        }
        Ok(())
    }
}

impl Drop for Region {
    /// Unmaps the range. Failure is a bug, as the range is an own mapping.
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is `self`'s own, and no reference into it outlives `self`.
            let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "munmap of an own mapping failed");
        }
    }
}

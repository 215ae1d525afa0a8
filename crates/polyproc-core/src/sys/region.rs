//! [`Region`], a mapped part of a file.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A mapped part of a file, unmapped on drop. Its users decide how the memory is accessed.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range that belongs to `self`; each access to the memory is argued at its place.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes from `offset` on; maps nothing if `len` is 0.
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

    #[inline]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the length in bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps forked children from inheriting the mapping. A child that accesses it faults.
    pub(super) fn keep_from_children(&self) -> io::Result<()> {
        if self.len > 0 {
            // SAFETY: the range is `self`'s own mapping, which stays as it is in this process.
            unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxDontFork) }?;
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is `self`'s own, and no reference into it outlives `self`.
            let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "munmap of an own mapping failed");
        }
    }
}

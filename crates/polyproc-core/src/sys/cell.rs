//! One word of memory shared with the zygote, to which the kernel writes the id of the child that it creates.
//!
//! | offset | bytes | field | writer, and when |
//! |---|---|---|---|
//! | 0 | 4 | pid | the parent: 0 before each request; the kernel: the child's id, inside `clone3(CLONE_PARENT_SETTID)`, before the child runs |

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::prim::{AtomicI32, Ordering};

const LEN_BYTES: usize = 4096;

/// The shared word. See the module's table.
#[derive(Debug)]
pub(crate) struct PidCell {
    memfd: OwnedFd,
    word: NonNull<AtomicI32>,
}

// SAFETY: the word is an atomic in a mapping that `self` owns.
unsafe impl Send for PidCell {}
// SAFETY: as above; every access is atomic.
unsafe impl Sync for PidCell {}

impl PidCell {
    pub(crate) fn new() -> io::Result<Self> {
        let memfd = super::fd::memfd(c"polyproc-pid")?;
        rustix::fs::ftruncate(&memfd, LEN_BYTES as u64)?;
        Self::map(memfd)
    }

    /// Maps a cell, for the zygote the one that its parent created. The zygote's children do not inherit the mapping.
    pub(crate) fn map(memfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                LEN_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memfd,
                0,
            )
        }?;
        let word = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        let cell = Self { memfd, word };
        // SAFETY: the range is the mapping just made.
        unsafe { rustix::mm::madvise(base, LEN_BYTES, Advice::LinuxDontFork) }?;
        Ok(cell)
    }

    pub(crate) fn clear(&self) {
        // The system call that sends the request orders this store before it.
        self.get().store(0, Ordering::Relaxed);
    }

    /// Returns the id of the child that the last request created; `None` if it created none.
    pub(crate) fn pid(&self) -> Option<NonZeroU32> {
        // Acquire: read after the zygote has answered or died, so the kernel's store is visible.
        u32::try_from(self.get().load(Ordering::Acquire)).ok().and_then(NonZeroU32::new)
    }

    pub(super) fn address(&self) -> *mut i32 {
        self.get().as_ptr()
    }

    fn get(&self) -> &AtomicI32 {
        // SAFETY: `word` points to the start of the page that `self` mapped; an `AtomicI32` is valid for any bytes.
        unsafe { self.word.as_ref() }
    }
}

impl AsFd for PidCell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for PidCell {
    fn drop(&mut self) {
        // SAFETY: the mapping is `self`'s own, and no reference into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.word.as_ptr().cast(), LEN_BYTES) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping failed");
    }
}

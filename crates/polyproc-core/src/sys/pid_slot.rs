//! One word of memory shared with the zygote, to which the kernel writes the id of the child that it creates.
//!
//! | offset | bytes | field | writer, and when |
//! |---|---|---|---|
//! | 0 | 4 | pid | the parent: 0 before each request; the kernel: the child's id, inside `clone3(CLONE_PARENT_SETTID)`, before the child runs |
//!
//! By it the parent learns of a child whose zygote died before it answered: see "The zygote dies in a start" in
//! `docs/design/start.md`. There is one for each zygote, and one request at a time, so one word is enough. The parent creates
//! it (`process/server.rs`), and the zygote gets the descriptor as number 4 (`process/boot.rs`). The zygote is trusted not to
//! write it: the parent may kill the process with the id in it.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags};

use super::region::Region;
use crate::prim::{AtomicI32, Ordering};

/// The length of the file in bytes. The kernel maps a whole page, whatever its size.
const LEN_BYTES: usize = 4096;

/// The shared word. See the module's table. Owned by the program's handle of the zygote, and by the zygote.
#[derive(Debug)]
pub(crate) struct PidSlot {
    memfd: OwnedFd,
    page: Region,
}

impl PidSlot {
    /// Creates the word, which is 0.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM`.
    pub(crate) fn new() -> io::Result<Self> {
        let memfd = super::fd::memfd(c"polyproc-pid")?;
        rustix::fs::ftruncate(&memfd, LEN_BYTES as u64)?;
        Self::map(memfd)
    }

    /// Maps the word, for the zygote the one that its parent created. The zygote's children do not inherit the mapping.
    ///
    /// # Errors
    /// An error of `mmap(2)` or `madvise(2)`.
    pub(crate) fn map(memfd: OwnedFd) -> io::Result<Self> {
        let page = Region::map(memfd.as_fd(), 0, LEN_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        page.keep_from_children()?;
        Ok(Self { memfd, page })
    }

    /// Stores 0, before a request. The parent calls it while no request is pending.
    pub(crate) fn clear(&self) {
        // The system call that sends the request orders this store before it.
        self.get().store(0, Ordering::Relaxed);
    }

    /// Returns the id of the child that the last request created; `None` if it created none.
    pub(crate) fn pid(&self) -> Option<NonZeroU32> {
        // No Release pairs with this Acquire, as the kernel stores the word. The caller has received the answer of the
        // zygote, or has reaped it, and the kernel's store comes before both.
        u32::try_from(self.get().load(Ordering::Acquire)).ok().and_then(NonZeroU32::new)
    }

    /// Returns the address for `clone3(2)` or `clone(2)`, valid as long as `self` lives.
    pub(super) fn address(&self) -> *mut i32 {
        self.get().as_ptr()
    }

    /// Returns the word. Only the kernel and atomics access it.
    fn get(&self) -> &AtomicI32 {
        // SAFETY: the start of a page that is mapped for as long as `self` lives; an `AtomicI32` is valid for any bytes.
        unsafe { self.page.base().cast::<AtomicI32>().as_ref() }
    }
}

impl AsFd for PidSlot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

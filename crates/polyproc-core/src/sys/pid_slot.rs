//! One word of memory shared with the zygote, to which the kernel writes the id of the child that it creates.
//!
//! | offset | bytes | field | writer, and when |
//! |---|---|---|---|
//! | 0 | 4 | pid | the parent: 0 before each request; the kernel: the child's id, inside `clone3(CLONE_PARENT_SETTID)`, before the child runs |

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags};

use super::region::Region;
use crate::prim::{AtomicI32, Ordering};

const LEN_BYTES: usize = 4096;

/// The shared word. See the module's table.
#[derive(Debug)]
pub(crate) struct PidSlot {
    memfd: OwnedFd,
    page: Region,
}

impl PidSlot {
    pub(crate) fn new() -> io::Result<Self> {
        let memfd = super::fd::memfd(c"polyproc-pid")?;
        rustix::fs::ftruncate(&memfd, LEN_BYTES as u64)?;
        Self::map(memfd)
    }

    /// Maps the word, for the zygote the one that its parent created. The zygote's children do not inherit the mapping.
    pub(crate) fn map(memfd: OwnedFd) -> io::Result<Self> {
        let page = Region::map(memfd.as_fd(), 0, LEN_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        page.keep_from_children()?;
        Ok(Self { memfd, page })
    }

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

    pub(super) fn address(&self) -> *mut i32 {
        self.get().as_ptr()
    }

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

//! Memory files as byte slices, where no other process can write: by construction, or because the kernel's seals forbid it.
//!
//! | type | writers | user |
//! |---|---|---|
//! | [`UnsealedBytes`] | this process, by `&mut` | `shm::SharedBytesMut` |
//! | [`SealedBytes`] | no process | `shm::SharedBytes` |
//! | [`Borrowed`] | this process, to its own copy, by raw pointers; the lender, once the loan has ended | `shm::Loan` |
//!
//! The first two are the exceptions from the rule of [`memory`](super::memory) that no reference to shared bytes exists:
//! SAFETY.md, 5. None of the three takes a lock; the kernel frees a file when the last process has closed and unmapped it.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::memory::inspect_sealed;
use super::process_stamp::process_id;
use super::region::Region;
use crate::prim::{AtomicUsize, Ordering};

/// Bytes to fill, in a memory file that only this process has. Ends as [`SealedBytes`], or is dropped.
///
/// A forked child does not inherit the mapping, which would share the memory with its parent. There the value is empty, and
/// dropping it closes the descriptor only.
#[derive(Debug)]
pub(crate) struct UnsealedBytes {
    /// The file. Not sent to any process before it is sealed.
    memfd: OwnedFd,
    /// Not dropped in a copy of the process, where another mapping may have its address.
    slice: ManuallyDrop<Region>,
    /// The process that created the value. In any other process the mapping does not exist.
    pid: u32,
}

impl Drop for UnsealedBytes {
    fn drop(&mut self) {
        if self.pid == process_id() {
            // SAFETY: this is the only drop of the slice, which is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.slice) };
        }
    }
}

impl UnsealedBytes {
    /// Creates `len` zero bytes, with memory for all of them.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] or [`io::ErrorKind::StorageFull`] if the system has no memory for them,
    /// [`io::ErrorKind::FileTooLarge`] as `memory::create`, and the errors of `mmap(2)`.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        super::memory::check_available(len as u64)?; // before the file gets its length
        let memfd = super::fd::memfd(c"polyproc-bytes")?;
        super::memory::set_len(memfd.as_fd(), len as u64)?;
        if len > 0 {
            // Reserves the memory now, or fails now: a write to the file would raise `SIGBUS` if there were none.
            super::memory::allocate(memfd.as_fd(), 0, len as u64)?;
        }
        let slice = Region::map(memfd.as_fd(), 0, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        slice.keep_from_children()?;
        Ok(Self { memfd, slice: ManuallyDrop::new(slice), pid: process_id() })
    }

    /// Returns the bytes; none in a forked child.
    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.pid != process_id() {
            return &[]; // a copy of the process does not have the mapping
        }
        // SAFETY: mapped for as long as `self` lives; no other process has the file, and writing to it takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.slice.base().as_ptr(), self.slice.len()) }
    }

    /// Returns the bytes to write; none in a forked child.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.pid != process_id() {
            return &mut [];
        }
        // SAFETY: as in `as_slice`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.slice.base().as_ptr(), self.slice.len()) }
    }

    /// Seals the file, so that no process can change it afterwards, and maps it again, read-only. The bytes may be at another
    /// address.
    ///
    /// # Errors
    /// `EBUSY` if the file is still mapped for writing: in a forked child, where the parent has the mapping. `EMFILE`,
    /// `ENOMEM`.
    pub(crate) fn seal(self) -> io::Result<SealedBytes> {
        let memfd = self.memfd.try_clone()?;
        drop(self); // the kernel refuses to seal a file that is mapped for writing
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, seals)?;
        SealedBytes::map(memfd)
    }
}

/// Bytes in a memory file that no process can change, by the seals `WRITE` and `SHRINK`. A forked child inherits the mapping.
#[derive(Debug)]
pub(crate) struct SealedBytes {
    memfd: OwnedFd,
    slice: Region,
}

impl SealedBytes {
    /// Maps a sealed memory file, which may come from a peer. Seals cannot be removed, so the check holds for good.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the seals do not forbid changes of the file; `EINVAL` if it is not a memory file; or
    /// an error of `mmap(2)`.
    pub(crate) fn map(memfd: OwnedFd) -> io::Result<Self> {
        let (len, _) = inspect_sealed(memfd.as_fd(), SealFlags::WRITE | SealFlags::SHRINK)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let slice = Region::map(memfd.as_fd(), 0, len, ProtFlags::READ, MapFlags::SHARED)?;
        Ok(Self { memfd, slice })
    }

    /// Returns the bytes, all of the file.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives; the seals, which cannot be removed, forbid writing and shortening.
        unsafe { std::slice::from_raw_parts(self.slice.base().as_ptr(), self.slice.len()) }
    }
}

impl AsFd for SealedBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

/// A private mapping of a memory file that no process changes while it is open or mapped: writes go to this process's own copy.
///
/// Only the lender's protocol guarantees this ([`lease`](super::lease)): a faulty process of the same user may change the
/// bytes. So the value gives out addresses and no slices.
#[derive(Debug)]
pub(crate) struct Borrowed {
    /// `None` if this process keeps [`MOST_KEPT`] descriptors already. The mapping alone keeps the file open.
    memfd: Option<Kept>,
    slice: Region,
}

/// One of at most [`MOST_KEPT`] descriptors, counted in [`KEPT`] from before it is made until it is dropped.
#[derive(Debug)]
struct Kept(OwnedFd);

/// The maximum number of descriptors of loans in this process: received loans must not use up its table.
const MOST_KEPT: usize = 32;
/// The number of [`Kept`] values in this process. Copies of the process inherit number and values.
static KEPT: AtomicUsize = AtomicUsize::new(0);

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Borrowed {
    /// Maps the first `len` bytes of a memory file, which may come from a peer. The lease of the descriptor lasts as long as
    /// the mapping, whether the descriptor is kept or closed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the file is shorter than `len` bytes, or could be shortened; `EINVAL` if it is not a
    /// memory file; or an error of `mmap(2)`.
    pub(crate) fn map(memfd: OwnedFd, len: usize) -> io::Result<Self> {
        if super::memory::inspect(memfd.as_fd())?.0 < len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory file is too short"));
        }
        let slice = Region::map(memfd.as_fd(), 0, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?;
        let is_kept = KEPT.fetch_add(1, Ordering::Relaxed) < MOST_KEPT;
        let kept = Kept(memfd); // decrements the count on drop
        Ok(Self { memfd: is_kept.then_some(kept), slice })
    }

    /// Returns the address of the first byte and the number of bytes, which are readable and writable while `self` lives. The
    /// caller synchronises the accesses of several threads.
    pub(crate) fn as_raw(&self) -> (NonNull<u8>, usize) {
        (self.slice.base(), self.slice.len())
    }

    /// Returns the file, if its descriptor was kept.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(|kept| kept.0.as_fd())
    }
}

/// Writes one byte, as a borrower may.
#[cfg(test)]
pub(crate) fn write_to(bytes: &Borrowed, at: usize, byte: u8) {
    let (base, len) = bytes.as_raw();
    assert!(at < len);
    // SAFETY: `at` is below the length of the mapping at `base`.
    let place = unsafe { base.add(at) };
    // SAFETY: `place` is in the private mapping, into which no reference points.
    unsafe { place.write_volatile(byte) };
}

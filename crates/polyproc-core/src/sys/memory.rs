//! Mapped parts of memory files.
//!
//! Another process may write what is mapped at any time, so no reference to plain data is ever made: atomics are viewed
//! in place ([`Mapping::view`]), bytes are copied in and out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::shared::Shared;
use crate::prim::{AtomicU64, Ordering};

/// The size of a page, of which file offsets of mappings are multiples. Larger pages exist on aarch64: 64 KiB.
pub(crate) const PAGE: u64 = 65536;

/// A new memory file of `len_bytes` zeros that nobody can make shorter, nor keep others from mapping by further seals.
pub(crate) fn create(name: &std::ffi::CStr, len_bytes: u64) -> io::Result<OwnedFd> {
    let memfd = super::fd::memfd(name)?;
    set_len(memfd.as_fd(), len_bytes)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(memfd)
}

/// Length and inode of a memory file from a peer, which must be one that nobody can make shorter.
pub(crate) fn inspect(memfd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    inspect_sealed(memfd, SealFlags::SHRINK)
}

/// As [`inspect`], with these seals at least. A file of huge pages is none of ours: a read of it may be a `SIGBUS` at any time.
pub(super) fn inspect_sealed(memfd: BorrowedFd<'_>, seals: SealFlags) -> io::Result<(u64, u64)> {
    let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if !rustix::fs::fcntl_get_seals(memfd)?.contains(seals) {
        return invalid("a memory file that a peer could make shorter, or change");
    }
    if rustix::fs::fstatfs(memfd)?.f_type == rustix::fs::FsWord::from(libc::HUGETLBFS_MAGIC) {
        return invalid("a memory file of huge pages");
    }
    let stat = rustix::fs::fstat(memfd)?;
    Ok((u64::try_from(stat.st_size).map_err(io::Error::other)?, stat.st_ino))
}

/// Makes the file at least `len_bytes` long.
pub(crate) fn grow(memfd: BorrowedFd<'_>, len_bytes: u64) -> io::Result<()> {
    if inspect(memfd)?.0 < len_bytes {
        set_len(memfd, len_bytes)?;
    }
    Ok(())
}

/// # Errors
/// [`io::ErrorKind::FileTooLarge`] where the process's limit (`RLIMIT_FSIZE`) does not allow it: the kernel would send `SIGXFSZ`.
pub(super) fn set_len(memfd: BorrowedFd<'_>, len_bytes: u64) -> io::Result<()> {
    check_limit(len_bytes)?;
    Ok(rustix::fs::ftruncate(memfd, len_bytes)?)
}

/// As [`set_len`] fails.
pub(super) fn check_limit(len_bytes: u64) -> io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    match limit {
        Some(limit) if limit < len_bytes => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("a memory file of {len_bytes} bytes, where files may have {limit} (`ulimit -f`)"),
        )),
        _ => Ok(()),
    }
}

/// So much is reserved at a time: a signal makes the kernel undo what the call under way has reserved (Linux before 6.12).
const RESERVE_STEP: u64 = 16 << 20;

/// Less than this, all together, is reserved without a look at what is available.
const LOOKED_FOR: u64 = 64 << 20;

/// Checks that so much memory is available, where it is much, or much was asked for since it was last looked.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`].
pub(crate) fn look_for(len_bytes: u64) -> io::Result<()> {
    static UNSEEN: AtomicU64 = AtomicU64::new(0);
    if UNSEEN.fetch_add(len_bytes, Ordering::Relaxed).saturating_add(len_bytes) < LOOKED_FOR {
        return Ok(());
    }
    UNSEEN.store(0, Ordering::Relaxed);
    super::available::check(len_bytes)
}

/// Has the kernel find memory for a part of the file now: a write there would be a `SIGBUS` when there is none.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`] or [`io::ErrorKind::StorageFull`] when there is none: at once where so much is not available, as
/// the kernel would end other processes first.
pub(crate) fn reserve(memfd: BorrowedFd<'_>, offset: u64, len_bytes: u64) -> io::Result<()> {
    look_for(len_bytes)?;
    allocate(memfd, offset, len_bytes)
}

/// Reserves memory as [`reserve`] does, without checking what is available: the caller has called [`look_for`].
///
/// # Errors
/// As [`reserve`].
pub(crate) fn allocate(memfd: BorrowedFd<'_>, offset: u64, len_bytes: u64) -> io::Result<()> {
    let end = offset.checked_add(len_bytes).ok_or(io::ErrorKind::OutOfMemory)?;
    for start in (offset..end).step_by(usize::try_from(RESERVE_STEP).unwrap_or(usize::MAX)) {
        let len = RESERVE_STEP.min(end - start);
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(memfd, FallocateFlags::KEEP_SIZE, start, len))?;
    }
    Ok(())
}

/// How many bytes of the file have memory of their own: what was reserved or written.
pub(crate) fn reserved_bytes(memfd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(memfd)?.st_blocks).unwrap_or(0) * 512)
}

/// Whether nothing was ever written to the file.
pub(crate) fn is_untouched(memfd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstat(memfd)?.st_blocks == 0)
}

/// Writes bytes at the file's `offset`.
pub(crate) fn write(memfd: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(memfd, bytes, offset))?;
        bytes = bytes.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}

/// Gives the memory of whole pages in a part of the file back; they read as zeros then.
pub(crate) fn release(memfd: BorrowedFd<'_>, offset: u64, len_bytes: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Fails where the system has no holes: then the memory stays until the file goes.
    let _ = rustix::io::retry_on_intr(|| rustix::fs::fallocate(memfd, flags, offset, len_bytes));
}

/// Writes over a part of the file, as a process that went wild might.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn overwrite(memfd: BorrowedFd<'_>, offset: u64, bytes: &[u8]) {
    let written = rustix::io::pwrite(memfd, bytes, offset);
    assert_eq!(written, Ok(bytes.len()));
}

/// A `T` in memory of its own, never freed, that the kernel fills with zeros in every copy of this process.
pub(super) fn wiped_on_fork<T: Default>() -> io::Result<*mut T> {
    let len = rustix::param::page_size().max(size_of::<T>());
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
    // SAFETY: the range is the mapping just made.
    let wiped = unsafe { rustix::mm::madvise(base, len, rustix::mm::Advice::LinuxWipeOnFork) };
    if let Err(error) = wiped {
        // SAFETY: as above, and nobody else knows of it.
        let _ = unsafe { rustix::mm::munmap(base, len) };
        return Err(error.into());
    }
    let page = base.cast::<T>();
    // SAFETY: a page has room and alignment for it, and nobody else knows of it.
    unsafe { page.write(T::default()) };
    Ok(page)
}

/// Sets mode 0600, so that no other user can reopen the file for writing.
pub(crate) fn close_to_other_users(memfd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fchmod(memfd, Mode::RUSR | Mode::WUSR)?)
}

/// A read-only descriptor of a memory file, which no other user can reopen for writing. Without `/proc`, a writable duplicate.
pub(crate) fn reopen_read_only(memfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    close_to_other_users(memfd)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => memfd.try_clone_to_owned(),
        result => Ok(result?),
    }
}

/// What a [`Mapping`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A part of a memory file, readable and, unless it was mapped otherwise, writable, until it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    access: Access,
    base: NonNull<u8>,
    start: u64,
    len: usize,
}

// SAFETY: the memory belongs to `self` and is only touched through atomics and copies.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the bytes from `start` to `end`, which the file has (see [`inspect`]).
    pub(crate) fn new(memfd: BorrowedFd<'_>, start: u64, end: u64) -> io::Result<Self> {
        Self::with_access(memfd, Access::Write, start, end)
    }

    /// As [`Mapping::new`]; of one to read, bytes are copied out, and atomics only loaded, relaxed.
    pub(crate) fn with_access(memfd: BorrowedFd<'_>, access: Access, start: u64, end: u64) -> io::Result<Self> {
        Self::map(memfd, access, start, end, MapFlags::SHARED)
    }

    /// As [`Mapping::new`], with all its pages: some four times as fast as the faults that would find them one by one.
    pub(crate) fn with_pages(memfd: BorrowedFd<'_>, start: u64, end: u64) -> io::Result<Self> {
        Self::map(memfd, Access::Write, start, end, MapFlags::SHARED | MapFlags::POPULATE)
    }

    fn map(memfd: BorrowedFd<'_>, access: Access, start: u64, end: u64, flags: MapFlags) -> io::Result<Self> {
        let len = end.checked_sub(start).and_then(|len| usize::try_from(len).ok()).filter(|len| *len > 0);
        let len = len.ok_or(Errno::INVAL)?;
        if inspect(memfd)?.0 < end {
            return Err(Errno::INVAL.into());
        }
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, memfd, start) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { access, base, start, len })
    }

    /// Where in the file it starts.
    #[inline]
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Where in the file it ends.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// The address of `len` bytes at the file's `offset`; `None` when not all of them are in here.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        if from.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `from` is not above `self.len`, which is the length of the mapping at `base`.
        Some(unsafe { self.base.add(from) })
    }

    /// The `T` at the file's `offset`; `None` when it is not all in here, or not aligned.
    #[inline]
    pub(crate) fn view<T: Shared>(&self, offset: u64) -> Option<&T> {
        let at = self.at(offset, size_of::<T>())?.cast::<T>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: the bytes are mapped for as long as `self` lives, and aligned; `Shared` says the rest.
        Some(unsafe { at.as_ref() })
    }

    /// The address of `len` bytes at the file's `offset` to write to.
    #[inline]
    fn at_to_write(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        self.at(offset, len).filter(|_| self.access == Access::Write)
    }

    /// Copies `bytes` to the file's `offset`; `None` when they do not fit in here.
    #[inline]
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        let to = self.at_to_write(offset, bytes.len())?;
        // SAFETY: `to` has room, and private memory does not overlap a mapping.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Some(())
    }

    /// The words at the file's `offset`; `None` when they are not all in here.
    #[inline]
    pub(crate) fn copy_words<const N: usize>(&self, offset: u64) -> Option<[u64; N]> {
        let from = self.at(offset, size_of::<[u64; N]>())?.cast::<[u64; N]>();
        // SAFETY: `from` has as many bytes, of which any are valid.
        Some(unsafe { from.read_unaligned() })
    }

    /// Puts `len` bytes at the file's `offset` at the end of `out`; `None` when they are not all in here, or `out` has no
    /// memory for them.
    #[inline]
    pub(crate) fn copy_out(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Option<()> {
        let from = self.at(offset, len)?;
        out.try_reserve(len).ok()?;
        let room = NonNull::from(out.spare_capacity_mut()).cast::<u8>();
        // SAFETY: `from` has `len` bytes, `room` has as many after `reserve`; private memory does not overlap a mapping.
        unsafe { room.copy_from_nonoverlapping(from, len) };
        // SAFETY: `len` bytes behind the old end were just written.
        unsafe { out.set_len(out.len() + len) };
        Some(())
    }
}

/// The length of the words by which [`Mapping::store`] and [`Mapping::load`] go.
const WORD: usize = size_of::<u64>();

/// Memory that several threads of one process read and write with no other order than their own. All of it is accessed as whole
/// aligned words, each of them atomic.
impl Mapping {
    /// The word that holds the byte at `offset` and the bytes before it in that word.
    fn word(&self, offset: u64) -> Option<(&AtomicU64, usize)> {
        let at = self.at(offset, 1)?;
        let before = at.addr().get() % WORD;
        // SAFETY: mappings begin at a page, so the start of the word is in here; where the file ends in it, the page does not.
        let word = unsafe { at.sub(before) }.cast::<AtomicU64>();
        // SAFETY: aligned, mapped for as long as `self` lives, and any bytes are valid.
        Some((unsafe { word.as_ref() }, before))
    }

    /// Copies `bytes` to the file's `offset`; `None` when they do not fit in here.
    pub(crate) fn store(&self, offset: u64, mut bytes: &[u8]) -> Option<()> {
        self.at_to_write(offset, bytes.len())?;
        let mut offset = offset;
        while !bytes.is_empty() {
            let (word, before) = self.word(offset)?;
            let part = bytes.split_off(..bytes.len().min(WORD - before))?;
            match <[u8; WORD]>::try_from(part) {
                Ok(whole) => word.store(u64::from_ne_bytes(whole), Ordering::Relaxed),
                Err(_) => {
                    let change = |old: u64| {
                        let mut new = old.to_ne_bytes();
                        new.get_mut(before..before + part.len())?.copy_from_slice(part);
                        Some(u64::from_ne_bytes(new))
                    };
                    word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).ok()?;
                }
            }
            offset += part.len() as u64;
        }
        Some(())
    }

    /// Puts `len` bytes at the file's `offset` at the end of `out`; `None` when they are not all in here.
    pub(crate) fn load(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Option<()> {
        self.at(offset, len)?;
        out.try_reserve(len).ok()?;
        let (mut offset, mut left) = (offset, len);
        while left > 0 {
            let (word, before) = self.word(offset)?;
            let count = left.min(WORD - before);
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            out.extend_from_slice(bytes.get(before..before + count)?);
            offset += count as u64;
            left -= count;
        }
        Some(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is `self`'s own, and no reference into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_adds_seals() {
        let memfd = create(c"polyproc-test", PAGE).expect("a memory file");
        for seal in [SealFlags::GROW, SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            assert_eq!(rustix::fs::fcntl_add_seals(&memfd, seal), Err(Errno::PERM), "{seal:?}");
        }
        assert!(rustix::fs::ftruncate(memfd.as_fd(), 0).is_err(), "nor makes it shorter");
    }

    #[test]
    fn what_is_not_available_is_not_reserved() {
        // In a file that takes none at all, so that nothing happens to the machine if this fails.
        let null = crate::sys::fd::dev_null().expect("/dev/null");
        for len in [1 << 46, u64::MAX - 1] {
            let error = reserve(null.as_fd(), 4096, len).expect_err("more than any machine has");
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{error}");
            assert!(error.to_string().contains("available"), "{error}");
        }
    }

    #[test]
    fn no_memory_file_can_be_executed() {
        let memfd = create(c"polyproc-test", PAGE).expect("a memory file");
        let mode = rustix::fs::fstat(&memfd).expect("a file").st_mode & 0o111;
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::NOEXEC_SEAL;
        if matches!(rustix::fs::memfd_create(c"probe", flags), Err(Errno::INVAL)) {
            return eprintln!("not tried: Linux before 6.3");
        }
        assert_eq!(mode, 0);
        assert!(rustix::fs::fcntl_get_seals(&memfd).expect("seals").bits() & 0x20 != 0, "F_SEAL_EXEC");
    }
}

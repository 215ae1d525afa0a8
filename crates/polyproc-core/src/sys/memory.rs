//! Memory files and mapped parts of them: the base of `shm`, `pool`, `sync` and the long messages of `conn`.
//!
//! Another process may write to mapped memory at any time, so no reference to plain data is ever created: atomics are accessed
//! in place ([`Mapping::view`]), bytes are copied in and out. Memory that no other process can write is in
//! [`bytes`](super::bytes).
//!
//! The life of a memory file:
//!
//! 1. [`create`] sets its length and seals it against shrinking. So a range below its length stays below its length, and a
//!    mapping of that range stays valid whatever a peer does. [`grow`] may lengthen it later.
//! 2. [`check_available`] and [`allocate`], or both as [`reserve`], give memory to a part of it. Without that, the first access to a
//!    page allocates the page, and raises `SIGBUS` if the system has no memory left.
//! 3. A process maps a part of it by a [`Mapping`]. A peer gets the descriptor in a message, and checks it before it trusts the
//!    length ([`inspect`]; [`Mapping::new`] does so).
//! 4. [`release`] returns the memory of a part. The kernel frees the file with its last descriptor and mapping, so a death
//!    leaves nothing to clean up.
//!
//! The owner of each byte, locks and memory orders are defined by the protocols of the users: see `docs/design/segment.md`,
//! `loan.md` and `memory.md`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::region::Region;
use super::shared::Shared;
use crate::prim::{AtomicU64, Ordering};

/// The largest page size of the supported systems in bytes (64 KiB, on aarch64). The file offsets of mappings are multiples of
/// it, so that a file has the same layout on every system.
pub(crate) const PAGE: u64 = 65536;

/// Creates a memory file of `len_bytes` zeros. It is sealed: no process can shorten it, or add seals that keep others from
/// mapping it. It has no memory yet, see [`reserve`]. `name` appears only in `/proc/PID/fd` and `/proc/PID/maps`.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] as [`set_len`]; `EMFILE`, `ENFILE` or `ENOMEM` if the system has no descriptor or memory
/// left.
pub(crate) fn create(name: &std::ffi::CStr, len_bytes: u64) -> io::Result<OwnedFd> {
    let memfd = super::fd::memfd(name)?;
    set_len(memfd.as_fd(), len_bytes)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(memfd)
}

/// Creates a memory file that contains `bytes`, for a message that is too long for its socket (`conn::channel`).
///
/// It is not sealed: the receiver copies it by [`read`], and maps no part of it.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`] as [`check_available`], [`io::ErrorKind::FileTooLarge`] as [`set_len`], and errors of the system.
pub(crate) fn create_with(bytes: &[u8]) -> io::Result<OwnedFd> {
    check_available(bytes.len() as u64)?;
    check_limit(bytes.len() as u64)?;
    let mut file = File::from(super::fd::memfd(c"polyproc-frame")?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Returns the first `len_bytes` bytes of a memory file, whatever its shared offset is.
///
/// The descriptor comes from a peer and is not trusted. Files of other kinds are refused, since reading one may block forever.
/// So is a file with less memory than `len_bytes`, which would cost the reader more memory than the peer. A peer that still
/// writes to the file makes the result a mix of old and new bytes, and nothing else.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the file is shorter or has less memory; [`io::ErrorKind::InvalidData`] for a file of
/// huge pages; [`io::ErrorKind::OutOfMemory`] if this process cannot allocate `len_bytes`; `EINVAL` if it is not a memory file.
pub(crate) fn read(memfd: OwnedFd, len_bytes: usize) -> io::Result<Vec<u8>> {
    inspect_sealed(memfd.as_fd(), SealFlags::empty())?;
    if reserved_bytes(memfd.as_fd())? < len_bytes as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let file = File::from(memfd);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len_bytes, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Returns length in bytes and inode number of a memory file from a peer. The length may grow afterwards, but not shrink. The
/// inode number identifies the file while it is open: a process has one object per file (`shm::registry`).
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the file could be shortened, or has huge pages; `EINVAL` if it is not a memory file.
pub(crate) fn inspect(memfd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    inspect_sealed(memfd, SealFlags::SHRINK)
}

/// As [`inspect`], but requires `seals`, all of them, instead of the one against shrinking. Refuses files of huge pages:
/// reading one may raise `SIGBUS` at any time.
///
/// # Errors
/// As [`inspect`].
pub(super) fn inspect_sealed(memfd: BorrowedFd<'_>, seals: SealFlags) -> io::Result<(u64, u64)> {
    let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if !rustix::fs::fcntl_get_seals(memfd)?.contains(seals) {
        return invalid("the memory file is not sealed against shrinking and writing");
    }
    if rustix::fs::fstatfs(memfd)?.f_type == rustix::fs::FsWord::from(libc::HUGETLBFS_MAGIC) {
        return invalid("the memory file has huge pages");
    }
    let stat = rustix::fs::fstat(memfd)?;
    Ok((u64::try_from(stat.st_size).map_err(io::Error::other)?, stat.st_ino))
}

/// Makes the file at least `len_bytes` long. No other thread or process grows this file at the same time: the caller holds the
/// allocator's lock, or is its only allocating process.
///
/// # Errors
/// As [`inspect`] and [`set_len`].
pub(crate) fn grow(memfd: BorrowedFd<'_>, len_bytes: u64) -> io::Result<()> {
    if inspect(memfd)?.0 < len_bytes {
        set_len(memfd, len_bytes)?;
    }
    Ok(())
}

/// Sets the length of the file.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] if `len_bytes` exceeds the limit of this process (`RLIMIT_FSIZE`): the kernel would send
/// `SIGXFSZ`. `EPERM` if a seal forbids the change.
pub(super) fn set_len(memfd: BorrowedFd<'_>, len_bytes: u64) -> io::Result<()> {
    check_limit(len_bytes)?;
    Ok(rustix::fs::ftruncate(memfd, len_bytes)?)
}

/// Checks `len_bytes` against `RLIMIT_FSIZE`. Fails as [`set_len`] does.
pub(super) fn check_limit(len_bytes: u64) -> io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    match limit {
        Some(limit) if limit < len_bytes => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("cannot create a memory file of {len_bytes} bytes: the limit is {limit} bytes (`ulimit -f`)"),
        )),
        _ => Ok(()),
    }
}

/// The number of bytes reserved by one system call. A signal makes the kernel undo the whole call (Linux before 6.12).
const RESERVE_STEP: u64 = 16 << 20;

/// The number of bytes, in total, that may be reserved between two checks of the available memory.
const CHECK_EVERY: u64 = 64 << 20;

/// Checks that `len_bytes` of memory are available, if the requests since the last check add up to [`CHECK_EVERY`] bytes. A
/// check reads several files of `/proc` and `/sys`, which small requests should not pay for.
///
/// It reserves nothing: another process may take the memory in between. The sum is one per process, and only approximate when
/// several threads add to it.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`] if they are not available.
pub(crate) fn check_available(len_bytes: u64) -> io::Result<()> {
    static UNCHECKED: AtomicU64 = AtomicU64::new(0);
    if UNCHECKED.fetch_add(len_bytes, Ordering::Relaxed).saturating_add(len_bytes) < CHECK_EVERY {
        return Ok(());
    }
    UNCHECKED.store(0, Ordering::Relaxed);
    super::available::check(len_bytes)
}

/// Reserves memory for a part of the file. Without memory, a write there would raise `SIGBUS`.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`] or [`io::ErrorKind::StorageFull`] if there is not enough memory. The available memory is
/// checked first, as the kernel would kill other processes before the call fails.
pub(crate) fn reserve(memfd: BorrowedFd<'_>, offset: u64, len_bytes: u64) -> io::Result<()> {
    check_available(len_bytes)?;
    allocate(memfd, offset, len_bytes)
}

/// As [`reserve`], without the check of the available memory: the caller has called [`check_available`]. Does not change the length of
/// the file, or pages that have memory already.
///
/// # Errors
/// As [`reserve`]. The part before the step that failed keeps its memory.
pub(crate) fn allocate(memfd: BorrowedFd<'_>, offset: u64, len_bytes: u64) -> io::Result<()> {
    let end = offset.checked_add(len_bytes).ok_or(io::ErrorKind::OutOfMemory)?;
    for start in (offset..end).step_by(usize::try_from(RESERVE_STEP).unwrap_or(usize::MAX)) {
        let len = RESERVE_STEP.min(end - start);
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(memfd, FallocateFlags::KEEP_SIZE, start, len))?;
    }
    Ok(())
}

/// Returns how many bytes of the file have memory: the bytes that were reserved or written, in whole pages. The memory budget
/// counts this number (`shm::budget`), and it limits copies of a peer's data.
pub(crate) fn reserved_bytes(memfd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(memfd)?.st_blocks).unwrap_or(0) * 512)
}

/// Returns whether no byte of the file has memory: none was reserved or written.
pub(crate) fn is_untouched(memfd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstat(memfd)?.st_blocks == 0)
}

/// Writes all of `bytes` at the file's `offset`. Unlike a store through a mapping, it fails if the system has no memory for a
/// page.
///
/// # Errors
/// An error of `pwrite(2)`. Some of the bytes may be written then.
pub(crate) fn write(memfd: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(memfd, bytes, offset))?;
        bytes = bytes.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}

/// Releases the memory of the whole pages in a part of the file, and zeroes the rest of the part. It reads as zeros afterwards,
/// in every mapping. Another write there needs a [`reserve`] before it. The caller owns the part: a peer that still uses it
/// reads zeros.
pub(crate) fn release(memfd: BorrowedFd<'_>, offset: u64, len_bytes: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Fails where the file system does not support holes: the memory then stays until the file is closed.
    let _ = rustix::io::retry_on_intr(|| rustix::fs::fallocate(memfd, flags, offset, len_bytes));
}

/// Overwrites a part of the file, as a faulty peer might.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn overwrite(memfd: BorrowedFd<'_>, offset: u64, bytes: &[u8]) {
    let written = rustix::io::pwrite(memfd, bytes, offset);
    assert_eq!(written, Ok(bytes.len()));
}

/// Returns a `T` in its own pages, which are never freed and which the kernel fills with zeros in every copy of this process
/// (`MADV_WIPEONFORK`). `T` must be valid for zeros and consist of atomics, as any thread may access it: see
/// [`process_stamp`](super::process_stamp), the only user.
///
/// # Errors
/// `EINVAL` where the kernel has no such pages (Linux before 4.14, some emulators); `ENOMEM`.
pub(super) fn wiped_on_fork<T: Default>() -> io::Result<*mut T> {
    let len = rustix::param::page_size().max(size_of::<T>());
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
    // SAFETY: the range is the mapping just made.
    let wiped = unsafe { rustix::mm::madvise(base, len, rustix::mm::Advice::LinuxWipeOnFork) };
    if let Err(error) = wiped {
        // SAFETY: as above, and no other code has the address.
        let _ = unsafe { rustix::mm::munmap(base, len) };
        return Err(error.into());
    }
    let page = base.cast::<T>();
    // SAFETY: the mapping has room and alignment for a `T`, and no other code has the address.
    unsafe { page.write(T::default()) };
    Ok(page)
}

/// Sets mode 0600, so that no other user can reopen the file for writing through `/proc`. Processes of the same user still can.
pub(crate) fn close_to_other_users(memfd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fchmod(memfd, Mode::RUSR | Mode::WUSR)?)
}

/// Returns a read-only descriptor of a memory file, which no other user can reopen for writing. Without `/proc`, returns a
/// writable duplicate. A pool gives it to its workers, which read their tasks from memory that only the parent writes
/// (`pool/shared/orders.rs`).
///
/// # Errors
/// `EMFILE` or `ENFILE` if there is no descriptor left.
pub(crate) fn reopen_read_only(memfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    close_to_other_users(memfd)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => memfd.try_clone_to_owned(),
        result => Ok(result?),
    }
}

/// The access that a [`Mapping`] allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Bytes are copied out and atomics loaded, relaxed. The functions that copy in return `None`; a store through a view would
    /// raise `SIGSEGV`.
    Read,
    /// Bytes are copied in and out, atomics used in any way.
    Write,
}

/// A mapped part of a memory file, unmapped on drop: readable and, unless mapped with [`Access::Read`], writable.
///
/// Its owner is a handle of this process, such as a `Segment` or the ledger; a forked child inherits the same memory. Offsets
/// count from the start of the file, not of the mapping. Every access is checked against the mapped range, so an offset may
/// come from a peer.
///
/// [`Mapping::copy_in`] and [`Mapping::copy_out`] are for bytes that only one thread of this program accesses at a time, as a
/// protocol guarantees (an owned block); a faulty peer can make a copy a mix of old and new bytes. [`Mapping::store`] and
/// [`Mapping::load`] are for bytes without such a protocol.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The access with which the kernel mapped the region.
    access: Access,
    /// The mapped bytes.
    region: Region,
    /// The file offset of the first mapped byte, a multiple of the page size.
    start: u64,
}

impl Mapping {
    /// Maps the bytes from `start` to `end`, to read and write.
    ///
    /// # Errors
    /// `EINVAL` if the range is empty, does not begin at a page or does not end inside the file; otherwise as [`inspect`];
    /// `ENOMEM` if this process has no address space left; `EACCES` or `EPERM` if the descriptor does not allow the access.
    pub(crate) fn new(memfd: BorrowedFd<'_>, start: u64, end: u64) -> io::Result<Self> {
        Self::with_access(memfd, Access::Write, start, end)
    }

    /// As [`Mapping::new`]. With [`Access::Read`], bytes are only copied out and atomics only loaded, relaxed: Rust defines no
    /// stronger atomic access to read-only memory.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub(crate) fn with_access(memfd: BorrowedFd<'_>, access: Access, start: u64, end: u64) -> io::Result<Self> {
        Self::map(memfd, access, start, end, MapFlags::SHARED)
    }

    /// As [`Mapping::new`], with page-table entries for all pages: about four times as fast as one fault a page. For files that
    /// are used as a whole (`shm::loan`).
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub(crate) fn with_pages(memfd: BorrowedFd<'_>, start: u64, end: u64) -> io::Result<Self> {
        Self::map(memfd, Access::Write, start, end, MapFlags::SHARED | MapFlags::POPULATE)
    }

    /// Checks the range against the file, and maps it with `flags`, which are `MAP_SHARED` and possibly more.
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
        Ok(Self { access, region: Region::map(memfd, start, len, protection, flags)?, start })
    }

    /// Returns the file offset of the first byte.
    #[inline]
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Returns the file offset after the last byte.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.start + self.region.len() as u64
    }

    /// Returns the address of `len` bytes at the file's `offset`; `None` if not all of them are mapped here.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        if from.checked_add(len)? > self.region.len() {
            return None;
        }
        // SAFETY: `from` is at most the length of the region.
        Some(unsafe { self.region.base().add(from) })
    }

    /// Returns the `T` at the file's `offset`; `None` if it is not aligned, or not all of it is mapped here.
    ///
    /// Any bytes are a valid `T` ([`Shared`]), so nothing is known of the values: the caller checks each before it uses it as
    /// an offset, length or index.
    #[inline]
    pub(crate) fn view<T: Shared>(&self, offset: u64) -> Option<&T> {
        let at = self.at(offset, size_of::<T>())?.cast::<T>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: the bytes are aligned and mapped for as long as `self` lives; by `Shared` any bytes are valid, and a peer may
        // write them.
        Some(unsafe { at.as_ref() })
    }

    /// As [`Mapping::at`]; `None` also if the mapping is read-only.
    #[inline]
    fn at_to_write(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        self.at(offset, len).filter(|_| self.access == Access::Write)
    }

    /// Copies `bytes` to the file's `offset`; `None` if not all of that range is mapped here and writable.
    #[inline]
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        let to = self.at_to_write(offset, bytes.len())?;
        // SAFETY: `to` has room for the bytes, which are in private memory and so do not overlap a mapping.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Some(())
    }

    /// Returns the words at the file's `offset`; `None` if not all of them are mapped here.
    #[inline]
    pub(crate) fn copy_words<const N: usize>(&self, offset: u64) -> Option<[u64; N]> {
        let from = self.at(offset, size_of::<[u64; N]>())?.cast::<[u64; N]>();
        // SAFETY: `from` has the bytes of an array of `N` words, and any bytes are valid.
        Some(unsafe { from.read_unaligned() })
    }

    /// Appends the `len` bytes at the file's `offset` to `out`; `None` if not all of them are mapped here, or if `out` cannot
    /// grow.
    #[inline]
    pub(crate) fn copy_out(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Option<()> {
        let from = self.at(offset, len)?;
        out.try_reserve(len).ok()?;
        let room = NonNull::from(out.spare_capacity_mut()).cast::<u8>();
        // SAFETY: `from` has `len` bytes, and so has `room` after `try_reserve`; private memory does not overlap a mapping.
        unsafe { room.copy_from_nonoverlapping(from, len) };
        // SAFETY: the `len` bytes after the old end were just written.
        unsafe { out.set_len(out.len() + len) };
        Some(())
    }
}

/// The length in bytes of the words that [`Mapping::store`] and [`Mapping::load`] access.
const WORD: usize = size_of::<u64>();

/// Access to memory that several threads of one process read and write without synchronisation: as aligned words, each of them
/// atomic.
impl Mapping {
    /// Returns the word that contains the byte at `offset`, and the number of bytes before that byte in the word.
    fn word(&self, offset: u64) -> Option<(&AtomicU64, usize)> {
        let at = self.at(offset, 1)?;
        let before = at.addr().get() % WORD;
        // SAFETY: a mapping begins at a page, so the start of the word is mapped; so is its end, as a page is mapped whole even
        // where the file ends in it.
        let word = unsafe { at.sub(before) }.cast::<AtomicU64>();
        // SAFETY: the word is aligned and mapped for as long as `self` lives; any bytes are valid.
        Some((unsafe { word.as_ref() }, before))
    }

    /// Copies `bytes` to the file's `offset`; `None`, with nothing written, if not all of that range is mapped here and
    /// writable.
    ///
    /// Whole words are stored, parts of words by a compare-and-swap, so neighbouring bytes that another thread writes are not
    /// lost. Each word is written at once, but not all of them together.
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

    /// Appends the `len` bytes at the file's `offset` to `out`; `None` if not all of them are mapped here, or if `out` cannot
    /// grow. A write at the same time gives a mix of old and new words.
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
        // `/dev/null` has no memory to reserve, so a failure of this test does not exhaust the machine's.
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

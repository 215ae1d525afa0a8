//! [`Segment`]: a memory file that grows and never shrinks, mapped region by region.
//!
//! Users: the allocators [`Arena`](super::Arena) and [`Blocks`](super::Blocks), through them queues and pools; `pool::orders`,
//! `pool::result_ring` and `sync::places` also access fixed offsets. `docs/design/segment.md`, "Growth", lists the steps of
//! growth and what a death leaves.
//!
//! A region is mapped as a whole when it is first accessed, and stays mapped, so references into it live as long as the
//! segment. Each new region is at least as large as all before it together, where limits allow, so there are few, whatever the
//! size. A part of the file takes no memory until it is written to or reserved.
//!
//! Only the allocator grows the file, under its lock if several processes allocate. Every other call is safe from any thread
//! at any time. Offsets come from shared memory: each access checks that it lies in one region and behind the header, and
//! fails with [`MemoryError::Corrupt`] otherwise. An access to memory that was not reserved raises `SIGBUS` if the system has
//! none left, so allocators reserve first ([`Segment::claim`]).
//!
//! Bytes are copied in and out, never borrowed, as a peer may write them at any time. This module orders nothing between
//! processes: the structures in the segment do.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::MemoryError;
use super::budget::{Account, Share};
use super::size_class::PAGED;
use crate::prim::{AtomicU64, Ordering, fence};
use crate::sys::memory::{self, Access, Mapping, PAGE};
use crate::sys::shared::{Shared, shared};

/// Enough for 2^47 bytes when each region doubles the file.
const REGIONS: usize = 32;
/// Copies of at least this many bytes are checked against the bytes that the file has reserved.
const CHECKED_LEN: u64 = 1 << 20;

shared! {
    /// The ends of the regions. The first region ends at the initial length of the file.
    ///
    /// | offset | bytes | field | meaning; writer and time |
    /// |---|---|---|---|
    /// | 0 | 8 each | ends | file offset of the end of each region, 0 for none; the process that adds it, once the file is long enough, under the allocator's lock |
    pub(crate) struct Regions { ends: [AtomicU64; REGIONS], }
}

/// A memory file, as one process has mapped it. It is unmapped on drop; the kernel frees the file when no process has it.
#[derive(Debug)]
pub(crate) struct Segment {
    memfd: OwnedFd,
    /// With [`Access::Read`], only copies out are possible, and loads of the table of regions.
    access: Access,
    /// See [`Segment::inode`].
    inode: u64,
    /// The offset of [`Regions`] in the first region.
    table: u64,
    /// The offset at which data begins. A lower offset, as read from shared memory, is refused as corrupt.
    data: u64,
    /// The mapping of the first region, which holds the fixed parts.
    first: Mapping,
    /// Its account in the budget, if its memory is counted.
    account: Option<Account>,
    /// The mappings of the further regions, from the second on.
    further: [OnceLock<Mapping>; REGIONS - 1],
}

impl Segment {
    /// Creates a segment of `len_bytes` bytes (whole [`PAGE`]s), with the table of its regions at `table`, and data from
    /// `data` on. None of its memory is reserved yet.
    ///
    /// # Errors
    /// If the system has no memory, address space or descriptor left.
    ///
    /// # Panics
    /// If the table does not lie in the first region.
    pub(crate) fn create(name: &CStr, len_bytes: u64, table: u64, data: u64) -> io::Result<Self> {
        let segment = Self::map(memory::create(name, len_bytes)?, Access::Write, len_bytes, table, data)?;
        // Pairs with the Acquire in `add_region`. No other process has the file yet.
        segment.regions().ends[0].store(len_bytes, Ordering::Release);
        Ok(segment)
    }

    /// Opens a segment that a peer created with the same arguments. The contents are not checked.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::InvalidInput`] if the file could be shortened or is too short; else
    /// as [`Segment::create`].
    pub(crate) fn open(memfd: OwnedFd, len_bytes: u64, table: u64, data: u64) -> io::Result<Self> {
        Self::map(memfd, Access::Write, len_bytes, table, data)
    }

    /// As [`Segment::open`], with read-only mappings: bytes can only be copied out.
    pub(crate) fn open_read_only(memfd: OwnedFd, len_bytes: u64, table: u64, data: u64) -> io::Result<Self> {
        Self::map(memfd, Access::Read, len_bytes, table, data)
    }

    fn map(memfd: OwnedFd, access: Access, len_bytes: u64, table: u64, data: u64) -> io::Result<Self> {
        let (_, inode) = memory::inspect(memfd.as_fd())?;
        let first = Mapping::with_access(memfd.as_fd(), access, 0, len_bytes)?;
        assert!(first.view::<Regions>(table).is_some(), "the table lies in the first region");
        let further = [const { OnceLock::new() }; REGIONS - 1];
        Ok(Self { memfd, access, inode, table, data, first, account: None, further })
    }

    /// Counts the segment's memory as in flight: see `budget`. Its row in the ledger is taken when memory is first claimed.
    pub(crate) fn counted(self) -> Self {
        Self { account: Some(Account::new(self.inode)), ..self }
    }

    fn regions(&self) -> &Regions {
        self.first.view(self.table).expect("checked when it was mapped")
    }

    /// Returns the inode number of the file, which no other file has while this one is open here.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns the mapping that holds the bytes from `offset` to `offset + len`. Fails with [`MemoryError::Corrupt`] if they
    /// are not in one region, or begin before the data.
    #[inline]
    fn holding(&self, offset: u64, len: u64) -> Result<&Mapping, MemoryError> {
        let end = offset.checked_add(len).ok_or(MemoryError::Corrupt)?;
        if end <= self.first.end() {
            return if offset >= self.data { Ok(&self.first) } else { Err(MemoryError::Corrupt) };
        }
        self.holding_further(offset, end)
    }

    /// As [`Segment::holding`], for a range that does not end in the first region. Maps regions up to the one that holds it.
    fn holding_further(&self, offset: u64, end: u64) -> Result<&Mapping, MemoryError> {
        for (at, region) in self.further.iter().enumerate() {
            let region = match region.get() {
                Some(region) => region,
                None => self.map_region(at)?,
            };
            if offset < region.end() {
                let is_inside = offset >= region.start() && end <= region.end();
                return if is_inside { Ok(region) } else { Err(MemoryError::Corrupt) };
            }
        }
        Err(MemoryError::Corrupt)
    }

    /// Maps the region `further[at]`; the one before it is mapped. Checks its end, which a peer may have written: larger than
    /// the last one, whole pages, inside the file.
    #[cold]
    fn map_region(&self, at: usize) -> Result<&Mapping, MemoryError> {
        let before = if at == 0 { Some(&self.first) } else { self.further[at - 1].get() };
        let start = before.ok_or(MemoryError::Corrupt)?.end();
        // Relaxed, with a fence: atomics in a read-only mapping may only be loaded relaxed.
        let end = self.regions().ends[at + 1].load(Ordering::Relaxed);
        fence(Ordering::Acquire); // pairs with the Release in `add_region`: the file is that long
        if end <= start || !end.is_multiple_of(PAGE) {
            return Err(MemoryError::Corrupt);
        }
        if memory::inspect(self.memfd.as_fd())?.0 < end {
            return Err(MemoryError::Corrupt);
        }
        let mapping = Mapping::with_access(self.memfd.as_fd(), self.access, start, end)?;
        Ok(self.further[at].get_or_init(|| mapping))
    }

    /// Returns the `T` at a file offset.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if it is not aligned or not inside the data of one region; [`MemoryError::System`] if that
    /// cannot be mapped.
    #[inline]
    pub(crate) fn view<T: Shared>(&self, offset: u64) -> Result<&T, MemoryError> {
        self.holding(offset, size_of::<T>() as u64)?.view(offset).ok_or(MemoryError::Corrupt)
    }

    /// Returns the `T` in the first region at an offset that this program chose. It may lie before the data.
    ///
    /// # Panics
    /// If it is not aligned, or not in the first region.
    #[inline]
    pub(crate) fn fixed<T: Shared>(&self, offset: u64) -> &T {
        self.first.view(offset).expect("an aligned place in the first region")
    }

    /// Copies `bytes` to `offset`. The caller owns that range, by the protocol of its allocator.
    ///
    /// # Errors
    /// As [`Segment::view`]; [`MemoryError::Corrupt`] also if the mapping is read-only.
    #[inline]
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.holding(offset, bytes.len() as u64)?.copy_in(offset, bytes).ok_or(MemoryError::Corrupt)
    }

    /// Returns the words at `offset`, which no process writes meanwhile, by the protocol of the caller.
    ///
    /// # Errors
    /// As [`Segment::view`].
    #[inline]
    pub(crate) fn copy_words<const N: usize>(&self, offset: u64) -> Result<[u64; N], MemoryError> {
        self.holding(offset, size_of::<[u64; N]>() as u64)?.copy_words(offset).ok_or(MemoryError::Corrupt)
    }

    /// Appends the `len` bytes at `offset` to `out`. If a peer writes them meanwhile, they are a mix of old and new bytes.
    ///
    /// # Errors
    /// As [`Segment::view`]; [`MemoryError::Corrupt`] also if `out` cannot grow, or if `len` is at least 1 MiB and exceeds the
    /// memory of the whole file.
    #[inline]
    pub(crate) fn copy_out(&self, offset: u64, len: u64, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        if len >= CHECKED_LEN {
            self.check_reserved(len)?;
        }
        let region = self.holding(offset, len)?;
        region
            .copy_out(offset, usize::try_from(len).map_err(|_| MemoryError::Corrupt)?, out)
            .ok_or(MemoryError::Corrupt)
    }

    /// Refuses a length above the bytes that the file has reserved: a writer reserves a block before it fills it. A peer can
    /// make the file long without using memory; a copy of that length would use memory here.
    #[cold]
    fn check_reserved(&self, len: u64) -> Result<(), MemoryError> {
        if memory::reserved_bytes(self.memfd.as_fd())? < len { Err(MemoryError::Corrupt) } else { Ok(()) }
    }

    /// Returns whether the `len` bytes from `offset` on are in one region.
    fn is_whole(&self, offset: u64, len: u64) -> Result<bool, MemoryError> {
        match self.holding(offset, len) {
            Ok(_) => Ok(true),
            Err(MemoryError::Corrupt) => Ok(false),
            Err(error) => Err(error), // they may be, but this process cannot map the region
        }
    }

    /// Returns the offset of `len` bytes behind the `used` ones, in one region. The file grows if necessary. The caller holds
    /// the allocator's lock, if there is one, and stores the new end of the used range.
    ///
    /// # Errors
    /// As [`Segment::add_region`].
    pub(crate) fn place(&self, used: u64, len: u64) -> Result<u64, MemoryError> {
        let align = if len >= PAGED { PAGED } else { 64 };
        let start = used.checked_next_multiple_of(align).ok_or(MemoryError::Corrupt)?;
        if self.is_whole(start, len)? {
            return Ok(start);
        }
        let start = self.add_region(len)?;
        if self.is_whole(start, len)? { Ok(start) } else { Err(MemoryError::Corrupt) }
    }

    /// Adds a region with room for `len` bytes. Returns its start.
    ///
    /// # Errors
    /// If the file cannot grow that long, or this process cannot map it.
    fn add_region(&self, len: u64) -> io::Result<u64> {
        let ends = &self.regions().ends;
        // Acquire pairs with the Release below, in an earlier call. The allocator's lock, or its only thread, orders
        // the calls, too.
        let used = ends.iter().take_while(|end| end.load(Ordering::Acquire) != 0).count().max(1);
        let start = ends[used - 1].load(Ordering::Acquire);
        let len = len.checked_next_multiple_of(PAGE).filter(|len| used < REGIONS && start < 1 << 47 && *len < 1 << 47);
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let map = |end| {
            memory::grow(self.memfd.as_fd(), end)?;
            Ok((end, Mapping::new(self.memfd.as_fd(), start, end)?))
        };
        // If limits forbid doubling the file, it grows only by the required length.
        let (end, mapping) = map(start + len.max(start)).or_else(|_: io::Error| map(start + len))?;
        ends[used].store(end, Ordering::Release); // pairs with the fence in `map_region`
        self.further[used - 1].get_or_init(|| mapping);
        Ok(start)
    }

    /// See [`memory::reserve`].
    pub(crate) fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        memory::reserve(self.memfd.as_fd(), offset, len)
    }

    /// As [`Segment::reserve`], within a share of the budget: checks the budget, reserves, then records the new size of the
    /// file. A death after the reservation leaves a row that is too low until the next change of the file.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`], [`MemoryError::System`]. In the second case a part may be reserved, which the next change
    /// records.
    pub(crate) fn claim(&self, offset: u64, len: u64, share: Share) -> Result<(), MemoryError> {
        if let Some(account) = &self.account {
            account.admit(len, share)?;
        }
        self.reserve(offset, len)?;
        self.settle();
        Ok(())
    }

    /// See [`memory::release`]. The caller calls [`Segment::settle`] after one or more releases.
    pub(crate) fn release(&self, offset: u64, len: u64) {
        memory::release(self.memfd.as_fd(), offset, len);
    }

    /// Records in the budget how much memory the file has.
    pub(crate) fn settle(&self) {
        if let Some((account, bytes)) = self.account_and_bytes() {
            account.settle(bytes);
        }
    }

    /// See [`Account::settle_quietly`].
    pub(crate) fn settle_quietly(&self) {
        if let Some((account, bytes)) = self.account_and_bytes() {
            account.settle_quietly(bytes);
        }
    }

    fn account_and_bytes(&self) -> Option<(&Account, u64)> {
        let account = self.account.as_ref()?;
        Some((account, memory::reserved_bytes(self.memfd.as_fd()).ok()?))
    }

    /// Returns whether free memory should go back to the system rather than be kept. True while more than a quarter of the
    /// budget is in use.
    pub(crate) fn is_tight(&self) -> bool {
        self.account.as_ref().is_some_and(|account| account.is_over(Share::Quarter))
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_was_reserved_for_is_not_read() {
        let segment = Segment::create(c"polyproc-test", 4 * PAGE, 1024, PAGE).expect("a memory file");
        let offset = segment.place(4 * PAGE, 64 << 20).expect("a long file");
        let mut out = Vec::new();
        assert!(matches!(segment.copy_out(offset, 64 << 20, &mut out), Err(MemoryError::Corrupt)));
        assert_eq!(out.capacity(), 0);
        segment.reserve(offset, 64 << 20).expect("memory");
        segment.copy_out(offset, 64 << 20, &mut out).expect("zeros");
        assert_eq!(out.len(), 64 << 20);
    }
}

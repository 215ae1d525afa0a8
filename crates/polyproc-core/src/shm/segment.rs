//! [`Segment`]: a memory file that grows and never shrinks, mapped region by region.
//!
//! A region is mapped whole when something in it is first touched, and stays mapped. Each new region is as large as all
//! before it, or larger, so there are few, whatever the size. A file offset costs nothing until it is written to.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::MemoryError;
use super::arena::PAGED;
use super::budget::{Account, Share};
use crate::prim::{AtomicU64, Ordering, fence};
use crate::sys::memory::{self, Access, Mapping, PAGE};
use crate::sys::shared::{Shared, shared};

/// Enough for 2^47 bytes when each region doubles the file.
const REGIONS: usize = 32;
/// Copies of this length and more are checked against what is reserved.
const CHECKED_LEN: u64 = 1 << 20;

shared! {
    /// Where regions end. The first one ends where the file ended when it was made.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 8 each | ends | file offset of the end of each region, 0 for none; who adds it, once the file is long enough, under the arena's lock |
    pub(crate) struct Regions { ends: [AtomicU64; REGIONS], }
}

/// A memory file. See the module.
#[derive(Debug)]
pub(crate) struct Segment {
    memfd: OwnedFd,
    access: Access,
    inode: u64,
    /// Where [`Regions`] stands in the first region.
    table: u64,
    /// What stands before this is no data: no offset that was read from shared memory leads there.
    data: u64,
    first: Mapping,
    /// What it has of the budget, if it counts.
    account: Option<Account>,
    /// The further ones, the second first.
    further: [OnceLock<Mapping>; REGIONS - 1],
}

impl Segment {
    /// A new one of `len_bytes` (whole [`PAGE`]s), with the table of its regions at `table`, and data from `data` on.
    pub(crate) fn create(name: &CStr, len_bytes: u64, table: u64, data: u64) -> io::Result<Self> {
        let segment = Self::map(memory::create(name, len_bytes)?, Access::Write, len_bytes, table, data)?;
        segment.regions().ends[0].store(len_bytes, Ordering::Release);
        Ok(segment)
    }

    /// The one that a peer made with the same lengths.
    pub(crate) fn open(memfd: OwnedFd, len_bytes: u64, table: u64, data: u64) -> io::Result<Self> {
        Self::map(memfd, Access::Write, len_bytes, table, data)
    }

    /// The same, of which bytes can only be copied out.
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

    /// Its memory counts as in flight: see `budget`.
    pub(crate) fn counted(self) -> Self {
        Self { account: Some(Account::new(self.inode)), ..self }
    }

    fn regions(&self) -> &Regions {
        self.first.view(self.table).expect("checked when it was mapped")
    }

    /// Which file it is; for as long as it is open here, no other has the same number.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// The mapping that holds the bytes from `offset` to `offset + len`.
    #[inline]
    fn holding(&self, offset: u64, len: u64) -> Result<&Mapping, MemoryError> {
        let end = offset.checked_add(len).ok_or(MemoryError::Corrupt)?;
        if end <= self.first.end() {
            return if offset >= self.data { Ok(&self.first) } else { Err(MemoryError::Corrupt) };
        }
        self.holding_further(offset, end)
    }

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

    #[cold]
    fn map_region(&self, at: usize) -> Result<&Mapping, MemoryError> {
        let before = if at == 0 { Some(&self.first) } else { self.further[at - 1].get() };
        let start = before.ok_or(MemoryError::Corrupt)?.end();
        // Relaxed, and the fence: what is mapped to be read must not be loaded in any other way.
        let end = self.regions().ends[at + 1].load(Ordering::Relaxed);
        fence(Ordering::Acquire); // pairs with the Release in `add_region`
        if end <= start || !end.is_multiple_of(PAGE) {
            return Err(MemoryError::Corrupt);
        }
        if memory::inspect(self.memfd.as_fd())?.0 < end {
            return Err(MemoryError::Corrupt);
        }
        let mapping = Mapping::with_access(self.memfd.as_fd(), self.access, start, end)?;
        Ok(self.further[at].get_or_init(|| mapping))
    }

    /// The `T` at a file offset.
    #[inline]
    pub(crate) fn view<T: Shared>(&self, offset: u64) -> Result<&T, MemoryError> {
        self.holding(offset, size_of::<T>() as u64)?.view(offset).ok_or(MemoryError::Corrupt)
    }

    /// The `T` in the first region at an offset that this program chose.
    #[inline]
    pub(crate) fn fixed<T: Shared>(&self, offset: u64) -> &T {
        self.first.view(offset).expect("an aligned place in the first region")
    }

    #[inline]
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.holding(offset, bytes.len() as u64)?.copy_in(offset, bytes).ok_or(MemoryError::Corrupt)
    }

    /// The words at `offset`.
    #[inline]
    pub(crate) fn copy_words<const N: usize>(&self, offset: u64) -> Result<[u64; N], MemoryError> {
        self.holding(offset, size_of::<[u64; N]>() as u64)?.copy_words(offset).ok_or(MemoryError::Corrupt)
    }

    /// Puts `len` bytes at `offset` at the end of `out`.
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

    /// Whoever writes a block reserves it first. A length above what is reserved is a peer's nonsense: that of a file that it
    /// made long, which takes no memory but here.
    #[cold]
    fn check_reserved(&self, len: u64) -> Result<(), MemoryError> {
        if memory::reserved_bytes(self.memfd.as_fd())? < len { Err(MemoryError::Corrupt) } else { Ok(()) }
    }

    /// Whether `offset` and `len` bytes from there are in one region.
    fn is_whole(&self, offset: u64, len: u64) -> Result<bool, MemoryError> {
        match self.holding(offset, len) {
            Ok(_) => Ok(true),
            Err(MemoryError::Corrupt) => Ok(false),
            Err(error) => Err(error), // it may be, but this process cannot map it
        }
    }

    /// Where `len` bytes can go behind all that is `used`, in one region; the file grows when it must. To be called under the
    /// lock of whoever gives out its memory.
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

    /// Adds a region with room for `len` bytes and gives its start.
    ///
    /// # Errors
    /// When the file cannot become that long, or this process cannot map it.
    fn add_region(&self, len: u64) -> io::Result<u64> {
        let ends = &self.regions().ends;
        let used = ends.iter().take_while(|end| end.load(Ordering::Acquire) != 0).count().max(1);
        let start = ends[used - 1].load(Ordering::Acquire);
        let len = len.checked_next_multiple_of(PAGE).filter(|len| used < REGIONS && start < 1 << 47 && *len < 1 << 47);
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let map = |end| {
            memory::grow(self.memfd.as_fd(), end)?;
            Ok((end, Mapping::new(self.memfd.as_fd(), start, end)?))
        };
        // Where limits do not let it double, as much as is needed must do.
        let (end, mapping) = map(start + len.max(start)).or_else(|_: io::Error| map(start + len))?;
        ends[used].store(end, Ordering::Release); // pairs with the fence in `map_region`
        self.further[used - 1].get_or_init(|| mapping);
        Ok(start)
    }

    /// See [`memory::reserve`].
    pub(crate) fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        memory::reserve(self.memfd.as_fd(), offset, len)
    }

    /// As [`Segment::reserve`], up to a share of the budget.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSpace`], [`MemoryError::System`].
    pub(crate) fn claim(&self, offset: u64, len: u64, share: Share) -> Result<(), MemoryError> {
        if let Some(account) = &self.account {
            account.admit(len, share)?;
        }
        self.reserve(offset, len)?;
        self.settle();
        Ok(())
    }

    /// See [`memory::release`]. [`Segment::settle`] follows, once for many.
    pub(crate) fn release(&self, offset: u64, len: u64) {
        memory::release(self.memfd.as_fd(), offset, len);
    }

    /// Says how much memory it has.
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

    /// Whether memory that is free is to go back rather than to be kept.
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

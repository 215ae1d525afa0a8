//! [`lend`] and [`Loan`]: large data that another process maps instead of copying it.
//!
//! - The lender copies the data to a memory file and sends a descriptor of it. Files are reused: their pages exist already,
//!   which makes a copy some five times as fast as one to a new file.
//! - A loan is an open file description of its own, with a shared lock of `flock(2)`. The lender reuses a file when it can
//!   acquire the exclusive lock. So the kernel knows whether a process has the loan: a descriptor in transit in a socket
//!   counts, one of a dead process does not.
//! - The borrower maps the file privately: its writes go to its own copy, page by page. So the same loan may go to several
//!   processes, and be lent on.
//!
//! User: the Python face; the Rust face lends nothing. `docs/design/loan.md` lists the steps, the state that a death leaves,
//! and the cases in which the bytes are copied instead. No state is in shared memory, so a death needs no repair.
//!
//! The stock of files is private to a process and under one lock, also during the copy: the exclusive lock of a file is tried
//! by one thread at a time, as [`lease::is_free`] requires.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use super::budget::{Account, Share};
use crate::sys::bytes::Borrowed;
use crate::sys::memory::{self, Mapping};
use crate::sys::per_process::PerProcess;
use crate::sys::{lease, pagemap};

/// The alignment of each part in bytes.
const ALIGN: u64 = 64;
/// Maximum number of files: each is an open descriptor.
const FILES: usize = 64;
/// Bytes of free files that are kept for later loans, unless more than half of the budget is in use.
const KEPT_BYTES: u64 = 256 << 20;
/// Maximum number of files that are checked for one loan.
const ATTEMPTS: usize = 8;

/// A file of the lender. It is in the stock, free or lent; during [`lend`] it is out of it, and closed if that fails.
#[derive(Debug)]
struct LoanFile {
    /// The lender's descriptor, which can write. It holds no lock between calls.
    memfd: OwnedFd,
    /// Length of the file in bytes, whole pages.
    len: u64,
    /// The lender's mapping, from the first loan on.
    mapping: Option<Mapping>,
}

/// The files of this process, ordered by the time when they were last lent or found in use, the earliest first.
#[derive(Debug)]
struct LoanStock {
    files: VecDeque<LoanFile>,
    /// The account of all files together. It counts the lengths of the files, free or lent.
    account: Account,
}

/// A copy of the process starts without files: its parent may write to the inherited ones.
static STOCK: PerProcess<Mutex<LoanStock>> =
    PerProcess::new(|_| Mutex::new(LoanStock { files: VecDeque::new(), account: Account::of_loans() }));

/// Closes all files that no process has borrowed.
pub(crate) fn trim() {
    let Some(stock) = STOCK.existing() else { return };
    stock.lock().unwrap_or_else(PoisonError::into_inner).trim(0);
}

/// Returns the offsets of parts of these lengths in a file, and the end of the last part.
pub(crate) fn places(lens: impl IntoIterator<Item = usize>) -> (Vec<u64>, u64) {
    let mut end = 0_u64;
    let starts = lens.into_iter().map(|len| {
        let start = end.next_multiple_of(ALIGN);
        end = start + len as u64;
        start
    });
    (starts.collect(), end)
}

/// Lends copies of `parts`, which have at least one byte together. Returns a descriptor for [`Loan::open`] in any process, and
/// the offset of each part, a multiple of 64. Returns `None` if too many loans are out or half of the budget is in use: then
/// the caller must send the bytes otherwise, which may wait.
///
/// The loan lasts until all copies of the descriptor are closed and all its mappings are gone.
///
/// # Errors
/// If the system has no memory, no descriptor or no `/proc`.
pub fn lend(parts: &[&[u8]]) -> io::Result<Option<(OwnedFd, Vec<u64>)>> {
    let (starts, len) = places(parts.iter().map(|part| part.len()));
    let mut stock = STOCK.get().lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut file) = stock.take(len)? else { return Ok(None) };
    let loan = file.fill(parts, &starts).and_then(|()| lease::give(file.memfd.as_fd()));
    if loan.is_ok() {
        stock.files.push_back(file);
    }
    let kept = if stock.account.is_over(Share::Half) { 0 } else { KEPT_BYTES };
    stock.trim(kept);
    let loan = loan?;
    Ok(Some((loan, starts)))
}

impl LoanStock {
    /// Returns a file of at least `len` bytes that no process has borrowed, or `None` if there may be no further file. A file
    /// that is more than four times as long as required is left to longer loans, unless it is short anyway. Checks at most
    /// [`ATTEMPTS`] files, with two system calls each.
    fn take(&mut self, len: u64) -> io::Result<Option<LoanFile>> {
        let fits = |file: &LoanFile| file.len >= len && file.len / 4 <= len.max(memory::PAGE);
        let found: Vec<_> = (0..self.files.len()).filter(|at| fits(&self.files[*at])).take(ATTEMPTS).collect();
        for (moved, at) in found.into_iter().enumerate() {
            let Some(file) = self.files.remove(at - moved) else { break };
            if lease::is_free(file.memfd.as_fd())? {
                return Ok(Some(file));
            }
            self.files.push_back(file); // the next loan checks other files first
        }
        if self.files.len() >= FILES {
            return Ok(None);
        }
        let len = len.next_multiple_of(memory::PAGE);
        if self.account.admit(len, Share::Half).is_err() {
            return Ok(None);
        }
        let memfd = memory::create(c"polyproc-loan", len)?;
        memory::close_to_other_users(memfd.as_fd())?;
        Ok(Some(LoanFile { memfd, len, mapping: None }))
    }

    fn len_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// Closes the oldest free files, until the free ones have at most `kept_bytes` bytes.
    fn trim(&mut self, kept_bytes: u64) {
        if self.len_bytes() > kept_bytes {
            let mut kept = 0;
            let newest_first = self.files.iter().rev();
            let stays = newest_first.map(|file| {
                let is_free = lease::is_free(file.memfd.as_fd()).unwrap_or(false);
                kept += if is_free { file.len } else { 0 };
                !is_free || kept <= kept_bytes
            });
            let mut stays = stays.collect::<Vec<_>>().into_iter().rev();
            self.files.retain(|_| stays.next().unwrap_or(true));
        }
        self.account.settle(self.len_bytes());
    }
}

impl LoanFile {
    /// Copies the parts to their places. A file without memory is written, then mapped; a file that was lent before is mapped
    /// already, and only the memory that it lacks is reserved.
    ///
    /// # Errors
    /// If the system has no memory; [`io::ErrorKind::InvalidInput`] if a part does not fit.
    fn fill(&mut self, parts: &[&[u8]], starts: &[u64]) -> io::Result<()> {
        if self.mapping.is_none() && memory::is_untouched(self.memfd.as_fd())? {
            // `pwrite(2)` allocates pages faster than page faults do, and fails if there is no memory.
            parts.iter().zip(starts).try_for_each(|(part, start)| memory::write(self.memfd.as_fd(), *start, part))?;
            // The mapping makes the pages count in this process's resident size while no borrower has mapped them.
            self.mapping = Some(Mapping::with_pages(self.memfd.as_fd(), 0, self.len)?);
            return Ok(());
        }
        let whole: u64 = parts.iter().zip(starts).map(|(part, start)| start + part.len() as u64).max().unwrap_or(0);
        memory::reserve(self.memfd.as_fd(), 0, whole.max(1))?;
        let mapping = match &mut self.mapping {
            Some(mapping) => mapping,
            none => none.insert(Mapping::with_pages(self.memfd.as_fd(), 0, self.len)?),
        };
        let copied = parts.iter().zip(starts).all(|(part, start)| mapping.copy_in(*start, part).is_some());
        if copied { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

/// Bytes that a process has lent. A write changes only this process's copy. Unmapped on drop, which ends the loan if this
/// process has no other mapping or descriptor of it.
#[derive(Debug)]
pub struct Loan(Borrowed);

impl Loan {
    /// Maps the first `len` bytes of a loan, given a descriptor of [`lend`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the loan is shorter than `len` bytes, or the file could be shortened; another error
    /// if the descriptor is not of a memory file.
    pub fn open(fd: OwnedFd, len: usize) -> io::Result<Self> {
        Borrowed::map(fd, len).map(Self)
    }

    /// Returns the address of the first byte and the number of bytes, which are readable and writable while `self` lives.
    #[must_use]
    pub fn as_raw(&self) -> (NonNull<u8>, usize) {
        self.0.as_raw()
    }

    /// Returns a descriptor by which the same bytes can be lent on, if this process has kept one. It keeps only a few, as
    /// otherwise each loan would use up a descriptor.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.0.file()
    }

    /// Returns whether this process has written nothing to these bytes, according to the kernel: then they may be lent on
    /// unchanged.
    #[must_use]
    pub fn is_unchanged(&self, bytes: Range<usize>) -> bool {
        let (base, len) = self.as_raw();
        bytes.end <= len && (bytes.is_empty() || pagemap::is_unchanged(base.addr().get(), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(loan: &Loan, at: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let file = loan.file().expect("one of a few").try_clone_to_owned().expect("a descriptor");
        let mut out = vec![0; len];
        std::fs::File::from(file).read_exact_at(&mut out, at).expect("inside");
        out
    }

    #[test]
    fn a_file_is_lent_again_only_when_nobody_has_it() {
        let lend_one = |byte: u8| lend(&[&[byte; 100_000], &[byte + 1; 10]]).expect("memory").expect("not too many");
        let (first, starts) = lend_one(1);
        assert_eq!(starts, [0, 100_032]);
        let loan = Loan::open(first, 100_042).expect("a loan");
        let (second, _) = lend_one(3);
        assert_eq!((bytes(&loan, 99_999, 1), bytes(&loan, 100_032, 10)), (vec![1], vec![2; 10]));
        let in_flight = loan.file().expect("one of a few").try_clone_to_owned().expect("a descriptor");
        drop(loan);
        drop(lend_one(5)); // the first loan is still in transit
        let loan = Loan::open(in_flight, 100_042).expect("a loan");
        assert_eq!(bytes(&loan, 0, 1), [1]);
        let inode = |fd: BorrowedFd<'_>| memory::inspect(fd).expect("a file").1;
        let (known, second_inode) = (inode(loan.file().expect("one of a few")), inode(second.as_fd()));
        drop((loan, second));
        let (again, _) = lend_one(7);
        assert!([known, second_inode].contains(&inode(again.as_fd())), "the oldest that is free is taken");
        assert_eq!(bytes(&Loan::open(again, 100_042).expect("a loan"), 0, 1), [7]);
    }

    #[test]
    fn too_many_are_refused_and_what_is_no_loan_too() {
        let mut loans = Vec::new();
        while let Some(loan) = lend(&[&[1; 1000]]).expect("memory") {
            loans.push(loan);
            assert!(loans.len() <= FILES);
        }
        drop(loans);
        assert!(lend(&[&[1; 1000]]).expect("memory").is_some());
        let (short, _) = lend(&[&[1; 1000]]).expect("memory").expect("room");
        assert_eq!(Loan::open(short, 1 << 20).expect_err("too short").kind(), io::ErrorKind::InvalidData);
        let file = crate::sys::memory::create_with(&[0; 100]).expect("a file");
        assert_eq!(Loan::open(file, 10).expect_err("not sealed").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn loans_that_are_kept_do_not_keep_others_from_being_lent_again() {
        let lend_one = || lend(&[&[1; 1000]]).expect("memory");
        let kept: Vec<_> = (0..2 * ATTEMPTS).map(|_| lend_one().expect("room")).collect();
        let passing: Vec<_> = std::iter::from_fn(lend_one).collect();
        assert_eq!(kept.len() + passing.len(), FILES);
        drop(passing);
        for _ in 0..FILES {
            // A free file may come after several attempts that check files in use.
            assert!((0..FILES / ATTEMPTS).any(|_| lend_one().is_some()));
        }
    }

    #[test]
    fn a_borrower_cannot_write_to_what_others_borrow() {
        let (fd, _) = lend(&[&[7; 100_000]]).expect("memory").expect("room");
        assert!(memory::write(fd.as_fd(), 0, &[8]).is_err());
        assert!(Mapping::new(fd.as_fd(), 0, memory::PAGE).is_err(), "not for writing");
        let mode = rustix::fs::fstat(&fd).expect("a file").st_mode & 0o777;
        assert_eq!(mode, 0o600, "nor can another user open it anew");
    }

    #[test]
    fn changes_are_seen_and_stay_private() {
        let (fd, _) = lend(&[&[7; 300_000]]).expect("memory").expect("room");
        let copy = fd.try_clone().expect("a descriptor");
        let (loan, other) = (Loan::open(fd, 300_000).expect("a loan"), Loan::open(copy, 300_000).expect("a loan"));
        assert!(loan.is_unchanged(0..300_000));
        crate::sys::bytes::write_to(&loan.0, 100_000, 8);
        assert!(!loan.is_unchanged(0..300_000));
        assert!(loan.is_unchanged(0..90_000) && loan.is_unchanged(110_000..300_000) && loan.is_unchanged(5..5));
        assert!(!loan.is_unchanged(0..300_001), "beyond its end");
        assert!(other.is_unchanged(0..300_000));
        assert_eq!(bytes(&other, 100_000, 1), [7]);
    }
}

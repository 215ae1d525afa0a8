//! The budget: how much shared memory the queues, pools and loans of all processes of a program may have at a time.
//!
//! Shared memory belongs to no process's resident size: where it fills the machine, the kernel kills other processes first. So
//! all processes of a program share one *ledger*, a page with a row for each memory file that holds data in flight. A process
//! that reserves memory first checks whether the sum of the rows leaves room ([`Account::admit`]). It then writes into the row
//! the size of the file as the kernel counts it (`st_blocks` of `fstat(2)`, [`Account::settle`]). A death in between leaves a
//! row that the next change of that file corrects.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 64 | [`LedgerHeader`] |
//! | 64 | 64 | [`EventCount`] of the waiters for room |
//! | 4096 | 64 each | [`Row`]s |
//!
//! A row has one *holder*, a process that has the file open. A process that finds no room frees the rows of dead holders. If
//! another process has such a file open, it claims a row again when it next reserves memory there; else the kernel has freed
//! the file.
//!
//! Users: [`Segment`](super::Segment) and `loan` have accounts, `memory` counts private bytes, `room` waits, `process` passes
//! the ledger to children ([`descriptor`], [`join`]), and the pool asks which bytes belong to a worker ([`bytes_of`]).
//! `docs/design/memory.md` has the shares and why every request succeeds eventually.
//!
//! There is no lock: each word is atomic and independent. Two processes that check at the same time may together exceed the
//! limit by what they reserve. A peer that overwrites the ledger can block or unblock requests, and nothing else. Without a
//! ledger nothing is counted or refused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::registry;
use crate::prim::{AtomicU32, AtomicU64, Ordering, fence};
use crate::robust::EventCount;
use crate::sys::available;
use crate::sys::memory::{self, Mapping, PAGE};
use crate::sys::per_process::PerProcess;
use crate::sys::process_stamp::{ProcessStamp, process_id};
use crate::sys::shared::shared;

/// Length of the ledger in bytes.
const LEN: u64 = PAGE;
/// The first word of a ledger of this version.
const MAGIC: u64 = u64::from_le_bytes(*b"polyprb1");
/// Offset of the first row in bytes.
const FIRST_ROW: u64 = 4096;
/// Maximum number of rows. The memory of further files is not counted.
const ROWS: u32 = 960;
const _: () = assert!(FIRST_ROW + ROWS as u64 * size_of::<Row>() as u64 == LEN);

shared! {
    /// The header of the ledger, written by the program's first process; only `limit` and `used` change later.
    ///
    /// | offset | bytes | field | meaning; writer |
    /// |---|---|---|---|
    /// | 0 | 8 | magic | [`MAGIC`]; written last |
    /// | 8 | 8 | limit | number of bytes that may be in flight; any process |
    /// | 16 | 4 | used | number of rows that were ever used |
    struct LedgerHeader { magic: AtomicU64, limit: AtomicU64, used: AtomicU32, }
}

shared! {
    /// The row of one file. Its holder frees it, or any process after the holder's death; both by compare-and-swap of
    /// `holder`. For a moment after a row was taken, a sum may see the bytes of the file before.
    ///
    /// | offset | bytes | field | meaning; writer |
    /// |---|---|---|---|
    /// | 0 | 8 | holder | the [`ProcessStamp`] of its holder; 0: the row is free and does not count |
    /// | 8 | 8 | file | number of the file; the holder |
    /// | 16 | 8 | bytes | size of the file's memory in bytes; the process that has just changed it |
    struct Row { holder: AtomicU64, file: AtomicU64, bytes: AtomicU64, }
}

/// There is no room for more data in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {wanted} more bytes in flight: {in_use} of {limit} bytes are in use, and one item may have {largest}"
)]
#[non_exhaustive]
pub struct OutOfSpace {
    /// Bytes that were requested.
    pub wanted: u64,
    /// Bytes in flight: in all processes of this program, or in the queue if its own limit was reached.
    pub in_use: u64,
    /// Bytes that may be in flight: see [`set_memory_budget`], or the queue's limit.
    pub limit: u64,
    /// Bytes that one item may have.
    pub largest: u64,
}

impl OutOfSpace {
    /// Returns whether there would be room if nothing else were in flight. Then waiting helps, once other items are taken.
    pub(crate) fn is_passing(&self) -> bool {
        self.wanted <= self.largest
    }
}

/// The shared memory that this program has in flight, and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryBudget {
    /// Bytes that may be in flight.
    pub limit: u64,
    /// Bytes that are in flight in all processes of the program, including memory that is kept for reuse.
    pub in_use: u64,
}

/// Returns the budget for data in flight in all processes of this program: its queues, the arguments and results of its pools,
/// and its loans. The limit is half of the machine's memory or of its control group's limit (`cgroups(7)`), unless it was set.
///
/// One item may have half of the budget. A queue or pool that has data in flight already leaves the other half free, so that a
/// consumer that passes items on finds room for them, however fast its producers are.
#[must_use]
pub fn memory_budget() -> MemoryBudget {
    let ledger = Ledger::get();
    let limit = ledger.map_or_else(default_limit, Ledger::limit);
    MemoryBudget { limit, in_use: ledger.map_or(0, Ledger::in_use) }
}

/// Sets the budget, in bytes, for all processes of this program. Data that is already in flight stays. Wakes the requests that
/// wait for room. Has no effect if the system had no memory for the accounting.
pub fn set_memory_budget(bytes: u64) {
    if let Some(ledger) = Ledger::get() {
        ledger.head().limit.store(bytes, Ordering::Relaxed);
        ledger.room().wake_generation();
    }
}

/// Returns the limit of a new ledger in bytes: no limit if the system does not report its memory.
fn default_limit() -> u64 {
    available::total().map_or(u64::MAX, |total| total / 2)
}

/// The ledger, as this process has mapped it. See the module. Leaked, so that it lives as long as the process.
#[derive(Debug)]
struct Ledger {
    memfd: BorrowedFd<'static>,
    mapping: Mapping,
}

/// The descriptor of the ledger of the program that started this process. It is mapped on first use: most processes never use
/// it, and mapping it takes longer than a tenth of a start.
static GIVEN: OnceLock<OwnedFd> = OnceLock::new();

/// The program's ledger, which a forked child inherits. `None` if the system had no memory for it: then nothing is counted.
static LEDGER: PerProcess<Option<&'static Ledger>> = PerProcess::new(|before| match (before, GIVEN.get()) {
    (Some(before), _) => *before,
    (None, Some(given)) => Ledger::open(given.as_fd()).ok(),
    (None, None) => Ledger::create().ok(),
});

/// Makes this process part of the program that has this ledger. Called by a started process before anything is counted; later
/// calls have no effect. A descriptor that is no ledger leaves the process without one.
pub(crate) fn join(ledger: OwnedFd) {
    let _ = GIVEN.set(ledger);
}

/// Returns the descriptor by which another process becomes part of this program ([`join`]).
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    existing_descriptor().or_else(|| Ledger::get().map(|ledger| ledger.memfd))
}

/// As [`descriptor`], but returns `None` if this process has not needed a ledger so far.
pub(crate) fn existing_descriptor() -> Option<BorrowedFd<'static>> {
    let given = || GIVEN.get().map(AsFd::as_fd);
    LEDGER.existing().copied().flatten().map(|ledger| ledger.memfd).or_else(given)
}

impl Ledger {
    /// Returns the ledger of this process, which is created or mapped at the first call.
    fn get() -> Option<&'static Self> {
        *LEDGER.get()
    }

    /// Creates the ledger of a new program. Its whole memory is reserved, so no later access fails.
    fn create() -> io::Result<&'static Self> {
        let memfd: &'static OwnedFd = Box::leak(Box::new(memory::create(c"polyproc-ledger", LEN)?));
        memory::reserve(memfd.as_fd(), 0, LEN)?;
        let ledger = Self::map(memfd.as_fd())?;
        ledger.head().limit.store(default_limit(), Ordering::Relaxed);
        // Pairs with the Acquire in `open`: the limit is stored before.
        ledger.head().magic.store(MAGIC, Ordering::Release);
        Ok(Box::leak(Box::new(ledger)))
    }

    /// Maps the ledger of the program that started this process. Fails if the file has other contents.
    fn open(memfd: BorrowedFd<'static>) -> io::Result<&'static Self> {
        let ledger = Self::map(memfd)?;
        // Pairs with the Release in `create`.
        if ledger.head().magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Box::leak(Box::new(ledger)))
    }

    fn map(memfd: BorrowedFd<'static>) -> io::Result<Self> {
        let mapping = Mapping::new(memfd, 0, LEN)?;
        Ok(Self { memfd, mapping })
    }

    fn head(&self) -> &LedgerHeader {
        self.mapping.view(0).expect("in the page")
    }

    fn room(&self) -> &EventCount {
        self.mapping.view(64).expect("in the page")
    }

    /// Returns a row; the last one for a number that is too large.
    fn row(&self, at: u32) -> &Row {
        self.mapping.view(FIRST_ROW + u64::from(at.min(ROWS - 1)) * size_of::<Row>() as u64).expect("in the page")
    }

    fn limit(&self) -> u64 {
        self.head().limit.load(Ordering::Relaxed)
    }

    /// Returns the numbers of the rows that were ever used.
    fn rows(&self) -> impl Iterator<Item = u32> + use<> {
        // Pairs with the Release in `take_up`: the fields of a new row are stored before it counts.
        0..self.head().used.load(Ordering::Acquire).min(ROWS)
    }

    /// Returns the sum of the bytes of the rows for which `counts`, called with holder and file, returns true. Rows change
    /// meanwhile: the sum is of no one moment.
    fn sum(&self, counts: impl Fn(ProcessStamp, u64) -> bool) -> u64 {
        let rows = self.rows().map(|at| self.row(at)).filter(|row| {
            let holder = ProcessStamp::from_bits(row.holder.load(Ordering::Relaxed));
            holder != ProcessStamp::NOBODY && counts(holder, row.file.load(Ordering::Relaxed))
        });
        rows.fold(0, |sum, row| sum.saturating_add(row.bytes.load(Ordering::Relaxed)))
    }

    /// Returns how many bytes are in flight: all rows but those of private bytes.
    fn in_use(&self) -> u64 {
        self.sum(|_, file| file & PRIVATE == 0)
    }

    /// Frees the rows of dead holders. Returns whether there were any. Makes system calls for each holder. Wakes the waiters
    /// for room.
    fn free_dead_rows(&self) -> bool {
        let mut any = false;
        for row in self.rows().map(|at| self.row(at)) {
            let holder = row.holder.load(Ordering::Relaxed);
            if holder != 0 && ProcessStamp::from_bits(holder).is_dead() {
                // Release pairs with the Acquire in `take_up`: the stores of the dead holder come before those of the
                // next one.
                any |= row.holder.compare_exchange(holder, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            }
        }
        if any {
            self.room().wake_all();
        }
        any
    }
}

/// How far a request may fill the budget. All requests complete as long as data in flight is taken: one item has at most half
/// of the budget, and only producers with nothing else in flight may use the other half. So such a producer waits only until
/// the items of others like it are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Above this, free memory goes back to the system: see [`Segment::is_tight`](super::Segment::is_tight).
    Quarter,
    /// For a producer that has data in flight; for arguments of tasks while others are out, as they stay until the task has
    /// answered; and for loans, which stay until their borrowers drop them, and could be copies instead.
    Half,
    /// For a producer that has nothing else in flight, and for the arguments of the only task that is out.
    All,
    /// No limit: for the only result of a worker that has waited in vain, which is in its private memory anyway.
    More,
}

impl Share {
    /// Bytes up to which a file counts as having nothing in flight: enough for a queue's first chunks.
    const SMALL: u64 = 256 << 10;

    /// Returns the share for a file of which `in_use` bytes are in use.
    pub(crate) fn of(in_use: u64) -> Self {
        if in_use <= Self::SMALL { Self::All } else { Self::Half }
    }

    fn of_limit(self, limit: u64) -> u64 {
        match self {
            Self::Quarter => limit / 4,
            Self::Half => limit / 2,
            Self::All => limit,
            Self::More => u64::MAX,
        }
    }
}

/// The account of one file in the budget, in one process. Each process that has the file open has its own; they share a row.
#[derive(Debug)]
pub(crate) struct Account {
    file: u64,
    /// 1 + the number of its row when last searched; 0 for none, [`Account::NOT_COUNTED`] if there are too many files.
    row: AtomicU32,
}

impl Account {
    /// The value of `row` once no row was free: the file is not counted by this process any more.
    const NOT_COUNTED: u32 = u32::MAX;

    /// Creates the account of `file`, a number that no other file has at the same time.
    pub(crate) fn new(file: u64) -> Self {
        Self { file, row: AtomicU32::new(0) }
    }

    /// Checks whether `wanted` more bytes may be reserved. The caller then reserves them and calls [`Account::settle`]. Frees
    /// the rows of dead holders before it refuses.
    ///
    /// # Errors
    /// [`OutOfSpace`] if they may not: more than half of the budget, or more than `share` leaves.
    pub(crate) fn admit(&self, wanted: u64, share: Share) -> Result<(), OutOfSpace> {
        let Some(ledger) = Ledger::get() else { return Ok(()) };
        let check = || {
            let (limit, in_use) = (ledger.limit(), ledger.in_use());
            let largest = Share::Half.of_limit(limit);
            let fits = wanted <= largest && in_use.checked_add(wanted).is_some_and(|sum| sum <= share.of_limit(limit));
            if fits { Ok(()) } else { Err(OutOfSpace { wanted, in_use, limit, largest }) }
        };
        check().or_else(|error| if ledger.free_dead_rows() { check() } else { Err(error) })
    }

    /// Returns whether all files together use more than this share of the budget. False without a ledger.
    pub(crate) fn is_over(&self, share: Share) -> bool {
        Ledger::get().is_some_and(|ledger| ledger.in_use() > share.of_limit(ledger.limit()))
    }

    /// Records how many bytes the file has now. Wakes the waiters for room if it has fewer than before.
    pub(crate) fn settle(&self, bytes: u64) {
        if self.settle_quietly(bytes) {
            wake_waiting();
        }
    }

    /// As [`Account::settle`], but wakes no waiter: a waiter for room that releases memory it could not use would wake itself
    /// repeatedly. Returns whether the file has fewer bytes than before.
    pub(crate) fn settle_quietly(&self, bytes: u64) -> bool {
        let row = Ledger::get().and_then(|ledger| self.row(ledger)); // `None` if there are too many files
        // Before the flag of the waiters is read: by the fence in `wake_waiting`, it pairs with the fence in
        // `EventCount::wait`.
        row.is_some_and(|row| bytes < row.bytes.swap(bytes, Ordering::SeqCst))
    }

    /// Returns the file's row. If it has none, claims a free row for this process.
    fn row<'a>(&self, ledger: &'a Ledger) -> Option<&'a Row> {
        let is_its = |at: &u32| {
            let row = ledger.row(*at);
            row.file.load(Ordering::Relaxed) == self.file && row.holder.load(Ordering::Relaxed) != 0
        };
        let known = match self.row.load(Ordering::Relaxed) {
            Self::NOT_COUNTED => return None,
            row => row.checked_sub(1).filter(is_its),
        };
        let found = known.or_else(|| ledger.rows().find(is_its)).or_else(|| self.take_up(ledger));
        // The holders of all rows may be dead.
        let found = found.or_else(|| if ledger.free_dead_rows() { self.take_up(ledger) } else { None });
        self.row.store(found.map_or(Self::NOT_COUNTED, |at| at + 1), Ordering::Relaxed);
        found.map(|at| ledger.row(at))
    }

    /// Claims the first free row for this process and this file. Two processes may claim a row each for the same file: it then
    /// counts twice until one of them is freed.
    #[cold]
    fn take_up(&self, ledger: &Ledger) -> Option<u32> {
        let own = ProcessStamp::own().bits();
        (0..ROWS).find(|at| {
            let row = ledger.row(*at);
            // Acquire pairs with the Release by which the row was freed, in `drop` or after the death of its holder.
            let is_taken = row.holder.compare_exchange(0, own, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if is_taken {
                row.bytes.store(0, Ordering::Relaxed);
                row.file.store(self.file, Ordering::Relaxed);
                // Release pairs with the Acquire in `rows`.
                ledger.head().used.fetch_max(at + 1, Ordering::AcqRel);
            }
            is_taken
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let Some(at) = self.row.load(Ordering::Relaxed).checked_sub(1).filter(|at| *at < ROWS) else { return };
        let Some(ledger) = Ledger::get() else { return };
        let row = ledger.row(at);
        // Another process that has the file claims a row again when it reserves memory in it.
        // Release pairs with the Acquire in `take_up`: the next holder's stores come after those of this one.
        if row.file.load(Ordering::Relaxed) == self.file
            && row.holder.compare_exchange(ProcessStamp::own().bits(), 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            ledger.room().wake_all();
        }
    }
}

/// Returns how many bytes of shared memory a process has put or created: its items in queues, and memory for its own use.
/// Excludes its answers: `results`, the inode number of the file of its results, and its loans.
///
/// A file that this process has open, too, may hold data of several processes: there the records of its blocks are counted
/// instead of the row.
pub(crate) fn bytes_of(process: ProcessStamp, results: u64) -> u64 {
    let counts = |holder, file| holder == process && file != results && file & LOANS == 0 && !registry::has(file);
    let of_files = Ledger::get().map_or(0, |ledger| ledger.sum(counts));
    of_files.saturating_add(registry::bytes_of(process))
}

/// Flag in a file number (inode numbers of memory files have 32 bits): all loans of a process.
const LOANS: u64 = 1 << 63;

impl Account {
    /// Creates the account of all loans of this process, which share one row.
    pub(crate) fn of_loans() -> Self {
        Self::new(LOANS | u64::from(process_id()))
    }
}

/// Flag in a file number: memory that a process created for its own use, which is not in flight.
const PRIVATE: u64 = 1 << 62;

/// The private bytes of this process, and their account. A copy of the process begins with 0.
static PRIVATE_BYTES: PerProcess<(AtomicU64, Account)> =
    PerProcess::new(|_| (AtomicU64::new(0), Account::new(PRIVATE | u64::from(process_id()))));

/// Counts bytes of shared memory that this process created for its own use, until it is dropped. A copy of the process
/// inherits the value, and drops it without effect.
#[derive(Debug)]
pub(crate) struct PrivateBytes {
    pid: u32,
    len_bytes: u64,
}

impl PrivateBytes {
    /// Counts `len_bytes` bytes from now on.
    pub(crate) fn new(len_bytes: u64) -> Self {
        let (made, account) = PRIVATE_BYTES.get();
        account.settle(made.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes);
        Self { pid: process_id(), len_bytes }
    }
}

impl Drop for PrivateBytes {
    fn drop(&mut self) {
        if self.pid == process_id() {
            let (made, account) = PRIVATE_BYTES.get();
            account.settle(made.fetch_sub(self.len_bytes, Ordering::Relaxed) - self.len_bytes);
        }
    }
}

/// Wakes all waiters for room: one may find a free block in its own file.
pub(crate) fn wake_waiting() {
    if let Some(ledger) = Ledger::get() {
        fence(Ordering::SeqCst); // between making room and reading the flag; pairs with the fence in `EventCount::wait`
        ledger.room().wake_all();
    }
}

/// Returns the event count of the waiters for room, or `None` where there is no ledger.
pub(super) fn room() -> Option<&'static EventCount> {
    Ledger::get().map(Ledger::room)
}

/// Returns whether there may be waiters for room. Called after a step that may have made room.
pub(crate) fn is_room_awaited() -> bool {
    Ledger::get().is_some_and(|ledger| ledger.room().has_waiters())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_dead_make_way() {
        let ledger = Ledger::get().expect("memory");
        let gone = ProcessStamp::from_bits(u64::from(u32::MAX >> 2)); // above any process id
        for row in (0..ROWS).map(|at| ledger.row(at)) {
            row.holder.store(gone.bits(), Ordering::Relaxed);
            row.bytes.store(1 << 20, Ordering::Relaxed);
        }
        ledger.head().used.store(ROWS, Ordering::Relaxed);
        let account = Account::new(7);
        account.settle(5);
        assert_eq!(memory_budget().in_use, 5);
        drop(account);
        assert_eq!(memory_budget().in_use, 0);
    }

    #[test]
    fn who_has_something_in_flight_leaves_half_to_others() {
        set_memory_budget(100);
        let (own, other) = (Account::new(8), Account::new(9));
        other.settle(50);
        assert!(own.admit(1, Share::Half).is_err());
        assert!(own.admit(50, Share::All).is_ok());
        assert!(own.admit(51, Share::All).is_err_and(|error| !error.is_passing() && error.in_use == 50));
        own.settle(50);
        assert!(own.admit(1, Share::All).is_err_and(|error| error.is_passing()));
        other.settle(0);
        assert!(own.admit(50, Share::All).is_ok());
    }
}

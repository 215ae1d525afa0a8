//! The budget: how much shared memory the queues, pools and loans of a program may have at a time, all its processes together.
//!
//! Shared memory belongs to no process's resident size: where it fills the machine, the kernel ends everybody else first. So
//! all processes of a program share one *ledger*, a page with a row for each memory file that holds data in flight. Who
//! reserves memory looks first whether the sum leaves room for it, and then writes into the row what the file has, as the
//! kernel counts it (`st_blocks` of `fstat(2)`): a death between the two leaves nothing that the next one does not set right.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 64 | [`LedgerHeader`] |
//! | 64 | 64 | [`EventCount`]: those who wait for room |
//! | 4096 | 64 each | [`Row`]s |
//!
//! A row has one *holder*, a process that has the file open. Rows of the dead are given up by whoever finds no room, and taken
//! up again by the next process that reserves memory in the file, if there is any: the kernel frees a file with its last holder.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use super::registry;
use crate::deadline::Deadline;
use crate::prim::{AtomicU32, AtomicU64, Ordering, fence};
use crate::robust::{EventCount, RecheckInterval, WaitError};
use crate::sys::available;
use crate::sys::identity::{Identity, process_id};
use crate::sys::memory::{self, Mapping, PAGE};
use crate::sys::per_process::PerProcess;
use crate::sys::shared::shared;

const LEN: u64 = PAGE;
const MAGIC: u64 = u64::from_le_bytes(*b"polyprb1");
const FIRST_ROW: u64 = 4096;
const ROWS: u32 = 960;
const _: () = assert!(FIRST_ROW + ROWS as u64 * size_of::<Row>() as u64 == LEN);
/// How long who waits for room sleeps at most before it looks itself: whether a process died that had some.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

shared! {
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 8 | magic | [`MAGIC`], when all else is set up |
    /// | 8 | 8 | limit | how many bytes may be in flight; whoever sets it |
    /// | 16 | 4 | used | how many rows were ever used |
    struct LedgerHeader { magic: AtomicU64, limit: AtomicU64, used: AtomicU32, }
}

shared! {
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 8 | holder | the [`Identity`] that answers for it; nobody's, it counts for nothing |
    /// | 8 | 8 | file | which file, once it is held |
    /// | 16 | 8 | bytes | how much memory that has; whoever has just changed it |
    struct Row { holder: AtomicU64, file: AtomicU64, bytes: AtomicU64, }
}

/// There is no room for data in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for {wanted} bytes more: {in_use} are in flight, {limit} may be, and {largest} at a time")]
#[non_exhaustive]
pub struct OutOfSpace {
    /// How many bytes were wanted.
    pub wanted: u64,
    /// How many are in flight: in all processes of this program, or in the queue whose own limit it is.
    pub in_use: u64,
    /// How many may be: see [`set_memory_budget`], or the queue.
    pub limit: u64,
    /// How many one item may have at most.
    pub largest: u64,
}

impl OutOfSpace {
    /// Whether there would be room if nothing else were in flight.
    pub(crate) fn is_passing(&self) -> bool {
        self.wanted <= self.largest
    }
}

/// How much shared memory this program has in flight, and how much it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryBudget {
    /// Bytes that may be in flight.
    pub limit: u64,
    /// Bytes that are in flight, in all processes of the program, with what is kept to be used again.
    pub in_use: u64,
}

/// The budget for data in flight of this program, all its processes together: of its queues, of the arguments and results of its
/// pools, and of what is lent. Half of the machine's memory, or of its control group's (`cgroups(7)`), unless it was set.
///
/// One item may have half of the budget. A queue or pool that has something in flight already leaves the other half alone, so
/// that a consumer which passes on what it took finds room for that, however fast its producers are.
#[must_use]
pub fn memory_budget() -> MemoryBudget {
    let ledger = Ledger::get();
    let limit = ledger.map_or_else(default_limit, Ledger::limit);
    MemoryBudget { limit, in_use: ledger.map_or(0, Ledger::in_use) }
}

/// Sets the budget, in bytes, for all processes of this program. What is in flight already stays.
pub fn set_memory_budget(bytes: u64) {
    if let Some(ledger) = Ledger::get() {
        ledger.head().limit.store(bytes, Ordering::Relaxed);
        ledger.room().wake_generation();
    }
}

fn default_limit() -> u64 {
    available::total().map_or(u64::MAX, |total| total / 2)
}

/// See the module.
#[derive(Debug)]
struct Ledger {
    memfd: BorrowedFd<'static>,
    mapping: Mapping,
}

/// The ledger of the program that started this process. Most processes never look into it, and mapping it takes longer than a
/// tenth of a start.
static GIVEN: OnceLock<OwnedFd> = OnceLock::new();

/// A copy of a process has its ledger. `None` where the system gave no memory for one: then nothing is counted.
static LEDGER: PerProcess<Option<&'static Ledger>> = PerProcess::new(|before| match (before, GIVEN.get()) {
    (Some(before), _) => *before,
    (None, Some(given)) => Ledger::open(given.as_fd()).ok(),
    (None, None) => Ledger::create().ok(),
});

/// Makes this process one of the program whose ledger this is. Called before anything is counted here; the first call counts.
pub(crate) fn join(ledger: OwnedFd) {
    let _ = GIVEN.set(ledger);
}

/// The descriptor that makes another process one of this program, by [`join`].
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    existing_descriptor().or_else(|| Ledger::get().map(|ledger| ledger.memfd))
}

/// As [`descriptor`], if there was a need for one before.
pub(crate) fn existing_descriptor() -> Option<BorrowedFd<'static>> {
    let given = || GIVEN.get().map(AsFd::as_fd);
    LEDGER.existing().copied().flatten().map(|ledger| ledger.memfd).or_else(given)
}

impl Ledger {
    fn get() -> Option<&'static Self> {
        *LEDGER.get()
    }

    fn create() -> io::Result<&'static Self> {
        let memfd: &'static OwnedFd = Box::leak(Box::new(memory::create(c"polyproc-ledger", LEN)?));
        memory::reserve(memfd.as_fd(), 0, LEN)?;
        let ledger = Self::map(memfd.as_fd())?;
        ledger.head().limit.store(default_limit(), Ordering::Relaxed);
        ledger.head().magic.store(MAGIC, Ordering::Release);
        Ok(Box::leak(Box::new(ledger)))
    }

    fn open(memfd: BorrowedFd<'static>) -> io::Result<&'static Self> {
        let ledger = Self::map(memfd)?;
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

    fn row(&self, at: u32) -> &Row {
        self.mapping.view(FIRST_ROW + u64::from(at.min(ROWS - 1)) * size_of::<Row>() as u64).expect("in the page")
    }

    fn limit(&self) -> u64 {
        self.head().limit.load(Ordering::Relaxed)
    }

    /// The numbers of the rows that were ever used.
    fn rows(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.head().used.load(Ordering::Acquire).min(ROWS)
    }

    /// The bytes of the rows of which `counts` says so, told holder and file.
    fn sum(&self, counts: impl Fn(Identity, u64) -> bool) -> u64 {
        let rows = self.rows().map(|at| self.row(at)).filter(|row| {
            let holder = Identity::from_bits(row.holder.load(Ordering::Relaxed));
            holder != Identity::NOBODY && counts(holder, row.file.load(Ordering::Relaxed))
        });
        rows.fold(0, |sum, row| sum.saturating_add(row.bytes.load(Ordering::Relaxed)))
    }

    fn in_use(&self) -> u64 {
        self.sum(|_, file| file & PRIVATE == 0)
    }

    /// Gives up the rows of the dead. True when there were any.
    fn bury(&self) -> bool {
        let mut any = false;
        for row in self.rows().map(|at| self.row(at)) {
            let holder = row.holder.load(Ordering::Relaxed);
            if holder != 0 && Identity::from_bits(holder).is_dead() {
                any |= row.holder.compare_exchange(holder, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            }
        }
        if any {
            self.room().wake_all();
        }
        any
    }
}

/// Up to where a request may fill the budget. All requests end, as long as data that is in flight is taken: one for an item of
/// at most half of the budget, from a producer that has nothing else in flight, waits only for others like it to be taken, since
/// everything else leaves it as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Above this, queues keep no free memory.
    Quarter,
    /// For a producer that has something in flight; for arguments of tasks, which stay until the task has answered; and for loans,
    /// which stay for as long as their borrowers like, and could be copies.
    Half,
    /// For a producer that has nothing else in flight.
    All,
    /// For the one result of a worker that has waited in vain: it has it in private memory anyway.
    More,
}

impl Share {
    /// With no more than this in flight, a queue has as good as nothing: the chunks in which it begins.
    const SMALL: u64 = 256 << 10;

    /// For a file of which so many bytes are in use.
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

/// What one file has of the budget.
#[derive(Debug)]
pub(crate) struct Account {
    file: u64,
    /// 1 + the number of its row when last it was looked for; 0 for none, [`Account::NOT_COUNTED`] where there are too many.
    row: AtomicU32,
}

impl Account {
    const NOT_COUNTED: u32 = u32::MAX;

    /// `file` tells it apart from any other that there is at the same time.
    pub(crate) fn new(file: u64) -> Self {
        Self { file, row: AtomicU32::new(0) }
    }

    /// Whether so many bytes more may be reserved. Asked before; [`Account::settle`] follows.
    ///
    /// # Errors
    /// [`OutOfSpace`].
    pub(crate) fn admit(&self, wanted: u64, share: Share) -> Result<(), OutOfSpace> {
        let Some(ledger) = Ledger::get() else { return Ok(()) };
        let check = || {
            let (limit, in_use) = (ledger.limit(), ledger.in_use());
            let largest = Share::Half.of_limit(limit);
            let fits = wanted <= largest && in_use.checked_add(wanted).is_some_and(|sum| sum <= share.of_limit(limit));
            if fits { Ok(()) } else { Err(OutOfSpace { wanted, in_use, limit, largest }) }
        };
        check().or_else(|error| if ledger.bury() { check() } else { Err(error) })
    }

    /// Whether more than this share of the budget is in use, by all files together.
    pub(crate) fn is_over(&self, share: Share) -> bool {
        Ledger::get().is_some_and(|ledger| ledger.in_use() > share.of_limit(ledger.limit()))
    }

    /// Records how many bytes the file has now. Wakes the waiters for room if it has fewer than before.
    pub(crate) fn settle(&self, bytes: u64) {
        if self.settle_quietly(bytes) {
            wake_waiting();
        }
    }

    /// As [`Account::settle`], for a waiter for room that gives back what it took in vain: it would wake itself, and again and
    /// again. Returns whether the file has less than before.
    pub(crate) fn settle_quietly(&self, bytes: u64) -> bool {
        let row = Ledger::get().and_then(|ledger| self.row(ledger)); // none where there are too many files
        row.is_some_and(|row| bytes < row.bytes.swap(bytes, Ordering::SeqCst))
    }

    /// Its row; one that nobody holds becomes this process's.
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
        // All may be those of the dead.
        let found = found.or_else(|| if ledger.bury() { self.take_up(ledger) } else { None });
        self.row.store(found.map_or(Self::NOT_COUNTED, |at| at + 1), Ordering::Relaxed);
        found.map(|at| ledger.row(at))
    }

    #[cold]
    fn take_up(&self, ledger: &Ledger) -> Option<u32> {
        let own = Identity::own().bits();
        (0..ROWS).find(|at| {
            let row = ledger.row(*at);
            let is_taken = row.holder.compare_exchange(0, own, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if is_taken {
                row.bytes.store(0, Ordering::Relaxed);
                row.file.store(self.file, Ordering::Relaxed);
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
        // Another process that has the file takes it up again when it reserves memory in it.
        if row.file.load(Ordering::Relaxed) == self.file
            && row.holder.compare_exchange(Identity::own().bits(), 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            ledger.room().wake_all();
        }
    }
}

/// How much shared memory a process has put or made: what waits in queues, and what it made for itself. Not what it keeps to
/// answer by: `results`, the file of its results, and its loans.
pub(crate) fn bytes_of(process: Identity, results: u64) -> u64 {
    let counts = |holder, file| holder == process && file != results && file & LOANS == 0 && !registry::has(file);
    let of_files = Ledger::get().map_or(0, |ledger| ledger.sum(counts));
    of_files.saturating_add(registry::bytes_of(process))
}

/// In the place of a file's number, those of memory files having 32 bits: all loans of a process.
const LOANS: u64 = 1 << 63;

impl Account {
    pub(crate) fn of_loans() -> Self {
        Self::new(LOANS | u64::from(process_id()))
    }
}

/// In the place of a file's number: what a process made for itself, which is not in flight.
const PRIVATE: u64 = 1 << 62;

static PRIVATE_BYTES: PerProcess<(AtomicU64, Account)> =
    PerProcess::new(|_| (AtomicU64::new(0), Account::new(PRIVATE | u64::from(process_id()))));

/// So many bytes of shared memory that this process made for itself, as long as it has them.
#[derive(Debug)]
pub(crate) struct PrivateBytes {
    pid: u32,
    len_bytes: u64,
}

impl PrivateBytes {
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

/// Somebody who waits for room may have some in a file of its own.
pub(crate) fn wake_waiting() {
    if let Some(ledger) = Ledger::get() {
        fence(Ordering::SeqCst); // between what made room and the look at who sleeps
        ledger.room().wake_all();
    }
}

/// Whether somebody may wait for room. To be asked after what could make some was done.
pub(crate) fn is_room_awaited() -> bool {
    Ledger::get().is_some_and(|ledger| ledger.room().has_waiters())
}

/// Does what needs room, again and again until there is some, or until the deadline.
///
/// # Errors
/// What it fails with: the lack of room, too, when the deadline passes or there will never be any.
pub(crate) fn wait_for_room<T, E: From<WaitError>>(
    deadline: Deadline,
    out_of_space: impl Fn(&E) -> Option<OutOfSpace>,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let is_to_wait = |error: &E| out_of_space(error).is_some_and(|error| error.is_passing());
    match attempt() {
        Err(error) if is_to_wait(&error) => {}
        done => return done,
    }
    registry::trim_all();
    super::loan::trim();
    let mut failed = match attempt() {
        Err(error) if deadline != Deadline::PASSED && is_to_wait(&error) => error,
        done => return done,
    };
    let Some(ledger) = Ledger::get() else { return Err(failed) };
    let waited = ledger.room().wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || match attempt() {
        Err(error) if is_to_wait(&error) => {
            failed = error;
            Ok(None)
        }
        Err(error) => Err(AttemptError::Failed(error)),
        Ok(done) => Ok(Some(done)),
    });
    waited.map_err(|ended| match ended {
        AttemptError::Failed(error) => error,
        AttemptError::Wait(WaitError::TimedOut) => failed,
        AttemptError::Wait(error) => error.into(),
    })
}

enum AttemptError<E> {
    Failed(E),
    Wait(WaitError),
}

impl<E> From<WaitError> for AttemptError<E> {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_dead_make_way() {
        let ledger = Ledger::get().expect("memory");
        let gone = Identity::from_bits(u64::from(u32::MAX >> 2)); // above any process id
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

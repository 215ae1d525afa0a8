//! The places of objects in memory files: about a thousand objects of 256 bytes share a file, and so a descriptor.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 256 each | objects, except in the fifth and the sixth place; or one object with its table of waiters |
//! | 1024 | 256 | the table of regions, with one region |
//! | 1280 | 64 | [`PlacesHeader`] |
//!
//! The process that created a file allocates its places. A place is reused when its object was dropped and no other process
//! can have it: it was never sent, and this process was not forked since. Otherwise it stays unused until the kernel frees the
//! whole file, when no process has it open any more.
//!
//! `object` is the only user. Each process allocates only in files that it created, under a lock in its private memory
//! ([`PlacesStock`]), so a death leaves at most places that no process uses. Other processes read `used` to check an offset
//! that they received, and to wake the waiters of all objects after a death.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::layout::{ObjectLayout, SIZE};
use crate::prim::{AtomicBool, AtomicU32, Ordering};
use crate::shm::{Segment, registry};
use crate::sys::clone;
use crate::sys::memory::{self, PAGE};
use crate::sys::per_process::PerProcess;
use crate::sys::process_stamp::process_id;
use crate::sys::shared::{Shared, shared};

/// Length of a file in bytes, in one region. Memory is reserved as places are allocated.
pub(super) const FILE_LEN: u64 = 4 * PAGE;
/// Offset of the table of regions: see [`Segment`].
const REGION_TABLE: u64 = 1024;
/// Offset of the header.
const HEAD: u64 = 1280;
/// Bytes of memory that are reserved at a time.
const STEP: u64 = 4096;

shared! {
    /// | offset | bytes | field | meaning; writer |
    /// |---|---|---|---|
    /// | 0 | 4 | used | number of places that were ever allocated; the process that created the file |
    struct PlacesHeader { used: AtomicU32, }
}

/// Returns whether an object may start at this offset of a file.
fn is_place(at: u64) -> bool {
    at.is_multiple_of(SIZE) && at < FILE_LEN && !(REGION_TABLE..HEAD + SIZE).contains(&at)
}

/// A file of objects. There is one for each file and process, in [`registry`]. It is closed with the last object in it, unless
/// it is the one from which this process takes new places.
#[derive(Debug)]
struct PlacesFile(Segment);

impl PlacesFile {
    /// Creates a file without places. It is not counted in the memory budget.
    fn create() -> io::Result<Arc<Self>> {
        let segment = Segment::create(c"polyproc-sync", FILE_LEN, REGION_TABLE, FILE_LEN)?;
        segment.reserve(0, STEP)?;
        Ok(registry::note(segment.inode(), Self(segment)))
    }

    /// Opens a file of another process, or returns the one that this process has. `memfd` is duplicated in the first case.
    fn open(memfd: BorrowedFd<'_>) -> io::Result<Arc<Self>> {
        let (_, inode) = memory::inspect(memfd)?;
        if let Some(known) = registry::find(inode) {
            return Ok(known);
        }
        let segment = Segment::open(memfd.try_clone_to_owned()?, FILE_LEN, REGION_TABLE, FILE_LEN)?;
        Ok(registry::note(inode, Self(segment)))
    }

    fn head(&self) -> &PlacesHeader {
        self.0.fixed(HEAD)
    }

    /// Allocates a new place; `None` if there is none, or no memory. Only the process that created the file calls it, under a
    /// lock.
    fn next(&self) -> Option<u64> {
        let used = self.head().used.load(Ordering::Relaxed);
        let number = (used..u32::try_from(FILE_LEN / SIZE).ok()?).find(|number| is_place(u64::from(*number) * SIZE))?;
        let at = u64::from(number) * SIZE;
        if at.is_multiple_of(STEP) && at > 0 {
            self.0.reserve(at, STEP).ok()?;
        }
        // Pairs with the Acquire in `open` and `recover`: the memory of the place is reserved before.
        self.head().used.store(number + 1, Ordering::Release);
        Some(at)
    }
}

impl registry::SharedObject for PlacesFile {
    /// Makes the waiters of all objects in the file re-check. Called when a process has died. A peer may have written `used`,
    /// but no offset is outside the file.
    fn recover(&self) {
        // Pairs with the Release in `next` and `alone`.
        let used = u64::from(self.head().used.load(Ordering::Acquire)).min(FILE_LEN / SIZE);
        for at in (0..used).map(|number| number * SIZE).filter(|at| is_place(*at)) {
            self.0.fixed::<ObjectLayout>(at).waiters.recover();
        }
    }
}

/// The places that this process allocates. A forked child starts with an empty stock.
#[derive(Debug, Default)]
struct PlacesStock {
    /// The file from which new places are taken, with the highest one last allocated.
    current: Option<Arc<PlacesFile>>,
    /// Places for reuse. They keep no file open.
    free: Vec<(Weak<PlacesFile>, u64)>,
}

/// A copy of the process gets an empty one: the files of its parent are the parent's to allocate in.
static STOCK: PerProcess<Mutex<PlacesStock>> = PerProcess::new(|_| Mutex::default());

fn stock() -> MutexGuard<'static, PlacesStock> {
    STOCK.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place: the inode number of its file, and its offset in that file.
pub(super) type Id = (u64, u64);

/// A place that belongs to an object until it is dropped. Dropping it returns it to the stock if no other process can have it.
#[derive(Debug)]
pub(super) struct ObjectPlace {
    file: Arc<PlacesFile>,
    at: u64,
    /// The process id and the number of forks at the allocation: the place is reused only if both are unchanged. `None` if it
    /// is never reused.
    given_out: Option<(u32, u64)>,
    /// True once it may have been sent to another process.
    is_shared: AtomicBool,
}

impl ObjectPlace {
    fn new(file: Arc<PlacesFile>, at: u64, given_out: Option<(u32, u64)>) -> Self {
        Self { file, at, given_out, is_shared: AtomicBool::new(false) }
    }

    /// Allocates a place in a file that others share: a place for reuse, else the next one of the current file, else the first
    /// one of a new file. It may contain the bytes of an earlier object.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub(super) fn shared() -> io::Result<Self> {
        let copies = clone::copies(); // read before the place is allocated
        let mut stock = stock();
        let given_out = Some((process_id(), copies));
        while let Some((file, at)) = stock.free.pop() {
            if let Some(file) = file.upgrade() {
                return Ok(Self::new(file, at, given_out));
            }
        }
        let from_current = stock.current.as_ref().and_then(|file| Some((Arc::clone(file), file.next()?)));
        let (file, at) = match from_current {
            Some(found) => found,
            None => {
                let file = stock.current.insert(PlacesFile::create()?);
                (Arc::clone(file), file.next().ok_or(io::ErrorKind::OutOfMemory)?)
            }
        };
        Ok(Self::new(file, at, given_out))
    }

    /// Allocates a place with a file of its own, for an object with a table of waiters. It is never reused.
    ///
    /// # Errors
    /// As [`ObjectPlace::shared`].
    pub(super) fn alone() -> io::Result<Self> {
        let file = PlacesFile::create()?;
        // Pairs with the Acquire in `open` and `recover`.
        file.head().used.store(1, Ordering::Release);
        Ok(Self::new(file, 0, None))
    }

    /// Opens a place that another process allocated. Both values come from a peer.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if there is no such place, or the file could be shortened; else if it cannot be mapped.
    pub(super) fn open(memfd: BorrowedFd<'_>, at: u64) -> io::Result<Self> {
        let file = PlacesFile::open(memfd)?;
        // Memory is reserved only for places that were allocated.
        // Pairs with the Release in `next` and `alone`.
        if !is_place(at) || at / SIZE >= file.head().used.load(Ordering::Acquire).into() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file has no object at this offset"));
        }
        Ok(Self::new(file, at, None))
    }

    /// Returns what identifies the place in this process while it is open.
    pub(super) fn id(&self) -> Id {
        (self.file.0.inode(), self.at)
    }

    /// Returns the descriptor and the offset to send to another process. From now on the place is not reused.
    pub(super) fn share(&self) -> (BorrowedFd<'_>, u64) {
        self.is_shared.store(true, Ordering::Relaxed);
        (self.file.0.as_fd(), self.at)
    }

    /// Returns the `T` at `offset` bytes from the place.
    ///
    /// # Panics
    /// If it is not inside the file, or not aligned.
    pub(super) fn view<T: Shared>(&self, offset: u64) -> &T {
        self.file.0.fixed(self.at + offset)
    }

    /// Reserves memory for the `len` bytes at `offset` bytes from the place.
    pub(super) fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.0.reserve(self.at + offset, len)
    }
}

impl Drop for ObjectPlace {
    fn drop(&mut self) {
        let Some((pid, copies)) = self.given_out else { return };
        if pid == process_id() && copies == clone::copies() && !self.is_shared.load(Ordering::Relaxed) {
            stock().free.push((Arc::downgrade(&self.file), self.at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Lock};
    use super::*;

    fn file_and_place(event: &Event) -> (u64, u64) {
        let (file, at) = event.place();
        (memory::inspect(file).expect("a file").1, at)
    }

    #[test]
    fn objects_share_files_and_none_lies_on_another() {
        let events: Vec<_> = (0..3000).map(|_| Event::new().expect("memory")).collect();
        let mut places: Vec<_> = events.iter().map(file_and_place).collect();
        for (at, event) in events.iter().enumerate() {
            assert!(!event.is_set(), "{at}");
            event.set();
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(places.iter().all(|(_, at)| !(REGION_TABLE..HEAD + SIZE).contains(at)));
        places.dedup_by_key(|(file, _)| *file);
        assert!(places.len() <= 4, "{} files", places.len());
    }

    #[test]
    fn a_place_is_given_out_again_only_when_nobody_else_can_have_it() {
        let place = |lock: &Lock| lock.downgrade().upgrade().expect("it lives").id();
        let first = Lock::new().expect("memory");
        let id = place(&first);
        first.acquire(super::super::Owner::Process, crate::deadline::Deadline::PASSED).map(drop).expect("it is free");
        drop(first);
        let again = Lock::new().expect("memory");
        assert_eq!(place(&again), id);
        assert!(!again.is_locked(), "it is as new");
        let _ = again.place(); // another process may have it now
        drop(again);
        let other = Lock::new().expect("memory");
        assert_ne!(place(&other), id);
        let id = place(&other);
        #[expect(unsafe_code, reason = "a copy of the process, as any code may make it")]
        // SAFETY: the child exits at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            crate::sys::exit::exit_now(0);
        }
        assert!(child > 0);
        drop(other);
        assert_ne!(place(&Lock::new().expect("memory")), id, "the copy may have it");
        let _ = rustix::process::waitpid(rustix::process::Pid::from_raw(child), rustix::process::WaitOptions::empty());
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let event = Event::new().expect("memory");
        let (file, at) = event.place();
        for wrong in [at + 1, REGION_TABLE, HEAD, FILE_LEN, u64::MAX, FILE_LEN - SIZE] {
            assert!(Event::from_place(file, wrong).is_err(), "{wrong}");
        }
        assert!(Lock::from_place(file, at).is_err(), "of another kind");
        let same = Event::from_place(file, at).expect("the same");
        same.set();
        assert!(event.is_set());
    }
}

//! Where objects are: many in one memory file, so that thousands take a descriptor or two, and 256 bytes each.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 256 each | objects, all but the fifth and the sixth; or one object with what belongs to it |
//! | 1024 | 256 | the table of regions, of which there is one |
//! | 1280 | 64 | [`PlacesHeader`] |
//!
//! The process that made a file gives its places out. A place is given out again when its object is gone and no other process
//! can have it: when it was never sent anywhere, and this process was not copied since. Else it stays unused until the whole
//! file goes, which the kernel sees to when no process has it any more.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::object::{Object, ObjectLayout};
use crate::prim::{AtomicBool, AtomicU32, Ordering};
use crate::shm::{Segment, registry};
use crate::sys::clone;
use crate::sys::identity::process_id;
use crate::sys::memory::{self, PAGE};
use crate::sys::per_process::PerProcess;
use crate::sys::shared::{Shared, shared};

/// Of an object.
pub(super) const SIZE: u64 = 256;
pub(super) const FILE_LEN: u64 = 4 * PAGE;
const REGION_TABLE: u64 = 1024;
const HEAD: u64 = 1280;
/// Memory is reserved for so much at a time.
const STEP: u64 = 4096;

shared! {
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 4 | used | how many places were ever given out; who made the file |
    struct PlacesHeader { used: AtomicU32, }
}

/// Whether an object may start at this offset of a file.
fn is_place(at: u64) -> bool {
    at.is_multiple_of(SIZE) && at < FILE_LEN && !(REGION_TABLE..HEAD + SIZE).contains(&at)
}

/// A file of objects.
#[derive(Debug)]
struct PlacesFile(Segment);

impl PlacesFile {
    fn create() -> io::Result<Arc<Self>> {
        let segment = Segment::create(c"polyproc-sync", FILE_LEN, REGION_TABLE, FILE_LEN)?;
        segment.reserve(0, STEP)?;
        Ok(registry::note(segment.inode(), Self(segment)))
    }

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

    /// A place that was never given out; `None` when there is none, or no memory. Only who made the file calls it, under a lock.
    fn next(&self) -> Option<u64> {
        let used = self.head().used.load(Ordering::Relaxed);
        let number = (used..u32::try_from(FILE_LEN / SIZE).ok()?).find(|number| is_place(u64::from(*number) * SIZE))?;
        let at = u64::from(number) * SIZE;
        if at.is_multiple_of(STEP) && at > 0 {
            self.0.reserve(at, STEP).ok()?;
        }
        self.head().used.store(number + 1, Ordering::Release);
        Some(at)
    }
}

impl registry::SharedObject for PlacesFile {
    fn recover(&self) {
        let used = u64::from(self.head().used.load(Ordering::Acquire)).min(FILE_LEN / SIZE);
        for at in (0..used).map(|number| number * SIZE).filter(|at| is_place(*at)) {
            self.0.fixed::<ObjectLayout>(at).waiters.recover();
        }
    }
}

/// What this process gives out. A copy of it begins anew.
#[derive(Debug, Default)]
struct PlacesStock {
    current: Option<Arc<PlacesFile>>,
    /// Places to be given out again.
    free: Vec<(Weak<PlacesFile>, u64)>,
}

static STOCK: PerProcess<Mutex<PlacesStock>> = PerProcess::new(|_| Mutex::default());

fn stock() -> MutexGuard<'static, PlacesStock> {
    STOCK.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The objects of this process, by file and place.
static OBJECTS: PerProcess<Mutex<HashMap<Id, Weak<Object>>>> = PerProcess::inherited();

/// Which place it is: the number of its file, and where it is in that.
pub(super) type Id = (u64, u64);

fn objects() -> MutexGuard<'static, HashMap<Id, Weak<Object>>> {
    OBJECTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The object at a place, if this process has it already.
pub(super) fn find(id: Id) -> Option<Arc<Object>> {
    objects().get(&id)?.upgrade()
}

/// Notes an object, or gives the one that another thread has noted for the same place meanwhile.
pub(super) fn note(id: Id, object: Object) -> Arc<Object> {
    let mut objects = objects();
    if let Some(first) = objects.get(&id).and_then(Weak::upgrade) {
        drop(objects); // before `object`, which is dropped then
        return first;
    }
    if objects.len() == objects.capacity() {
        objects.retain(|_, object| object.strong_count() > 0); // before it would grow
    }
    let object = Arc::new(object);
    objects.insert(id, Arc::downgrade(&object));
    object
}

/// A place for an object, until it is dropped.
#[derive(Debug)]
pub(super) struct ObjectPlace {
    file: Arc<PlacesFile>,
    at: u64,
    /// It can be given out again: for as long as this process is the one that made it, and is not copied.
    given_out: Option<(u32, u64)>,
    /// It was sent somewhere.
    is_shared: AtomicBool,
}

impl ObjectPlace {
    fn new(file: Arc<PlacesFile>, at: u64, given_out: Option<(u32, u64)>) -> Self {
        Self { file, at, given_out, is_shared: AtomicBool::new(false) }
    }

    /// One among others.
    pub(super) fn shared() -> io::Result<Self> {
        let copies = clone::copies(); // before it is there
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

    /// One with a file of its own.
    pub(super) fn alone() -> io::Result<Self> {
        let file = PlacesFile::create()?;
        file.head().used.store(1, Ordering::Release);
        Ok(Self::new(file, 0, None))
    }

    /// One that another process gave out.
    pub(super) fn open(memfd: BorrowedFd<'_>, at: u64) -> io::Result<Self> {
        let file = PlacesFile::open(memfd)?;
        // Memory was reserved for those that were given out.
        if !is_place(at) || at / SIZE >= file.head().used.load(Ordering::Acquire).into() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no object at this place"));
        }
        Ok(Self::new(file, at, None))
    }

    pub(super) fn id(&self) -> Id {
        (self.file.0.inode(), self.at)
    }

    /// What takes it to another process.
    pub(super) fn share(&self) -> (BorrowedFd<'_>, u64) {
        self.is_shared.store(true, Ordering::Relaxed);
        (self.file.0.as_fd(), self.at)
    }

    /// The `T` at `offset` behind it.
    pub(super) fn view<T: Shared>(&self, offset: u64) -> &T {
        self.file.0.fixed(self.at + offset)
    }

    /// Has the kernel find memory behind it.
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
        let _ = again.place(); // somebody else may have it now
        drop(again);
        let other = Lock::new().expect("memory");
        assert_ne!(place(&other), id);
        let id = place(&other);
        #[expect(unsafe_code, reason = "a copy of the process, as any code may make it")]
        // SAFETY: the child ends at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            clone::exit_now(0);
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

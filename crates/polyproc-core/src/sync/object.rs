//! [`Object`]: a place in a memory file with the state of a primitive and its waiters; for conditions and barriers also a
//! mutex and a table of waiters.
//!
//! Every primitive of this room is an `Arc<Object>`: one object for each place and process, found in a table of this module,
//! so that all handles of a process share a mapping. `places` assigns the file and reuses the place after the drop. The
//! mapping is also registered with [`crate::shm::registry`] there, so waiters re-check after a death.
//!
//! A step under the mutex is one store, or can be finished by the next owner; each file here says how. After an owner of the
//! mutex has died, the next owner wakes the waiters. No user code runs under the mutex, and no process is checked for its
//! death.
//!
//! Words that are read from shared memory are never trusted as indices: numbers of places are clamped to the table.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::layout::{ObjectLayout, StateWords, Waiter, Waiting};
use super::places::{self, Id, ObjectPlace};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::watch_death;
use crate::robust::{Guard, RecheckInterval, WaitError};
use crate::sys::per_process::PerProcess;
use crate::sys::process_stamp::ProcessStamp;

/// Offset of the table of waiters from the object's start.
const WAITERS: u64 = 4096;
/// Number of places in a table of waiters, which must fit in the file.
const MOST_WAITERS: u32 = 4000;

/// How long a waiter sleeps at first before it re-checks, and checks whether the processes that it waits for are alive.
pub(super) const RECHECK_AFTER: Duration = Duration::from_millis(100);

const _: () = assert!(size_of::<Waiter>() == 64 && WAITERS + MOST_WAITERS as u64 * 64 <= places::FILE_LEN);

/// The objects of this process, by file and place. A forked child begins with those of its parent.
static OBJECTS: PerProcess<Mutex<HashMap<Id, Weak<Object>>>> = PerProcess::inherited();

/// Locks the table. Nothing that runs under this lock may drop the last handle to an object.
fn objects() -> MutexGuard<'static, HashMap<Id, Weak<Object>>> {
    OBJECTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the object at a place if this process has one.
fn find(id: Id) -> Option<Arc<Object>> {
    objects().get(&id)?.upgrade()
}

/// Registers an object and returns it. If another thread has registered one for the same place before, returns that.
fn note(id: Id, object: Object) -> Arc<Object> {
    let mut objects = objects();
    if let Some(first) = objects.get(&id).and_then(Weak::upgrade) {
        drop(objects); // unlocked before `object` is dropped
        return first;
    }
    if objects.len() == objects.capacity() {
        objects.retain(|_, object| object.strong_count() > 0); // before it would grow
    }
    let object = Arc::new(object);
    objects.insert(id, Arc::downgrade(&object));
    object
}

/// All places of a table of waiters are taken, or the system has no memory for a further one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many waiters: at most {MOST_WAITERS} threads can wait at a time")]
pub struct TooManyWaiters;

/// The common part of all synchronisation primitives: the place with its bytes in [`ObjectLayout`].
#[derive(Debug)]
pub(super) struct Object(ObjectPlace);

impl Object {
    /// Creates an object that shares its file with others, and has no table of waiters. `kind` is the number of the primitive
    /// (see `handle!`), `value` and `limit` are the initial values of the words with these names.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub(super) fn create(kind: u64, value: u64, limit: u64) -> io::Result<Arc<Self>> {
        Self::set_up(ObjectPlace::shared()?, kind, value, limit)
    }

    /// As [`Object::create`], but in a file of its own with a table of waiters.
    ///
    /// # Errors
    /// As [`Object::create`].
    pub(super) fn create_with_waiters(kind: u64, value: u64, limit: u64) -> io::Result<Arc<Self>> {
        Self::set_up(ObjectPlace::alone()?, kind, value, limit)
    }

    /// Writes the object and registers it. No other process has the place yet.
    fn set_up(place: ObjectPlace, kind: u64, value: u64, limit: u64) -> io::Result<Arc<Self>> {
        let object = Self(place);
        object.layout().set_up(kind, value, limit);
        Ok(note(object.0.id(), object))
    }

    /// Opens the object at offset `at` of this file, which must be of `kind`. Both come from a peer. The file is duplicated
    /// only if this process does not have it open.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the file has no object of this kind there; other errors if it is no memory file or
    /// cannot be mapped.
    pub(super) fn open(kind: u64, memfd: BorrowedFd<'_>, at: u64) -> io::Result<Arc<Self>> {
        let place = ObjectPlace::open(memfd, at)?;
        let object = find(place.id()).unwrap_or_else(|| note(place.id(), Self(place)));
        if !object.layout().is_of(kind) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the descriptor belongs to another kind of object"));
        }
        Ok(object)
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> Id {
        self.0.id()
    }

    /// Returns the descriptor and the offset by which another process opens the object ([`Object::open`]). The place is not
    /// reused from then on.
    pub(super) fn place(&self) -> (BorrowedFd<'_>, u64) {
        self.0.share()
    }

    /// Returns the bytes of the object. Any peer may change any word at any time.
    pub(super) fn layout(&self) -> &ObjectLayout {
        self.0.view(0)
    }

    /// Returns the words whose meaning depends on the primitive.
    pub(super) fn state(&self) -> &StateWords {
        &self.layout().state
    }

    /// Acquires the mutex of a condition or barrier. `repair` finishes the step that a dead owner had begun. Not acquired
    /// twice by one thread.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] only while the owner is stopped, once the deadline and 100 ms have passed;
    /// [`WaitError::Interrupted`].
    pub(super) fn lock(&self, deadline: Deadline, repair: impl FnOnce()) -> Result<Guard<'_>, WaitError> {
        let guard = self.layout().mutex.lock(deadline)?;
        if guard.owner_died {
            repair();
            self.layout().waiters.wake_generation(); // the dead owner may not have sent its wake-up
        }
        Ok(guard)
    }

    /// Acquires the mutex as [`Object::lock`] does, however long it takes and whatever signals arrive.
    pub(super) fn lock_through_signals(&self, repair: impl Fn()) -> Guard<'_> {
        loop {
            if let Ok(guard) = self.lock(Deadline::NEVER, &repair) {
                return guard;
            }
        }
    }

    /// Returns the places of the table that were ever used.
    pub(super) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        // Pairs with the Release in `enlist`: the memory of a place is reserved, and its fields are written before.
        let used = self.state().used.load(Ordering::Acquire).min(MOST_WAITERS);
        (0..used).map(|at| self.waiter(at))
    }

    /// Returns a place of the table; the last one for a number that is too large.
    pub(super) fn waiter(&self, at: u32) -> &Waiter {
        self.0.view(WAITERS + u64::from(at.min(MOST_WAITERS - 1)) * 64)
    }

    /// Takes a place in the table for this process, in the state [`Waiting::Waits`]. Returns its number. The caller holds the
    /// mutex; the waiter frees the place itself.
    ///
    /// The commit is the store of the state or, for a place that was never used, of `used`: after a death before it, the place
    /// is as before.
    ///
    /// # Errors
    /// [`TooManyWaiters`] if all places are taken, or the system has no memory.
    pub(super) fn enlist(&self, generation: u64) -> Result<u32, TooManyWaiters> {
        let state = self.state();
        let used = state.used.load(Ordering::Relaxed).min(MOST_WAITERS);
        let at = (0..used).find(|at| self.waiter(*at).state() == Waiting::Free).unwrap_or(used);
        if at >= MOST_WAITERS {
            return Err(TooManyWaiters);
        }
        // Reserves a page of places at a time: without memory, a write there would kill the process.
        if at == used && at.is_multiple_of(64) && self.0.reserve(WAITERS + u64::from(at) * 64, 4096).is_err() {
            return Err(TooManyWaiters);
        }
        let ticket = state.ticket.load(Ordering::Relaxed).wrapping_add(1);
        state.ticket.store(ticket, Ordering::Relaxed);
        let waiter = self.waiter(at);
        waiter.owner.store(ProcessStamp::own().bits(), Ordering::Relaxed);
        waiter.ticket.store(ticket, Ordering::Relaxed);
        waiter.generation.store(generation, Ordering::Relaxed);
        waiter.set(Waiting::Waits);
        if at == used {
            // Pairs with the Acquire in `waiters`.
            state.used.store(used + 1, Ordering::Release);
        }
        Ok(at)
    }

    /// Returns the dead processes in the table. Not to be called under the mutex, as it makes system calls: two or more for
    /// each process.
    pub(super) fn dead(&self) -> Vec<ProcessStamp> {
        let mut dead = Vec::new();
        for waiter in self.waiters().filter(|waiter| waiter.state() != Waiting::Free) {
            let owner = waiter.owner();
            if !dead.contains(&owner) && owner.is_dead() {
                dead.push(owner);
            }
        }
        dead
    }

    /// Watches the processes of the other waiters: the object recovers when one dies. If one cannot be watched, restarts the
    /// interval. Called by a waiter after its first sleep.
    pub(super) fn watch_waiters(&self, interval: &RecheckInterval) {
        let mut owners: Vec<_> =
            self.waiters().filter(|waiter| waiter.state() != Waiting::Free).map(Waiter::owner).collect();
        owners.sort_unstable_by_key(|owner| owner.bits());
        owners.dedup();
        if !owners.into_iter().filter(|owner| *owner != ProcessStamp::own()).all(watch_death) {
            interval.restart();
        }
    }

    /// Returns the dead owners in the run of entries after `place`, up to the first living one. Each waiter checks its
    /// successors, so every death is detected at little cost for each. Not to be called under the mutex, as [`Object::dead`].
    pub(super) fn dead_behind(&self, place: u32) -> Vec<ProcessStamp> {
        let all: Vec<_> = self.waiters().collect();
        let (before, behind) = all.split_at(all.len().min(place as usize + 1));
        let taken = behind.iter().chain(before).filter(|waiter| waiter.state() != Waiting::Free);
        taken.map(|waiter| waiter.owner()).take_while(|owner| owner.is_dead()).collect()
    }
}

/// Defines the functions that every handle to an object has. The kind is the number in [`ObjectLayout`]: 1 lock, 2 semaphore,
/// 3 event, 4 condition, 5 barrier.
macro_rules! handle {
    ($name:ident, $kind:literal) => {
        impl $name {
            /// Opens an object of another process, given the values of [`place`](Self::place) there.
            ///
            /// # Errors
            /// [`std::io::ErrorKind::InvalidData`] if there is no object of this kind.
            pub fn from_place(memfd: std::os::fd::BorrowedFd<'_>, at: u64) -> std::io::Result<Self> {
                Ok(Self(super::object::Object::open($kind, memfd, at)?))
            }

            /// Returns the values by which another process opens the object: a descriptor, which many objects may share, and
            /// the offset in that file.
            #[must_use]
            pub fn place(&self) -> (std::os::fd::BorrowedFd<'_>, u64) {
                self.0.place()
            }
        }
    };
}
pub(super) use handle;

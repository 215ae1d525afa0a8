//! [`Object`]: a place in a memory file with a state, a short lock over it, waiters, and perhaps a table of who waits.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 64 | [`ObjectKind`] |
//! | 64 | 64 | the [`Mutex`] over all that follows |
//! | 128 | 64 | [`StateWords`] |
//! | 192 | 64 | [`EventCount`] |
//! | 4096 | 64 each | [`Waiter`]s, of an object that has a file of its own |
//!
//! Which file it is in: see `places`.
//!
//! A step under the mutex is one store, or can be finished by whoever comes next; each file here says how. An owner of the
//! mutex that dies leaves its waiters to the next one, who wakes them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::places::{self, ObjectPlace};

use crate::deadline::Deadline;
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::process::watch_death;
use crate::robust::{EventCount, Guard, Mutex, RecheckInterval, WaitError};
use crate::sys::identity::Identity;
use crate::sys::shared::shared;

const WAITERS: u64 = 4096;
/// How many can wait at a time where each has a place of its own.
const MOST_WAITERS: u32 = 4000;
const MAGIC: u64 = u64::from_le_bytes(*b"polyprs1");

/// How long a sleeper sleeps at first before it looks for itself, whether those that it waits for live.
pub(super) const RECHECK_AFTER: Duration = Duration::from_millis(100);

shared! {
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 8 | magic | [`MAGIC`], when all else is set up |
    /// | 8 | 8 | kind | what it is, at the start |
    /// | 16 | 8 | limit | a bound, or a number of parties, at the start |
    pub(super) struct ObjectKind {
        magic: AtomicU64,
        kind: AtomicU64,
        pub(super) limit: AtomicU64,
    }
}

shared! {
    /// | offset | bytes | field | meaning |
    /// |---|---|---|---|
    /// | 0 | 8 | owner | the [`Identity`] that holds a lock, or runs a barrier's action |
    /// | 8 | 8 | value | of a semaphore; twice the number of sets of an event, plus one while it is set; a barrier's generation and phase |
    /// | 16 | 4 | thread | of a lock's owner |
    /// | 20 | 4 | count | how often the owner of a lock holds it |
    /// | 24 | 4 | | unused |
    /// | 28 | 4 | used | how many places in the table of waiters were ever used |
    /// | 32 | 8 | ticket | the last one given to a waiter |
    pub(super) struct StateWords {
        pub(super) owner: AtomicU64,
        pub(super) value: AtomicU64,
        pub(super) thread: AtomicU32,
        pub(super) count: AtomicU32,
        unused: AtomicU32,
        pub(super) used: AtomicU32,
        pub(super) ticket: AtomicU64,
    }
}

shared! {
    /// | offset | bytes | field | meaning |
    /// |---|---|---|---|
    /// | 0 | 4 | state | a [`Waiting`]: the store that makes the rest valid |
    /// | 8 | 8 | owner | the [`Identity`] that waits |
    /// | 16 | 8 | ticket | of those who wait, the smallest came first |
    /// | 24 | 8 | generation | of a barrier |
    pub(super) struct Waiter {
        state: AtomicU32,
        unused: AtomicU32,
        pub(super) owner: AtomicU64,
        pub(super) ticket: AtomicU64,
        pub(super) generation: AtomicU64,
    }
}

/// The state of a place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Waiting {
    Free = 0,
    Waits = 1,
    /// It may go on. It frees the place itself.
    Released = 2,
    /// What it waited for will not come. It frees the place itself.
    Broken = 3,
}

impl Waiter {
    pub(super) fn state(&self) -> Waiting {
        match self.state.load(Ordering::Acquire) {
            1 => Waiting::Waits,
            2 => Waiting::Released,
            3 => Waiting::Broken,
            _ => Waiting::Free,
        }
    }

    pub(super) fn set(&self, state: Waiting) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// From one state to another; false when it was in none of that state.
    pub(super) fn change(&self, from: Waiting, to: Waiting) -> bool {
        self.state.compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(super) fn owner(&self) -> Identity {
        Identity::from_bits(self.owner.load(Ordering::Relaxed))
    }
}

shared! {
    pub(super) struct ObjectLayout {
        pub(super) kind: ObjectKind,
        mutex: Mutex,
        pub(super) state: StateWords,
        pub(super) waiters: EventCount,
    }
}

impl ObjectLayout {
    /// As new: another object may have been here, which nobody has any more.
    fn clear(&self) {
        self.kind.magic.store(0, Ordering::Relaxed);
        let StateWords { owner, value, thread, count, ticket, .. } = &self.state;
        [owner, value, ticket].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
        [thread, count].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}
const _: () = assert!(size_of::<ObjectLayout>() as u64 == places::SIZE && size_of::<Waiter>() == 64);
const _: () = assert!(WAITERS + MOST_WAITERS as u64 * 64 <= places::FILE_LEN);

/// All places of a table of waiters are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_WAITERS} wait already, more than there are places for")]
pub struct TooManyWaiters;

/// What a means of synchronisation is made of.
#[derive(Debug)]
pub(super) struct Object(ObjectPlace);

impl Object {
    /// One that shares its file with others: nobody waits in it in a place of its own.
    pub(super) fn create(kind: u64, value: u64, limit: u64) -> io::Result<Arc<Self>> {
        Self::set_up(ObjectPlace::shared()?, kind, value, limit)
    }

    /// One with a table of who waits.
    pub(super) fn create_with_waiters(kind: u64, value: u64, limit: u64) -> io::Result<Arc<Self>> {
        Self::set_up(ObjectPlace::alone()?, kind, value, limit)
    }

    fn set_up(place: ObjectPlace, kind: u64, value: u64, limit: u64) -> io::Result<Arc<Self>> {
        let object = Self(place);
        let layout = object.layout();
        layout.clear();
        layout.state.value.store(value, Ordering::Relaxed);
        layout.kind.kind.store(kind, Ordering::Relaxed);
        layout.kind.limit.store(limit, Ordering::Relaxed);
        layout.kind.magic.store(MAGIC, Ordering::Release);
        Ok(places::note(object.0.id(), object))
    }

    /// The one at `at` in this file, which must be of `kind`.
    pub(super) fn open(kind: u64, memfd: BorrowedFd<'_>, at: u64) -> io::Result<Arc<Self>> {
        let place = ObjectPlace::open(memfd, at)?;
        let object = places::find(place.id()).unwrap_or_else(|| places::note(place.id(), Self(place)));
        let found = &object.layout().kind;
        if found.magic.load(Ordering::Acquire) != MAGIC || found.kind.load(Ordering::Relaxed) != kind {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this descriptor is of another kind of object"));
        }
        Ok(object)
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> places::Id {
        self.0.id()
    }

    /// What makes it another process's too, by [`Object::open`]: a descriptor, and where it is behind that.
    pub(super) fn place(&self) -> (BorrowedFd<'_>, u64) {
        self.0.share()
    }

    pub(super) fn layout(&self) -> &ObjectLayout {
        self.0.view(0)
    }

    pub(super) fn state(&self) -> &StateWords {
        &self.layout().state
    }

    /// The mutex of conditions and barriers. `repair` finishes what a dead owner had begun.
    ///
    /// # Errors
    /// [`WaitError`]; the deadline passes only while its owner stands still.
    pub(super) fn lock(&self, deadline: Deadline, repair: impl FnOnce()) -> Result<Guard<'_>, WaitError> {
        let guard = self.layout().mutex.lock(deadline)?;
        if guard.owner_died {
            repair();
            self.layout().waiters.wake_generation(); // it may have owed a wake-up
        }
        Ok(guard)
    }

    /// As [`Object::lock`], however long it takes, and through signal handlers.
    pub(super) fn lock_through_signals(&self, repair: impl Fn()) -> Guard<'_> {
        loop {
            if let Ok(guard) = self.lock(Deadline::NEVER, &repair) {
                return guard;
            }
        }
    }

    /// The places of the table that were ever used.
    pub(super) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        let used = self.state().used.load(Ordering::Acquire).min(MOST_WAITERS);
        (0..used).map(|at| self.waiter(at))
    }

    pub(super) fn waiter(&self, at: u32) -> &Waiter {
        self.0.view(WAITERS + u64::from(at.min(MOST_WAITERS - 1)) * 64)
    }

    /// Takes a place in the table for this process. Under the mutex.
    pub(super) fn enlist(&self, generation: u64) -> Result<u32, TooManyWaiters> {
        let state = self.state();
        let used = state.used.load(Ordering::Relaxed).min(MOST_WAITERS);
        let at = (0..used).find(|at| self.waiter(*at).state() == Waiting::Free).unwrap_or(used);
        if at >= MOST_WAITERS {
            return Err(TooManyWaiters);
        }
        // A page of places at a time: without memory for it, a write there would end the process.
        if at == used && at.is_multiple_of(64) && self.0.reserve(WAITERS + u64::from(at) * 64, 4096).is_err() {
            return Err(TooManyWaiters);
        }
        let ticket = state.ticket.load(Ordering::Relaxed).wrapping_add(1);
        state.ticket.store(ticket, Ordering::Relaxed);
        let waiter = self.waiter(at);
        waiter.owner.store(Identity::own().bits(), Ordering::Relaxed);
        waiter.ticket.store(ticket, Ordering::Relaxed);
        waiter.generation.store(generation, Ordering::Relaxed);
        waiter.set(Waiting::Waits);
        if at == used {
            state.used.store(used + 1, Ordering::Release);
        }
        Ok(at)
    }

    /// Those in the table that have died. Not under the mutex: it asks the system.
    pub(super) fn dead(&self) -> Vec<Identity> {
        let mut dead = Vec::new();
        for waiter in self.waiters().filter(|waiter| waiter.state() != Waiting::Free) {
            let owner = waiter.owner();
            if !dead.contains(&owner) && owner.is_dead() {
                dead.push(owner);
            }
        }
        dead
    }

    /// Watches the other waiters: the object recovers when one dies. Where that cannot be watched, the interval starts again.
    pub(super) fn watch_waiters(&self, interval: &RecheckInterval) {
        let mut owners: Vec<_> =
            self.waiters().filter(|waiter| waiter.state() != Waiting::Free).map(Waiter::owner).collect();
        owners.sort_unstable_by_key(|owner| owner.bits());
        owners.dedup();
        if !owners.into_iter().filter(|owner| *owner != Identity::own()).all(watch_death) {
            interval.restart();
        }
    }

    /// Those who died of the ones behind `place`, up to the first that lives: if every waiter looks after these, no death is
    /// missed, and it costs each little. As [`Object::dead`].
    pub(super) fn dead_behind(&self, place: u32) -> Vec<Identity> {
        let all: Vec<_> = self.waiters().collect();
        let (before, behind) = all.split_at(all.len().min(place as usize + 1));
        let taken = behind.iter().chain(before).filter(|waiter| waiter.state() != Waiting::Free);
        taken.map(|waiter| waiter.owner()).take_while(|owner| owner.is_dead()).collect()
    }
}

/// What every handle to an object has.
macro_rules! handle {
    ($name:ident, $kind:literal) => {
        impl $name {
            /// The one that another process has, of what [`place`](Self::place) gave there.
            ///
            /// # Errors
            /// [`std::io::ErrorKind::InvalidData`] when it is none of this kind.
            pub fn from_place(memfd: std::os::fd::BorrowedFd<'_>, at: u64) -> std::io::Result<Self> {
                Ok(Self(super::object::Object::open($kind, memfd, at)?))
            }

            /// What makes it another process's too: a descriptor, which many may have in common, and where in that file it is.
            #[must_use]
            pub fn place(&self) -> (std::os::fd::BorrowedFd<'_>, u64) {
                self.0.place()
            }
        }
    };
}
pub(super) use handle;

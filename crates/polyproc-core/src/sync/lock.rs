//! [`Lock`]: owned by a process, or by a thread recursively.
//!
//! One compare-and-swap of the owner acquires or releases it, so a process that dies or is stopped between any two
//! instructions blocks nothing but the lock that it holds. Only the owner writes thread and count, which mean nothing without
//! it. A waiter that finds a dead owner acquires the lock from it, and receives [`Acquired::OwnerDied`].
//!
//! - Acquire: replace 0 by the own stamp, by compare-and-swap. If the lock is held, spin if that has succeeded lately; then
//!   become a waiter, try again, check whether the owner is alive, sleep.
//! - Release: clear the thread, replace the stamp by 0, wake one waiter.
//!
//! A death before the release's swap leaves the lock held by a dead owner. A death after it leaves a free lock whose waiter is
//! not woken: the process that reaps, or the waiter's own re-check, ends the wait.
//!
//! Unlike [`crate::robust::Mutex`], it may be held for any time, across threads and in any order, and its owner may be stopped
//! without delaying waits that have a deadline. The object's mutex is not used. A thread that ends leaves the lock held by its
//! process.

use std::io;
use std::sync::{Arc, Weak};

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::watch_death;
use crate::robust::{AdaptiveSpin, RecheckInterval, WaitError};
use crate::sys::process_stamp::ProcessStamp;

/// The kind of a lock's owner.
///
/// The lock does not record it: all its users pass the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A process, not recursively: any thread of any process may release the lock. Python's `Lock`.
    Process,
    /// A thread, recursively: only that thread may release the lock. Python's `RLock`.
    Thread,
}

/// The holder of a lock, as seen by the calling thread. It may have changed when the caller reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The lock is free.
    Nobody,
    /// The calling thread acquired it last. The value is the number of unreleased acquisitions, with [`Owner::Thread`].
    ThisThread(u32),
    /// Another thread of the same process.
    AnotherThread,
    /// Another process, which may be dead. Also a process that has exited normally and left the lock held ([`Lock::leave`]).
    AnotherProcess,
}

/// The state in which a lock was acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Acquired {
    /// The lock was free, or held by the same thread.
    Released,
    /// Its owner died holding it: the data that it protects may be inconsistent. Only the next owner receives this. The face
    /// reports it to its user.
    OwnerDied,
}

/// The lock was not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// No process holds it.
    #[error("release of a lock that is not held")]
    NotHeld,
    /// Another thread holds it, and only that thread may release it.
    #[error("release of a lock that another thread holds")]
    NotOwner,
}

/// A lock. Clones refer to the same lock. Dropping a handle does not release it.
#[derive(Debug, Clone)]
pub struct Lock(Arc<Object>);
handle!(Lock, 1);

/// A reference to a lock that does not keep it open in this process.
#[derive(Debug, Clone)]
pub struct WeakLock(Weak<Object>);

impl WeakLock {
    /// Returns the lock if this process still has it open.
    #[must_use]
    pub fn upgrade(&self) -> Option<Lock> {
        self.0.upgrade().map(Lock)
    }
}

impl Lock {
    /// Creates a lock that is free.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create(1, 0, 0)?))
    }

    /// Acquires the lock if it is free or its owner is `dead`. Otherwise fails with its owner.
    ///
    /// `dead` is a process that this thread has found dead, or [`ProcessStamp::NOBODY`]. The stamp contains the start time, so
    /// the swap fails if another owner has acquired the lock since. Of several waiters that find the same dead owner, one
    /// succeeds.
    fn take(&self, owner: Owner, dead: ProcessStamp) -> Result<Acquired, ProcessStamp> {
        let state = self.0.state();
        let (own, tid) = (ProcessStamp::own(), crate::sys::thread_id());
        let mut holder = ProcessStamp::from_bits(state.owner.load(Ordering::Relaxed));
        // `thread` is this thread's id only while this thread holds the lock: it writes 0 before it releases the lock.
        if holder == own && owner == Owner::Thread && state.thread.load(Ordering::Relaxed) == tid {
            let count = state.count.load(Ordering::Relaxed);
            state.count.store(count.saturating_add(1), Ordering::Relaxed);
            return Ok(Acquired::Released);
        }
        loop {
            if holder != ProcessStamp::NOBODY && holder != dead {
                return Err(holder);
            }
            // Acquire pairs with the Release in `release`. The writes of a dead owner come before its death, which
            // `is_dead` has found.
            match state.owner.compare_exchange(holder.bits(), own.bits(), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => holder = ProcessStamp::from_bits(now),
            }
        }
        state.count.store(1, Ordering::Relaxed);
        state.thread.store(tid, Ordering::Relaxed);
        Ok(if holder == ProcessStamp::NOBODY { Acquired::Released } else { Acquired::OwnerDied })
    }

    /// Acquires the lock. Blocks until the deadline while another owner holds it; with [`Owner::Process`] also while this
    /// process does. With [`Owner::Thread`], counts one more acquisition if this thread holds it.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`]; [`WaitError::Interrupted`] after a signal handler ran, then the call may be repeated.
    pub fn acquire(&self, owner: Owner, deadline: Deadline) -> Result<Acquired, WaitError> {
        static SPIN: AdaptiveSpin = AdaptiveSpin::new();
        if let Ok(acquired) = self.take(owner, ProcessStamp::NOBODY) {
            return Ok(acquired);
        }
        if deadline != Deadline::PASSED {
            SPIN.until(|| !self.is_locked());
        }
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        self.0.layout().waiters.wait(deadline, &interval, || {
            let holder = match self.take(owner, ProcessStamp::NOBODY) {
                Ok(acquired) => return Ok(Some(acquired)),
                Err(holder) => holder,
            };
            // The watch begins before the liveness check, so that no death is missed in between.
            if std::mem::replace(&mut slept, true) && holder != ProcessStamp::own() && !watch_death(holder) {
                interval.restart();
            }
            Ok(if holder.is_dead() { self.take(owner, holder).ok() } else { None })
        })
    }

    /// Releases one level; a recursive owner keeps the lock until every acquisition is released. With [`Owner::Process`], any
    /// thread of any process may release it, whichever holds it.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] if it is free, or another thread releases it at the same time; [`ReleaseError::NotOwner`]
    /// with [`Owner::Thread`], if this thread does not hold it.
    pub fn release(&self, owner: Owner) -> Result<(), ReleaseError> {
        let state = self.0.state();
        let holder = state.owner.load(Ordering::Relaxed);
        if holder == 0 {
            return Err(ReleaseError::NotHeld);
        }
        let is_own =
            holder == ProcessStamp::own().bits() && state.thread.load(Ordering::Relaxed) == crate::sys::thread_id();
        if owner == Owner::Thread {
            let count = state.count.load(Ordering::Relaxed);
            if !is_own {
                return Err(ReleaseError::NotOwner);
            }
            if count > 1 {
                state.count.store(count - 1, Ordering::Relaxed);
                return Ok(());
            }
        }
        if is_own {
            state.thread.store(0, Ordering::Relaxed);
        }
        // Release pairs with the Acquire in `take`, Acquire with the Release in `leave`. SeqCst: on x86 this is the
        // full barrier in `wake_one`.
        if state.owner.compare_exchange(holder, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return Err(ReleaseError::NotHeld); // another thread has just released it
        }
        self.0.layout().waiters.wake_one();
        Ok(())
    }

    /// Marks the lock, if this process holds it, as left by a process that exits normally: it stays held, and no waiter
    /// acquires it as from a dead owner. Any process may still release it, with [`Owner::Process`]. Does nothing if another
    /// process holds the lock.
    pub fn leave(&self) {
        let (owner, own) = (&self.0.state().owner, ProcessStamp::own().bits());
        // Release pairs with the Acquire half in `release`, by which another process may release the lock later. Fails
        // if this process does not hold it.
        let _ = owner.compare_exchange(own, ProcessStamp::EXITED_CLEANLY.bits(), Ordering::AcqRel, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> (u64, u64) {
        self.0.id()
    }

    /// Returns whether this process has no other clone of the lock. The Python face then leaves the lock when it drops this
    /// one, as this process cannot release it any more.
    #[must_use]
    pub fn is_only_clone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Returns a reference that does not keep the lock open in this process.
    #[must_use]
    pub fn downgrade(&self) -> WeakLock {
        WeakLock(Arc::downgrade(&self.0))
    }

    /// Returns the current holder of the lock.
    #[must_use]
    pub fn holder(&self) -> Holder {
        let state = self.0.state();
        match state.owner.load(Ordering::Relaxed) {
            0 => Holder::Nobody,
            owner if owner != ProcessStamp::own().bits() => Holder::AnotherProcess,
            _ if state.thread.load(Ordering::Relaxed) != crate::sys::thread_id() => Holder::AnotherThread,
            _ => Holder::ThisThread(state.count.load(Ordering::Relaxed)),
        }
    }

    /// Returns whether the lock is held.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        // Pairs with the Release in `release`. The engine uses only the answer.
        self.0.state().owner.load(Ordering::Acquire) != 0
    }
}

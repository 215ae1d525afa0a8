//! [`Lock`]: held by a process, or by a thread as often as it likes.
//!
//! One compare-and-swap of the owner takes it and gives it back, so a process that dies or stands still between any two
//! instructions keeps nobody from anything but the lock that it holds. Thread and count are the owner's own to write, and mean
//! nothing without it. Whoever finds a dead owner takes the lock over from that owner, and is told.

use std::io;
use std::sync::{Arc, Weak};

use super::object::{Object, RECHECK_AFTER, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::watch_death;
use crate::robust::{AdaptiveSpin, RecheckInterval, WaitError};
use crate::sys::identity::Identity;

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The process, once: whoever in it, and anybody else, may release. Python's `Lock`.
    Process,
    /// A thread, any number of times: only it may release. Python's `RLock`.
    Thread,
}

/// Who holds a lock, as a thread sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// It is free.
    Nobody,
    /// The thread that asks took it last, and, as [`Owner::Thread`], holds it so often.
    ThisThread(u32),
    /// Another thread of the same process.
    AnotherThread,
    /// Another process, which may be dead.
    AnotherProcess,
}

/// How a lock was acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Acquired {
    /// Its last owner released it.
    Released,
    /// Its last owner died holding it: what it protects may be half changed. Only the next owner is told.
    OwnerDied,
}

/// A lock was not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// Nobody holds it.
    #[error("release of a lock that nobody holds")]
    NotHeld,
    /// Another thread holds it, and only that may release it.
    #[error("release of a lock that another thread holds")]
    NotOwner,
}

/// A lock. Clones are the same lock.
#[derive(Debug, Clone)]
pub struct Lock(Arc<Object>);
handle!(Lock, 1);

/// A lock that this process may have let go of.
#[derive(Debug, Clone)]
pub struct WeakLock(Weak<Object>);

impl WeakLock {
    /// The lock, if it is still in use here.
    #[must_use]
    pub fn upgrade(&self) -> Option<Lock> {
        self.0.upgrade().map(Lock)
    }
}

impl Lock {
    /// A new one, which nobody holds.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create(1, 0, 0)?))
    }

    /// Takes the lock if it is free, or its owner is `dead`; else says who holds it.
    fn take(&self, owner: Owner, dead: Identity) -> Result<Acquired, Identity> {
        let state = self.0.state();
        let (own, tid) = (Identity::own(), crate::sys::thread_id());
        let mut holder = Identity::from_bits(state.owner.load(Ordering::Relaxed));
        // This thread's id stands there only while this thread holds it: it writes 0 before it gives the lock back.
        if holder == own && owner == Owner::Thread && state.thread.load(Ordering::Relaxed) == tid {
            let count = state.count.load(Ordering::Relaxed);
            state.count.store(count.saturating_add(1), Ordering::Relaxed);
            return Ok(Acquired::Released);
        }
        loop {
            if holder != Identity::NOBODY && holder != dead {
                return Err(holder);
            }
            // Acquire pairs with the Release in `release`.
            match state.owner.compare_exchange(holder.bits(), own.bits(), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => holder = Identity::from_bits(now),
            }
        }
        state.count.store(1, Ordering::Relaxed);
        state.thread.store(tid, Ordering::Relaxed);
        Ok(if holder == Identity::NOBODY { Acquired::Released } else { Acquired::OwnerDied })
    }

    /// Takes the lock; waits until the deadline while another holds it.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn acquire(&self, owner: Owner, deadline: Deadline) -> Result<Acquired, WaitError> {
        static SPIN: AdaptiveSpin = AdaptiveSpin::new();
        if let Ok(acquired) = self.take(owner, Identity::NOBODY) {
            return Ok(acquired);
        }
        if deadline != Deadline::PASSED {
            SPIN.until(|| !self.is_locked());
        }
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        self.0.layout().waiters.wait(deadline, &interval, || {
            let holder = match self.take(owner, Identity::NOBODY) {
                Ok(acquired) => return Ok(Some(acquired)),
                Err(holder) => holder,
            };
            // Watched before it is looked whether it lives.
            if std::mem::replace(&mut slept, true) && holder != Identity::own() && !watch_death(holder) {
                interval.restart();
            }
            Ok(if holder.is_dead() { self.take(owner, holder).ok() } else { None })
        })
    }

    /// Releases the lock once: a thread that took it several times keeps it until each was released.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn release(&self, owner: Owner) -> Result<(), ReleaseError> {
        let state = self.0.state();
        let holder = state.owner.load(Ordering::Relaxed);
        if holder == 0 {
            return Err(ReleaseError::NotHeld);
        }
        let is_own =
            holder == Identity::own().bits() && state.thread.load(Ordering::Relaxed) == crate::sys::thread_id();
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
        // Release pairs with the Acquire in `take`. SeqCst, for the waiters' barrier in `wake_one`.
        if state.owner.compare_exchange(holder, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return Err(ReleaseError::NotHeld); // somebody else released it just now
        }
        self.0.layout().waiters.wake_one();
        Ok(())
    }

    /// For a process that ends in order: what it holds stays held, and is not taken over as that of the dead is.
    pub fn leave(&self) {
        let (owner, own) = (&self.0.state().owner, Identity::own().bits());
        // Fails when this process does not hold it.
        let _ = owner.compare_exchange(own, Identity::LEFT.bits(), Ordering::AcqRel, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> (u64, u64) {
        self.0.id()
    }

    /// Whether this process has no other clone of it.
    #[must_use]
    pub fn is_only_clone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// The same lock, for who does not keep it in memory.
    #[must_use]
    pub fn downgrade(&self) -> WeakLock {
        WeakLock(Arc::downgrade(&self.0))
    }

    /// Who holds it just now, as the calling thread sees it.
    #[must_use]
    pub fn holder(&self) -> Holder {
        let state = self.0.state();
        match state.owner.load(Ordering::Relaxed) {
            0 => Holder::Nobody,
            owner if owner != Identity::own().bits() => Holder::AnotherProcess,
            _ if state.thread.load(Ordering::Relaxed) != crate::sys::thread_id() => Holder::AnotherThread,
            _ => Holder::ThisThread(state.count.load(Ordering::Relaxed)),
        }
    }

    /// Whether somebody holds it.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.0.state().owner.load(Ordering::Acquire) != 0
    }
}

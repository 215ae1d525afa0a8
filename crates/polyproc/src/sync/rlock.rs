//! [`RLock`].

use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::sync::{self as core, Acquired, Owner, ReleaseError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LockError;
use super::held::{Held, acquire, acquire_again, release_all};
use crate::codec;

/// A recursive [`Lock`](crate::Lock), owned by a thread, which may acquire it again while it holds it. Only that thread may release it.
#[derive(Debug, Clone)]
pub struct RLock {
    core: core::Lock,
}

impl RLock {
    /// Creates a lock, which is free.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: core::Lock::new()? })
    }

    fn acquire(&self, deadline: Deadline) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        acquire(&self.core, Owner::Thread, deadline, || RLockGuard { lock: self, not_send: PhantomData })
    }

    /// Acquires the lock. Blocks while another owner holds it.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`], which holds the guard, when the previous owner died while it held the lock.
    #[doc(alias = "acquire")]
    pub fn lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.acquire(Deadline::NEVER)
    }

    /// Acquires the lock without blocking.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`LockError::TimedOut`] when another owner holds the lock.
    pub fn try_lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.acquire(Deadline::PASSED)
    }

    /// Acquires the lock. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`LockError::TimedOut`] on timeout.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.acquire(Deadline::after(timeout))
    }

    /// Releases the lock in place of a guard that was forgotten ([`std::mem::forget`]), possibly in another process.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] when the lock is free, [`ReleaseError::NotOwner`] when another thread holds an
    /// [`RLock`].
    pub fn release(&self) -> Result<(), ReleaseError> {
        self.core.release(Owner::Thread)
    }

    /// Returns whether the lock is held. Another process may change that at any time.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.core.is_locked()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for RLock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry_place(self.core.place(), serializer)
    }
}

impl<'de> Deserialize<'de> for RLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { core: codec::take_place(deserializer, core::Lock::from_place)? })
    }
}

/// A guard of one acquisition of an [`RLock`], which releases that acquisition on drop.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    not_send: PhantomData<*const ()>,
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        // Fails if another thread or process has released the lock already, as Python allows.
        let _ = self.lock.core.release(Owner::Thread);
    }
}

impl Held for RLockGuard<'_> {
    fn release_all(&self) -> u32 {
        release_all(&self.lock.core, Owner::Thread)
    }

    fn acquire_again(&self, depth: u32) -> Acquired {
        acquire_again(&self.lock.core, Owner::Thread, depth)
    }
}

//! [`Lock`].

use std::io;
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::sync::{self as core, Acquired, Owner, ReleaseError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LockError;
use super::held::{Held, acquire, acquire_again, release_all};
use crate::codec;

/// A lock between processes, owned by the process that acquired it.
///
/// If the owner dies, the next acquisition gets the lock and returns [`LockError::OwnerDied`].
///
/// ```
/// use polyproc::{Lock, LockError, Process};
///
/// fn dies_holding(lock: Lock) {
///     let _guard = lock.lock();
///     std::process::abort();
/// }
///
/// let lock = Lock::new()?;
/// assert!(Process::new(dies_holding, lock.clone()).start()?.join().is_err());
/// let guard = match lock.lock() {
///     Ok(_) => unreachable!("its owner has died"),
///     Err(LockError::OwnerDied(guard)) => guard, // repair the protected data, and continue
///     Err(LockError::TimedOut) => unreachable!("`lock` waits"),
/// };
/// drop(guard);
/// assert!(lock.lock().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Lock {
    core: core::Lock,
}

impl Lock {
    /// Creates a lock, which is free.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: core::Lock::new()? })
    }

    fn acquire(&self, deadline: Deadline) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        acquire(&self.core, Owner::Process, deadline, || LockGuard { lock: self })
    }

    /// Acquires the lock. Blocks while another owner holds it.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`], which holds the guard, when the previous owner died while it held the lock.
    #[doc(alias = "acquire")]
    pub fn lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.acquire(Deadline::NEVER)
    }

    /// Acquires the lock without blocking.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`LockError::TimedOut`] when another owner holds the lock.
    pub fn try_lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.acquire(Deadline::PASSED)
    }

    /// Acquires the lock. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`LockError::TimedOut`] on timeout.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.acquire(Deadline::after(timeout))
    }

    /// Releases the lock in place of a guard that was forgotten ([`std::mem::forget`]), possibly in another process.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] when the lock is free, [`ReleaseError::NotOwner`] when another thread holds an
    /// [`RLock`](crate::RLock).
    pub fn release(&self) -> Result<(), ReleaseError> {
        self.core.release(Owner::Process)
    }

    /// Returns whether the lock is held. Another process may change that at any time.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.core.is_locked()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for Lock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry_place(self.core.place(), serializer)
    }
}

impl<'de> Deserialize<'de> for Lock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { core: codec::take_place(deserializer, core::Lock::from_place)? })
    }
}

/// A guard of a [`Lock`], which releases the lock on drop.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard<'a> {
    lock: &'a Lock,
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        // Fails if another thread or process has released the lock already, as Python allows.
        let _ = self.lock.core.release(Owner::Process);
    }
}

impl Held for LockGuard<'_> {
    fn release_all(&self) -> u32 {
        release_all(&self.lock.core, Owner::Process)
    }

    fn acquire_again(&self, depth: u32) -> Acquired {
        acquire_again(&self.lock.core, Owner::Process, depth)
    }
}

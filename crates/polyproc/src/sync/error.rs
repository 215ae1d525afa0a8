//! [`LockError`].

use std::fmt;

/// A lock was acquired from a dead owner, or was not acquired.
#[derive(thiserror::Error)]
pub enum LockError<G> {
    /// The previous owner died while it held the lock, so the protected data may be inconsistent.
    ///
    /// The lock is acquired, and its guard is in the error: check the data, repair it, and continue. Only the first acquisition
    /// after the death returns this error.
    #[error("the lock's owner died while it held the lock: the protected data may be inconsistent")]
    OwnerDied(G),
    /// Another owner holds the lock, and held it until the timeout.
    #[error("timed out: another thread or process holds the lock")]
    TimedOut,
}

impl<G> LockError<G> {
    /// Returns the guard, if the lock was acquired.
    pub fn into_inner(self) -> Option<G> {
        match self {
            Self::OwnerDied(guard) => Some(guard),
            Self::TimedOut => None,
        }
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::TimedOut) { "TimedOut" } else { "OwnerDied(..)" })
    }
}

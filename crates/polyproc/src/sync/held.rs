//! [`Held`], and the operations on locks that [`Lock`](crate::Lock) and [`RLock`](crate::RLock) share.

use polyproc_core::sync::{self as core, Acquired, Holder, Owner};
use polyproc_core::{Deadline, retry_interrupted};

use super::LockError;

/// A guard whose lock a condition can release during a wait.
#[expect(unnameable_types, reason = "sealed: its methods are for conditions only")]
pub trait Held {
    #[doc(hidden)]
    fn release_all(&self) -> u32;
    #[doc(hidden)]
    fn acquire_again(&self, depth: u32) -> Acquired;
}

/// Acquires a lock, and makes its guard.
pub(super) fn acquire<G>(
    lock: &core::Lock,
    owner: Owner,
    deadline: Deadline,
    guard: impl FnOnce() -> G,
) -> Result<G, LockError<G>> {
    match retry_interrupted(|| lock.acquire(owner, deadline)) {
        Ok(Acquired::Released) => Ok(guard()),
        Ok(Acquired::OwnerDied) => Err(LockError::OwnerDied(guard())),
        Err(_) => Err(LockError::TimedOut),
    }
}

/// Releases all levels of a held lock. Returns how many there were.
pub(super) fn release_all(lock: &core::Lock, owner: Owner) -> u32 {
    let depth = if let Holder::ThisThread(depth) = lock.holder() { depth } else { 1 };
    (0..depth).for_each(|_| _ = lock.release(owner));
    depth
}

/// Acquires a lock again, as many levels as [`release_all`] released.
pub(super) fn acquire_again(lock: &core::Lock, owner: Owner, depth: u32) -> Acquired {
    let acquire = || retry_interrupted(|| lock.acquire(owner, Deadline::NEVER)).ok();
    let acquired = acquire().unwrap_or(Acquired::Released);
    (1..depth).for_each(|_| _ = acquire());
    acquired
}

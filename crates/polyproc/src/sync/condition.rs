//! [`Condition`].

use std::io;
use std::time::Duration;

use polyproc_core::sync::{self as core, Acquired};
use polyproc_core::{Deadline, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LockError;
use super::held::Held;
use crate::codec;

/// A condition variable, used with a [`Lock`](crate::Lock) or an [`RLock`](crate::RLock), which is released during a wait.
///
/// If a waiter dies after it was notified, the notification passes to another waiter.
#[derive(Debug, Clone)]
pub struct Condition {
    core: core::Condition,
}

/// How long a wait lasts if the table of waiters is full.
const MOMENT: Duration = Duration::from_millis(10);

/// The result of a wait for a [`Condition`]: the guard, and whether the waiter was notified.
pub type Waited<G> = Result<(G, bool), LockError<(G, bool)>>;

impl Condition {
    /// Creates a condition without waiters.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: core::Condition::new()? })
    }

    fn wait_until<G: Held>(&self, guard: G, deadline: Deadline) -> Waited<G> {
        let entered = retry_interrupted(|| match self.core.enter(deadline) {
            Err(core::EnterError::Wait(error)) => Err(error),
            entered => Ok(entered),
        });
        let Ok(entered) = entered else { return Ok((guard, false)) };
        let Ok(ticket) = entered else {
            // The table of waiters is full: return after a moment as if notified. The caller must re-check its condition
            // anyway, and other waiters could acquire the lock in the meantime.
            let depth = guard.release_all();
            std::thread::sleep(deadline.remaining().unwrap_or(MOMENT).min(MOMENT));
            return match guard.acquire_again(depth) {
                Acquired::Released => Ok((guard, true)),
                Acquired::OwnerDied => Err(LockError::OwnerDied((guard, true))),
            };
        };
        let depth = guard.release_all();
        let _ = retry_interrupted(|| self.core.wait(&ticket, deadline));
        let acquired = guard.acquire_again(depth);
        let notified = self.core.leave(ticket);
        match acquired {
            Acquired::Released => Ok((guard, notified)),
            Acquired::OwnerDied => Err(LockError::OwnerDied((guard, notified))),
        }
    }

    /// Releases the lock, blocks until a notification, and acquires the lock again.
    ///
    /// Spurious wake-ups are possible.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`], which holds the guard, when the lock was acquired again from a dead owner.
    pub fn wait<G: Held>(&self, guard: G) -> Result<G, LockError<G>> {
        match self.wait_until(guard, Deadline::NEVER) {
            Ok((guard, _)) => Ok(guard),
            Err(LockError::OwnerDied((guard, _))) => Err(LockError::OwnerDied(guard)),
            Err(LockError::TimedOut) => Err(LockError::TimedOut),
        }
    }

    /// As [`Condition::wait`], for at most `timeout`. Returns the guard, and false if no notification arrived.
    ///
    /// # Errors
    /// As [`Condition::wait`].
    pub fn wait_timeout<G: Held>(&self, guard: G, timeout: Duration) -> Waited<G> {
        self.wait_until(guard, Deadline::after(timeout))
    }

    /// Waits repeatedly until `predicate` returns true.
    ///
    /// # Errors
    /// As [`Condition::wait`].
    pub fn wait_for<G: Held>(&self, mut guard: G, mut predicate: impl FnMut() -> bool) -> Result<G, LockError<G>> {
        while !predicate() {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Wakes one waiter.
    #[doc(alias = "notify")]
    pub fn notify_one(&self) {
        self.core.notify(1);
    }

    /// Wakes up to `count` waiters.
    pub fn notify(&self, count: usize) {
        self.core.notify(count);
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.core.notify(usize::MAX);
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry_place(self.core.place(), serializer)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { core: codec::take_place(deserializer, core::Condition::from_place)? })
    }
}

//! [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`], [`Barrier`]: for any processes.
//!
//! All of them are values: they may be arguments of processes and tasks, and be sent through queues and pipes. They have no
//! names. They are freed when the last process that holds them ends, whatever the cause.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use polyproc_core::sync::{self as core, Acquired, Holder, Owner, Turn};
pub use polyproc_core::sync::{BarrierError, OverRelease, ReleaseError, TooManyWaiters};
use polyproc_core::{Deadline, WaitError, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;

/// A lock was acquired from a dead owner, or was not acquired.
#[derive(thiserror::Error)]
pub enum LockError<G> {
    /// The previous owner died while it held the lock, so the protected data may be inconsistent.
    ///
    /// The lock is acquired, and its guard is in the error: check the data, repair it, and continue. Only the first acquisition
    /// after the death returns this error.
    #[error("the lock's last owner died while it held it")]
    OwnerDied(G),
    /// Another owner holds the lock, and held it until the timeout.
    #[error("the lock is held by another")]
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

/// Repeats `wait` while signal handlers interrupt it. Returns `None` on timeout.
fn through_signals<T>(wait: impl FnMut() -> Result<T, WaitError>) -> Option<T> {
    retry_interrupted(wait).ok()
}

macro_rules! handle {
    ($name:ident, $core:ty) => {
        /// For sending to another process by polyproc. Any other format fails.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                codec::carry_place(self.core.place(), serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self { core: codec::take_place(deserializer, <$core>::from_place)? })
            }
        }
    };
}

macro_rules! lock {
    ($(#[$meta:meta])* $name:ident, $(#[$guard_meta:meta])* $guard:ident, $owner:expr, $send:ty) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name {
            core: core::Lock,
        }
        handle!($name, core::Lock);

        $(#[$guard_meta])*
        #[derive(Debug)]
        #[must_use = "the lock is released when the guard is dropped"]
        pub struct $guard<'a> {
            lock: &'a $name,
            send: PhantomData<$send>,
        }

        impl Drop for $guard<'_> {
            fn drop(&mut self) {
                // Fails if another thread or process has released the lock already, as Python allows.
                let _ = self.lock.core.release($owner);
            }
        }

        impl Held for $guard<'_> {
            fn release_all(&self) -> u32 {
                let depth = if let Holder::ThisThread(depth) = self.lock.core.holder() { depth } else { 1 };
                (0..depth).for_each(|_| _ = self.lock.core.release($owner));
                depth
            }

            fn acquire_again(&self, depth: u32) -> Acquired {
                let acquire = || through_signals(|| self.lock.core.acquire($owner, Deadline::NEVER));
                let acquired = acquire().unwrap_or(Acquired::Released);
                (1..depth).for_each(|_| _ = acquire());
                acquired
            }
        }

        impl $name {
            /// Creates a lock, which is free.
            ///
            /// # Errors
            /// Fails when the system provides no memory or no descriptor.
            pub fn new() -> io::Result<Self> {
                Ok(Self { core: core::Lock::new()? })
            }

            fn acquire(&self, deadline: Deadline) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                let acquired = through_signals(|| self.core.acquire($owner, deadline)).ok_or(LockError::TimedOut)?;
                let guard = $guard { lock: self, send: PhantomData };
                match acquired {
                    Acquired::Released => Ok(guard),
                    Acquired::OwnerDied => Err(LockError::OwnerDied(guard)),
                }
            }

            /// Acquires the lock. Blocks while another owner holds it.
            ///
            /// # Errors
            /// [`LockError::OwnerDied`], which holds the guard, when the previous owner died while it held the lock.
            #[doc(alias = "acquire")]
            pub fn lock(&self) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                self.acquire(Deadline::NEVER)
            }

            /// Acquires the lock without blocking.
            ///
            /// # Errors
            /// As [`lock`](Self::lock); [`LockError::TimedOut`] when another owner holds the lock.
            pub fn try_lock(&self) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                self.acquire(Deadline::PASSED)
            }

            /// Acquires the lock. Blocks for at most `timeout`.
            ///
            /// # Errors
            /// As [`lock`](Self::lock); [`LockError::TimedOut`] on timeout.
            pub fn lock_timeout(&self, timeout: Duration) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                self.acquire(Deadline::after(timeout))
            }

            /// Releases the lock in place of a guard that was forgotten ([`std::mem::forget`]), possibly in another process.
            ///
            /// # Errors
            /// [`ReleaseError::NotHeld`] when the lock is free, [`ReleaseError::NotOwner`] when another thread holds an
            /// [`RLock`].
            pub fn release(&self) -> Result<(), ReleaseError> {
                self.core.release($owner)
            }

            /// Returns whether the lock is held. Another process may change that at any time.
            #[must_use]
            pub fn is_locked(&self) -> bool {
                self.core.is_locked()
            }
        }
    };
}

lock!(
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
    Lock,
    /// A guard of a [`Lock`], which releases the lock on drop.
    LockGuard,
    Owner::Process,
    ()
);
lock!(
    /// A recursive [`Lock`], owned by a thread, which may acquire it again while it holds it. Only that thread may release it.
    RLock,
    /// A guard of one acquisition of an [`RLock`], which releases that acquisition on drop.
    RLockGuard,
    Owner::Thread,
    *const ()
);

mod held {
    use polyproc_core::sync::Acquired;

    /// A guard whose lock a condition can release during a wait.
    #[expect(unnameable_types, reason = "sealed: its methods are for conditions only")]
    pub trait Held {
        #[doc(hidden)]
        fn release_all(&self) -> u32;
        #[doc(hidden)]
        fn acquire_again(&self, depth: u32) -> Acquired;
    }
}
use held::Held;

macro_rules! semaphore {
    ($(#[$meta:meta])* $name:ident, $bound:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name {
            core: core::Semaphore,
        }
        handle!($name, core::Semaphore);

        impl $name {
            /// Creates a semaphore with `value` permits.
            ///
            /// # Errors
            /// Fails when the system provides no memory or no descriptor.
            pub fn new(value: usize) -> io::Result<Self> {
                let bound: fn(u64) -> u64 = $bound;
                Ok(Self { core: core::Semaphore::new(value as u64, bound(value as u64))? })
            }

            /// Takes a permit. Blocks while there is none.
            pub fn acquire(&self) {
                let _ = through_signals(|| self.core.acquire(Deadline::NEVER));
            }

            /// Takes a permit without blocking. Returns false if there is none.
            #[must_use]
            pub fn try_acquire(&self) -> bool {
                through_signals(|| self.core.acquire(Deadline::PASSED)).is_some()
            }

            /// Takes a permit. Blocks for at most `timeout`. Returns false on timeout.
            #[must_use]
            pub fn acquire_timeout(&self, timeout: Duration) -> bool {
                let deadline = Deadline::after(timeout);
                through_signals(|| self.core.acquire(deadline)).is_some()
            }

            /// Returns a permit, or adds one.
            ///
            /// # Errors
            /// [`OverRelease`] when the number of permits would exceed the maximum.
            pub fn release(&self) -> Result<(), OverRelease> {
                self.core.release(1)
            }

            /// Returns or adds `count` permits; none on error.
            ///
            /// # Errors
            /// As [`release`](Self::release).
            pub fn release_many(&self, count: usize) -> Result<(), OverRelease> {
                self.core.release(count as u64)
            }

            /// Returns the number of available permits. Another process may change it at any time.
            #[must_use]
            #[doc(alias = "get_value")]
            pub fn value(&self) -> usize {
                usize::try_from(self.core.value()).unwrap_or(usize::MAX)
            }
        }
    };
}

semaphore!(
    /// A counting semaphore.
    ///
    /// Permits have no owner, as in Python: any process may release a permit, and the permits that a process had taken are lost
    /// when it dies.
    Semaphore,
    |_| u64::MAX
);
semaphore!(
    /// A [`Semaphore`] that never has more permits than its initial value.
    BoundedSemaphore,
    |value| value
);

/// A flag that processes wait for.
#[derive(Debug, Clone)]
pub struct Event {
    core: core::Event,
}
handle!(Event, core::Event);

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: core::Event::new()? })
    }

    /// Returns whether the event is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.core.is_set()
    }

    /// Sets the event, and wakes all waiters.
    pub fn set(&self) {
        self.core.set();
    }

    /// Clears the event.
    pub fn clear(&self) {
        self.core.clear();
    }

    /// Blocks until the event is set. Also returns if the event was set and cleared during the wait.
    pub fn wait(&self) {
        let _ = through_signals(|| self.core.wait(Deadline::NEVER));
    }

    /// As [`Event::wait`], for at most `timeout`. Returns false on timeout.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        through_signals(|| self.core.wait(deadline)).is_some()
    }
}

/// A condition variable, used with a [`Lock`] or an [`RLock`], which is released during a wait.
///
/// If a waiter dies after it was notified, the notification passes to another waiter.
#[derive(Debug, Clone)]
pub struct Condition {
    core: core::Condition,
}
handle!(Condition, core::Condition);

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
        let entered = through_signals(|| match self.core.enter(deadline) {
            Err(core::EnterError::Wait(error)) => Err(error),
            entered => Ok(entered),
        });
        let Some(entered) = entered else { return Ok((guard, false)) };
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
        let _ = through_signals(|| self.core.wait(&ticket, deadline));
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

/// A barrier, at which a fixed number of parties wait for each other.
///
/// A party that dies or times out during a wait breaks the barrier: current and later waits fail until the barrier is reset.
///
/// ```
/// use polyproc::{Barrier, Process};
///
/// let barrier = Barrier::new(3)?;
/// let parties = (0..2).map(|_| Process::new(|barrier: Barrier| barrier.wait().is_ok(), barrier.clone()).start());
/// let parties: Vec<_> = parties.collect::<Result<_, _>>()?;
/// barrier.wait()?;
/// for party in parties {
///     assert!(party.join()?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Barrier {
    core: core::Barrier,
}
handle!(Barrier, core::Barrier);

/// Breaks the barrier on drop, that is, if the action panics.
struct BreakOnPanic<'a>(&'a core::Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Barrier {
    /// Creates a barrier for `parties` parties.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `parties` is 0. Another error when the system provides no memory or no descriptor.
    pub fn new(parties: usize) -> io::Result<Self> {
        Ok(Self { core: core::Barrier::new(parties)? })
    }

    fn wait_until(&self, deadline: Deadline, action: impl FnOnce()) -> Result<usize, BarrierError> {
        let turn = retry_interrupted(|| self.core.come(deadline))?;
        if let Turn::Last { index, .. } = turn {
            let breaks = BreakOnPanic(&self.core);
            action();
            std::mem::forget(breaks);
            return self.core.release(&turn).map(|()| index);
        }
        retry_interrupted(|| self.core.wait(&turn, deadline))
    }

    /// Blocks until all parties have arrived. Returns the number of this party, from 0, which is unique in this round.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] when the barrier is broken, or is reset during the wait; [`BarrierError::TooManyWaiters`]
    /// when the table of waiters is full.
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::NEVER, || {})
    }

    /// As [`Barrier::wait`]. The last party to arrive runs its `action` before any party continues. If the action panics, the
    /// barrier breaks.
    ///
    /// # Errors
    /// As [`Barrier::wait`].
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::NEVER, action)
    }

    /// As [`Barrier::wait`], for at most `timeout`. A timeout breaks the barrier.
    ///
    /// # Errors
    /// As [`Barrier::wait`]; [`BarrierError::Broken`] also on timeout.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::after(timeout), || {})
    }

    /// Resets the barrier to its initial state. Current waits fail with [`BarrierError::Broken`].
    pub fn reset(&self) {
        self.core.reset();
    }

    /// Breaks the barrier until it is reset.
    pub fn abort(&self) {
        self.core.abort();
    }

    /// Returns the number of parties.
    #[must_use]
    pub fn parties(&self) -> usize {
        self.core.parties()
    }

    /// Returns the number of waiting parties. Another process may change it at any time.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.core.n_waiting()
    }

    /// Returns whether the barrier is broken.
    #[must_use]
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> bool {
        self.core.is_broken()
    }
}

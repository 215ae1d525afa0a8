//! [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`], [`Barrier`]: between any processes.
//!
//! All of them are values: they may be arguments of processes and of tasks, and go through queues and pipes. None has a
//! name, and nothing is left of them when the last process that has them ends, by whatever cause.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use polyproc_core::sync::{self as core, Acquired, Holder, Owner, Turn};
pub use polyproc_core::sync::{BarrierError, OverRelease, ReleaseError, TooManyWaiters};
use polyproc_core::{Deadline, WaitError, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;

/// A lock was acquired from the dead, or not at all.
#[derive(thiserror::Error)]
pub enum LockError<G> {
    /// Its last owner died while it held it: what the lock protects may be half changed. The guard is yours; look, mend, and
    /// go on. Only this one acquisition is told.
    #[error("the lock's last owner died while it held it")]
    OwnerDied(G),
    /// Another holds it, and held it for the time given.
    #[error("the lock is held by another")]
    TimedOut,
}

impl<G> LockError<G> {
    /// The guard, where there is one.
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

/// Waits again when a signal handler ran; `None` when the time ran out.
fn through_signals<T>(wait: impl FnMut() -> Result<T, WaitError>) -> Option<T> {
    retry_interrupted(wait).ok()
}

macro_rules! handle {
    ($name:ident, $core:ty) => {
        /// To be sent to another process by polyproc; no other format holds it.
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
                // Somebody may have released it in our place, as Python allows.
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
            /// A new one, which nobody holds.
            ///
            /// # Errors
            /// When the system gives no memory or no descriptor.
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

            /// Acquires it; waits while another holds it.
            ///
            /// # Errors
            /// [`LockError::OwnerDied`], with the guard in it.
            #[doc(alias = "acquire")]
            pub fn lock(&self) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                self.acquire(Deadline::NEVER)
            }

            /// Acquires it if nobody holds it.
            ///
            /// # Errors
            /// [`LockError`].
            pub fn try_lock(&self) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                self.acquire(Deadline::PASSED)
            }

            /// As [`lock`](Self::lock), for at most `timeout`.
            ///
            /// # Errors
            /// [`LockError`].
            pub fn lock_timeout(&self, timeout: Duration) -> Result<$guard<'_>, LockError<$guard<'_>>> {
                self.acquire(Deadline::after(timeout))
            }

            /// Releases it in the place of a guard that was forgotten ([`std::mem::forget`]), perhaps in another process.
            ///
            /// # Errors
            /// [`ReleaseError`].
            pub fn release(&self) -> Result<(), ReleaseError> {
                self.core.release($owner)
            }

            /// Whether somebody holds it, just now.
            #[must_use]
            pub fn is_locked(&self) -> bool {
                self.core.is_locked()
            }
        }
    };
}

lock!(
    /// One process at a time. It belongs to the process that acquired it; if that dies, the next one gets it and is told
    /// ([`LockError::OwnerDied`]).
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
    ///     Err(LockError::OwnerDied(guard)) => guard, // mend what it protects, and go on
    ///     Err(LockError::TimedOut) => unreachable!("`lock` waits"),
    /// };
    /// drop(guard);
    /// assert!(lock.lock().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    Lock,
    /// A [`Lock`], held. It is released when this is dropped.
    LockGuard,
    Owner::Process,
    ()
);
lock!(
    /// As [`Lock`], but of a thread, which may acquire it again while it holds it, and alone may release it.
    RLock,
    /// An [`RLock`], held once more. That is released when this is dropped.
    RLockGuard,
    Owner::Thread,
    *const ()
);

mod held {
    use polyproc_core::sync::Acquired;

    /// The guard of a lock, which a condition releases for a while.
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
            /// One that holds `value` permits.
            ///
            /// # Errors
            /// When the system gives no memory or no descriptor.
            pub fn new(value: usize) -> io::Result<Self> {
                let bound: fn(u64) -> u64 = $bound;
                Ok(Self { core: core::Semaphore::new(value as u64, bound(value as u64))? })
            }

            /// Takes a permit; waits while there is none.
            pub fn acquire(&self) {
                let _ = through_signals(|| self.core.acquire(Deadline::NEVER));
            }

            /// Takes a permit if there is one.
            #[must_use]
            pub fn try_acquire(&self) -> bool {
                through_signals(|| self.core.acquire(Deadline::PASSED)).is_some()
            }

            /// As [`acquire`](Self::acquire), for at most `timeout`; false when none came.
            #[must_use]
            pub fn acquire_timeout(&self, timeout: Duration) -> bool {
                let deadline = Deadline::after(timeout);
                through_signals(|| self.core.acquire(deadline)).is_some()
            }

            /// Gives a permit back, or a further one.
            ///
            /// # Errors
            /// [`OverRelease`] when it would hold more than it may.
            pub fn release(&self) -> Result<(), OverRelease> {
                self.core.release(1)
            }

            /// Gives `count` permits back, all or none.
            ///
            /// # Errors
            /// As [`release`](Self::release).
            pub fn release_many(&self, count: usize) -> Result<(), OverRelease> {
                self.core.release(count as u64)
            }

            /// How many permits it holds, just now.
            #[must_use]
            #[doc(alias = "get_value")]
            pub fn value(&self) -> usize {
                usize::try_from(self.core.value()).unwrap_or(usize::MAX)
            }
        }
    };
}

semaphore!(
    /// A number of permits. They belong to nobody: whoever likes gives them back, and what a process that died had taken is
    /// gone, as in Python.
    Semaphore,
    |_| u64::MAX
);
semaphore!(
    /// A [`Semaphore`] that never holds more permits than at its start.
    BoundedSemaphore,
    |value| value
);

/// A flag to wait for.
#[derive(Debug, Clone)]
pub struct Event {
    core: core::Event,
}
handle!(Event, core::Event);

impl Event {
    /// One that is not set.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: core::Event::new()? })
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.core.is_set()
    }

    /// Sets it: all who wait go on.
    pub fn set(&self) {
        self.core.set();
    }

    /// Clears it.
    pub fn clear(&self) {
        self.core.clear();
    }

    /// Waits until it is set, if only for a moment.
    pub fn wait(&self) {
        let _ = through_signals(|| self.core.wait(Deadline::NEVER));
    }

    /// As [`Event::wait`], for at most `timeout`; false when it was not set.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        through_signals(|| self.core.wait(deadline)).is_some()
    }
}

/// Waiting for a notification, with a [`Lock`] or an [`RLock`] around it, which is released for as long as the wait takes.
///
/// A waiter that dies takes no notification with it: it goes to another.
#[derive(Debug, Clone)]
pub struct Condition {
    core: core::Condition,
}
handle!(Condition, core::Condition);

/// How long a wait lasts for which there is no place.
const MOMENT: Duration = Duration::from_millis(10);

/// What a wait for a [`Condition`] gives: the guard, and whether there was a notification.
pub type Waited<G> = Result<(G, bool), LockError<(G, bool)>>;

impl Condition {
    /// One that nobody waits for.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
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
            // Without a place to wait in, it is as if somebody had notified a little later: the caller looks again, as it has
            // to anyway, and others had the lock meanwhile.
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

    /// Releases the lock, waits for a notification, and acquires the lock again.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] when the lock came back from an owner that had died.
    pub fn wait<G: Held>(&self, guard: G) -> Result<G, LockError<G>> {
        match self.wait_until(guard, Deadline::NEVER) {
            Ok((guard, _)) => Ok(guard),
            Err(LockError::OwnerDied((guard, _))) => Err(LockError::OwnerDied(guard)),
            Err(LockError::TimedOut) => Err(LockError::TimedOut),
        }
    }

    /// As [`Condition::wait`], for at most `timeout`; false beside the guard when no notification came.
    ///
    /// # Errors
    /// As [`Condition::wait`].
    pub fn wait_timeout<G: Held>(&self, guard: G, timeout: Duration) -> Waited<G> {
        self.wait_until(guard, Deadline::after(timeout))
    }

    /// Waits, again and again, until `predicate` holds.
    ///
    /// # Errors
    /// As [`Condition::wait`].
    pub fn wait_for<G: Held>(&self, mut guard: G, mut predicate: impl FnMut() -> bool) -> Result<G, LockError<G>> {
        while !predicate() {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Has one who waits go on.
    #[doc(alias = "notify")]
    pub fn notify_one(&self) {
        self.core.notify(1);
    }

    /// Has up to `count` who wait go on.
    pub fn notify(&self, count: usize) {
        self.core.notify(count);
    }

    /// Has all who wait go on.
    pub fn notify_all(&self) {
        self.core.notify(usize::MAX);
    }
}

/// Waiting until a number of parties have come.
///
/// A party that dies while it waits breaks the barrier, for all who wait and come, until it is reset; so does one that runs
/// out of time.
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

/// Breaks the barrier unless the action has run to its end.
struct BreakOnPanic<'a>(&'a core::Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Barrier {
    /// One for so many parties.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for 0; when the system gives no memory or no descriptor.
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

    /// Waits for the others. Gives a number from 0 that no other party of this round has.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::NEVER, || {})
    }

    /// As [`Barrier::wait`]; the last party runs its `action` before any goes on. If that panics, the barrier breaks.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::NEVER, action)
    }

    /// As [`Barrier::wait`], for at most `timeout`; then it breaks the barrier.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::after(timeout), || {})
    }

    /// As new. Those who wait are told that it is broken.
    pub fn reset(&self) {
        self.core.reset();
    }

    /// Breaks it, until it is reset.
    pub fn abort(&self) {
        self.core.abort();
    }

    /// How many parties it waits for.
    #[must_use]
    pub fn parties(&self) -> usize {
        self.core.parties()
    }

    /// How many wait, just now.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.core.n_waiting()
    }

    /// Whether it is broken.
    #[must_use]
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> bool {
        self.core.is_broken()
    }
}

//! [`Semaphore`] and [`BoundedSemaphore`].

use std::io;
use std::time::Duration;

use polyproc_core::sync::{self as core, OverRelease};
use polyproc_core::{Deadline, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;

/// A counting semaphore.
///
/// Permits have no owner, as in Python: any process may release a permit, and the permits that a process had taken are lost
/// when it dies.
#[derive(Debug, Clone)]
pub struct Semaphore {
    core: core::Semaphore,
}

impl Semaphore {
    /// Creates a semaphore with `value` permits.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new(value: usize) -> io::Result<Self> {
        Ok(Self { core: core::Semaphore::new(value as u64, u64::MAX)? })
    }

    /// Takes a permit. Blocks while there is none.
    pub fn acquire(&self) {
        let _ = retry_interrupted(|| self.core.acquire(Deadline::NEVER));
    }

    /// Takes a permit without blocking. Returns false if there is none.
    #[must_use]
    pub fn try_acquire(&self) -> bool {
        retry_interrupted(|| self.core.acquire(Deadline::PASSED)).is_ok()
    }

    /// Takes a permit. Blocks for at most `timeout`. Returns false on timeout.
    #[must_use]
    pub fn acquire_timeout(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.core.acquire(deadline)).is_ok()
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

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for Semaphore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry_place(self.core.place(), serializer)
    }
}

impl<'de> Deserialize<'de> for Semaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { core: codec::take_place(deserializer, core::Semaphore::from_place)? })
    }
}

/// A [`Semaphore`] that never has more permits than its initial value.
#[derive(Debug, Clone)]
pub struct BoundedSemaphore {
    inner: Semaphore,
}

impl BoundedSemaphore {
    /// Creates a semaphore with `value` permits.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new(value: usize) -> io::Result<Self> {
        Ok(Self { inner: Semaphore { core: core::Semaphore::new(value as u64, value as u64)? } })
    }

    /// Takes a permit. Blocks while there is none.
    pub fn acquire(&self) {
        self.inner.acquire();
    }

    /// Takes a permit without blocking. Returns false if there is none.
    #[must_use]
    pub fn try_acquire(&self) -> bool {
        self.inner.try_acquire()
    }

    /// Takes a permit. Blocks for at most `timeout`. Returns false on timeout.
    #[must_use]
    pub fn acquire_timeout(&self, timeout: Duration) -> bool {
        self.inner.acquire_timeout(timeout)
    }

    /// Returns a permit, or adds one.
    ///
    /// # Errors
    /// [`OverRelease`] when the number of permits would exceed the maximum.
    pub fn release(&self) -> Result<(), OverRelease> {
        self.inner.release()
    }

    /// Returns or adds `count` permits; none on error.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub fn release_many(&self, count: usize) -> Result<(), OverRelease> {
        self.inner.release_many(count)
    }

    /// Returns the number of available permits. Another process may change it at any time.
    #[must_use]
    #[doc(alias = "get_value")]
    pub fn value(&self) -> usize {
        self.inner.value()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for BoundedSemaphore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BoundedSemaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { inner: Semaphore::deserialize(deserializer)? })
    }
}

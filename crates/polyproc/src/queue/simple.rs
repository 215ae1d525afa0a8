//! [`SimpleQueue`].

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::queue::{self as core, QueueSettings};
use polyproc_core::{Deadline, MemoryError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{deserialize, get, get_async, put};
use super::{GetError, Iter, PutError};
use crate::codec::{self, Transfer, TransferError};

/// A [`Queue`](crate::Queue) without a limit and with fewer methods: Python's `SimpleQueue`.
pub struct SimpleQueue<T> {
    core: core::Queue,
    item: PhantomData<fn(T) -> T>,
}

impl<T: Transfer> SimpleQueue<T> {
    /// Creates an empty queue.
    ///
    /// # Errors
    /// As [`Queue::new`](crate::Queue::new).
    pub fn new() -> io::Result<Self> {
        Ok(Self::from(core::Queue::new(QueueSettings::default())?))
    }

    /// Puts a value. Blocks while the queue is full, or too many bytes are in flight in this program.
    ///
    /// # Errors
    /// - [`PutError::Closed`]: the queue is closed.
    /// - [`PutError::OutOfSpace`]: the value alone exceeds the limit of bytes in flight.
    /// - [`PutError::Failed`]: the value could not be encoded or passed on.
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        put(&self.core, value, Deadline::NEVER)
    }

    /// Takes the next value. Blocks while the queue is empty.
    ///
    /// # Errors
    /// [`GetError::Closed`] when the queue is closed and empty, [`GetError::Failed`] when a value could not be received
    /// or decoded.
    pub fn get(&self) -> Result<T, GetError> {
        get(&self.core, Deadline::NEVER)
    }

    /// Takes the next value without blocking: Python's `get_nowait`.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`GetError::Empty`] when the queue is empty.
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, GetError> {
        get(&self.core, Deadline::PASSED)
    }

    /// Takes the next value. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`GetError::Empty`] on timeout.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        get(&self.core, Deadline::after(timeout))
    }

    /// Takes the next value asynchronously. Works with any executor, and needs no thread per call.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_async(&self) -> Result<T, GetError> {
        get_async(&self.core).await
    }

    /// Returns an iterator that takes values, and blocks for the next one, until the queue is closed and empty.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter::new(&self.core)
    }
}

impl<T> SimpleQueue<T> {
    /// Closes the queue: puts fail from now on, in all processes. The remaining values can still be taken.
    ///
    /// # Errors
    /// [`MemoryError`] when the queue's memory is unusable.
    pub fn close(&self) -> Result<(), MemoryError> {
        self.core.close()
    }

    /// Returns whether the queue was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Returns whether the queue holds no value. Another process may change that at any time.
    #[must_use]
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
    }

    /// Returns the number of values in the queue. Another process may change it at any time.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        usize::try_from(self.core.len()).unwrap_or(usize::MAX)
    }
}

impl<T> From<core::Queue> for SimpleQueue<T> {
    fn from(core: core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

impl<T> Clone for SimpleQueue<T> {
    fn clone(&self) -> Self {
        Self::from(self.core.clone())
    }
}

impl<T> fmt::Debug for SimpleQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimpleQueue").field("len", &self.core.len()).finish_non_exhaustive()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl<T> Serialize for SimpleQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry(&self.core.fds(), serializer)
    }
}

impl<'de, T> Deserialize<'de> for SimpleQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self::from)
    }
}

/// Readable while the queue holds a value or is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
///
/// Another consumer may take the value first, so use [`try_get`](Self::try_get).
impl<T> AsFd for SimpleQueue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

impl<'a, T: Transfer> IntoIterator for &'a SimpleQueue<T> {
    type Item = Result<T, TransferError>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

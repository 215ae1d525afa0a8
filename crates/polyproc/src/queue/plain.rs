//! [`Queue`].

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::queue::{self as core, QueueSettings};
use polyproc_core::{Deadline, MemoryError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{deserialize, get, get_async, is_full, put};
use super::{GetError, Iter, PutError};
use crate::codec::{self, Transfer, TransferError};

/// A queue of values of one type, between any processes. The values of one producer arrive in the order in which it put them.
///
/// - Once [`put`](Self::put) has returned, the value is in the queue, whatever process dies afterwards. There is no feeder
///   thread: a process may exit right after its last put, even if no process has emptied the queue.
/// - A process may be killed at any instruction of a put or a get, and the others continue. A consumer that dies in a get loses
///   at most the one value that it took.
/// - The queue itself is a value: it may be the argument of a process or of a pool's task, and be sent through queues and
///   pipes. All copies refer to the same queue.
/// - Values may have any size. Large values have memory blocks of their own, which are reused.
///
/// ```
/// use polyproc::{Process, Queue};
///
/// let queue = Queue::new(0)?;
/// let child = Process::new(|queue: Queue<String>| queue.put("hello".into()).is_ok(), queue.clone()).start()?;
/// assert_eq!(queue.get()?, "hello");
/// assert!(child.join()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T> {
    core: core::Queue,
    item: PhantomData<fn(T) -> T>,
}

impl<T: Transfer> Queue<T> {
    /// Creates a queue of at most `maxsize` values. 0 means no limit: the queue grows, and releases memory that it no longer
    /// needs.
    ///
    /// # Errors
    /// Fails when the system provides no memory, or not the three descriptors that a queue has.
    pub fn new(maxsize: usize) -> io::Result<Self> {
        Self::with_max_bytes(maxsize, 0)
    }

    /// Creates a queue of at most `maxsize` values, which have at most `max_bytes` bytes in total when encoded.
    ///
    /// With a `max_bytes` of 0, only the limit of the program applies ([`set_memory_budget`](crate::set_memory_budget)). A
    /// put of a single value larger than `max_bytes` fails at once.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn with_max_bytes(maxsize: usize, max_bytes: usize) -> io::Result<Self> {
        let settings =
            QueueSettings { maxsize: maxsize as u64, max_bytes: max_bytes as u64, ..QueueSettings::default() };
        Ok(Self::from(core::Queue::new(settings)?))
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

    /// Puts a value without blocking: Python's `put_nowait`.
    ///
    /// # Errors
    /// As [`put`](Self::put); [`PutError::Full`] when the queue is full, [`PutError::OutOfSpace`] also when too many
    /// bytes are in flight.
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        put(&self.core, value, Deadline::PASSED)
    }

    /// Puts a value. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`put`](Self::put); [`PutError::Full`] on timeout, or [`PutError::OutOfSpace`] if too many bytes are in
    /// flight.
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
        put(&self.core, value, Deadline::after(timeout))
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

impl<T> Queue<T> {
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

    /// Returns whether the queue holds its maximum number of values. Another process may change that at any time.
    #[must_use]
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        is_full(&self.core)
    }

    /// Returns the maximum number of values in the queue; 0 means no limit.
    #[must_use]
    pub fn maxsize(&self) -> usize {
        usize::try_from(self.core.maxsize()).unwrap_or(usize::MAX)
    }
}

impl<T> From<core::Queue> for Queue<T> {
    fn from(core: core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self::from(self.core.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.core.len()).finish_non_exhaustive()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry(&self.core.fds(), serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self::from)
    }
}

/// Readable while the queue holds a value or is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
///
/// Another consumer may take the value first, so use [`try_get`](Self::try_get).
impl<T> AsFd for Queue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

impl<'a, T: Transfer> IntoIterator for &'a Queue<T> {
    type Item = Result<T, TransferError>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

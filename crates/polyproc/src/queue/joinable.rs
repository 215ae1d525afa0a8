//! [`JoinableQueue`].

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::queue::{self as core, OnConsumerDeath, QueueSettings, TaskDoneError};
use polyproc_core::{Deadline, MemoryError, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{deserialize, get, get_async, is_full, put};
use super::{GetError, Iter, PutError};
use crate::codec::{self, Transfer, TransferError};

/// A [`Queue`](crate::Queue) that counts unfinished values.
///
/// A consumer calls [`task_done`](Self::task_done) once for each value that it took. [`join`](Self::join) blocks until all
/// values are done.
///
/// ```
/// use polyproc::{JoinableQueue, Process};
///
/// fn consume(queue: JoinableQueue<u32>) {
///     for _item in &queue {
///         queue.task_done().expect("one for each item");
///     }
/// }
///
/// let queue = JoinableQueue::new(1000)?;
/// (0..5).try_for_each(|item| queue.put(item))?;
/// let consumer = Process::new(consume, queue.clone()).start()?;
/// queue.join(); // all five are done
/// queue.close()?;
/// consumer.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct JoinableQueue<T> {
    core: core::Queue,
    item: PhantomData<fn(T) -> T>,
}

impl<T: Transfer> JoinableQueue<T> {
    /// Creates a queue of at most `maxsize` values, as [`Queue::new`](crate::Queue::new).
    ///
    /// If a consumer dies between a get and `task_done`, its values stay unfinished, as in Python, and `join` blocks forever.
    /// [`JoinableQueue::with_on_consumer_death`] avoids that.
    ///
    /// # Errors
    /// As [`Queue::new`](crate::Queue::new).
    pub fn new(maxsize: usize) -> io::Result<Self> {
        Self::with_on_consumer_death(maxsize, OnConsumerDeath::Nothing)
    }

    /// Creates a queue as [`JoinableQueue::new`]. `on_consumer_death` says what happens to the values of a consumer that dies
    /// between a get and `task_done`.
    ///
    /// Unless it is [`OnConsumerDeath::Nothing`], the process that took a value must itself call `task_done` for it, and its
    /// values are completed in the order in which it took them.
    ///
    /// # Errors
    /// As [`Queue::new`](crate::Queue::new).
    pub fn with_on_consumer_death(maxsize: usize, on_consumer_death: OnConsumerDeath) -> io::Result<Self> {
        let settings = QueueSettings { maxsize: maxsize as u64, max_bytes: 0, on_consumer_death };
        Ok(Self::from(core::Queue::new(settings)?))
    }

    /// Reports that one of the values that were taken is done.
    ///
    /// # Errors
    /// [`TaskDoneError::TooMany`] when all are done already, [`TaskDoneError::Memory`] when the queue's memory is unusable.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        self.core.task_done()
    }

    /// Blocks until every value that was put is done.
    pub fn join(&self) {
        // Without a deadline, the only error is an interruption, which is retried.
        let _ = retry_interrupted(|| self.core.join(Deadline::NEVER));
    }

    /// Blocks until every value that was put is done, for at most `timeout`. Returns false on timeout.
    #[must_use]
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.core.join(deadline)).is_ok()
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

impl<T> JoinableQueue<T> {
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

impl<T> From<core::Queue> for JoinableQueue<T> {
    fn from(core: core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        Self::from(self.core.clone())
    }
}

impl<T> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinableQueue").field("len", &self.core.len()).finish_non_exhaustive()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl<T> Serialize for JoinableQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry(&self.core.fds(), serializer)
    }
}

impl<'de, T> Deserialize<'de> for JoinableQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self::from)
    }
}

/// Readable while the queue holds a value or is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
///
/// Another consumer may take the value first, so use [`try_get`](Self::try_get).
impl<T> AsFd for JoinableQueue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

impl<'a, T: Transfer> IntoIterator for &'a JoinableQueue<T> {
    type Item = Result<T, TransferError>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

//! [`Queue`], [`JoinableQueue`] and [`SimpleQueue`]: pass values between any processes.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::queue::{self as core, OnConsumerDeath, QueueSettings, TaskDoneError};
use polyproc_core::reactor::readable;
use polyproc_core::{Deadline, MemoryError, OutOfSpace, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, Transfer, TransferError};

/// A value was not put. Each variant returns the value.
#[derive(thiserror::Error)]
pub enum PutError<T> {
    /// The queue is full, and remained so until the timeout. At most some 250 values that hold handles may wait.
    #[error("the queue is full")]
    Full(T),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed(T),
    /// Too many bytes are in flight in this program, and remained so until the timeout; or the value alone exceeds the limit:
    /// see [`set_memory_budget`](crate::set_memory_budget), [`Queue::with_max_bytes`].
    #[error("{1}")]
    OutOfSpace(T, #[source] OutOfSpace),
    /// The value could not be encoded or passed on.
    #[error("the value could not be put: {1}")]
    Failed(T, #[source] TransferError),
}

impl<T> PutError<T> {
    /// Returns the value that was not put.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) | Self::OutOfSpace(value, _) | Self::Failed(value, _) => value,
        }
    }
}

impl<T> fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Closed(_) => f.write_str("Closed(..)"),
            Self::OutOfSpace(_, error) => f.debug_tuple("OutOfSpace").field(error).finish(),
            Self::Failed(_, error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// No value was taken.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The queue is empty, and remained so until the timeout.
    #[error("the queue is empty")]
    Empty,
    /// The queue was closed, and all values were taken.
    #[error("the queue is closed")]
    Closed,
    /// A value could not be received or decoded.
    #[error("the value could not be taken: {0}")]
    Failed(#[from] TransferError),
}

/// Why a value was not put. Large errors are boxed, to keep the `Result`s of successful puts small.
enum Refusal {
    Full,
    Closed,
    OutOfSpace(Box<OutOfSpace>),
    Failed(Box<TransferError>),
}

impl<E: Into<TransferError>> From<E> for Refusal {
    #[cold]
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

fn put<T: Transfer>(queue: &core::Queue, value: T, deadline: Deadline) -> Result<(), PutError<T>> {
    let put = codec::with_buffer(|buffer| {
        let fds = codec::encode_to("the value", &value, buffer)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        retry_interrupted(|| queue.put(buffer, &fds, deadline)).map_err(|error| match error {
            core::PutError::Full => Refusal::Full,
            core::PutError::Closed => Refusal::Closed,
            core::PutError::OutOfSpace(error) => Refusal::OutOfSpace(Box::new(error)),
            core::PutError::Memory(error) => error.into(),
            core::PutError::Descriptors(error) => TransferError::Descriptors(error).into(),
            _ => TransferError::NotReturnable.into(),
        })
    });
    match put {
        Ok(()) => Ok(()),
        Err(Refusal::Full) => Err(PutError::Full(value)),
        Err(Refusal::Closed) => Err(PutError::Closed(value)),
        Err(Refusal::OutOfSpace(error)) => Err(PutError::OutOfSpace(value, *error)),
        Err(Refusal::Failed(error)) => Err(PutError::Failed(value, *error)),
    }
}

fn get<T: Transfer>(queue: &core::Queue, deadline: Deadline) -> Result<T, GetError> {
    codec::with_buffer(|buffer| {
        let mut fds = Vec::new();
        retry_interrupted(|| queue.get(buffer, &mut fds, deadline)).map_err(|error| match error {
            core::GetError::Empty => GetError::Empty,
            core::GetError::Closed => GetError::Closed,
            core::GetError::Memory(error) => TransferError::from(error).into(),
            core::GetError::Descriptors(error) => TransferError::Descriptors(error).into(),
            error => TransferError::Descriptors(io::Error::other(error)).into(),
        })?;
        codec::decode_from("the value", buffer, fds).map_err(|error| TransferError::from(error).into())
    })
}

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

impl<T> From<core::Queue> for Queue<T> {
    fn from(core: core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

/// Implements what all kinds of queues share.
macro_rules! common {
    ($name:ident) => {
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                Self::from(self.core.clone())
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("len", &self.core.len()).finish_non_exhaustive()
            }
        }

        /// For sending to another process by polyproc. Any other format fails.
        impl<T> Serialize for $name<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                codec::carry(&self.core.fds(), serializer)
            }
        }

        impl<'de, T> Deserialize<'de> for $name<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let core = core::Queue::from_fds(codec::take(deserializer)?).map_err(serde::de::Error::custom)?;
                Ok(Self::from(core))
            }
        }

        impl<T: Transfer> $name<T> {
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
                loop {
                    match self.try_get() {
                        Err(GetError::Empty) => readable(self.as_fd()).await.map_err(TransferError::Os)?,
                        got => return got,
                    }
                }
            }

            /// Returns an iterator that takes values, and blocks for the next one, until the queue is closed and empty.
            pub fn iter(&self) -> Iter<'_, T> {
                Iter { core: &self.core, item: PhantomData }
            }
        }

        impl<'a, T: Transfer> IntoIterator for &'a $name<T> {
            type Item = Result<T, TransferError>;
            type IntoIter = Iter<'a, T>;

            fn into_iter(self) -> Iter<'a, T> {
                self.iter()
            }
        }

        impl<T> $name<T> {
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

        /// Readable while the queue holds a value or is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
        ///
        /// Another consumer may take the value first, so use [`try_get`](Self::try_get).
        impl<T> AsFd for $name<T> {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.core.as_fd()
            }
        }
    };
}

/// Implements what bounded queues share.
macro_rules! bounded {
    ($name:ident) => {
        impl<T: Transfer> $name<T> {
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
        }

        impl<T> $name<T> {
            /// Returns whether the queue holds its maximum number of values. Another process may change that at any time.
            #[must_use]
            #[doc(alias = "full")]
            pub fn is_full(&self) -> bool {
                let maxsize = self.core.maxsize();
                maxsize > 0 && self.core.len() >= maxsize
            }

            /// Returns the maximum number of values in the queue; 0 means no limit.
            #[must_use]
            pub fn maxsize(&self) -> usize {
                usize::try_from(self.core.maxsize()).unwrap_or(usize::MAX)
            }
        }
    };
}

common!(Queue);
bounded!(Queue);

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
}

/// A [`Queue`] that counts unfinished values.
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

impl<T> From<core::Queue> for JoinableQueue<T> {
    fn from(core: core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

common!(JoinableQueue);
bounded!(JoinableQueue);

impl<T: Transfer> JoinableQueue<T> {
    /// Creates a queue of at most `maxsize` values, as [`Queue::new`].
    ///
    /// If a consumer dies between a get and `task_done`, its values stay unfinished, as in Python, and `join` blocks forever.
    /// [`JoinableQueue::with_on_consumer_death`] avoids that.
    ///
    /// # Errors
    /// As [`Queue::new`].
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
    /// As [`Queue::new`].
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
}

/// A [`Queue`] without a limit and with fewer methods: Python's `SimpleQueue`.
pub struct SimpleQueue<T> {
    core: core::Queue,
    item: PhantomData<fn(T) -> T>,
}

impl<T> From<core::Queue> for SimpleQueue<T> {
    fn from(core: core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

common!(SimpleQueue);

impl<T: Transfer> SimpleQueue<T> {
    /// Creates an empty queue.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn new() -> io::Result<Self> {
        Ok(Self::from(core::Queue::new(QueueSettings::default())?))
    }
}

/// An iterator over the values of a queue, until it is closed and empty. A value that could not be received is an error.
#[derive(Debug)]
pub struct Iter<'a, T> {
    core: &'a core::Queue,
    item: PhantomData<fn() -> T>,
}

impl<T: Transfer> Iterator for Iter<'_, T> {
    type Item = Result<T, TransferError>;

    fn next(&mut self) -> Option<Self::Item> {
        match get(self.core, Deadline::NEVER) {
            Ok(value) => Some(Ok(value)),
            Err(GetError::Failed(error)) => Some(Err(error)),
            Err(GetError::Closed | GetError::Empty) => None,
        }
    }
}

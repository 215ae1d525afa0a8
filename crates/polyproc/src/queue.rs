//! [`Queue`], [`JoinableQueue`] and [`SimpleQueue`]: values between any processes.

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

/// A value was not put. Each variant gives it back.
#[derive(thiserror::Error)]
pub enum PutError<T> {
    /// The queue is full, and stayed so for the time given. Of values with handles in them some 250 may wait.
    #[error("the queue is full")]
    Full(T),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed(T),
    /// Too many bytes are in flight in this program, and stayed so for the time given; or the value alone is more than there may
    /// be: see [`set_memory_budget`](crate::set_memory_budget), [`Queue::with_max_bytes`].
    #[error("{1}")]
    OutOfSpace(T, #[source] OutOfSpace),
    /// It cannot go through.
    #[error("the value could not be put: {1}")]
    Failed(T, #[source] TransferError),
}

impl<T> PutError<T> {
    /// The value.
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
    /// The queue is empty, and stayed so for the time given.
    #[error("the queue is empty")]
    Empty,
    /// The queue was closed, and all values were taken.
    #[error("the queue is closed")]
    Closed,
    /// A value was there, and could not come through.
    #[error("the value could not be taken: {0}")]
    Failed(#[from] TransferError),
}

/// Why a value was not put. Small, as the way of all that was put passes here.
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

/// Values of one type from any processes to any processes, in the order of each producer's puts.
///
/// - What [`put`](Self::put) has returned for is in the queue, whoever dies afterwards. There is no feeder thread: a process
///   may end at once after its last put, and nobody has to empty the queue first.
/// - Whoever is killed, at any instruction, in put or in get: the others go on. A consumer that dies takes at most the one
///   value that it had taken.
/// - The queue itself is a value: it may be the argument of a process or of a pool's task, or go through queues and pipes.
///   All its copies are the same queue.
/// - Values of any size go through. Large ones have memory of their own, which is used again for the next ones.
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

/// What all kinds of queues have.
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

        /// To be sent to another process by polyproc; no other format holds a queue.
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
            /// Puts a value; waits while the queue is full, or too many bytes are in flight in this program.
            ///
            /// # Errors
            /// [`PutError::Closed`], [`PutError::Failed`]; [`PutError::OutOfSpace`] for a value that alone is too large.
            pub fn put(&self, value: T) -> Result<(), PutError<T>> {
                put(&self.core, value, Deadline::NEVER)
            }

            /// Takes the next value; waits while there is none.
            ///
            /// # Errors
            /// [`GetError::Closed`], [`GetError::Failed`].
            pub fn get(&self) -> Result<T, GetError> {
                get(&self.core, Deadline::NEVER)
            }

            /// As [`get`](Self::get), without waiting. Python's `get_nowait`.
            ///
            /// # Errors
            /// All of [`GetError`].
            #[doc(alias = "get_nowait")]
            pub fn try_get(&self) -> Result<T, GetError> {
                get(&self.core, Deadline::PASSED)
            }

            /// As [`get`](Self::get), for at most `timeout`.
            ///
            /// # Errors
            /// All of [`GetError`].
            pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
                get(&self.core, Deadline::after(timeout))
            }

            /// As [`get`](Self::get), for async code: on any executor, without a thread for each call.
            ///
            /// # Errors
            /// [`GetError::Closed`], [`GetError::Failed`].
            pub async fn get_async(&self) -> Result<T, GetError> {
                loop {
                    match self.try_get() {
                        Err(GetError::Empty) => readable(self.as_fd()).await.map_err(TransferError::Os)?,
                        got => return got,
                    }
                }
            }

            /// The values as they come, until the queue is closed and empty.
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
            /// No more puts, by anybody: they fail from now on. Gets go on until the queue is empty.
            ///
            /// # Errors
            /// [`MemoryError`] when the queue's memory is unusable.
            pub fn close(&self) -> Result<(), MemoryError> {
                self.core.close()
            }

            /// Whether it was closed.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.core.is_closed()
            }

            /// Whether it held no value just now.
            #[must_use]
            #[doc(alias = "empty")]
            pub fn is_empty(&self) -> bool {
                self.core.is_empty()
            }

            /// How many values it held just now.
            #[must_use]
            #[doc(alias = "qsize")]
            pub fn len(&self) -> usize {
                usize::try_from(self.core.len()).unwrap_or(usize::MAX)
            }
        }

        /// Readable while the queue holds a value, or is closed: for [`wait`](crate::wait()), `poll` and `epoll`. Another consumer may be
        /// first: take with [`try_get`](Self::try_get).
        impl<T> AsFd for $name<T> {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.core.as_fd()
            }
        }
    };
}

/// What queues with a bound have.
macro_rules! bounded {
    ($name:ident) => {
        impl<T: Transfer> $name<T> {
            /// As [`put`](Self::put), without waiting. Python's `put_nowait`.
            ///
            /// # Errors
            /// All of [`PutError`].
            #[doc(alias = "put_nowait")]
            pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
                put(&self.core, value, Deadline::PASSED)
            }

            /// As [`put`](Self::put), for at most `timeout`.
            ///
            /// # Errors
            /// All of [`PutError`].
            pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
                put(&self.core, value, Deadline::after(timeout))
            }
        }

        impl<T> $name<T> {
            /// Whether it held as many values as it may, just now.
            #[must_use]
            #[doc(alias = "full")]
            pub fn is_full(&self) -> bool {
                let maxsize = self.core.maxsize();
                maxsize > 0 && self.core.len() >= maxsize
            }

            /// How many values it may hold; 0 for no limit.
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
    /// A queue that holds at most `maxsize` values; 0 for no limit: then it grows, and gives memory back.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor (a queue is three).
    pub fn new(maxsize: usize) -> io::Result<Self> {
        Self::with_max_bytes(maxsize, 0)
    }

    /// A queue whose values may, encoded, have `max_bytes` together; 0 for no limit but that of the program
    /// ([`set_memory_budget`](crate::set_memory_budget)). A value that alone has more is refused at once.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn with_max_bytes(maxsize: usize, max_bytes: usize) -> io::Result<Self> {
        let settings =
            QueueSettings { maxsize: maxsize as u64, max_bytes: max_bytes as u64, ..QueueSettings::default() };
        Ok(Self::from(core::Queue::new(settings)?))
    }
}

/// A [`Queue`] that knows which values are done with: for each value taken, [`task_done`](Self::task_done) is called, and
/// [`join`](Self::join) waits until that is so for all.
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
    /// As [`Queue::new`]. When a consumer dies between get and `task_done`, nothing becomes of its items, as in Python:
    /// `join` waits for ever. [`JoinableQueue::with_on_consumer_death`] offers better.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn new(maxsize: usize) -> io::Result<Self> {
        Self::with_on_consumer_death(maxsize, OnConsumerDeath::Nothing)
    }

    /// As [`JoinableQueue::new`], with another end for the items of a consumer that dies between get and `task_done`.
    /// Unless that is [`OnConsumerDeath::Nothing`], the process that took an item is the one to call `task_done` for it;
    /// its items are done in the order in which it took them.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn with_on_consumer_death(maxsize: usize, on_consumer_death: OnConsumerDeath) -> io::Result<Self> {
        let settings = QueueSettings { maxsize: maxsize as u64, max_bytes: 0, on_consumer_death };
        Ok(Self::from(core::Queue::new(settings)?))
    }

    /// One of the values that were taken is done with.
    ///
    /// # Errors
    /// [`TaskDoneError::TooMany`] when all are already.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        self.core.task_done()
    }

    /// Waits until every value that was put is done with.
    pub fn join(&self) {
        // Without a deadline it can only be interrupted.
        let _ = retry_interrupted(|| self.core.join(Deadline::NEVER));
    }

    /// As [`JoinableQueue::join`], for at most `timeout`; false when that was not enough.
    #[must_use]
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.core.join(deadline)).is_ok()
    }
}

/// A [`Queue`] without a limit and without much else: Python's `SimpleQueue`.
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
    /// An empty one.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn new() -> io::Result<Self> {
        Ok(Self::from(core::Queue::new(QueueSettings::default())?))
    }
}

/// The values of a queue as they come, until it is closed and empty. A value that could not come through is an error.
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

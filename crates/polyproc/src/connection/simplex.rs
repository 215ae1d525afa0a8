//! [`simplex_pipe`], a pipe in one direction, and the types of its ends: [`Sender`] and [`Receiver`].
//!
//! Each is an end of a duplex pipe (`core::Connection`) on which the unused direction is shut down. Any number of threads and
//! processes may use an end; one receiver gets each value, whole.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::conn as core;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::transfer::{deserialize, poll, receive, receive_async, receive_bytes, send, send_bytes, try_clone};
use super::{RecvError, SendError};
use crate::codec::{self, Transfer};

/// The sending end of a [`simplex_pipe`].
pub struct Sender<T> {
    core: core::Connection,
    items: PhantomData<fn(T)>,
}

impl<T: Transfer> Sender<T> {
    /// Sends a value. Blocks while about 200 values, or 16 MiB, are unread.
    ///
    /// # Errors
    /// [`SendError::Closed`] when the other end is closed, [`SendError::Failed`] when the value could not be encoded or
    /// sent.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        send(&self.core, value, Deadline::NEVER)
    }

    /// Sends a value. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`SendError::Full`] on timeout.
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendError<T>> {
        send(&self.core, value, Deadline::after(timeout))
    }
}

impl<T> Sender<T> {
    /// Sends bytes without encoding, for [`Receiver::recv_bytes`]. Blocks as [`send`](Self::send).
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] or [`io::ErrorKind::ConnectionReset`] when the other end is closed.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        send_bytes(&self.core, bytes)
    }

    /// Returns another handle to the same end.
    ///
    /// # Errors
    /// Fails when the system provides no descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        try_clone(&self.core).map(Self::from)
    }
}

impl<T> From<core::Connection> for Sender<T> {
    fn from(core: core::Connection) -> Self {
        Self { core, items: PhantomData }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.core.as_fd()).finish()
    }
}

/// Passes another handle to this end to another process, in a value that polyproc sends. Fails with any other serializer.
///
/// The peer detects that this end is closed once all handles to it are dropped, so drop this one after sending it.
impl<T> Serialize for Sender<T> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        codec::carry(&[self.core.as_fd()], serializer)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self::from)
    }
}

/// Writable when there is room for a value; `POLLHUP` when the other end is closed. Always readable, since receiving is shut
/// down, so [`wait`](crate::wait()) returns it at once.
impl<T> AsFd for Sender<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

/// The receiving end of a [`simplex_pipe`].
pub struct Receiver<T> {
    core: core::Connection,
    items: PhantomData<fn() -> T>,
}

impl<T: Transfer> Receiver<T> {
    /// Receives the next value. Blocks until one arrives.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when the other end is closed and all values were received, [`RecvError::Failed`] when the
    /// value could not be received or decoded.
    pub fn recv(&self) -> Result<T, RecvError> {
        receive(&self.core, Deadline::NEVER)
    }

    /// Receives the next value without blocking.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`RecvError::Empty`] when no value is available.
    pub fn try_recv(&self) -> Result<T, RecvError> {
        receive(&self.core, Deadline::PASSED)
    }

    /// Receives the next value. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`RecvError::Empty`] on timeout.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        receive(&self.core, Deadline::after(timeout))
    }

    /// Receives the next value asynchronously. Works with any executor, and needs no thread per call.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_async(&self) -> Result<T, RecvError> {
        receive_async(&self.core).await
    }
}

impl<T> Receiver<T> {
    /// Receives the next bytes that [`Sender::send_bytes`] sent. Blocks until they arrive.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when the other end is closed and everything was received, [`RecvError::Failed`] when a
    /// system call failed.
    pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        receive_bytes(&self.core)
    }

    /// Returns whether a value is available or the other end is closed. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// Fails when the system cannot wait for the descriptor.
    pub fn poll(&self, timeout: Duration) -> io::Result<bool> {
        poll(&self.core, Deadline::after(timeout))
    }

    /// Returns another handle to the same end.
    ///
    /// # Errors
    /// Fails when the system provides no descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        try_clone(&self.core).map(Self::from)
    }
}

impl<T> From<core::Connection> for Receiver<T> {
    fn from(core: core::Connection) -> Self {
        Self { core, items: PhantomData }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.core.as_fd()).finish()
    }
}

/// Passes another handle to this end to another process, in a value that polyproc sends. Fails with any other serializer.
///
/// The peer detects that this end is closed once all handles to it are dropped, so drop this one after sending it.
impl<T> Serialize for Receiver<T> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        codec::carry(&[self.core.as_fd()], serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self::from)
    }
}

/// Readable when a value is available or the other end is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

/// Creates a pipe in one direction, as `multiprocessing.Pipe(duplex=False)`.
///
/// # Errors
/// Fails when the system provides no descriptors.
pub fn simplex_pipe<T>() -> io::Result<(Receiver<T>, Sender<T>)> {
    let (receiving, sending) = core::Connection::pair()?;
    receiving.shut(true)?; // no sending
    sending.shut(false)?; // no receiving
    Ok((receiving.into(), sending.into()))
}

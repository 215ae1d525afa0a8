//! [`Connection`], and [`pipe`], which creates two of them.

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

/// One end of a pipe: sends values of type `S`, receives values of type `R`.
///
/// A value arrives whole or not at all, even if several processes use the same end, or a process is killed during the transfer.
pub struct Connection<S, R = S> {
    core: core::Connection,
    items: PhantomData<fn(S) -> R>,
}

impl<S: Transfer, R> Connection<S, R> {
    /// Sends a value. Blocks while the other end has too much unread data.
    ///
    /// # Errors
    /// [`SendError::Closed`] when the other end is closed, [`SendError::Failed`] when the value could not be encoded or
    /// passed on.
    pub fn send(&self, value: S) -> Result<(), SendError<S>> {
        send(&self.core, value, Deadline::NEVER)
    }

    /// Sends a value. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`SendError::Full`] on timeout.
    pub fn send_timeout(&self, value: S, timeout: Duration) -> Result<(), SendError<S>> {
        send(&self.core, value, Deadline::after(timeout))
    }
}

impl<S, R: Transfer> Connection<S, R> {
    /// Receives the next value. Blocks until one arrives.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when the other end is closed and all values were received, [`RecvError::Failed`] when the
    /// value could not be received or decoded.
    pub fn recv(&self) -> Result<R, RecvError> {
        receive(&self.core, Deadline::NEVER)
    }

    /// Receives the next value without blocking.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`RecvError::Empty`] when no value is available.
    pub fn try_recv(&self) -> Result<R, RecvError> {
        receive(&self.core, Deadline::PASSED)
    }

    /// Receives the next value. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`RecvError::Empty`] on timeout.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, RecvError> {
        receive(&self.core, Deadline::after(timeout))
    }

    /// Receives the next value asynchronously. Works with any executor, and needs no thread per call.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_async(&self) -> Result<R, RecvError> {
        receive_async(&self.core).await
    }
}

impl<S, R> Connection<S, R> {
    /// Sends bytes without encoding, for [`recv_bytes`](Connection::recv_bytes) at the other end.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] or [`io::ErrorKind::ConnectionReset`] when the other end is closed.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        send_bytes(&self.core, bytes)
    }

    /// Receives the next bytes that [`send_bytes`](Connection::send_bytes) sent at the other end. Blocks until they
    /// arrive.
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

impl<S, R> From<core::Connection> for Connection<S, R> {
    fn from(core: core::Connection) -> Self {
        Self { core, items: PhantomData }
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.core.as_fd()).finish()
    }
}

/// For sending another handle to this end by polyproc. Any other format fails.
///
/// The peer detects that this end is closed once all handles to it are dropped, so drop this one after sending it.
impl<S, R> Serialize for Connection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        codec::carry(&[self.core.as_fd()], serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self::from)
    }
}

/// Readable when a value is available or the other end is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
impl<S, R> AsFd for Connection<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

/// Creates a pipe whose ends both send and receive: Python's `Pipe()`.
///
/// # Errors
/// Fails when the system provides no descriptors.
///
/// ```
/// use polyproc::{Connection, Process, pipe};
///
/// fn square(connection: Connection<u64>) {
///     while let Ok(number) = connection.recv() {
///         connection.send(number * number).expect("it waits for the answer");
///     }
/// }
///
/// let (ours, theirs) = pipe::<u64, u64>()?;
/// let child = Process::new(square, theirs).start()?;
/// ours.send(7)?;
/// assert_eq!(ours.recv()?, 49);
/// drop(ours); // ends the child's loop
/// child.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "Pipe")]
pub fn pipe<A, B>() -> io::Result<(Connection<A, B>, Connection<B, A>)> {
    let (one, other) = core::Connection::pair()?;
    Ok((one.into(), other.into()))
}

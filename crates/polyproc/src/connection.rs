//! [`pipe`], [`Connection`], [`Listener`]: pass values between two processes.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use polyproc_core::conn as core;
pub use polyproc_core::conn::{Address, AuthError, ConnectError};
use polyproc_core::reactor::readable;
use polyproc_core::{Deadline, Payload, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, Transfer, TransferError};

/// A value was not sent. Each variant returns the value.
#[derive(thiserror::Error)]
pub enum SendError<T> {
    /// The other end is closed, or its last holder has exited.
    #[error("the other end of the connection is closed")]
    Closed(T),
    /// The other end had no room for the value before the timeout.
    #[error("the connection is full")]
    Full(T),
    /// The value could not be encoded or passed on.
    #[error("the value could not be sent: {1}")]
    Failed(T, #[source] TransferError),
}

impl<T> SendError<T> {
    /// Returns the value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            Self::Closed(value) | Self::Full(value) | Self::Failed(value, _) => value,
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(_) => f.write_str("Closed(..)"),
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Failed(_, error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// No value was received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The other end is closed, or its last holder has exited, and all values were received.
    #[error("the other end of the connection is closed")]
    Closed,
    /// No value arrived before the timeout.
    #[error("nothing was received")]
    Empty,
    /// A value could not be received or decoded.
    #[error("the value could not be received: {0}")]
    Failed(#[from] TransferError),
}

fn send<T: Transfer>(connection: &core::Connection, value: T, deadline: Deadline) -> Result<(), SendError<T>> {
    let sent = codec::with_buffer(|buffer| {
        let fds = codec::encode_to("the value", &value, buffer)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        retry_interrupted(|| connection.send(buffer, &fds, deadline)).map_err(TransferError::Os)
    });
    match sent {
        Ok(()) => Ok(()),
        Err(TransferError::Os(error)) => match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(SendError::Closed(value)),
            io::ErrorKind::TimedOut => Err(SendError::Full(value)),
            _ => Err(SendError::Failed(value, TransferError::Os(error))),
        },
        Err(error) => Err(SendError::Failed(value, error)),
    }
}

fn receive(connection: &core::Connection, deadline: Deadline) -> Result<Payload, RecvError> {
    match retry_interrupted(|| connection.receive(deadline)) {
        Ok(Some(payload)) => Ok(payload),
        Ok(None) => Err(RecvError::Closed),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(RecvError::Empty),
        Err(error) => Err(TransferError::Os(error).into()),
    }
}

fn receive_value<T: Transfer>(connection: &core::Connection, deadline: Deadline) -> Result<T, RecvError> {
    Ok(codec::decode("the value", receive(connection, deadline)?).map_err(TransferError::from)?)
}

/// Implements what all ends share.
macro_rules! end {
    ($name:ident<$($item:ident),*>) => {
        impl<$($item),*> From<core::Connection> for $name<$($item),*> {
            fn from(core: core::Connection) -> Self {
                Self { core, items: PhantomData }
            }
        }

        impl<$($item),*> fmt::Debug for $name<$($item),*> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.core.as_fd()).finish()
            }
        }

        impl<$($item),*> $name<$($item),*> {
            /// Returns another handle to the same end.
            ///
            /// # Errors
            /// Fails when the system provides no descriptor.
            pub fn try_clone(&self) -> io::Result<Self> {
                Ok(Self::from(core::Connection::from(self.core.as_fd().try_clone_to_owned()?)))
            }
        }

        /// For sending another handle to this end by polyproc. Any other format fails.
        ///
        /// The peer detects that this end is closed once all handles to it are dropped, so drop this one after sending it.
        impl<$($item),*> Serialize for $name<$($item),*> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                codec::carry(&[self.core.as_fd()], serializer)
            }
        }

        impl<'de, $($item),*> Deserialize<'de> for $name<$($item),*> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let [socket]: [OwnedFd; 1] = codec::take(deserializer)?;
                Ok(Self::from(core::Connection::from(socket)))
            }
        }

        /// Readable when a value is available or the other end is closed. For [`wait`](crate::wait()), `poll` and `epoll`.
        impl<$($item),*> AsFd for $name<$($item),*> {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.core.as_fd()
            }
        }
    };
}

macro_rules! sends {
    ($name:ident<$($item:ident),*>, $sent:ident) => {
        impl<$($item),*> $name<$($item),*>
        where
            $sent: Transfer,
        {
            /// Sends a value. Blocks while the other end has too much unread data.
            ///
            /// # Errors
            /// [`SendError::Closed`] when the other end is closed, [`SendError::Failed`] when the value could not be encoded or
            /// passed on.
            pub fn send(&self, value: $sent) -> Result<(), SendError<$sent>> {
                send(&self.core, value, Deadline::NEVER)
            }

            /// Sends a value. Blocks for at most `timeout`.
            ///
            /// # Errors
            /// As [`send`](Self::send); [`SendError::Full`] on timeout.
            pub fn send_timeout(&self, value: $sent, timeout: Duration) -> Result<(), SendError<$sent>> {
                send(&self.core, value, Deadline::after(timeout))
            }
        }

        impl<$($item),*> $name<$($item),*> {
            /// Sends bytes without encoding, for [`recv_bytes`](Connection::recv_bytes) at the other end.
            ///
            /// # Errors
            /// [`io::ErrorKind::BrokenPipe`] or [`io::ErrorKind::ConnectionReset`] when the other end is closed.
            pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
                retry_interrupted(|| self.core.send(bytes, &[], Deadline::NEVER))
            }
        }
    };
}

macro_rules! receives {
    ($name:ident<$($item:ident),*>, $received:ident) => {
        impl<$($item),*> $name<$($item),*>
        where
            $received: Transfer,
        {
            /// Receives the next value. Blocks until one arrives.
            ///
            /// # Errors
            /// [`RecvError::Closed`] when the other end is closed and all values were received, [`RecvError::Failed`] when the
            /// value could not be received or decoded.
            pub fn recv(&self) -> Result<$received, RecvError> {
                receive_value(&self.core, Deadline::NEVER)
            }

            /// Receives the next value without blocking.
            ///
            /// # Errors
            /// As [`recv`](Self::recv); [`RecvError::Empty`] when no value is available.
            pub fn try_recv(&self) -> Result<$received, RecvError> {
                receive_value(&self.core, Deadline::PASSED)
            }

            /// Receives the next value. Blocks for at most `timeout`.
            ///
            /// # Errors
            /// As [`recv`](Self::recv); [`RecvError::Empty`] on timeout.
            pub fn recv_timeout(&self, timeout: Duration) -> Result<$received, RecvError> {
                receive_value(&self.core, Deadline::after(timeout))
            }

            /// Receives the next value asynchronously. Works with any executor, and needs no thread per call.
            ///
            /// # Errors
            /// As [`recv`](Self::recv).
            pub async fn recv_async(&self) -> Result<$received, RecvError> {
                loop {
                    match self.try_recv() {
                        Err(RecvError::Empty) => readable(self.core.as_fd()).await.map_err(TransferError::Os)?,
                        received => return received,
                    }
                }
            }
        }

        impl<$($item),*> $name<$($item),*> {
            /// Receives the next bytes that [`send_bytes`](Connection::send_bytes) sent at the other end. Blocks until they
            /// arrive.
            ///
            /// # Errors
            /// [`RecvError::Closed`] when the other end is closed and everything was received, [`RecvError::Failed`] when a
            /// system call failed.
            pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
                Ok(receive(&self.core, Deadline::NEVER)?.head)
            }

            /// Returns whether a value is available or the other end is closed. Blocks for at most `timeout`.
            ///
            /// # Errors
            /// Fails when the system cannot wait for the descriptor.
            pub fn poll(&self, timeout: Duration) -> io::Result<bool> {
                let deadline = Deadline::after(timeout);
                retry_interrupted(|| self.core.poll(deadline))
            }
        }
    };
}

/// One end of a pipe: sends values of type `S`, receives values of type `R`.
///
/// A value arrives whole or not at all, even if several processes use the same end, or a process is killed during the transfer.
pub struct Connection<S, R = S> {
    core: core::Connection,
    items: PhantomData<fn(S) -> R>,
}
end!(Connection<S, R>);
sends!(Connection<S, R>, S);
receives!(Connection<S, R>, R);

/// The sending end of a [`simplex_pipe`].
pub struct Sender<T> {
    core: core::Connection,
    items: PhantomData<fn(T)>,
}
end!(Sender<T>);
sends!(Sender<T>, T);

/// The receiving end of a [`simplex_pipe`].
pub struct Receiver<T> {
    core: core::Connection,
    items: PhantomData<fn() -> T>,
}
end!(Receiver<T>);
receives!(Receiver<T>, T);

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

/// Creates a pipe in one direction: Python's `Pipe(duplex=False)`.
///
/// # Errors
/// Fails when the system provides no descriptors.
pub fn simplex_pipe<T>() -> io::Result<(Receiver<T>, Sender<T>)> {
    let (receiving, sending) = core::Connection::pair()?;
    receiving.shut(true)?;
    sending.shut(false)?;
    Ok((receiving.into(), sending.into()))
}

/// Accepts connections from processes that know its address, and its key if it has one.
///
/// ```
/// use polyproc::{Address, Connection, Listener, Process};
///
/// fn call(address: String) -> String {
///     let connection: Connection<String> = polyproc::connect(address, Some(b"a secret")).expect("it listens");
///     connection.send("hello".into()).expect("it is there");
///     connection.recv().expect("it answers")
/// }
///
/// let listener = Listener::bind(None, Some(b"a secret"))?;
/// let child = Process::new(call, listener.address().to_string()).start()?;
/// let connection: Connection<String> = listener.accept()?;
/// connection.send(connection.recv()? + " yourself")?;
/// assert_eq!(child.join()?, "hello yourself");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Listener(core::Listener);

/// The maximum number of connections that wait to be accepted (`listen(2)`).
const BACKLOG: i32 = 128;

/// Returns the address that a text denotes: an abstract name (`unix(7)`) if it begins with `@`, otherwise a path.
fn parse(address: &Path) -> Address {
    use std::os::unix::ffi::OsStrExt;
    match address.as_os_str().as_bytes() {
        [b'@', name @ ..] => Address::Abstract(name.to_vec()),
        _ => Address::Path(address.to_owned()),
    }
}

impl Listener {
    /// Listens at `address`: a path, or, if it begins with `@`, an abstract name (`unix(7)`), which creates no file.
    ///
    /// With `None`, the system chooses an abstract name. With a `key`, each side must prove to the other that it knows the
    /// key. The key itself is not sent.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when another listener or a file has the address.
    pub fn bind(address: Option<&str>, key: Option<&[u8]>) -> io::Result<Self> {
        let address = address.map(|address| parse(address.as_ref()));
        Ok(Self(core::Listener::bind(address, BACKLOG, key.map(<[u8]>::to_vec))?))
    }

    /// Accepts processes of all users. By default the listener rejects processes of other users.
    #[must_use]
    pub fn for_all_users(self) -> Self {
        Self(self.0.for_all_users())
    }

    /// Returns the address. Its text is what [`connect`] takes.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    /// Accepts the next connection. Blocks until there is one.
    ///
    /// # Errors
    /// [`ConnectError::Auth`] when a peer did not prove that it knows the key, after which the listener still accepts others;
    /// [`ConnectError::Os`] when a system call failed.
    pub fn accept<S, R>(&self) -> Result<Connection<S, R>, ConnectError> {
        Ok(retry_interrupted(|| self.0.accept(Deadline::NEVER))?.into())
    }

    /// Accepts the next connection. Blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`Listener::accept`]; [`ConnectError::Os`] with [`io::ErrorKind::TimedOut`] on timeout.
    pub fn accept_timeout<S, R>(&self, timeout: Duration) -> Result<Connection<S, R>, ConnectError> {
        let deadline = Deadline::after(timeout);
        Ok(retry_interrupted(|| self.0.accept(deadline))?.into())
    }
}

/// Readable when a peer wants to connect.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Connects to a [`Listener`]: Python's `Client`.
///
/// # Errors
/// [`ConnectError::Os`] when no listener has the address, or, without a key, when another user listens at the abstract name;
/// [`ConnectError::Auth`] when the keys differ or the listener does not answer within 10 seconds.
#[doc(alias = "Client")]
pub fn connect<S, R>(address: impl AsRef<Path>, key: Option<&[u8]>) -> Result<Connection<S, R>, ConnectError> {
    Ok(core::connect(&parse(address.as_ref()), key)?.into())
}

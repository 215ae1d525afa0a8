//! [`Listener`], and [`connect`] for its peers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use polyproc_core::conn::{self as core, Address, ConnectError};
use polyproc_core::{Deadline, retry_interrupted};

use super::Connection;

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

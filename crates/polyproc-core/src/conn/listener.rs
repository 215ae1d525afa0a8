//! [`Listener`] and [`connect`]: connections by address, over Unix sockets.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::{AuthError, Connection, auth};
use crate::deadline::Deadline;
use crate::sys::socket::{self, UnixAddress};
use crate::sys::watch;

/// How long a peer has to prove that it knows the key. One that is silent must not keep others waiting for ever.
const AUTH_TIME: Duration = Duration::from_secs(10);

/// Where a listener is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A file, which the listener makes, and removes when it is dropped.
    Path(PathBuf),
    /// A name without a file (`unix(7)`, "abstract"): it goes with the listener, whatever ends that.
    Abstract(Vec<u8>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

impl Address {
    fn to_unix(&self) -> io::Result<UnixAddress> {
        match self {
            Self::Path(path) => socket::path_address(path),
            Self::Abstract(name) => socket::abstract_address(name),
        }
    }
}

/// There is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The system made none.
    #[error("no connection at {address}: {source}")]
    Os {
        /// Where it was tried.
        address: Address,
        /// Why there is none.
        source: io::Error,
    },
    /// A signal handler ran. Call again, or not.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// The two sides do not know the same key.
    #[error("no connection at {address}: {source}")]
    Auth {
        /// Where it was tried.
        address: Address,
        /// What went wrong.
        source: AuthError,
    },
}

/// Waits for connections.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    key: Option<Vec<u8>>,
}

impl Listener {
    /// Listens at `address`; without one, at an abstract name that the system makes up. With a key, whoever connects has to
    /// know it.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when somebody, or a file, is there already; [`io::ErrorKind::InvalidInput`] for an
    /// address of more than some hundred bytes.
    pub fn bind(address: Option<Address>, backlog: i32, key: Option<Vec<u8>>) -> io::Result<Self> {
        let (socket, address) = match address {
            Some(address) => (socket::listen(&address.to_unix()?, backlog)?, address),
            None => {
                let socket = socket::listen(&socket::unnamed_address(), backlog)?;
                let name = socket::abstract_name(socket.as_fd())?;
                (socket, Address::Abstract(name))
            }
        };
        Ok(Self { socket, address, key })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits until the deadline for the next connection, which proves that it knows the key, within ten seconds.
    ///
    /// # Errors
    /// [`ConnectError`]. After [`ConnectError::Auth`] the next one may be accepted.
    pub fn accept(&self, deadline: Deadline) -> Result<Connection, ConnectError> {
        let os = |source: io::Error| match source.kind() {
            io::ErrorKind::Interrupted => ConnectError::Interrupted,
            _ => ConnectError::Os { address: self.address.clone(), source },
        };
        let connection = loop {
            if !watch::is_readable(self.as_fd(), deadline).map_err(os)? {
                return Err(os(io::ErrorKind::TimedOut.into()));
            }
            match socket::accept(self.as_fd()) {
                Ok(socket) => break Connection::from(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // another one has accepted it
                Err(error) => return Err(os(error)),
            }
        };
        if let Some(key) = &self.key {
            let until = Deadline::after(AUTH_TIME);
            auth::deliver_challenge(&connection, key, until)
                .and_then(|()| auth::answer_challenge(&connection, key, until))
                .map_err(|source| ConnectError::Auth { address: self.address.clone(), source })?;
        }
        Ok(connection)
    }
}

/// Readable when somebody wants to connect.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Path(path) = &self.address {
            // Gone already when the user has removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Connects to the listener at `address`. With a key, both sides prove that they know it, within ten seconds.
///
/// # Errors
/// [`ConnectError`].
pub fn connect(address: &Address, key: Option<&[u8]>) -> Result<Connection, ConnectError> {
    let os = |source| ConnectError::Os { address: address.clone(), source };
    let socket = address.to_unix().and_then(|unix| socket::connect(&unix)).map_err(os)?;
    let connection = Connection::from(socket);
    if let Some(key) = key {
        let until = Deadline::after(AUTH_TIME);
        auth::answer_challenge(&connection, key, until)
            .and_then(|()| auth::deliver_challenge(&connection, key, until))
            .map_err(|source| ConnectError::Auth { address: address.clone(), source })?;
    }
    Ok(connection)
}

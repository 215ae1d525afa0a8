//! [`Listener`] and [`connect`]: connections by address, over Unix sockets.
//!
//! The crate `polyproc` uses them, for processes that have no common parent; the Python package does not. The socket is
//! `SOCK_SEQPACKET`, so a connection is a [`Connection`] like one end of a pipe.
//!
//! A listener decides on a peer by two independent checks: the user of the peer as the kernel reports it, and, if the listener
//! has a key, the exchange in [`auth`]. Peers in that exchange are *strangers*. [`Listener::accept`] serves them:
//!
//! 1. It takes the strangers that no thread serves.
//! 2. It reads the response of each stranger that has sent one, then accepts new peers and sends each a challenge. Neither
//!    blocks.
//! 3. It sleeps until a stranger answers, another peer arrives, a stranger's [`AUTH_TIME`] is over, or another thread leaves
//!    strangers.
//! 4. When it returns, for whatever reason, its remaining strangers go back to the listener, and the bell, an eventfd, wakes a
//!    thread that sleeps in step 3.
//!
//! So several threads may accept at once, an interrupted call loses no stranger, and a peer that never answers delays no other.
//! Between calls nothing serves the strangers, and their time runs on: the next call disconnects those whose time is over. A
//! stranger costs one descriptor and one short message. A thread that has [`MAX_STRANGERS`] drops one for each new one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::auth::Challenged;
use super::{AuthError, Connection, auth};
use crate::deadline::Deadline;
use crate::retry::Interrupt;
use crate::sys::own_user;
use crate::sys::process_stamp::process_id;
use crate::sys::socket::{self, UnixAddress};
use crate::sys::watch::{self, EventFd};

/// How long a peer has to prove that it knows the key, and how long [`connect`] waits for the listener's part. A silent peer
/// must not occupy a place permanently.
const AUTH_TIME: Duration = Duration::from_secs(10);

/// The address of a listener. A path is found by processes that see the same file, an abstract name by those in the same network
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A file, which the listener creates, and removes when it is dropped.
    Path(PathBuf),
    /// A name without a file (`unix(7)`, "abstract"): it disappears with the listener, however that ends.
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
    /// Returns the address for the system calls.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for a path or name of more than about 100 bytes; [`io::ErrorKind::InvalidInput`] for a path with a NUL
    /// byte.
    fn to_unix(&self) -> io::Result<UnixAddress> {
        match self {
            Self::Path(path) => socket::path_address(path),
            Self::Abstract(name) => socket::abstract_address(name),
        }
    }
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A system call failed, or the deadline passed.
    #[error("no connection at {address}")]
    Os {
        /// The listener's address.
        address: Address,
        /// The system's error.
        source: io::Error,
    },
    /// A signal handler ran during [`Listener::accept`]. The call may be repeated.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// The two sides did not prove to each other that they know the same key.
    #[error("authentication failed for a connection at {address}")]
    Auth {
        /// The listener's address.
        address: Address,
        /// The reason.
        source: AuthError,
    },
}

impl Interrupt for ConnectError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// A peer that has not yet proved that it knows the key. Owned by an accepting thread, or by the listener between calls.
#[derive(Debug)]
struct Stranger {
    /// The connection, over which only messages of the exchange are read until the proof is complete.
    connection: Connection,
    /// The challenge that was sent to it.
    challenged: Challenged,
    /// The end of [`AUTH_TIME`], at which it is disconnected.
    until: Deadline,
}

/// How many strangers a thread serves at once: a small part of the usual limit of 1024 descriptors. A further one replaces the
/// first in the list, so that peers that do not answer cannot exclude the others.
const MAX_STRANGERS: usize = 64;

/// Accepts connections at an address. Any number of threads may accept. Dropping it stops new connections; existing ones
/// continue.
#[derive(Debug)]
pub struct Listener {
    /// The listening socket, non-blocking, since several threads and forked processes may accept from it.
    socket: OwnedFd,
    /// The address, which the system may have chosen.
    address: Address,
    /// The key that peers must know; `None` admits all peers of the permitted users.
    key: Option<Vec<u8>>,
    /// True if processes of other users may connect, too.
    is_public: bool,
    /// The strangers that no thread serves. Locked only to move them.
    strangers: Mutex<Vec<Stranger>>,
    /// Readable while there are strangers that no thread serves; `None` without a key. A thread clears it before it takes them,
    /// so that no later ring is lost.
    bell: Option<EventFd>,
    /// The process that created the listener: a copy of that process does not remove the file.
    pid: u32,
}

impl Listener {
    /// Listens at `address`; without one, at an abstract name that the system chooses. With a key, peers must prove that they
    /// know it. Processes of other users are rejected, unless [`Listener::for_all_users`] is called.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when there is a listener or a file already; [`io::ErrorKind::InvalidInput`] for an
    /// address longer than about 100 bytes.
    pub fn bind(address: Option<Address>, backlog: i32, key: Option<Vec<u8>>) -> io::Result<Self> {
        let (socket, address) = match address {
            Some(address) => (socket::listen(&address.to_unix()?, backlog)?, address),
            None => {
                let socket = socket::listen(&socket::unnamed_address(), backlog)?;
                let name = socket::abstract_name(socket.as_fd())?;
                (socket, Address::Abstract(name))
            }
        };
        let bell = key.is_some().then(EventFd::new).transpose()?;
        Ok(Self { socket, address, key, is_public: false, strangers: Mutex::default(), bell, pid: process_id() })
    }

    /// Lets processes of all users connect. Such a listener should have a key.
    #[must_use]
    pub fn for_all_users(mut self) -> Self {
        self.is_public = true;
        self
    }

    /// Returns the address at which this listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Blocks until the deadline for the next connection. With a key, peers have 10 s to prove that they know it. Several are
    /// served at a time, so that a silent peer does not delay the others. Peers of other users, and peers that stay silent for
    /// that time, are dropped without an error.
    ///
    /// # Errors
    /// - [`ConnectError::Auth`] when a peer has another key, does not follow the protocol or disconnects during the exchange.
    ///   The next connection may be accepted.
    /// - [`ConnectError::Interrupted`] when a signal handler ran.
    /// - [`ConnectError::Os`] with [`io::ErrorKind::TimedOut`] when the deadline passed, or with the error of a system call.
    pub fn accept(&self, deadline: Deadline) -> Result<Connection, ConnectError> {
        let mut strangers = Strangers { all: Vec::new(), listener: self };
        loop {
            if let Some(bell) = &self.bell {
                bell.answer();
            }
            strangers.all.append(&mut self.unserved());
            if let Some(known) = self.serve_once(&mut strangers.all)? {
                return Ok(known);
            }
            if deadline.has_passed() {
                return Err(self.os(io::ErrorKind::TimedOut.into()));
            }
            let fds = strangers.all.iter().map(|stranger| stranger.connection.as_fd());
            let bell = self.bell.iter().map(AsFd::as_fd);
            let fds: Vec<_> = [self.as_fd()].into_iter().chain(bell).chain(fds).collect();
            let times = strangers.all.iter().filter_map(|stranger| stranger.until.remaining());
            let until = times.fold(deadline, Deadline::or_sooner);
            watch::readable(&fds, until).map_err(|error| self.os(error))?;
        }
    }

    /// Returns the strangers that no thread serves. Ignores poisoning, since a panic leaves the list consistent.
    fn unserved(&self) -> MutexGuard<'_, Vec<Stranger>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the error of a system call of this listener.
    fn os(&self, source: io::Error) -> ConnectError {
        match source.kind() {
            io::ErrorKind::Interrupted => ConnectError::Interrupted,
            _ => ConnectError::Os { address: self.address.clone(), source },
        }
    }

    /// Serves the strangers and accepts new peers, without blocking. Returns a connection that passed both checks, if any.
    /// Returns after the first result, good or bad; later calls find the rest. Strangers come before new peers, so that
    /// arrivals cannot keep them waiting.
    ///
    /// # Errors
    /// [`ConnectError::Auth`] for a stranger, which is disconnected; others when `accept(2)` failed.
    fn serve_once(&self, strangers: &mut Vec<Stranger>) -> Result<Option<Connection>, ConnectError> {
        let auth = |source| ConnectError::Auth { address: self.address.clone(), source };
        strangers.retain(|stranger| !stranger.until.has_passed());
        if let Some(key) = &self.key {
            for at in 0..strangers.len() {
                let stranger = &strangers[at];
                let known = match stranger.challenged.take(&stranger.connection, key) {
                    Ok(false) => continue,
                    Ok(true) => Ok(()),
                    Err(error) => Err(error),
                };
                let Stranger { connection, .. } = strangers.remove(at);
                return known.map(|()| Some(connection)).map_err(auth);
            }
        }
        loop {
            let socket = match socket::accept(self.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                accepted => accepted.map_err(|error| self.os(error))?,
            };
            let is_same_user = || socket::peer_user(socket.as_fd()).is_ok_and(|user| user == own_user());
            if !self.is_public && !is_same_user() {
                continue;
            }
            let connection = Connection::from(socket);
            if self.key.is_none() {
                return Ok(Some(connection));
            }
            // A peer that disconnects at once is ignored.
            let Ok(challenged) = Challenged::send(&connection) else { continue };
            if strangers.len() >= MAX_STRANGERS {
                strangers.remove(0);
            }
            strangers.push(Stranger { connection, challenged, until: Deadline::after(AUTH_TIME) });
        }
    }
}

/// The strangers that a thread serves. Dropping this leaves them to the next thread, also when the accepting thread panics.
struct Strangers<'a> {
    all: Vec<Stranger>,
    listener: &'a Listener,
}

impl Drop for Strangers<'_> {
    fn drop(&mut self) {
        if self.all.is_empty() {
            return;
        }
        self.listener.unserved().append(&mut self.all);
        if let Some(bell) = &self.listener.bell {
            bell.ring();
        }
    }
}

/// Readable when a new peer waits to be accepted. Does not report the response of a stranger: with a key, a caller that polls
/// this must call [`Listener::accept`] with a deadline that leaves time for the exchange.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Path(path) = &self.address
            && self.pid == process_id()
        {
            // Fails if the user has removed the file.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Connects to the listener at `address`. With a key, both sides must prove within 10 s that they know it. Without one, the
/// listener at an abstract name must run as the same user or as root, since any process may take a free name. A path needs no
/// such check: the permissions of its directory decide which users can create it.
///
/// Blocks while the listener's queue is full, without a limit. Signal handlers do not end the call.
///
/// # Errors
/// - [`ConnectError::Os`] when there is no listener; with [`io::ErrorKind::PermissionDenied`] when another user listens at the
///   abstract name.
/// - [`ConnectError::Auth`] when the keys differ, or the listener did not answer in time.
pub fn connect(address: &Address, key: Option<&[u8]>) -> Result<Connection, ConnectError> {
    let os = |source| ConnectError::Os { address: address.clone(), source };
    let socket = address.to_unix().and_then(|unix| socket::connect(&unix)).map_err(os)?;
    if key.is_none() && matches!(address, Address::Abstract(_)) {
        let user = socket::peer_user(socket.as_fd()).map_err(|error| os(error.into()))?;
        if user != own_user() && user != 0 {
            let why = format!("the listener belongs to user {user}: pass a key to authenticate it");
            return Err(os(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
    }
    let connection = Connection::from(socket);
    if let Some(key) = key {
        let until = Deadline::after(AUTH_TIME);
        auth::answer(&connection, key, until)
            .map_err(|source| ConnectError::Auth { address: address.clone(), source })?;
    }
    Ok(connection)
}

//! [`Listener`] and [`connect`]: connections by address, over Unix sockets.

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
use crate::sys::identity::process_id;
use crate::sys::own_user;
use crate::sys::socket::{self, UnixAddress};
use crate::sys::watch::{self, EventFd};

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

impl Interrupt for ConnectError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// A peer that has not proved yet that it knows the key.
#[derive(Debug)]
struct Stranger {
    connection: Connection,
    challenged: Challenged,
    until: Deadline,
}

/// So many strangers have their time at once. Who comes then takes the place of the one that came first.
const STRANGERS: usize = 64;

/// Waits for connections.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    key: Option<Vec<u8>>,
    /// Processes of other users may connect, too.
    is_public: bool,
    strangers: Mutex<Vec<Stranger>>,
    /// Rings while there are strangers that no thread looks after; none without a key.
    left_behind: Option<EventFd>,
    /// The process that made it: a copy of that removes no file.
    pid: u32,
}

impl Listener {
    /// Listens at `address`; without one, at an abstract name that the system makes up. With a key, whoever connects has to
    /// know it. Processes of other users are turned away, unless [`Listener::for_all_users`].
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
        let left_behind = key.is_some().then(EventFd::new).transpose()?;
        Ok(Self { socket, address, key, is_public: false, strangers: Mutex::default(), left_behind, pid: process_id() })
    }

    /// Lets processes of all users connect, who should have to know a key then.
    #[must_use]
    pub fn for_all_users(mut self) -> Self {
        self.is_public = true;
        self
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits until the deadline for the next connection that is let in. Where there is a key, peers have ten seconds to prove that
    /// they know it, many at a time: one that is silent keeps nobody waiting.
    ///
    /// # Errors
    /// [`ConnectError`]. After [`ConnectError::Auth`] the next one may be accepted.
    pub fn accept(&self, deadline: Deadline) -> Result<Connection, ConnectError> {
        let mut strangers = Strangers { all: Vec::new(), listener: self };
        loop {
            if let Some(bell) = &self.left_behind {
                bell.answer();
            }
            strangers.all.append(&mut self.left());
            if let Some(known) = self.look(&mut strangers.all)? {
                return Ok(known);
            }
            if deadline.has_passed() {
                return Err(self.os(io::ErrorKind::TimedOut.into()));
            }
            let fds = strangers.all.iter().map(|stranger| stranger.connection.as_fd());
            let bell = self.left_behind.iter().map(AsFd::as_fd);
            let fds: Vec<_> = [self.as_fd()].into_iter().chain(bell).chain(fds).collect();
            let times = strangers.all.iter().filter_map(|stranger| stranger.until.remaining());
            let until = times.fold(deadline, Deadline::or_sooner);
            watch::readable(&fds, until).map_err(|error| self.os(error))?;
        }
    }

    /// The strangers that no thread looks after. A list stays whole when a thread panics.
    fn left(&self) -> MutexGuard<'_, Vec<Stranger>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn os(&self, source: io::Error) -> ConnectError {
        match source.kind() {
            io::ErrorKind::Interrupted => ConnectError::Interrupted,
            _ => ConnectError::Os { address: self.address.clone(), source },
        }
    }

    /// Takes what has come: a connection that is let in, if there is one.
    fn look(&self, strangers: &mut Vec<Stranger>) -> Result<Option<Connection>, ConnectError> {
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
            // One that goes at once is none.
            let Ok(challenged) = Challenged::send(&connection) else { continue };
            if strangers.len() >= STRANGERS {
                strangers.remove(0);
            }
            strangers.push(Stranger { connection, challenged, until: Deadline::after(AUTH_TIME) });
        }
    }
}

/// The strangers that a thread looks after, for the next one when it is done.
struct Strangers<'a> {
    all: Vec<Stranger>,
    listener: &'a Listener,
}

impl Drop for Strangers<'_> {
    fn drop(&mut self) {
        if self.all.is_empty() {
            return;
        }
        self.listener.left().append(&mut self.all);
        if let Some(bell) = &self.listener.left_behind {
            bell.ring();
        }
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
        if let Address::Path(path) = &self.address
            && self.pid == process_id()
        {
            // Gone already when the user has removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Connects to the listener at `address`. With a key, both sides prove that they know it, within ten seconds. Without one, whoever
/// listens at an abstract name has to be of the same user, or root: anybody may take a name that is free.
///
/// # Errors
/// [`ConnectError`]; [`ConnectError::Os`] with [`io::ErrorKind::PermissionDenied`] when somebody else listens there.
pub fn connect(address: &Address, key: Option<&[u8]>) -> Result<Connection, ConnectError> {
    let os = |source| ConnectError::Os { address: address.clone(), source };
    let socket = address.to_unix().and_then(|unix| socket::connect(&unix)).map_err(os)?;
    if key.is_none() && matches!(address, Address::Abstract(_)) {
        let user = socket::peer_user(socket.as_fd()).map_err(|error| os(error.into()))?;
        if user != own_user() && user != 0 {
            let why = format!("user {user} listens there, and there is no key to know a friend by");
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

//! [`Connection`]: one end of a pipe, for the user's messages.
//!
//! A channel with deadlines: each wait is a non-blocking attempt, then `poll(2)` until the deadline, then another attempt,
//! since another thread or process may have been faster. Waits end when a signal handler ran, so that a face can run the user's
//! handlers.
//!
//! Both faces use it, the Rust face also for connections by address. Tags are for the faces; this module gives them no meaning.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::channel::{Channel, Message};
use crate::deadline::Deadline;
use crate::robust::AdaptiveSpin;
use crate::sys::{signal, socket, watch};
use crate::wire::Payload;

/// One end of a pipe for messages. A message arrives whole or not at all, even if several processes use the same end. Closed
/// when it is dropped; the other end can still read the messages that were sent.
#[derive(Debug)]
pub struct Connection(Channel);

/// Spins before a receive sleeps, while answers arrive at once. One for all connections of the process.
static SPIN: AdaptiveSpin = AdaptiveSpin::new();

/// The tag of a user's message.
const MESSAGE: u8 = 0;

impl Connection {
    /// Returns both ends of a new pipe.
    ///
    /// # Errors
    /// When no descriptors are available.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = Channel::pair()?;
        Ok((Self(ours), Self(Channel::from(theirs))))
    }

    /// Shuts down sending (`true`) or receiving (`false`) on this end, for all processes that share it.
    ///
    /// # Errors
    /// When the descriptor is not a connected socket.
    pub fn shut(&self, sending: bool) -> io::Result<()> {
        socket::shut_half(self.as_fd(), sending)
    }

    /// Sends a message. Blocks until the deadline while the peer has too much unread data: 16 MiB and one more message.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] or [`io::ErrorKind::ConnectionReset`] when the other end is closed;
    /// [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::Interrupted`] when a signal handler ran.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<()> {
        self.send_tagged(MESSAGE, bytes, fds, 0, deadline)
    }

    /// As [`Connection::send`], with a tag. `lent_bytes` is the size of the data behind `fds`, in bytes; it counts against the
    /// 16 MiB that may be unread.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn send_tagged(
        &self,
        tag: u8,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        lent_bytes: usize,
        deadline: Deadline,
    ) -> io::Result<()> {
        let mut message = self.0.outgoing(tag, bytes, fds, lent_bytes)?;
        loop {
            match self.0.transmit(&mut message, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
            if !watch::is_writable(self.as_fd(), deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Returns the next message; `None` when the other end is closed and all messages have been read.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::Interrupted`] when a signal handler ran;
    /// [`io::ErrorKind::InvalidData`] for a malformed message.
    pub fn receive(&self, deadline: Deadline) -> io::Result<Option<Payload>> {
        Ok(self.receive_tagged(deadline)?.map(|(_, payload)| payload))
    }

    /// As [`Connection::receive`], but also returns the message's tag, which is 0 for [`Connection::send`].
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn receive_tagged(&self, deadline: Deadline) -> io::Result<Option<(u8, Payload)>> {
        let payload = |message: Option<Message>| message.map(|message| (message.tag, message.payload));
        let try_receive = || match self.0.try_receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some(received.map(payload)),
        };
        loop {
            if let Some(received) = try_receive() {
                return received;
            }
            if deadline == Deadline::PASSED {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut received = None;
            if SPIN.until(|| {
                received = try_receive();
                received.is_some()
            }) && let Some(received) = received
            {
                return received;
            }
            if deadline == Deadline::NEVER && !signal::comes_back() {
                return self.0.receive_unless_interrupted().map(payload);
            }
            if !self.poll(deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Blocks until a message has arrived or the other end is closed. Returns false if the deadline passed first.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when a signal handler ran.
    pub fn poll(&self, deadline: Deadline) -> io::Result<bool> {
        watch::is_readable(self.as_fd(), deadline)
    }
}

impl From<OwnedFd> for Connection {
    fn from(socket: OwnedFd) -> Self {
        Self(Channel::from(socket))
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.0.into()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

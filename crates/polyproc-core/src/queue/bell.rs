//! [`PollSocket`]: a socket pair of which every holder of a queue has both ends.
//!
//! - A queue message with descriptors has a *ticket*. The descriptors wait in the socket under that ticket until the message
//!   is taken. Descriptors of a producer that died before its commit have a ticket that no message refers to.
//! - A socket message with ticket 0 is a *ring*: it makes the receiving end readable for pollers.
//!
//! Descriptors are sent under the producers' lock, so tickets ascend in the socket; rings are sent without a lock. Receiving
//! is done under the consumers' lock. No call blocks. `put` and `get` use it for descriptors, `ring` for rings.
//!
//! A peer may send any message: one that is not 8 bytes long counts as older than any ticket, and is dropped by the next
//! search.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::socket;

/// The ticket of a ring. Tickets of descriptors begin at 1.
const RING: u64 = 0;

/// Both ends of the pair, as this process has them.
#[derive(Debug)]
pub(super) struct PollSocket {
    sending: OwnedFd,
    receiving: OwnedFd,
}

/// The first message in the socket.
enum Next {
    /// The socket is empty.
    Nothing,
    /// A ring for pollers.
    Ring,
    /// Copies of the descriptors under a ticket; the message is still in the socket.
    Fds { ticket: u64, fds: Vec<OwnedFd> },
}

impl PollSocket {
    /// Creates a connected pair, for a new queue.
    pub(super) fn new() -> io::Result<Self> {
        let (sending, receiving) = socket::pair()?;
        Ok(Self { sending, receiving })
    }

    /// Takes the ends that another process sent. They are not checked.
    pub(super) fn from_ends([sending, receiving]: [OwnedFd; 2]) -> Self {
        Self { sending, receiving }
    }

    /// Returns the sending end, then the receiving end.
    pub(super) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.sending.as_fd(), self.receiving.as_fd()]
    }

    /// Makes the receiving end readable.
    pub(super) fn ring(&self) {
        // If the socket is full, the receiving end is readable already.
        let _ = socket::send(self.sending.as_fd(), &[IoSlice::new(&RING.to_le_bytes())], &[], false);
    }

    /// Sends descriptors under a ticket, which is larger than any before. The caller holds the producers' lock. Returns false
    /// if the socket has no room until messages are taken.
    pub(super) fn leave(&self, ticket: u64, fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        match socket::send(self.sending.as_fd(), &[IoSlice::new(&ticket.to_le_bytes())], fds, false) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::TOOMANYREFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the first message and leaves it in the socket. The caller holds the consumers' lock.
    fn peek(&self) -> io::Result<Next> {
        match socket::peek(self.receiving.as_fd(), size_of::<u64>()) {
            Err(rustix::io::Errno::AGAIN) => Ok(Next::Nothing),
            // Not a message of this program: counts as older than any ticket.
            Err(rustix::io::Errno::MSGSIZE) => Ok(Next::Fds { ticket: RING, fds: Vec::new() }),
            Err(error) => Err(error.into()),
            Ok((bytes, fds)) => match bytes.try_into().map(u64::from_le_bytes) {
                Ok(RING) => Ok(Next::Ring),
                Ok(ticket) => Ok(Next::Fds { ticket, fds }),
                Err(_) => Ok(Next::Fds { ticket: RING, fds }), // as above
            },
        }
    }

    /// Removes the first message, and closes its descriptors if no process has a copy.
    fn drop_first(&self) {
        // The caller has peeked at it under the same lock.
        let _ = socket::receive(self.receiving.as_fd(), false);
    }

    /// Returns copies of the descriptors under `ticket`, or `None` if they are lost. Removes all messages before them;
    /// [`PollSocket::taken`] removes the descriptors.
    ///
    /// # Errors
    /// `EMFILE` if this process has no room for them: they stay in the socket.
    pub(super) fn look_for(&self, ticket: u64) -> io::Result<Option<Vec<OwnedFd>>> {
        loop {
            match self.peek()? {
                Next::Fds { ticket: found, fds } if found == ticket => return Ok(Some(fds)),
                Next::Fds { ticket: found, .. } if found < ticket => self.drop_first(),
                Next::Ring => self.drop_first(),
                Next::Fds { .. } | Next::Nothing => return Ok(None),
            }
        }
    }

    /// Removes the message that [`PollSocket::look_for`] has just found.
    pub(super) fn taken(&self) {
        self.drop_first();
    }

    /// Removes all rings before the first descriptors. Returns false if there are descriptors.
    pub(super) fn silence(&self) -> bool {
        loop {
            match self.peek() {
                Ok(Next::Ring) => self.drop_first(),
                Ok(Next::Nothing) => return true,
                Ok(Next::Fds { .. }) | Err(_) => return false,
            }
        }
    }

    /// Removes all messages. Called under both locks when the queue is empty: any descriptors are from dead producers.
    pub(super) fn clear(&self) {
        while socket::receive(self.receiving.as_fd(), false).is_ok() {}
    }
}

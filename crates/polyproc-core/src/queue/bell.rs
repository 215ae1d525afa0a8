//! [`PollSocket`]: a socket pair that every holder of a queue holds both ends of.
//!
//! - A message whose value carries descriptors has a *ticket*; they wait in the socket, under that ticket, until the
//!   message is taken. What a dead producer sent without finishing its put has a ticket that no message asks for.
//! - A message with ticket 0 is a *ring*: it makes the receiving end readable for who polls.
//!
//! Sending is done under the producers' lock (rings: anywhere), receiving under the consumers' lock.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::socket;

const RING: u64 = 0;

#[derive(Debug)]
pub(super) struct PollSocket {
    sending: OwnedFd,
    receiving: OwnedFd,
}

/// What waits in the socket.
enum Next {
    Nothing,
    Ring,
    Fds { ticket: u64, fds: Vec<OwnedFd> },
}

impl PollSocket {
    pub(super) fn new() -> io::Result<Self> {
        let (sending, receiving) = socket::pair()?;
        Ok(Self { sending, receiving })
    }

    pub(super) fn from_ends([sending, receiving]: [OwnedFd; 2]) -> Self {
        Self { sending, receiving }
    }

    pub(super) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.sending.as_fd(), self.receiving.as_fd()]
    }

    /// Makes the receiving end readable.
    pub(super) fn ring(&self) {
        // Where the socket is full, the receiving end is readable already.
        let _ = socket::send(self.sending.as_fd(), &[IoSlice::new(&RING.to_le_bytes())], &[], false);
    }

    /// Leaves descriptors under a ticket. False when the socket has no room until messages are taken.
    pub(super) fn leave(&self, ticket: u64, fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        match socket::send(self.sending.as_fd(), &[IoSlice::new(&ticket.to_le_bytes())], fds, false) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::TOOMANYREFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn peek(&self) -> io::Result<Next> {
        match socket::peek(self.receiving.as_fd(), size_of::<u64>()) {
            Err(rustix::io::Errno::AGAIN) => Ok(Next::Nothing),
            // Longer than ours: older than any ticket.
            Err(rustix::io::Errno::MSGSIZE) => Ok(Next::Fds { ticket: RING, fds: Vec::new() }),
            Err(error) => Err(error.into()),
            Ok((bytes, fds)) => match bytes.try_into().map(u64::from_le_bytes) {
                Ok(RING) => Ok(Next::Ring),
                Ok(ticket) => Ok(Next::Fds { ticket, fds }),
                Err(_) => Ok(Next::Fds { ticket: RING, fds }), // nothing of ours: older than any ticket
            },
        }
    }

    fn drop_first(&self) {
        // Somebody peeked at it just now, under the same lock.
        let _ = socket::receive(self.receiving.as_fd(), false);
    }

    /// A copy of the descriptors under `ticket`; none when they are lost. [`PollSocket::taken`] removes them.
    ///
    /// # Errors
    /// `EMFILE` when this process has no room for them: they stay.
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

    /// Removes what [`PollSocket::look_for`] has just found.
    pub(super) fn taken(&self) {
        self.drop_first();
    }

    /// Takes all rings before the first descriptors. False when there are descriptors.
    pub(super) fn silence(&self) -> bool {
        loop {
            match self.peek() {
                Ok(Next::Ring) => self.drop_first(),
                Ok(Next::Nothing) => return true,
                Ok(Next::Fds { .. }) | Err(_) => return false,
            }
        }
    }

    /// Takes all there is. Under both locks, when no message is left: the descriptors are those of dead producers.
    pub(super) fn clear(&self) {
        while socket::receive(self.receiving.as_fd(), false).is_ok() {}
    }
}

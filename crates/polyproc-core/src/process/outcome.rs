//! How a process says how it ended: one message over its channel before it goes.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::Panic;
use crate::conn::Channel;
use crate::frame::Payload;
use crate::frame::wire::WireError;

/// The tags of a process's messages to its parent.
pub(crate) mod tag {
    pub(crate) const RETURNED: u8 = 1;
    pub(crate) const RAISED: u8 = 2;
    pub(crate) const PANICKED: u8 = 3;
    pub(crate) const REFUSED: u8 = 4;
    pub(crate) const STACK_OVERFLOW: u8 = 5;
}

/// What came of the function that a process ran.
#[derive(Debug)]
pub enum Outcome {
    /// It returned.
    Returned(Payload),
    /// It failed in a way that the face encodes.
    Raised(Payload),
    /// It panicked.
    Panicked(Panic),
    /// It never ran: what was asked for cannot be done in the child, and why.
    Refused(String),
}

impl Outcome {
    /// The exit code of a process that ends with it: std's for panics, Python's for errors.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Returned(_) => 0,
            Self::Raised(_) | Self::Refused(_) => 1,
            Self::Panicked(_) => 101,
        }
    }

    pub(crate) fn send(&self, channel: &Channel) -> io::Result<()> {
        let (tag, bytes, fds) = self.parts();
        channel.send(tag, &bytes, &fds)
    }

    /// What it is as a message: tag, bytes and descriptors.
    pub(crate) fn parts(&self) -> (u8, Cow<'_, [u8]>, Vec<BorrowedFd<'_>>) {
        let (tag, payload) = match self {
            Self::Returned(payload) => (tag::RETURNED, payload),
            Self::Raised(payload) => (tag::RAISED, payload),
            Self::Panicked(panic) => return (tag::PANICKED, panic.encode().into(), Vec::new()),
            Self::Refused(why) => return (tag::REFUSED, why.as_bytes().into(), Vec::new()),
        };
        (tag, payload.head.as_slice().into(), payload.fds.iter().map(AsFd::as_fd).collect())
    }

    /// From what [`Outcome::parts`] gave.
    pub(crate) fn decode(tag: u8, payload: Payload) -> Result<Self, WireError> {
        Ok(match tag {
            tag::RETURNED => Self::Returned(payload),
            tag::RAISED => Self::Raised(payload),
            tag::PANICKED => Self::Panicked(Panic::decode(&payload.head)?),
            tag::REFUSED => Self::Refused(String::from_utf8(payload.head).map_err(|_| WireError)?),
            _ => return Err(WireError),
        })
    }
}

//! The final report of a process: one message over its channel before it exits.
//!
//! A child sends it in [`enter`](super::enter); the parent reads it after the end, by [`Child::ending`](super::Child::ending).
//! A worker whose initializer fails sends one inside another message of the pool. The bytes of a payload belong to the face and
//! are not interpreted here.
//!
//! | tag | head | descriptors |
//! |---|---|---|
//! | RETURNED, RAISED | the payload's bytes | the payload's |
//! | PANICKED | an encoded [`Panic`] | |
//! | REFUSED | the reason, as text | |

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Panic, tag};
use crate::conn::Channel;
use crate::wire::Payload;
use crate::wire::WireError;

/// The outcome of a process's work. A process that ends by itself, by `exit` or a signal, has none.
#[derive(Debug)]
pub enum Outcome {
    /// The function returned.
    Returned(Payload),
    /// The function failed with an error that the face encodes.
    Raised(Payload),
    /// The function panicked.
    Panicked(Panic),
    /// The function did not run, or its outcome could not be sent: the reason.
    Refused(String),
}

impl Outcome {
    /// Returns the exit code of a process with this outcome: std's for panics, Python's for errors.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Returned(_) => 0,
            Self::Raised(_) | Self::Refused(_) => 1,
            Self::Panicked(_) => 101,
        }
    }

    /// Sends the outcome over the child's end of its channel. Blocks while the channel is full.
    ///
    /// # Errors
    /// As [`Channel::send`]. The outcome was not sent then, and can be replaced by another.
    pub(crate) fn send(&self, channel: &Channel) -> io::Result<()> {
        let (tag, bytes, fds) = self.parts();
        channel.send(tag, &bytes, &fds)
    }

    /// Returns the tag, bytes and descriptors of the message.
    pub(crate) fn parts(&self) -> (u8, Cow<'_, [u8]>, Vec<BorrowedFd<'_>>) {
        let (tag, payload) = match self {
            Self::Returned(payload) => (tag::RETURNED, payload),
            Self::Raised(payload) => (tag::RAISED, payload),
            Self::Panicked(panic) => return (tag::PANICKED, panic.encode().into(), Vec::new()),
            Self::Refused(why) => return (tag::REFUSED, why.as_bytes().into(), Vec::new()),
        };
        (tag, payload.bytes.as_slice().into(), payload.fds.iter().map(AsFd::as_fd).collect())
    }

    /// Decodes a message made of [`Outcome::parts`].
    ///
    /// # Errors
    /// [`WireError`] for another tag, or a malformed panic or text.
    pub(crate) fn decode(tag: u8, payload: Payload) -> Result<Self, WireError> {
        Ok(match tag {
            tag::RETURNED => Self::Returned(payload),
            tag::RAISED => Self::Raised(payload),
            tag::PANICKED => Self::Panicked(Panic::decode(&payload.bytes)?),
            tag::REFUSED => Self::Refused(String::from_utf8(payload.bytes).map_err(|_| WireError)?),
            _ => return Err(WireError),
        })
    }
}

//! How a process says how it ended: one message over its channel before it goes.

use std::io;

use super::Panic;
use crate::conn::{Channel, Message};
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
        match self {
            Self::Returned(payload) => channel.send_payload(tag::RETURNED, payload),
            Self::Raised(payload) => channel.send_payload(tag::RAISED, payload),
            Self::Panicked(panic) => channel.send(tag::PANICKED, &panic.encode(), &[]),
            Self::Refused(why) => channel.send(tag::REFUSED, why.as_bytes(), &[]),
        }
    }

    pub(crate) fn decode(message: Message) -> Result<Self, WireError> {
        let payload = message.payload;
        Ok(match message.tag {
            tag::RETURNED => Self::Returned(payload),
            tag::RAISED => Self::Raised(payload),
            tag::PANICKED => Self::Panicked(Panic::decode(&payload.head)?),
            tag::REFUSED => Self::Refused(String::from_utf8(payload.head).map_err(|_| WireError)?),
            _ => return Err(WireError),
        })
    }
}

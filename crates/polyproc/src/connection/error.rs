//! [`SendError`] and [`RecvError`].

use std::fmt;

use crate::codec::TransferError;

/// A value was not sent. Each variant returns the value.
#[derive(thiserror::Error)]
pub enum SendError<T> {
    /// The other end is closed, or its last holder has exited.
    #[error("the other end of the connection is closed")]
    Closed(T),
    /// The other end had no room for the value before the timeout.
    #[error("the connection is full")]
    Full(T),
    /// The value could not be encoded or passed on.
    #[error("the value could not be sent")]
    Failed(T, #[source] TransferError),
}

impl<T> SendError<T> {
    /// Returns the value that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            Self::Closed(value) | Self::Full(value) | Self::Failed(value, _) => value,
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(_) => f.write_str("Closed(..)"),
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Failed(_, error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// No value was received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The other end is closed, or its last holder has exited, and all values were received.
    #[error("the other end of the connection is closed")]
    Closed,
    /// No value arrived before the timeout.
    #[error("no value has arrived")]
    Empty,
    /// A value could not be received or decoded.
    #[error("the value could not be received")]
    Failed(#[from] TransferError),
}

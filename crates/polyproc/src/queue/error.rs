//! [`PutError`] and [`GetError`].

use std::fmt;

use polyproc_core::OutOfSpace;

use crate::codec::TransferError;

/// A value was not put. Each variant returns the value.
#[derive(thiserror::Error)]
pub enum PutError<T> {
    /// The queue is full, and remained so until the timeout. At most some 250 values that hold handles may wait.
    #[error("the queue is full")]
    Full(T),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed(T),
    /// Too many bytes are in flight in this program, and remained so until the timeout; or the value alone exceeds the limit:
    /// see [`set_memory_budget`](crate::set_memory_budget), [`Queue::with_max_bytes`](crate::Queue::with_max_bytes).
    #[error("{1}")]
    OutOfSpace(T, OutOfSpace),
    /// The value could not be encoded or passed on.
    #[error("the value could not be put")]
    Failed(T, #[source] TransferError),
}

impl<T> PutError<T> {
    /// Returns the value that was not put.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) | Self::OutOfSpace(value, _) | Self::Failed(value, _) => value,
        }
    }
}

impl<T> fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Closed(_) => f.write_str("Closed(..)"),
            Self::OutOfSpace(_, error) => f.debug_tuple("OutOfSpace").field(error).finish(),
            Self::Failed(_, error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// No value was taken.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The queue is empty, and remained so until the timeout.
    #[error("the queue is empty")]
    Empty,
    /// The queue was closed, and all values were taken.
    #[error("the queue is closed")]
    Closed,
    /// A value could not be received or decoded.
    #[error("the value could not be taken")]
    Failed(#[from] TransferError),
}

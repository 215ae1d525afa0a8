//! The errors of a queue's operations.

use std::io;

use crate::retry::Interrupt;
use crate::robust::WaitError;
use crate::shm::{MemoryError, OutOfSpace};

/// A message could not be put.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The queue has its maximum number of messages or bytes, or as many messages with descriptors as its socket holds (about
    /// 250).
    #[error("the queue is full")]
    Full,
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
    /// A signal handler ran during the wait.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// Descriptors cannot be put back if their consumer dies.
    #[error("a queue that puts items back when a consumer dies cannot hold items with descriptors")]
    NotReturnable,
    /// The limit of bytes in flight is reached.
    #[error(transparent)]
    OutOfSpace(OutOfSpace),
    /// The queue's memory is unusable, or the system has none left.
    #[error(transparent)]
    Memory(MemoryError),
    /// The descriptors could not be sent.
    #[error("could not send the descriptors of an item")]
    Descriptors(#[from] io::Error),
}

/// A message could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// No message arrived in time.
    #[error("the queue is empty")]
    Empty,
    /// The queue was closed, and all messages are taken.
    #[error("the queue is closed")]
    Closed,
    /// A signal handler ran during the wait.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// A message was taken, but its descriptors are lost.
    #[error("the descriptors of an item were lost")]
    DescriptorsLost,
    /// The queue's memory is unusable.
    #[error(transparent)]
    Memory(MemoryError),
    /// The descriptors could not be received. The message is still in the queue.
    #[error("could not receive the descriptors of an item")]
    Descriptors(#[from] io::Error),
}

impl Interrupt for PutError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl Interrupt for GetError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl PutError {
    pub(super) fn out_of_space(&self) -> Option<OutOfSpace> {
        if let Self::OutOfSpace(error) = self { Some(*error) } else { None }
    }
}

impl From<MemoryError> for PutError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Busy => Self::Full, // a stopped process holds the lock
            MemoryError::Interrupted => Self::Interrupted,
            MemoryError::OutOfSpace(error) => Self::OutOfSpace(error),
            error => Self::Memory(error),
        }
    }
}

impl From<MemoryError> for GetError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Busy => Self::Empty,
            MemoryError::Interrupted => Self::Interrupted,
            error => Self::Memory(error),
        }
    }
}

impl From<WaitError> for PutError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Full,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

impl From<WaitError> for GetError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Empty,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

/// A message could not be reported as done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskDoneError {
    /// All messages that were put are done already; or, if a consumer's death matters, all messages that this process took.
    #[error("task_done() called too many times")]
    TooMany,
    /// The queue's memory is unusable.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

//! The errors of a queue's operations.
//!
//! Locks and memory fail with [`WaitError`] and [`MemoryError`]; the conversions here give these the operation's meaning:
//!
//! | cause | put | get |
//! |---|---|---|
//! | a wait for space, for items or for a lock timed out; a stopped process holds the arena's lock | `Full` | `Empty` |
//! | a signal handler ran | `Interrupted` | `Interrupted` |
//! | no room in the budget, or under the queue's limit | `OutOfSpace` | a get reserves no memory |
//! | corrupt, or refused by the system | `Memory` | `Memory` |

use std::io;

use crate::retry::Interrupt;
use crate::robust::WaitError;
use crate::shm::{MemoryError, OutOfSpace};

/// A message could not be put. The queue is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The deadline passed, and the queue has its maximum number of messages or bytes, or as many messages with descriptors as
    /// its socket holds (about 250). Also if a process that is stopped holds one of its locks.
    #[error("the queue is full")]
    Full,
    /// The queue was closed, by any process. It stays closed.
    #[error("the queue is closed")]
    Closed,
    /// A signal handler ran during the wait. The call may be repeated.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// The message has descriptors, and the queue puts messages of dead consumers back: descriptors that the consumer has
    /// received could not be put back.
    #[error("a queue that puts items back when a consumer dies cannot hold items with descriptors")]
    NotReturnable,
    /// The limit of bytes in flight is reached: the program's budget at the deadline, or the queue's own limit by this message
    /// alone.
    #[error(transparent)]
    OutOfSpace(OutOfSpace),
    /// The queue's memory is unusable, or the system has none left: then other messages may still fit.
    #[error(transparent)]
    Memory(MemoryError),
    /// The descriptors could not be sent: there are more than 253, or the system refused.
    #[error("could not send the descriptors of an item")]
    Descriptors(#[from] io::Error),
}

/// A message could not be taken. Unless a variant says otherwise, no message was taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// No message arrived before the deadline. Also if a process that is stopped holds a lock of the queue.
    #[error("the queue is empty")]
    Empty,
    /// The queue was closed, and all messages are taken. Messages that are put back after a consumer's death are still
    /// delivered.
    #[error("the queue is closed")]
    Closed,
    /// A signal handler ran during the wait. The call may be repeated.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// A message was taken, but its descriptors are lost: their socket message is gone.
    #[error("the descriptors of an item were lost")]
    DescriptorsLost,
    /// The queue's memory is unusable: a peer has overwritten it, or this process cannot map a part of it. The message may be
    /// lost.
    #[error(transparent)]
    Memory(MemoryError),
    /// The descriptors could not be received. The message is still in the queue. For example because this process has no room
    /// for them.
    #[error("could not receive the descriptors of an item")]
    Descriptors(#[from] io::Error),
}

/// For [`retry_interrupted`](crate::retry::retry_interrupted): nothing was put, so a put may be repeated.
impl Interrupt for PutError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// As for [`PutError`]: nothing was taken.
impl Interrupt for GetError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl PutError {
    /// Returns the figures if the put failed for lack of room, for [`wait_for_room`](crate::shm::wait_for_room).
    pub(super) fn out_of_space(&self) -> Option<OutOfSpace> {
        if let Self::OutOfSpace(error) = self { Some(*error) } else { None }
    }
}

/// For failures of the arena.
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

/// For failures of the arena. A get reserves no memory, so it does not run out of space.
impl From<MemoryError> for GetError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Busy => Self::Empty,
            MemoryError::Interrupted => Self::Interrupted,
            error => Self::Memory(error),
        }
    }
}

/// For waits for the producers' lock, and for space.
impl From<WaitError> for PutError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Full,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

/// For waits for the consumers' lock, and for items.
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
    /// The queue's memory is unusable. The message may have been counted, or be counted by the next owner of the consumers'
    /// lock.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

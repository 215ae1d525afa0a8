//! Memory that several processes map, without a name: when the last of them goes, by any cause, it is gone.
//!
//! | file | what it holds |
//! |---|---|
//! | `segment` | [`Segment`]: a memory file that grows, mapped part by part |
//! | `arena` | [`Arena`]: blocks of any size in a segment, each with a state and an owner |
//! | `budget` | how much of all this a program may have in flight |
//! | `blocks` | [`Blocks`]: the same for one owner, who keeps the records to itself |
//! | `loan` | [`lend`] and [`Loan`]: large bytes that go to another process and are not copied there |
//! | `memory` | [`SharedMemory`] and [`SharedBytes`], for users |
//! | `registry` | the shared objects of this process: one per memory file, roused when a process dies |

pub(crate) mod arena;
mod blocks;
pub(crate) mod budget;
mod loan;
mod memory;
pub(crate) mod registry;
mod segment;

pub use budget::{MemoryBudget, OutOfSpace, memory_budget, set_memory_budget};
pub(crate) use budget::{bytes_of, wake_waiting};
pub(crate) use loan::trim as trim_loans;
pub use loan::{Loan, lend};
pub use memory::{OutOfBounds, SharedBytes, SharedBytesMut, SharedMemory};

pub(crate) use arena::Arena;
pub(crate) use blocks::{Blocks, Extent};
pub(crate) use segment::Segment;

use crate::robust::WaitError;

/// Shared memory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// It holds what no process of ours writes: a peer went wild, or is another version.
    #[error("the shared memory is corrupt: a process wrote where it must not")]
    Corrupt,
    /// A process stands still in the middle of giving out this memory, and the deadline passed.
    #[error("a process is stopped while it gives out shared memory")]
    Busy,
    /// A signal handler ran while a process stands still there.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// As much is in flight as may be.
    #[error(transparent)]
    OutOfSpace(#[from] OutOfSpace),
    /// The system gives no memory, address space or descriptor.
    #[error("the system refused shared memory: {0}")]
    System(#[from] std::io::Error),
}

impl MemoryError {
    pub(crate) fn out_of_space(&self) -> Option<OutOfSpace> {
        if let Self::OutOfSpace(error) = self { Some(*error) } else { None }
    }
}

impl From<WaitError> for MemoryError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Busy,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

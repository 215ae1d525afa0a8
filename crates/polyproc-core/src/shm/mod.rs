//! Unnamed memory that several processes map. The kernel frees it when the last of them has exited, for any reason.
//!
//! | file | purpose |
//! |---|---|
//! | `segment` | [`Segment`]: a memory file that grows, mapped region by region |
//! | `arena` | [`Arena`]: blocks of any size in a segment, each with a state and an owner |
//! | `blocks` | [`Blocks`]: an allocator for one process, which keeps its state in private memory |
//! | `size_class` | the sizes of blocks |
//! | `budget`, `room` | how much shared memory a program may have in flight, and waiting for room |
//! | `loan` | [`lend`] and [`Loan`]: large data that another process maps instead of copying it |
//! | `memory` | [`SharedMemory`] and [`SharedBytes`], for users |
//! | `registry` | the shared objects of this process, one per memory file, which recover when a process dies |
//!
//! A peer may write any bytes to shared memory at any time. Nothing here trusts them: a call fails with [`MemoryError`], and
//! no reference to plain bytes is made unless no other process can write them.

pub(crate) mod arena;
mod blocks;
pub(crate) mod budget;
mod loan;
mod memory;
pub(crate) mod registry;
mod room;
mod segment;
mod size_class;

pub use budget::{MemoryBudget, OutOfSpace, memory_budget, set_memory_budget};
pub(crate) use budget::{bytes_of, wake_waiting};
pub(crate) use loan::trim as trim_loans;
pub use loan::{Loan, lend};
pub use memory::{OutOfBounds, SharedBytes, SharedBytesMut, SharedMemory};

pub(crate) use arena::Arena;
pub(crate) use blocks::{Blocks, Extent};
pub(crate) use room::wait_for_room;
pub(crate) use segment::Segment;

use crate::robust::WaitError;

/// Shared memory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// It holds bytes that no process of this version writes: a peer has overwritten it, or has another version.
    #[error("the shared memory is corrupt: a process has overwritten its records")]
    Corrupt,
    /// The deadline passed during a wait for a stopped process that allocates this memory.
    #[error("timed out: a stopped process holds the lock of the shared memory's allocator")]
    Busy,
    /// A signal handler ran during such a wait.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// The limit of bytes in flight is reached.
    #[error(transparent)]
    OutOfSpace(#[from] OutOfSpace),
    /// The system has no memory, address space or descriptor left.
    #[error("the system refused shared memory")]
    System(#[from] std::io::Error),
}

impl MemoryError {
    /// Returns the figures of [`MemoryError::OutOfSpace`], for [`wait_for_room`].
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

//! Memory that several processes map, without a name: when the last of them goes, by any cause, it is gone.
//!
//! | file | what it holds |
//! |---|---|
//! | `segment` | [`Segment`]: a memory file that grows, mapped part by part |
//! | `arena` | [`Arena`]: blocks of any size in a segment, each with a state and an owner |
//! | `blocks` | [`Blocks`]: the same for one owner, who keeps the records to itself |
//! | `loan` | [`lend`] and [`Loan`]: large bytes that go to another process and are not copied there |
//! | `memory` | [`SharedMemory`] and [`SharedBytes`], for users |
//! | `registry` | the shared objects of this process: one per memory file, roused when a process dies |

pub(crate) mod arena;
mod blocks;
mod loan;
mod memory;
pub(crate) mod registry;
mod segment;

pub use loan::{Loan, lend};
pub use memory::{OutOfBounds, SharedBytes, SharedBytesMut, SharedMemory};

pub(crate) use arena::Arena;
pub(crate) use blocks::{Blocks, Extent};
pub(crate) use segment::Segment;

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
    /// The system gives no memory, address space or descriptor.
    #[error("the system refused shared memory: {0}")]
    System(#[from] std::io::Error),
}

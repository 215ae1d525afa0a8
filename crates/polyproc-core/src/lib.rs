//! The engine of polyproc: processes, start methods and pools over bytes and descriptors.
//!
//! This crate knows no serde and no Python: the faces (`polyproc` for Rust) encode values and name functions, the engine
//! starts processes, moves payloads and notices deaths. Use a face; this API may change with every version.
//!
//! | room | what it holds |
//! |---|---|
//! | `prim`, [`Deadline`], `retry`, [`error_chain`] | atomics; the only timeout type; interrupted waits; the text of an error with its sources |
//! | `sys` | every system call, and `unsafe` code |
//! | `wire` | payloads and their encoding |
//! | `function` | functions by names that another process of the same build can resolve |
//! | `shm` | memory files, blocks in them, the shared objects of this process |
//! | `robust` | the locks and waits that all else in shared memory is made of |
//! | [`conn`] | messages with descriptors between two processes, and connections by address |
//! | [`process`] | starting, waiting, ending |
//! | [`sync`] | locks, semaphores, conditions, events, barriers |
//! | [`queue`] | queues in shared memory |
//! | [`reactor`] | waiting for descriptors in async code |
//! | [`pool`] | workers that run tasks |

#![warn(clippy::print_stdout)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("polyproc runs on 64-bit Linux (5.9 or newer) only");

pub mod conn;
mod deadline;
mod error_chain;
mod function;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod pool;
mod prim;
pub mod process;
pub mod queue;
pub mod reactor;
mod retry;
mod robust;
mod shm;
pub mod sync;
mod sys;
mod wire;

pub use deadline::Deadline;
pub use error_chain::error_chain;
pub use retry::{Interrupt, retry_interrupted};
pub use robust::WaitError;
pub use shm::{
    Loan, MemoryBudget, MemoryError, OutOfBounds, OutOfSpace, SharedBytes, SharedBytesMut, SharedMemory, lend,
    memory_budget, set_memory_budget,
};
pub use sys::per_process::PerProcess;
pub use wire::{Context, Input, Payload, Verdict};
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod crash {
    //! Dying at a marked step, for tests.
    pub use crate::shm::registry::blocks_in_use;
    pub use crate::sys::crash::{STEPS, Step, arm, freeze};
}

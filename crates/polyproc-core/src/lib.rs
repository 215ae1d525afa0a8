//! The engine of polyproc: processes, start methods and pools over bytes and descriptors.
//!
//! This crate knows no serde and no Python: the faces (`polyproc` for Rust) encode values and name functions, the engine starts
//! processes, moves payloads and notices deaths. Use a face; this API may change with every version.
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
//!
//! A room imports only from rooms on lower floors (`docs/ARCHITECTURE.md`); the test `fences` checks that.
//!
//! # Rules of all rooms
//!
//! - Any process may die at any instruction. Each protocol's page in `docs/design` lists the state that a death leaves, and the
//!   process that repairs it.
//! - Bytes from another process, in a message or in shared memory, are checked before they are used, and cause errors but no
//!   panic.
//! - Each wait takes a [`Deadline`]. It ends with an error that implements [`Interrupt`] when a signal handler ran.
//! - State of a process is in a [`PerProcess`], so that a copy of the process has its own.
//!
//! # Features
//!
//! | feature | effect |
//! |---|---|
//! | `auto-init` | an executed child runs its work before `main`, by a constructor; else the program calls [`process::init`] |
//! | `crash-points` | a process can kill itself at a marked step. For tests |
//! | `fuzzing` | entry points for the fuzz targets |

#![warn(clippy::print_stdout)]
#![cfg_attr(loom, allow(dead_code, unreachable_pub, unused_imports, reason = "the models use a part of each file"))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("polyproc runs on 64-bit Linux (5.9 or newer) only");

mod deadline;
mod error_chain;
mod prim;
mod retry;
mod robust;

#[cfg(not(loom))]
pub mod conn;
#[cfg(not(loom))]
mod function;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(not(loom))]
pub mod pool;
#[cfg(not(loom))]
pub mod process;
#[cfg(not(loom))]
pub mod queue;
#[cfg(not(loom))]
pub mod reactor;
#[cfg(not(loom))]
mod shm;
#[cfg(not(loom))]
pub mod sync;
#[cfg(not(loom))]
mod sys;
#[cfg(not(loom))]
mod wire;

// Under loom: the models, a model of the system, and those files of the other rooms that need no system.
#[cfg(all(test, loom))]
mod models;
#[cfg(loom)]
#[path = "pool/model.rs"]
mod pool;
#[cfg(loom)]
#[path = "queue/model.rs"]
mod queue;
#[cfg(loom)]
#[path = "sys/model.rs"]
mod sys;

pub use deadline::Deadline;
pub use error_chain::error_chain;
pub use retry::{Interrupt, retry_interrupted};
pub use robust::WaitError;
#[cfg(not(loom))]
pub use shm::{
    Loan, MemoryBudget, MemoryError, OutOfBounds, OutOfSpace, SharedBytes, SharedBytesMut, SharedMemory, lend,
    memory_budget, set_memory_budget,
};
#[cfg(not(loom))]
pub use sys::per_process::PerProcess;
#[cfg(not(loom))]
pub use wire::{Context, Input, Payload, Verdict};
#[cfg(all(feature = "crash-points", not(loom)))]
#[doc(hidden)]
pub mod crash {
    //! Dying at a marked step, for tests.
    pub use crate::shm::registry::blocks_in_use;
    pub use crate::sys::crash::{STEPS, Step, arm, freeze};
}

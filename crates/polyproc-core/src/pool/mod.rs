//! Pools: workers take tasks from a table in shared memory; the parent knows at every moment which worker holds which task.
//! `docs/design/pool.md` describes the protocol.
//!
//! | file | purpose |
//! |---|---|
//! | `scheduler` | decisions: events in, actions out; no clock, no descriptor |
//! | `claim`, `task_table` | the table: the claim protocol, and the shared words |
//! | `orders` | functions and arguments of the tasks, read-only for workers |
//! | `result_ring` | the memory of one worker: its state, and the ring that returns its results |
//! | `doorbell` | how workers wake the parent |
//! | `worker` | the worker's loop |
//! | `driver`, `effects`, `results`, `thread`, `timers` | the parent: state, the scheduler's actions, results, deaths, timers |
//! | `audit` | repair of a table that a worker has overwritten |
//! | `worker_handle` | the parent's record of a worker |
//! | `callbacks` | the thread that runs callbacks |
//! | `latch` | the event that threads wait for when they join a pool |
//! | `call`, `handle`, `submitter` | [`Call`], [`Pool`] and [`Submitter`], the interface for the faces |
//! | `task` | how a task ends; messages between worker and parent |

mod audit;
mod call;
mod callbacks;
mod claim;
mod doorbell;
mod driver;
mod effects;
mod handle;
mod latch;
mod orders;
mod result_ring;
mod results;
mod scheduler;
mod submitter;
mod task;
mod task_table;
mod thread;
mod timers;
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod wild;
mod worker;
mod worker_handle;

pub use call::{Call, CallSettings, Ends, ItemEnd, WaitFor};
pub use handle::{OnEvent, OnLog, Pool, PoolError, PoolSettings, Registered};
pub use submitter::{ReadAhead, Submitter};
pub use task::{Ended, Items, NoWorkersReason, PoolEvent, TaskEnd};
pub use worker::{log, may_lend, serve};
pub use worker_handle::WorkerStats;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use task::decode_any;

use crate::prim::{AtomicU32, AtomicU64};
use crate::sys::shared::shared;

/// The system calls and atomics that the table and the doorbell use.
mod os {
    pub(super) use crate::prim::{Ordering, fence};
    pub(super) use crate::sys::futex::wake;
}

/// The table of tasks: see `claim`.
#[derive(Debug, Clone, Copy)]
struct ClaimTable<'a> {
    board: &'a task_table::TaskTable,
}

shared! {
    /// A word that several processes use, in a cache line of its own.
    struct Count { count: AtomicU64, }
}

shared! {
    /// How workers wake the parent: see `doorbell`.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 4 | word | the parent: how it must be woken; a worker: `AWAKE`, when it rings |
    struct Doorbell { word: AtomicU32, }
}

//! Pools: workers take tasks from a table in shared memory; the parent knows at every moment which worker holds which task.
//! `docs/design/pool.md` describes the protocol.
//!
//! | file | purpose |
//! |---|---|
//! | `scheduler` | decisions: events in, actions out; no clock, no descriptor |
//! | `claim`, `board` | the table: the claim protocol, and the shared words |
//! | `orders` | functions and arguments of the tasks, read-only for workers |
//! | `stream` | the memory of one worker: its state, and the ring that returns its results |
//! | `doorbell` | how workers wake the parent |
//! | `worker` | the worker's loop |
//! | `driver`, `act`, `collect`, `watch`, `timers` | the parent: state, the scheduler's actions, results, deaths, timers |
//! | `audit` | repair of a table that a worker has overwritten |
//! | `staff` | the parent's record of a worker |
//! | `callbacks` | the thread that runs callbacks |
//! | `latch` | the event that threads wait for when they join a pool |
//! | `call`, `handle`, `feed` | [`Call`], [`Pool`] and [`Feed`], the interface for the faces |
//! | `task` | how a task ends; messages between worker and parent |

mod act;
mod audit;
mod board;
mod call;
mod callbacks;
mod claim;
mod collect;
mod doorbell;
mod driver;
mod feed;
mod handle;
mod latch;
mod orders;
mod scheduler;
mod staff;
mod stream;
mod task;
mod timers;
mod watch;
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod wild;
mod worker;

pub use call::{Call, CallSettings, Ends, ItemEnd, Want};
pub use feed::{Feed, ReadAhead};
pub use handle::{OnEvent, OnLog, Pool, PoolError, PoolSettings, Registered};
pub use staff::WorkerStats;
pub use task::{Ended, Items, PoolEvent, TaskEnd, Why};
pub use worker::{log, may_lend, serve};

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
struct Table<'a> {
    board: &'a board::Board,
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

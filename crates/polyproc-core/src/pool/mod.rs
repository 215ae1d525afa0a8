//! Pools: workers that take tasks from a table in shared memory, and a parent that knows at every moment which worker holds
//! which. `docs/design/pool.md` tells the protocol.
//!
//! | file | what it does |
//! |---|---|
//! | `scheduler` | decides: events in, actions out, no clock and no descriptor |
//! | `claim`, `board` | the table: how tasks are taken, and the words by which they are |
//! | `orders` | what the tasks are, which workers can only read |
//! | `stream` | one worker's memory: what it does, and how its results come back |
//! | `doorbell` | how workers wake the parent |
//! | `worker` | the child's loop |
//! | `driver`, `act`, `collect`, `watch`, `timers` | the parent: its state, what the scheduler decides, results, deaths, times |
//! | `audit` | tasks that are lost on a table that was written over |
//! | `staff` | a worker as the parent sees it |
//! | `callbacks` | the thread for callbacks |
//! | `latch` | what threads wait for that join a pool |
//! | `call`, `handle` | [`Call`] and [`Pool`], what the faces use |
//! | `task` | how a task ends, and messages |

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
pub(crate) use worker::run as run_worker;
pub use worker::{log, may_lend, serve};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use task::decode_any;

use crate::prim::{AtomicU32, AtomicU64};
use crate::sys::shared::shared;

/// What the table and the doorbell need of the system.
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
    /// A count that several processes look at.
    struct Count { count: AtomicU64, }
}

shared! {
    /// How workers wake the parent: see `doorbell`.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 4 | word | the parent, what it is going to do; a worker, that it has rung |
    struct Doorbell { word: AtomicU32, }
}

//! Pools: workers take tasks from a table in shared memory; the parent knows at every moment which worker holds which task.
//! `docs/design/pool.md` describes the protocol.
//!
//! | file | purpose |
//! |---|---|
//! | `scheduler` | decisions: events in, actions out; no clock, no descriptor |
//! | `claim`, `lookers`, `task_table` | the table: the claim protocol, polling workers, and the shared words |
//! | `orders` | functions and arguments of the tasks, read-only for workers |
//! | `result_ring` | the memory of one worker: its state, and the ring that returns its results |
//! | `result_index` | the counts of that ring, and of the blocks that return to the worker |
//! | `count` | a word in a cache line of its own |
//! | `doorbell` | how workers wake the parent |
//! | `worker` | the worker's loop |
//! | `driver`, `effects`, `results`, `thread`, `timers` | the parent: state, the scheduler's actions, results, deaths, timers |
//! | `leader` | which thread reads the results |
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
mod count;
mod doorbell;
mod driver;
mod effects;
mod handle;
mod latch;
mod leader;
mod lookers;
mod orders;
mod result_index;
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

pub use call::{Call, CallSettings, Ends, ItemEnd};
pub use handle::{OnEvent, OnLog, Pool, PoolError, PoolSettings, Registered};
pub use leader::WaitFor;
pub use submitter::{ReadAhead, Submitter};
pub use task::{Ended, Items, NoWorkersReason, PoolEvent, TaskEnd};
pub use worker::{log, may_lend, serve};
pub use worker_handle::WorkerStats;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use task::decode_any;

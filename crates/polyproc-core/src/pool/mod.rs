//! Pools: workers take tasks from a table in shared memory; the parent knows at every moment which worker holds which task.
//! `docs/design/pool.md` describes the protocol.
//!
//! | room | purpose |
//! |---|---|
//! | `shared` | what parent and workers share: the table of tasks, task descriptors, result rings, messages |
//! | `worker` | the worker's loop |
//! | `parent` | the state of a pool, the scheduler, the pool's thread; [`Pool`], [`Call`], [`Submitter`] for the faces |

mod parent;
mod shared;
mod worker;

pub use parent::call::Call;
pub use parent::ends::{Ends, ItemEnd};
pub use parent::error::PoolError;
pub use parent::handle::{Pool, Registered};
pub use parent::leader::WaitFor;
pub use parent::settings::{CallSettings, OnEvent, OnLog, PoolSettings};
pub use parent::submitter::{ReadAhead, Submitter};
pub use parent::worker_handle::WorkerStats;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use shared::task::decode_any;
pub use shared::task::{Ended, Items, NoWorkersReason, PoolEvent, TaskEnd};
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub use worker::wild;
pub use worker::{log, may_lend, serve};

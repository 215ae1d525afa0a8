//! Pools: workers that run tasks, and a parent that knows at every moment which worker holds which.
//!
//! | file | what it does |
//! |---|---|
//! | `scheduler` | decides: events in, actions out, no clock and no descriptor |
//! | `driver` | acts: the thread that talks to the workers and sees them die |
//! | `worker` | the child's loop |
//! | `handle` | [`Pool`], what the faces use |
//! | `task` | a task on the wire and how it ends |

mod driver;
mod handle;
mod scheduler;
mod task;
mod worker;

pub use handle::{Pool, PoolError, PoolSettings};
pub use task::TaskEnd;
pub(crate) use worker::run as run_worker;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use task::{decode_outcome, decode_task};

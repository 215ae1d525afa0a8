//! The parent's side of a pool.
//!
//! | file | purpose |
//! |---|---|
//! | `scheduler` | decisions: events in, actions out; no clock, no descriptor |
//! | `leader` | which thread reads the results |
//! | `driver`, `effects`, `results`, `thread`, `timers` | state, the scheduler's actions, results, deaths, timers |
//! | `audit` | repair of a table that a worker has overwritten |
//! | `worker_handle` | the parent's record of a worker |
//! | `callbacks` | the thread that runs callbacks |
//! | `latch` | the event that threads wait for when they join a pool |
//! | `call`, `handle`, `submitter` | [`Call`](crate::pool::Call), [`Pool`](crate::pool::Pool) and [`Submitter`](crate::pool::Submitter), the interface for the faces |

mod audit;
pub(in crate::pool) mod call;
mod callbacks;
mod driver;
mod effects;
pub(in crate::pool) mod handle;
mod latch;
pub(in crate::pool) mod leader;
mod results;
mod scheduler;
pub(in crate::pool) mod submitter;
mod thread;
mod timers;
pub(in crate::pool) mod worker_handle;

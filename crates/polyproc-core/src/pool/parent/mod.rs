//! The parent's side of a pool.
//!
//! | file | purpose |
//! |---|---|
//! | `scheduler`, `event` | decisions: events in, actions out; no clock, no descriptor |
//! | `tasks`, `calls`, `functions`, `workers`, `timers`, `notifications`, `leader` | the parts of the state; each owns its data |
//! | `state` | these parts under one lock, and the changes that concern several of them |
//! | `driver` | the lock, and what follows its release |
//! | `effects`, `publication` | the scheduler's actions; tasks on the table |
//! | `submission`, `stop` | opening, submitting, abandoning and stopping calls |
//! | `results` | reading results, waiting for them |
//! | `thread` | the pool's thread: its loop and its timers |
//! | `starts`, `messages`, `deaths` | starts, messages and deaths of workers |
//! | `steal`, `item_limit`, `audit` | moving items to idle workers; time limits of items; repair of a table that a worker has overwritten |
//! | `worker_handle` | the parent's record of a worker |
//! | `callbacks`, `latch` | the thread that runs callbacks; events that threads of this process wait for |
//! | `settings`, `error`, `ends`, `key` | settings, errors, how items end, keys of calls |
//! | `call`, `handle`, `submitter` | [`Call`](crate::pool::Call), [`Pool`](crate::pool::Pool) and [`Submitter`](crate::pool::Submitter), the interface for the faces |

mod audit;
pub(in crate::pool) mod call;
mod callbacks;
mod calls;
mod deaths;
mod driver;
mod effects;
pub(in crate::pool) mod ends;
pub(in crate::pool) mod error;
mod event;
mod functions;
pub(in crate::pool) mod handle;
mod item_limit;
mod key;
mod latch;
pub(in crate::pool) mod leader;
mod messages;
mod notifications;
mod publication;
mod results;
mod scheduler;
pub(in crate::pool) mod settings;
mod starts;
mod state;
mod steal;
mod stop;
mod submission;
pub(in crate::pool) mod submitter;
mod tasks;
mod thread;
mod timers;
pub(in crate::pool) mod worker_handle;
mod workers;

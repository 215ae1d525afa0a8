//! Models of the protocols over shared words, for `--cfg loom`. Loom tries every interleaving of a few threads that has at most
//! two preemptions, and every value that a load may return.
//!
//! The models run the engine's own files. `prim` exports loom's atomics, and `sys/model.rs` is the model of the system: no timeout
//! expires there, so a lost wake-up is a deadlock, which loom reports. A thread that dies takes the steps that the kernel takes
//! for a dead thread.
//!
//! | file | protocol |
//! |---|---|
//! | `mutex` | the mutex whose owner may die |
//! | `event_count` | blocking until a condition holds |
//! | `index` | the counts and places of a queue |
//! | `polled` | the ring that makes a queue's socket readable |
//! | `claim` | the table of a pool |
//! | `lookers` | publishing without a wake-up while workers poll |
//! | `results` | the ring of results, and the blocks that return to the worker |
//! | `doorbell` | waking the parent for results |
//! | `latch` | threads of the parent that wait for each other |
//! | `leader` | which thread of the parent reads results, and that each waiting thread is woken |

mod claim;
mod doorbell;
mod event_count;
mod index;
mod latch;
mod leader;
mod lookers;
mod mutex;
mod polled;
mod results;

use loom::model::Builder;

use crate::sys::{futex, robust};

/// Runs the model in every interleaving with at most two preemptions.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(run);
}

/// Sets the id of the calling thread, and whether its next sleep ends with a signal.
fn begin_thread(tid: u32, is_signalled: bool) {
    robust::set_tid(tid);
    futex::set_signalled(is_signalled);
}

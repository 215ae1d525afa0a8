//! Locks and waits in shared memory. `docs/design/lock.md` lists the state that a death leaves at each instruction.
//!
//! | file | purpose |
//! |---|---|
//! | `mutex` | [`Mutex`]: the engine's own short critical sections; the owner may die |
//! | `event_count` | [`EventCount`]: blocks until a condition holds; waiters and wakers may die |
//! | `spin` | [`AdaptiveSpin`], [`spin_until`]: spinning before a sleep |

mod event_count;
mod mutex;
#[cfg(not(loom))]
mod spin;

pub use event_count::WaitError;
pub(crate) use event_count::{EventCount, RecheckInterval};
pub(crate) use mutex::{Guard, Mutex};
#[cfg(not(loom))]
pub(crate) use spin::{AdaptiveSpin, HAS_SPARE_PROCESSOR, spin_until};

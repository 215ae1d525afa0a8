//! Locks and other means of synchronisation between any processes, with the habits of Python's. `docs/design/lock.md` tells
//! what a death leaves behind.
//!
//! | file | what it holds |
//! |---|---|
//! | `object` | what all of them are made of, and the table of who waits |
//! | `places` | where in memory files they are |
//! | `lock` | [`Lock`] |
//! | `semaphore` | [`Semaphore`] |
//! | `event` | [`Event`] |
//! | `condition` | [`Condition`] |
//! | `barrier` | [`Barrier`] |

mod barrier;
mod condition;
mod event;
mod lock;
mod object;
mod places;
mod semaphore;

pub use barrier::{Barrier, BarrierError, Turn};
pub use condition::{Condition, EnterError, Ticket};
pub use event::Event;
pub use lock::{Acquired, Holder, Lock, Owner, ReleaseError, WeakLock};
pub use object::TooManyWaiters;
pub use semaphore::{OverRelease, Semaphore};

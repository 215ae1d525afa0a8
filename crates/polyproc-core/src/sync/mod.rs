//! Locks and other synchronisation primitives between any processes, with the semantics of Python's. `docs/design/lock.md`
//! lists the state that a death leaves.
//!
//! | file | purpose |
//! |---|---|
//! | `layout` | the bytes of an object in shared memory |
//! | `object` | the common part of all primitives, and the table of waiters |
//! | `places` | allocation of objects in memory files |
//! | `lock` | [`Lock`] |
//! | `semaphore` | [`Semaphore`] |
//! | `event` | [`Event`] |
//! | `condition` | [`Condition`] |
//! | `barrier` | [`Barrier`] |

mod barrier;
mod condition;
mod event;
mod layout;
mod lock;
mod object;
mod places;
mod semaphore;

pub use barrier::{Barrier, BarrierError, BarrierTurn};
pub use condition::{Condition, EnterError, Ticket};
pub use event::Event;
pub use lock::{Acquired, Holder, Lock, Owner, ReleaseError, WeakLock};
pub use object::TooManyWaiters;
pub use semaphore::{OverRelease, Semaphore};

//! [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`], [`Barrier`]: for any processes.
//!
//! All of them are values: they may be arguments of processes and tasks, and be sent through queues and pipes. They have no
//! names. They are freed when the last process that holds them ends, whatever the cause.
//!
//! | file | purpose |
//! |---|---|
//! | `lock`, `rlock`, `semaphore`, `condition`, `event`, `barrier` | the types, and the guards of locks |
//! | `held` | the operations that both locks share, and the trait by which a condition releases a guard's lock |
//! | `error` | the error of an acquisition |

mod barrier;
mod condition;
mod error;
mod event;
mod held;
mod lock;
mod rlock;
mod semaphore;

pub use barrier::Barrier;
pub use condition::{Condition, Waited};
pub use error::LockError;
pub use event::Event;
pub use lock::{Lock, LockGuard};
pub use polyproc_core::sync::{BarrierError, OverRelease, ReleaseError, TooManyWaiters};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, Semaphore};

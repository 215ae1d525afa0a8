//! Queues in shared memory that survive the death of any process at any instruction. `docs/design/ring.md` tells how.
//!
//! | file | what it holds |
//! |---|---|
//! | `index` | how the two sides agree on what is there |
//! | `layout` | what stands where in a queue's memory |
//! | `ring` | the two sides, each a short section under its lock, committed by one store |
//! | `bell` | the socket of a queue: descriptors that travel with messages, and a ring for who polls |
//! | `task` | which messages are done, and what becomes of those whose consumer died |
//! | `handle` | [`Queue`]: put, get, close, wait |

mod bell;
mod handle;
mod index;
mod layout;
mod ring;
mod task;

pub use handle::{GetError, PutError, Queue, QueueSettings};
pub use task::{OnConsumerDeath, TaskDoneError};

use layout::Side;

/// What `index` needs of the system.
mod os {
    pub(super) use crate::prim::Ordering;
}

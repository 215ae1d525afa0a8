//! Queues in shared memory that survive the death of any process at any instruction. See `docs/design/ring.md`.
//!
//! | file | purpose |
//! |---|---|
//! | `block` | the states of a queue's blocks |
//! | `index` | how the two sides agree on the queue's contents |
//! | `layout`, `entry` | the layout of a queue's memory, and of the messages in it |
//! | `ring` | the memory of a queue, as one process has mapped it |
//! | `put`, `get` | the two sides, each a short section under its lock, committed by one store |
//! | `bell` | the socket of a queue: descriptors that travel with messages, and a ring for pollers |
//! | `polled` | when the ring is sent and removed |
//! | `task` | messages that are done, and messages whose consumer died |
//! | `done` | `task_done`, and reclaim after a death |
//! | `error` | the errors of the operations |
//! | `handle` | [`Queue`]: put, get, close, wait |

mod bell;
mod block;
mod done;
mod entry;
mod error;
mod get;
mod handle;
mod index;
mod layout;
mod polled;
mod put;
mod ring;
mod task;

pub use error::{GetError, PutError, TaskDoneError};
pub use handle::{Queue, QueueSettings};
pub use task::OnConsumerDeath;

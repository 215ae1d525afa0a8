//! What the parent and the workers of a pool share: words, rings and messages.
//!
//! | file | purpose |
//! |---|---|
//! | `claim`, `lookers`, `task_table` | the table: the claim protocol, polling workers, and the shared words |
//! | `orders` | functions and arguments of the tasks, read-only for workers |
//! | `result_ring` | the memory of one worker: its state, and the ring that returns its results |
//! | `result_index` | the counts of that ring, and of the blocks that return to the worker |
//! | `count` | a word in a cache line of its own |
//! | `doorbell` | how workers wake the parent |
//! | `task` | how a task ends; messages between worker and parent |

pub(in crate::pool) mod claim;
pub(in crate::pool) mod count;
pub(in crate::pool) mod doorbell;
pub(in crate::pool) mod lookers;
pub(in crate::pool) mod orders;
pub(in crate::pool) mod result_index;
pub(in crate::pool) mod result_ring;
pub(in crate::pool) mod task;
pub(in crate::pool) mod task_table;

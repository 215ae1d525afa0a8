//! The tags of a process's messages to its parent. A pool's worker has more, from 16 on.
//!
//! [`Outcome`](super::Outcome) describes the heads. STACK_OVERFLOW has an empty head; a signal handler sends it, without
//! blocking, and the fault then ends the process.

pub(crate) const RETURNED: u8 = 1;
pub(crate) const RAISED: u8 = 2;
pub(crate) const PANICKED: u8 = 3;
pub(crate) const REFUSED: u8 = 4;
pub(crate) const STACK_OVERFLOW: u8 = 5;

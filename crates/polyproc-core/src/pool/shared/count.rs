//! [`Count`]: one word of shared memory.
//!
//! A cache line, so that processes that write neighbouring words do not slow each other down.

use crate::prim::AtomicU64;
use crate::sys::shared::shared;

shared! {
    /// A word that several processes use, in a cache line of its own.
    pub(crate) struct Count { pub(crate) count: AtomicU64, }
}

//! Locks and waits in shared memory. `docs/design/lock.md` tells what a death leaves behind at each instruction.
//!
//! | file | what it holds |
//! |---|---|
//! | `mutex` | [`Mutex`]: short critical sections of the engine's own; its owner may die |
//! | `sleepers` | [`Sleepers`]: waiting until something is so; waiters and wakers may die |
//! | `spin` | looking again before going to sleep |
//!
//! `mutex` and `sleepers` are compiled a second time in `tests/loom`, against a model of the system (`os`).

mod mutex;
mod sleepers;
mod spin;

pub(crate) use mutex::Guard;
pub(crate) use spin::{HAS_SPARE_PROCESSOR, Spin, look};

use crate::prim::AtomicU32;
use crate::sys::robust::RobustWord;
use crate::sys::shared::shared;

/// What the locks need of the system.
mod os {
    pub(super) use crate::deadline::Deadline;
    pub(super) use crate::prim::{Ordering, fence};
    pub(super) use crate::sys::futex::{ALL, Wait, wait, wake};
    pub(super) use crate::sys::robust::{Me, OWNER, OWNER_DIED, Outer, WAITERS, is_gone};
    pub(super) use std::hint::spin_loop as spin;

    /// How often to look again before sleeping: the owner needs some ten nanoseconds, unless it lost its processor.
    pub(super) const SPINS: u32 = 40;

    /// A full barrier after the read-modify-write that released a lock, which on x86 is one itself.
    pub(super) fn fence_after_unlock() {
        if cfg!(target_arch = "x86_64") {
            crate::prim::compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }
}

shared! {
    /// A lock whose owner may die: see `mutex`.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 4 | word | 0 free; else the owner's thread id, and [`WAITERS`](os::WAITERS) when somebody sleeps; the kernel: [`OWNER_DIED`](os::OWNER_DIED) in the place of the id |
    /// | 4 | 60 | | see [`RobustWord`]: it has room for what is guarded |
    pub(crate) struct Mutex { pub(crate) robust: RobustWord, }
}

shared! {
    /// Those who sleep until something is so: see `sleepers`.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 4 | word | a waiter: the lowest bit, before it looks a last time; a waker that found nobody asleep: clears it and counts |
    pub(crate) struct Sleepers { word: AtomicU32, }
}

/// Why a wait ended without what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("the time ran out")]
    TimedOut,
    /// A signal handler ran. Wait again, or not.
    #[error("a signal handler ran during the wait")]
    Interrupted,
}

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
pub(crate) use sleepers::Slices;
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
    /// | 0 | 4 | word | a waiter: the lowest bit, before it looks a last time; a waker that found nobody asleep: clears it, counts, and sets the second bit until it has woken all |
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::deadline::Deadline;
    use crate::prim::Ordering;
    use crate::sys::memory::{self, Mapping, PAGE};
    use crate::sys::thread_id;

    /// As after a death of which the kernel left no mark: its memory was taken back before, or its list overwritten.
    #[test]
    fn a_lock_of_a_thread_that_is_gone_is_taken_over_and_that_of_a_living_one_is_not() {
        let memfd = memory::create(c"test", PAGE).expect("memory");
        let mapping = Mapping::new(memfd.as_fd(), 0, PAGE).expect("memory");
        let mutex = mapping.view::<Mutex>(0).expect("inside");
        let gone = std::thread::spawn(thread_id).join().expect("no panic");
        mutex.robust.word.store(gone, Ordering::Relaxed);
        let guard = mutex.lock(Deadline::NEVER).expect("nobody has it");
        assert!(guard.owner_died);
        drop(guard);
        assert!(!mutex.lock(Deadline::NEVER).expect("it is free").owner_died);
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (told, living) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            told.send(thread_id()).expect("it is read");
            let _ = receiver.recv();
        });
        mutex.robust.word.store(living.recv().expect("it lives"), Ordering::Relaxed);
        let doubted_once = Deadline::after(Duration::from_millis(1500));
        assert_eq!(mutex.lock(doubted_once).map(drop), Err(WaitError::TimedOut));
        drop(sender);
        thread.join().expect("no panic");
    }
}

//! Locks and waits in shared memory. `docs/design/lock.md` lists the state that a death leaves at each instruction.
//!
//! | file | purpose |
//! |---|---|
//! | `mutex` | [`Mutex`]: the engine's own short critical sections; the owner may die |
//! | `event_count` | [`EventCount`]: blocks until a condition holds; waiters and wakers may die |
//! | `spin` | [`AdaptiveSpin`], [`spin_until`]: spinning before a sleep |
//!
//! `tests/loom` compiles `mutex` and `event_count` a second time, against a model of the system (`os`).

mod event_count;
mod mutex;
mod spin;

pub(crate) use event_count::RecheckInterval;
pub(crate) use mutex::Guard;
pub(crate) use spin::{AdaptiveSpin, HAS_SPARE_PROCESSOR, spin_until};

use crate::prim::AtomicU32;
use crate::retry::Interrupt;
use crate::sys::robust::RobustWord;
use crate::sys::shared::shared;

/// The system calls and atomics that the locks use.
mod os {
    pub(super) use crate::deadline::Deadline;
    pub(super) use crate::prim::{Ordering, fence};
    pub(super) use crate::sys::futex::{ALL, Wait, wait, wake};
    pub(super) use crate::sys::robust::{Me, OWNER, OWNER_DIED, Outer, WAITERS, is_gone};
    pub(super) use std::hint::spin_loop as spin;

    /// How many times to re-read the word before sleeping: a critical section takes some 10 ns, unless its owner was preempted.
    pub(super) const SPINS: u32 = 40;

    /// A full barrier after the read-modify-write that released a lock. On x86 that instruction is one itself.
    pub(super) fn fence_after_unlock() {
        // Pairs with the fence in `EventCount::wait`: the flag of the waiters is read after the release of the lock is
        // visible.
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
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 4 | word | 0: free; else the owner's thread id, with [`WAITERS`](os::WAITERS) while there are any; the kernel replaces the id of a dead owner by [`OWNER_DIED`](os::OWNER_DIED) |
    /// | 4 | 60 | | see [`RobustWord`]: room for the guarded data |
    pub(crate) struct Mutex { pub(crate) robust: RobustWord, }
}

shared! {
    /// Blocks until a condition holds: see `event_count`.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 4 | word | a waiter sets bit 0 before its last check; a waker that found no waiter clears it, increments the generation (from bit 2 on), and sets bit 1 until it has woken all |
    pub(crate) struct EventCount { word: AtomicU32, }
}

/// Why a wait ended before its condition held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("the wait timed out")]
    TimedOut,
    /// A signal handler ran. The wait may be repeated.
    #[error("a signal handler ran during the wait")]
    Interrupted,
}

impl Interrupt for WaitError {
    fn is_interrupted(&self) -> bool {
        *self == Self::Interrupted
    }
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

    /// As after a death that the kernel did not mark in the word: see `lock_contended`.
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

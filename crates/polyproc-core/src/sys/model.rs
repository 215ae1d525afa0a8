//! The model of the system under loom: futexes, and the kernel's steps for a thread that dies.

#![expect(unsafe_code, reason = "a cell that threads share without a lock is what loom checks")]

pub(crate) mod shared;

pub(crate) mod plain {
    //! Memory that is no atomic: loom reports two accesses at the same time.

    use loom::cell::UnsafeCell;

    #[derive(Debug)]
    pub(crate) struct Plain(UnsafeCell<u64>);

    // SAFETY: loom runs one thread at a time, and panics at an access that is not ordered after all conflicting ones.
    unsafe impl Sync for Plain {}

    impl Default for Plain {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Plain {
        pub(crate) fn new() -> Self {
            Self(UnsafeCell::new(0))
        }

        pub(crate) fn read(&self) -> u64 {
            // SAFETY: see `Sync`.
            self.0.with(|at| unsafe { *at })
        }

        pub(crate) fn write(&self, value: u64) {
            // SAFETY: see `Sync`.
            self.0.with_mut(|at| unsafe { *at = value });
        }
    }
}

pub(crate) mod futex {
    //! Sleeping on a word. No timeout expires, so a lost wake-up is a deadlock, which loom reports.

    use std::cell::Cell;
    use std::time::Duration;

    use crate::prim::{AtomicU32, Ordering};

    pub(crate) const ALL: u32 = u32::MAX;

    loom::thread_local! {
        /// True if a signal handler runs in this thread when it is woken.
        static IS_SIGNALLED: Cell<bool> = Cell::new(false);
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Wait {
        Woken,
        Again,
        TimedOut,
        Interrupted,
    }

    pub(crate) fn set_signalled(is_signalled: bool) {
        IS_SIGNALLED.with(|own| own.set(is_signalled));
    }

    pub(crate) fn wait(word: &AtomicU32, expected: u32, _: Duration) -> Wait {
        let mut sleepers = word.sleepers.lock().expect("not poisoned");
        // As in the kernel, the comparison and the sleep are one step for `wake`. It pairs with no store of the engine.
        if word.load(Ordering::SeqCst) != expected {
            return Wait::Again;
        }
        let own = sleepers.next;
        sleepers.next += 1;
        sleepers.asleep.push(own);
        while sleepers.asleep.contains(&own) {
            sleepers = word.is_woken.wait(sleepers).expect("not poisoned");
        }
        drop(sleepers);
        if IS_SIGNALLED.with(Cell::get) { Wait::Interrupted } else { Wait::Woken }
    }

    pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
        let mut sleepers = word.sleepers.lock().expect("not poisoned");
        let woken = sleepers.asleep.len().min(count as usize);
        sleepers.asleep.drain(..woken);
        word.is_woken.notify_all();
        woken
    }
}

pub(crate) mod robust {
    //! The robust list. The model keeps no list: a model whose thread dies passes the word to [`through_death`].

    use std::cell::Cell;

    use super::futex::wake;
    use super::shared::shared;
    use crate::prim::{AtomicU32, AtomicU64, Ordering};

    pub(crate) const WAITERS: u32 = 1 << 31;
    pub(crate) const OWNER_DIED: u32 = 1 << 30;
    pub(crate) const OWNER: u32 = OWNER_DIED - 1;

    loom::thread_local! {
        static TID: Cell<u32> = Cell::new(0);
    }

    shared! {
        pub(crate) struct RobustWord {
            pub(crate) word: AtomicU32,
            pub(crate) near: [AtomicU64; 2],
            pub(crate) far: [AtomicU64; 3],
        }
    }

    /// Returns false: in the model, the kernel marks the word of every owner that dies.
    pub(crate) fn is_gone(_: u32) -> bool {
        false
    }

    pub(crate) fn set_tid(tid: u32) {
        TID.with(|own| own.set(tid));
    }

    /// Takes the kernel's steps for a thread that dies with `word` in its robust list or as its pending entry.
    pub(crate) fn through_death(word: &AtomicU32) {
        // The kernel's accesses pair with no access of the engine.
        let seen = word.load(Ordering::SeqCst);
        if seen & OWNER == TID.with(Cell::get) {
            let marked =
                word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| Some(seen & WAITERS | OWNER_DIED));
            if marked.is_ok_and(|seen| seen & WAITERS != 0) {
                wake(word, 1);
            }
        } else if seen & OWNER == 0 {
            wake(word, 1);
        }
    }

    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Me;

    #[derive(Debug)]
    pub(crate) struct Outer;

    impl Me {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn tid(&self) -> u32 {
            TID.with(Cell::get)
        }

        pub(crate) fn announce(&self, _: &RobustWord) {}

        pub(crate) fn settle(&self) {}

        pub(crate) fn link(&self, _: &RobustWord) -> Outer {
            Outer
        }

        pub(crate) fn unlink(&self, _: &Outer) {}
    }
}

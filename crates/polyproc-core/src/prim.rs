//! The atomics of the engine. With `--cfg loom` they are the atomics of the model checker loom, for the models in `models/`.
//!
//! All other files import atomics, orderings and fences from here (the test `fences` checks it), so that a file under a model
//! is compiled without a change. [`Ordering`] has the meaning of `std::sync::atomic` in both. Under loom a word has a private
//! model of the kernel's futex queue, as loom knows no futex; types that no model uses are missing there.

#[cfg(not(loom))]
pub(crate) use std::hint::spin_loop;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};

#[cfg(loom)]
pub(crate) use loom::hint::spin_loop;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use model::{AtomicU32, compiler_fence};

/// The types of loom that lack something.
#[cfg(loom)]
mod model {
    use std::ops::Deref;

    use loom::sync::atomic::{self, Ordering, fence};
    use loom::sync::{Condvar, Mutex};

    /// The sleeping threads, in the order in which they went to sleep. Guarded by the mutex of their word, which stands for the
    /// kernel's lock of the futex queue.
    #[derive(Debug, Default)]
    pub(crate) struct Sleepers {
        /// The number of the next thread that goes to sleep on this word.
        pub(crate) next: usize,
        /// The numbers of the threads that were not woken yet.
        pub(crate) asleep: Vec<usize>,
    }

    /// An atomic, with the state that the kernel keeps for a futex word. Dereferences to the atomic of loom.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicU32 {
        /// The word itself.
        value: atomic::AtomicU32,
        /// The queue of the word: see the model of `futex`.
        pub(crate) sleepers: Mutex<Sleepers>,
        /// Notified when threads leave the queue.
        pub(crate) is_woken: Condvar,
    }

    impl Deref for AtomicU32 {
        type Target = atomic::AtomicU32;

        fn deref(&self) -> &Self::Target {
            &self.value
        }
    }

    /// A fence, as loom has none for the compiler alone. It is stronger, so no model shows that a fence of the compiler is
    /// enough in its place.
    pub(crate) fn compiler_fence(order: Ordering) {
        fence(order);
    }
}

//! The bytes of an object in a memory file.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 64 | [`ObjectKind`] |
//! | 64 | 64 | the [`Mutex`] over the rest, of conditions and barriers |
//! | 128 | 64 | [`StateWords`] |
//! | 192 | 64 | [`EventCount`] |
//! | 4096 | 64 each | [`Waiter`]s, of an object that has a file of its own |

use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::robust::{EventCount, Mutex};
use crate::sys::process_stamp::ProcessStamp;
use crate::sys::shared::shared;

/// The size of an object in bytes. Places of objects in a file are multiples of it.
pub(super) const SIZE: u64 = 256;
const MAGIC: u64 = u64::from_le_bytes(*b"polyprs1");

shared! {
    /// Written once, at creation.
    ///
    /// | offset | bytes | field | meaning |
    /// |---|---|---|---|
    /// | 0 | 8 | magic | [`MAGIC`]; written last |
    /// | 8 | 8 | kind | the kind of object |
    /// | 16 | 8 | limit | a semaphore's bound, or a barrier's number of parties |
    pub(super) struct ObjectKind {
        magic: AtomicU64,
        kind: AtomicU64,
        pub(super) limit: AtomicU64,
    }
}

shared! {
    /// | offset | bytes | field | meaning |
    /// |---|---|---|---|
    /// | 0 | 8 | owner | the [`ProcessStamp`] of the process that holds a lock, or runs a barrier's action |
    /// | 8 | 8 | value | a semaphore's permits; twice the number of sets of an event, plus one while it is set; a barrier's generation and phase |
    /// | 16 | 4 | thread | the id of the thread that holds a lock |
    /// | 20 | 4 | count | a lock's number of acquisitions that are not released |
    /// | 24 | 4 | | unused |
    /// | 28 | 4 | used | number of places in the table of waiters that were ever used |
    /// | 32 | 8 | ticket | the last ticket given to a waiter |
    pub(super) struct StateWords {
        pub(super) owner: AtomicU64,
        pub(super) value: AtomicU64,
        pub(super) thread: AtomicU32,
        pub(super) count: AtomicU32,
        unused: AtomicU32,
        pub(super) used: AtomicU32,
        pub(super) ticket: AtomicU64,
    }
}

shared! {
    /// | offset | bytes | field | meaning |
    /// |---|---|---|---|
    /// | 0 | 4 | state | a [`Waiting`]; its store makes the other fields valid |
    /// | 8 | 8 | owner | the [`ProcessStamp`] of the waiting process |
    /// | 16 | 8 | ticket | the order of arrival: the waiter with the smallest ticket is the first |
    /// | 24 | 8 | generation | the generation of a barrier |
    pub(super) struct Waiter {
        state: AtomicU32,
        unused: AtomicU32,
        pub(super) owner: AtomicU64,
        pub(super) ticket: AtomicU64,
        pub(super) generation: AtomicU64,
    }
}

/// The state of a place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Waiting {
    /// The place may be taken.
    Free = 0,
    /// The wait has not ended.
    Waits = 1,
    /// The wait has succeeded. The waiter frees the place itself.
    Released = 2,
    /// The wait has failed. The waiter frees the place itself.
    Broken = 3,
}

impl Waiter {
    pub(super) fn state(&self) -> Waiting {
        // Pairs with the Release in `set` and `change`: the other fields are written before.
        match self.state.load(Ordering::Acquire) {
            1 => Waiting::Waits,
            2 => Waiting::Released,
            3 => Waiting::Broken,
            _ => Waiting::Free,
        }
    }

    pub(super) fn set(&self, state: Waiting) {
        // Pairs with the Acquire in `state` and `change`.
        self.state.store(state as u32, Ordering::Release);
    }

    /// Changes the state. Returns false if it was not `from`.
    pub(super) fn change(&self, from: Waiting, to: Waiting) -> bool {
        // Release pairs with the Acquire in `state`: a notified waiter sees what its notifier wrote. Acquire pairs with
        // the last change: a waiter that leaves sees that, too.
        self.state.compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the process that took the place. It is kept when the place is freed.
    pub(super) fn owner(&self) -> ProcessStamp {
        ProcessStamp::from_bits(self.owner.load(Ordering::Relaxed))
    }
}

shared! {
    /// An object. Locks, semaphores and events do not use the mutex.
    pub(super) struct ObjectLayout {
        pub(super) kind: ObjectKind,
        pub(super) mutex: Mutex,
        pub(super) state: StateWords,
        pub(super) waiters: EventCount,
    }
}

impl ObjectLayout {
    /// Writes a new object over a previous one that no process holds any more.
    pub(super) fn set_up(&self, kind: u64, value: u64, limit: u64) {
        self.clear();
        self.state.value.store(value, Ordering::Relaxed);
        self.kind.kind.store(kind, Ordering::Relaxed);
        self.kind.limit.store(limit, Ordering::Relaxed);
        self.kind.magic.store(MAGIC, Ordering::Release); // pairs with the Acquire in `is_of`
    }

    /// Returns whether there is an object of this kind.
    pub(super) fn is_of(&self, kind: u64) -> bool {
        // Pairs with the Release in `set_up`.
        self.kind.magic.load(Ordering::Acquire) == MAGIC && self.kind.kind.load(Ordering::Relaxed) == kind
    }

    fn clear(&self) {
        self.kind.magic.store(0, Ordering::Relaxed);
        let StateWords { owner, value, thread, count, ticket, .. } = &self.state;
        [owner, value, ticket].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
        [thread, count].into_iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}
const _: () = assert!(size_of::<ObjectLayout>() as u64 == SIZE);

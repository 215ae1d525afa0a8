//! [`PerProcess`]: a static with a separate value in each process.
//!
//! A forked or cloned child has a copy of all statics of its original. For most of the engine's state the copy is wrong:
//! threads of the original do not exist, its children and descriptors belong to it, and its locks may be held by threads that
//! the copy does not have. So every such static is a `PerProcess`, and no code runs at a fork to reset it. The faces use it as
//! well.
//!
//! A value is leaked: threads may have references to it, and there is one for each process in a line of forks, not for each
//! fork. An access is one load and a comparison with the cached process id ([`process_stamp`](super::process_stamp)).

use std::fmt;
use std::ptr;
use std::sync::{Mutex, TryLockError};

use super::process_stamp::process_id;
use crate::prim::{AtomicPtr, Ordering};

/// A static whose value is created at the first access, and again in a copy of the process: the copied value may be locked by a
/// thread that the copy does not have, and describes the children, threads and descriptors of another process.
pub struct PerProcess<T: 'static> {
    /// The newest value: of this process, or of its original if this is a copy; null before the first access. Never freed.
    now: AtomicPtr<Instance<T>>,
    /// Creates a value, given the value of the original if there was one.
    make: fn(Option<&T>) -> T,
}

/// A value and its process, at an address that is valid for ever.
struct Instance<T> {
    /// The process that created the value.
    pid: u32,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    /// Creates a static whose values come from `make`. In a copy of a process, `make` gets the original's value, and must not
    /// block on a lock in it: its owner may be a thread that does not exist here. `make` may be called by several threads at
    /// once; one of the results is used, the others are leaked.
    pub const fn new(make: fn(Option<&T>) -> T) -> Self {
        Self { now: AtomicPtr::new(ptr::null_mut()), make }
    }

    /// Returns the newest value, which may be that of the original.
    fn made(&'static self) -> Option<&'static Instance<T>> {
        super::leaked(self.now.load(Ordering::Acquire)) // pairs with the Release in `get`
    }

    /// Returns this process's value, if it exists yet. Never creates one, so it is suitable for clean-up.
    pub fn existing(&'static self) -> Option<&'static T> {
        self.made().filter(|made| made.pid == process_id()).map(|made| &made.value)
    }

    /// Returns this process's value, and creates it at the first call. All threads get the same value.
    pub fn get(&'static self) -> &'static T {
        loop {
            if let Some(value) = self.existing() {
                return value;
            }
            let before = self.made();
            let new = Instance { pid: process_id(), value: (self.make)(before.map(|made| &made.value)) };
            let before = before.map_or(ptr::null_mut(), |made| ptr::from_ref(made).cast_mut());
            // Release pairs with the Acquire in `made`: the value is written before it can be found. If another thread
            // stored its value first, the next iteration finds that.
            let _ = self.now.compare_exchange(before, Box::leak(Box::new(new)), Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl<T> PerProcess<Mutex<T>>
where
    T: Clone + Default + Send,
{
    /// Creates a static whose value in a copy of a process begins as a clone of the original's, or as the default if a thread
    /// held the original's lock during the copy.
    pub const fn inherited() -> Self {
        Self::new(|before| {
            Mutex::new(match before.map(Mutex::try_lock) {
                Some(Ok(value)) => value.clone(),
                Some(Err(TryLockError::Poisoned(value))) => value.into_inner().clone(),
                Some(Err(TryLockError::WouldBlock)) | None => T::default(),
            })
        })
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").finish_non_exhaustive()
    }
}

//! [`PerProcess`]: a static that each process has of its own.

use std::fmt;
use std::ptr;
use std::sync::{Mutex, TryLockError};

use super::identity::process_id;
use crate::prim::{AtomicPtr, Ordering};

/// A static that is made when it is first asked for, and made anew in a copy of the process: what is copied may be locked by a
/// thread that the copy does not have, and describes the children, threads and descriptors of another process.
pub struct PerProcess<T: 'static> {
    now: AtomicPtr<Instance<T>>,
    make: fn(Option<&T>) -> T,
}

struct Instance<T> {
    pid: u32,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    /// `make` is given what the process had that this one is a copy of. It must not wait for locks there.
    pub const fn new(make: fn(Option<&T>) -> T) -> Self {
        Self { now: AtomicPtr::new(ptr::null_mut()), make }
    }

    fn made(&'static self) -> Option<&'static Instance<T>> {
        super::leaked(self.now.load(Ordering::Acquire)) // pairs with the Release of `get`
    }

    /// This process's own, if it has one yet.
    pub fn existing(&'static self) -> Option<&'static T> {
        self.made().filter(|made| made.pid == process_id()).map(|made| &made.value)
    }

    /// This process's own.
    pub fn get(&'static self) -> &'static T {
        loop {
            if let Some(value) = self.existing() {
                return value;
            }
            let before = self.made();
            let new = Instance { pid: process_id(), value: (self.make)(before.map(|made| &made.value)) };
            let before = before.map_or(ptr::null_mut(), |made| ptr::from_ref(made).cast_mut());
            // Where another thread was first, its value is found the next time round.
            let _ = self.now.compare_exchange(before, Box::leak(Box::new(new)), Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl<T> PerProcess<Mutex<T>>
where
    T: Clone + Default + Send,
{
    /// One that begins with what the process had that this one is a copy of; empty where a thread was about to change that.
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

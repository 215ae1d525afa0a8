//! The shared objects of this process, by memory file. Each recovers when a process dies.
//!
//! A wake-up is lost if the process that received it, or was about to send it, dies. So the process that reaps a dead one
//! recovers every object that it shares with others ([`recover_all`]): waiters re-check, and the dead process's resources are
//! reclaimed.
//!
//! [`SharedObject`]s: queues (`queue::handle`) and files of locks (`sync::places`). The table has weak references, so it keeps
//! nothing open, and is not locked while an object acts. A descriptor of a known file leads to the known object, so a process
//! keeps one mapping of each file.
//!
//! | function | callers |
//! |---|---|
//! | [`recover_all`] | the thread that has reaped a child (`process::child`); the supervisor, when a watched process has ended |
//! | [`refresh_all`] | threads that poll descriptors (`process::wait`, `reactor`) |
//! | [`trim_all`] | a request that finds no room in the budget (`room`) |
//! | [`bytes_of`] | `budget`, for the memory limit of workers |

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::robust::RecheckInterval;
use crate::sys::per_process::PerProcess;
use crate::sys::process_stamp::ProcessStamp;

/// An object in shared memory, as this process has mapped it. All calls come from any thread, at any time, and must not block
/// for long behind a stopped process.
pub(crate) trait SharedObject: Any + Send + Sync {
    /// Reclaims the resources of dead processes, and makes every waiter re-check.
    fn recover(&self);

    /// Returns how many bytes `process` has put there that no process has taken.
    fn bytes_of(&self, _process: ProcessStamp) -> u64 {
        0
    }

    /// Frees memory that is kept for reuse.
    fn trim(&self) {}

    /// Makes its descriptor readable if it has items, in case the process that was about to do so died.
    fn refresh(&self) {}

    /// Returns how many blocks are not free.
    #[cfg(feature = "crash-points")]
    fn blocks_in_use(&self) -> usize {
        0
    }
}

/// By inode number, which no other file has while this one is open; entries of dropped objects are removed before the table
/// would grow.
type Objects = HashMap<u64, Weak<dyn SharedObject>>;

/// A forked child shares the objects that it inherited.
static OBJECTS: PerProcess<Mutex<Objects>> = PerProcess::inherited();

fn objects() -> MutexGuard<'static, Objects> {
    OBJECTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the object of the memory file `inode` if this process has one of type `T`.
pub(crate) fn find<T: SharedObject>(inode: u64) -> Option<Arc<T>> {
    let object: Arc<dyn Any + Send + Sync> = objects().get(&inode)?.upgrade()?;
    object.downcast().ok()
}

/// Registers an object and returns it. If another thread has registered one for the same file before, returns that.
pub(crate) fn note<T: SharedObject>(inode: u64, object: T) -> Arc<T> {
    let object = Arc::new(object);
    let mut objects = objects();
    if let Some(first) = objects.get(&inode).and_then(Weak::upgrade) {
        let first: Arc<dyn Any + Send + Sync> = first;
        if let Ok(first) = first.downcast() {
            return first;
        }
    }
    if objects.len() == objects.capacity() {
        objects.retain(|_, object| object.strong_count() > 0); // before it would grow
    }
    let noted: Arc<dyn SharedObject> = object.clone();
    objects.insert(inode, Arc::downgrade(&noted));
    object
}

fn for_each(act: impl Fn(&dyn SharedObject)) {
    let all: Vec<_> = objects().values().filter_map(Weak::upgrade).collect();
    all.iter().for_each(|object| act(&**object));
}

/// Recovers all objects, after a process has ended.
pub(crate) fn recover_all() {
    for_each(|object| object.recover());
}

/// Returns whether this process has an object of the memory file `inode`.
pub(crate) fn has(inode: u64) -> bool {
    objects().get(&inode).is_some_and(|object| object.strong_count() > 0)
}

/// Returns how many bytes `process` has put in objects of this process that no process has taken.
pub(crate) fn bytes_of(process: ProcessStamp) -> u64 {
    let all: Vec<_> = objects().values().filter_map(Weak::upgrade).collect();
    all.iter().fold(0, |sum, object| sum.saturating_add(object.bytes_of(process)))
}

/// Frees memory that objects keep for reuse, as the memory budget is exhausted.
pub(crate) fn trim_all() {
    for_each(|object| object.trim());
}

/// Refreshes all objects: called by threads that poll descriptors, after each [`refresh_interval`].
pub(crate) fn refresh_all() {
    for_each(|object| object.refresh());
}

/// Returns the interval after which a lost notification is noticed if no process reaps the dead one.
pub(crate) fn refresh_interval() -> RecheckInterval {
    RecheckInterval::new(Duration::from_millis(200))
}

/// Returns how many blocks of all objects of this process are not free, for tests of recovery.
#[cfg(feature = "crash-points")]
pub fn blocks_in_use() -> usize {
    let all: Vec<_> = objects().values().filter_map(Weak::upgrade).collect();
    all.iter().map(|object| object.blocks_in_use()).sum()
}

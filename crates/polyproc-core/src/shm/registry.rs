//! The shared objects of this process: one for each memory file, and all of them roused when a process dies.
//!
//! A wake-up can die with the process that got it or was to give it. Whoever reaps a process therefore rouses every object
//! that it shares with anybody ([`rouse_all`]): sleepers look again, and what the dead one held is taken back.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::robust::Slices;
use crate::sys::identity::Identity;
use crate::sys::per_process::PerProcess;

/// An object in shared memory, as this process sees it.
pub(crate) trait Object: Any + Send + Sync {
    /// Takes back what dead processes held, and has every sleeper look again.
    fn rouse(&self);

    /// How many bytes a process has put there that nobody has taken.
    fn bytes_of(&self, _process: Identity) -> u64 {
        0
    }

    /// Gives memory back that is kept to be used again.
    fn trim(&self) {}

    /// Makes its descriptor readable if it should be, and a process that was to do so died.
    fn refresh(&self) {}

    /// How many blocks are not free.
    #[cfg(feature = "crash-points")]
    fn blocks_in_use(&self) -> usize {
        0
    }
}

type Objects = HashMap<u64, Weak<dyn Object>>;

/// A copy of the process shares what it inherited, too.
static OBJECTS: PerProcess<Mutex<Objects>> = PerProcess::inherited();

fn objects() -> MutexGuard<'static, Objects> {
    OBJECTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The object of the memory file `inode`, if this process has it already.
pub(crate) fn find<T: Object>(inode: u64) -> Option<Arc<T>> {
    let object: Arc<dyn Any + Send + Sync> = objects().get(&inode)?.upgrade()?;
    object.downcast().ok()
}

/// Notes an object, or gives the one that another thread has noted for the same file meanwhile.
pub(crate) fn note<T: Object>(inode: u64, object: T) -> Arc<T> {
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
    let noted: Arc<dyn Object> = object.clone();
    objects.insert(inode, Arc::downgrade(&noted));
    object
}

fn for_each(act: impl Fn(&dyn Object)) {
    let all: Vec<_> = objects().values().filter_map(Weak::upgrade).collect();
    all.iter().for_each(|object| act(&**object));
}

/// A process has ended: see the module.
pub(crate) fn rouse_all() {
    for_each(|object| object.rouse());
}

/// Whether this process has an object of the memory file `inode`.
pub(crate) fn has(inode: u64) -> bool {
    objects().get(&inode).is_some_and(|object| object.strong_count() > 0)
}

/// How many bytes a process has put in objects of this process that nobody has taken.
pub(crate) fn bytes_of(process: Identity) -> u64 {
    let all: Vec<_> = objects().values().filter_map(Weak::upgrade).collect();
    all.iter().fold(0, |sum, object| sum.saturating_add(object.bytes_of(process)))
}

/// There is no room for data in flight.
pub(crate) fn trim_all() {
    for_each(|object| object.trim());
}

/// For who polls descriptors, after each of [`refresh_slices`].
pub(crate) fn refresh_all() {
    for_each(|object| object.refresh());
}

/// How long a ring stays lost where nobody reaps.
pub(crate) fn refresh_slices() -> Slices {
    Slices::new(Duration::from_millis(200))
}

/// How many blocks of all objects of this process are not free: for tests of what the dead leave.
#[cfg(feature = "crash-points")]
pub fn blocks_in_use() -> usize {
    let all: Vec<_> = objects().values().filter_map(Weak::upgrade).collect();
    all.iter().map(|object| object.blocks_in_use()).sum()
}

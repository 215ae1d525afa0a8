//! The environment of this process, while it has one thread.

use std::ffi::OsStr;

use crate::prim::{AtomicBool, Ordering};

/// True if variables were set since this was last read.
static HAS_CHANGED: AtomicBool = AtomicBool::new(true);

/// Returns whether variables were set since the last call.
pub(crate) fn has_changed() -> bool {
    HAS_CHANGED.swap(false, Ordering::Relaxed)
}

/// Sets an environment variable, or removes it. Only for a process with one thread: a child that is being set up.
pub(crate) fn set(name: &OsStr, value: Option<&OsStr>) {
    HAS_CHANGED.store(true, Ordering::Relaxed);
    match value {
        // SAFETY: the process has one thread.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
}

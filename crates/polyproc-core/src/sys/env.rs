//! The environment of this process, while it has one thread. Used in an executed or copied child: `process/role.rs` removes the
//! token, `process/enter.rs` applies the changes of the order. SAFETY.md, 3.

use std::ffi::OsStr;

use crate::prim::{AtomicBool, Ordering};

/// True if variables were set since this was last read, or it was never read.
static HAS_CHANGED: AtomicBool = AtomicBool::new(true);

/// Returns whether variables were set since the last call; true at the first call. An interpreter that keeps a copy of the
/// environment then copies it again (`process::has_environment_changed`).
pub(crate) fn has_changed() -> bool {
    HAS_CHANGED.swap(false, Ordering::Relaxed)
}

/// Sets an environment variable, or removes it if `value` is `None`. Only for a process with one thread: a child that is being
/// set up.
///
/// # Panics
/// If `name` is empty or contains `=` or NUL, or `value` contains NUL. The parent checks them (`process/environment.rs`).
pub(crate) fn set(name: &OsStr, value: Option<&OsStr>) {
    HAS_CHANGED.store(true, Ordering::Relaxed);
    match value {
        // SAFETY: the process has one thread.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
}

//! The end of this process: `_exit(2)`, `atexit(3)`. What is done before the end is in `process/exit.rs` and
//! `process/enter.rs`.

use std::io;

/// Ends this process without running its `atexit` handlers, which belong to the process that it was copied from. Buffered
/// output is not written, and destructors do not run: the caller has flushed its output.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Runs `handler` when the program ends by `exit(3)` or by returning from `main`. A copy of the process has the registration,
/// too, but the engine's children end by [`exit_now`]. `handler` must not panic.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`].
pub(crate) fn at_exit(handler: extern "C" fn()) -> io::Result<()> {
    // SAFETY: registering has no precondition; the handler is a function of this program.
    if unsafe { libc::atexit(handler) } == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
}

//! The end of this process: `_exit(2)`, `atexit(3)`.

use std::io;

/// Ends this process without running its `atexit` handlers, which belong to the process that it was copied from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Runs `handler` when the program ends by `exit(3)` or by returning from `main`.
pub(crate) fn at_exit(handler: extern "C" fn()) -> io::Result<()> {
    // SAFETY: registering has no precondition; the handler is a function of this program.
    if unsafe { libc::atexit(handler) } == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
}

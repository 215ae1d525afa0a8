//! The binding's `unsafe` blocks, except those of the buffer protocol (`buffer`).
#![expect(unsafe_code, reason = "the fence: what needs unsafe code is in this module")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use polyproc_core::conn::Connection;
use polyproc_core::process::{self, ForkWithThreads};
use pyo3::prelude::*;

/// Makes the engine fork this process as `os.fork` does: with the interpreter's locks held, and with calls of the functions of
/// `os.register_at_fork`.
pub(crate) fn wrap_forks() {
    process::set_around_fork(|copy| {
        Python::attach(|_| {
            // SAFETY: this thread is attached to the interpreter, and the code between the calls does not call into it.
            unsafe { pyo3::ffi::PyOS_BeforeFork() };
            if copy() {
                // SAFETY: this is the child, in the thread that called the function above.
                unsafe { pyo3::ffi::PyOS_AfterFork_Child() };
                // The thread state by which this thread is attached is now the main thread's, and must outlive the detach.
                // SAFETY: this thread is attached; the missing release is intended.
                unsafe { pyo3::ffi::PyGILState_Ensure() };
            } else {
                // SAFETY: this is the parent, as above.
                unsafe { pyo3::ffi::PyOS_AfterFork_Parent() };
            }
        });
    });
}

/// Runs a wait of the engine, detached from the interpreter.
pub(crate) fn detached(py: Python<'_>, wait: &mut dyn FnMut()) {
    struct Wait<'a>(&'a mut dyn FnMut());
    // SAFETY: `detach` runs the closure in this same thread. It requires `Send` to exclude objects of the interpreter, of which
    // the engine has none.
    unsafe impl Send for Wait<'_> {}
    let wait = Wait(wait);
    py.detach(move || {
        let wait = wait; // captures the whole struct, which is `Send`
        (wait.0)();
    });
}

/// Asserts that a fork of an interpreter with threads is sound.
///
/// The user chooses `fork` by name, and gets what `os.fork` does: the interpreter's locks are held during the fork and
/// reinitialised in the child. Locks that other threads hold in native code are the user's responsibility.
pub(crate) fn fork_with_threads() -> ForkWithThreads {
    // SAFETY: as above.
    unsafe { ForkWithThreads::new() }
}

fn check(fd: RawFd) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file descriptor must not be negative"));
    }
    Ok(())
}

/// Duplicates a descriptor that Python code owns.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the number is not -1; if it is not open, the system call fails.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Borrows a connection that Python code owns, for one call.
pub(crate) fn connection(fd: RawFd) -> io::Result<ManuallyDrop<Connection>> {
    check(fd)?;
    // SAFETY: the number is not -1; `ManuallyDrop` never closes it, and if it is not open, system calls fail.
    Ok(ManuallyDrop::new(Connection::from(unsafe { OwnedFd::from_raw_fd(fd) })))
}

/// Passes the ownership of descriptors to Python code. Returns their numbers.
pub(crate) fn hand_over(fds: Vec<OwnedFd>) -> Vec<RawFd> {
    fds.into_iter().map(IntoRawFd::into_raw_fd).collect()
}

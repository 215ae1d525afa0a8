//! Every `unsafe` block of the binding.
#![expect(unsafe_code, reason = "the fence: what needs unsafe code is in this module")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use polyproc_core::conn::Connection;
use polyproc_core::process::{self, ForkWithThreads};
use pyo3::prelude::*;

/// Has copies of this process made as `os.fork` makes them: with the interpreter's locks held, and `os.register_at_fork`
/// functions called.
pub(crate) fn wrap_forks() {
    process::set_around_fork(|copy| {
        Python::attach(|_| {
            // SAFETY: this thread is attached to the interpreter, and what is between the calls does not call into it.
            unsafe { pyo3::ffi::PyOS_BeforeFork() };
            if copy() {
                // SAFETY: this is the child, in the thread that called the function above.
                unsafe { pyo3::ffi::PyOS_AfterFork_Child() };
                // What a thread of ours was attached with is now the main thread's state, which must not go when it detaches.
                // SAFETY: this thread is attached; that there is no release is the point.
                unsafe { pyo3::ffi::PyGILState_Ensure() };
            } else {
                // SAFETY: this is the parent, as above.
                unsafe { pyo3::ffi::PyOS_AfterFork_Parent() };
            }
        });
    });
}

/// Runs a wait of the engine's without the interpreter.
pub(crate) fn detached(py: Python<'_>, wait: &mut dyn FnMut()) {
    struct Wait<'a>(&'a mut dyn FnMut());
    // SAFETY: `detach` runs it in this very thread. It asks for `Send` to keep what belongs to the interpreter out, of which the
    // engine knows nothing.
    unsafe impl Send for Wait<'_> {}
    let wait = Wait(wait);
    py.detach(move || {
        let wait = wait; // the whole of it, which is `Send`
        (wait.0)();
    });
}

/// The word that a fork of a threaded interpreter is sound.
///
/// Python's `fork` is the user's choice by name, and `os.fork` gives it in the same way: the interpreter's locks are held
/// over the fork and made anew in the child. What other threads hold in native code is the user's to know.
pub(crate) fn fork_with_threads() -> ForkWithThreads {
    // SAFETY: as above.
    unsafe { ForkWithThreads::new() }
}

/// A copy of a descriptor of the interpreter's.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file descriptor is not negative"));
    }
    // SAFETY: the number is not -1; where it is not open, the system call says so.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// A connection that Python code owns, for one call.
pub(crate) fn connection(fd: RawFd) -> io::Result<ManuallyDrop<Connection>> {
    if fd < 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file descriptor is not negative"));
    }
    // SAFETY: the number is not -1; it is never closed by way of this, and where it is not open, system calls say so.
    Ok(ManuallyDrop::new(Connection::from(unsafe { OwnedFd::from_raw_fd(fd) })))
}

/// Numbers of descriptors that Python code owns from now on.
pub(crate) fn hand_over(fds: Vec<OwnedFd>) -> Vec<RawFd> {
    fds.into_iter().map(IntoRawFd::into_raw_fd).collect()
}

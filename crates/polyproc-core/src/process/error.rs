//! [`StartError`], the one error of all start methods, so that a caller can change the method without other code. Each variant
//! names the step that failed. The Rust crate `polyproc` re-exports it; the Python package converts it to exceptions.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use crate::sys::image::FunctionError;

/// Why a process was not started. Its function did not run; a process that was created for it is killed, or ends by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// `spawn` and the fork server execute this program again. The child would run `main` instead of the function.
    #[error(
        "this program does not run its child processes before `main`: call `polyproc::init()` as the first line of `main`, \
         or build with the feature `auto-init`"
    )]
    NotInitialised,
    /// Another process could not find the function, which is passed by image and offset.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The crate `polyproc` could not encode the function's argument. The engine does not create this variant.
    #[error(transparent)]
    Argument(Box<dyn std::error::Error + Send + Sync>),
    /// `fork` was requested while other threads of the user run, or while user code runs on a thread of the engine.
    #[error(
        "cannot fork while {count} threads run in this process, as the child would inherit locks that no thread releases: \
         use the start method `forkserver` or `spawn`, or assert with `ForkWithThreads` that the fork is sound"
    )]
    Threads {
        /// The number of the user's threads, including the calling one.
        count: usize,
    },
    /// A closure was used with a start method other than `fork`.
    #[error(
        "cannot start a closure by `forkserver` or `spawn`, as the new process does not have the captured values: use `fork`"
    )]
    ClosureNeedsFork,
    /// The preload function failed or left threads, or the system refuses the fork server, which alone can preload.
    #[error("preloading the fork server failed: {why}")]
    Preload {
        /// The reason.
        why: String,
    },
    /// The fork server ended before it was ready, or before it created the process, in each of several attempts.
    #[error("{why}")]
    Forkserver {
        /// The reason.
        why: String,
    },
    /// The requested working directory does not exist, is not a directory, or cannot be accessed.
    #[error("cannot start a process in the directory {}", path.display())]
    CurrentDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The environment cannot hold such a variable.
    #[error(
        "cannot set the environment variable {name:?}: its name must not be empty or contain '=', and neither its name nor its \
         value may contain a NUL byte"
    )]
    Env {
        /// The variable's name.
        name: OsString,
    },
    /// The program gave up the wait for the fork server, or for another thread's start: see
    /// [`set_on_interrupt`](super::set_on_interrupt).
    #[error("the start of a process was interrupted while it waited for the fork server")]
    Interrupted,
    /// The program is ending: its exit function has begun to end its children.
    #[error("cannot start a process while the program is ending")]
    Exiting,
    /// A system call failed.
    #[error("{doing} failed")]
    Os {
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Returns a function for `map_err` that makes a [`StartError::Os`]. `doing` names the failed operation, as in "creating a
/// channel"; the error's text appends "failed".
pub(super) fn os(doing: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Os { doing, source }
}

//! Why a process was not started. One error for all start methods, so that a caller can change the method without other code.
//! Each variant names the step that failed. The faces convert it: Rust re-exports it, Python raises exceptions.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use crate::sys::image::FunctionError;

/// Why a process was not started. No process exists then, and the job did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A child that executes this program would run `main` instead of the function.
    #[error(
        "this program does not run its child processes before `main`: call `polyproc::init()` as the first line of `main`, \
         or build with the feature `auto-init`"
    )]
    NotInitialised,
    /// Another process could not find the function by its name.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The face could not encode the argument.
    #[error(transparent)]
    Argument(Box<dyn std::error::Error + Send + Sync>),
    /// `fork` was requested while other threads run.
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
    /// The preload function failed, so the fork server cannot start.
    #[error("preloading the fork server failed: {why}")]
    Preload {
        /// The reason.
        why: String,
    },
    /// The fork server ended before it created the process.
    #[error("{why}")]
    Forkserver {
        /// The reason.
        why: String,
    },
    /// The requested working directory does not exist, or is not a directory.
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
    /// The program gave up the wait for the fork server: see [`set_on_interrupt`](super::set_on_interrupt).
    #[error("the start of a process was interrupted while it waited for the fork server")]
    Interrupted,
    /// The program is ending.
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

/// Returns a function for `map_err` that makes a [`StartError::Os`]. `doing` names the failed operation in its text: a
/// participle, and what it was done to.
pub(super) fn os(doing: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Os { doing, source }
}

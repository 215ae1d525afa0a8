//! Why a process was not started.

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
        "nothing in this program takes over its child processes before `main` runs: call `polyproc::init()` as the first \
         line of `main`, or build with the feature `auto-init`"
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
        "fork refused: {count} threads run in this process, and the child would get the locks they hold without them; use \
         the start method `forkserver` or `spawn`, or promise that it is sound with `ForkWithThreads`"
    )]
    Threads {
        /// The number of the user's threads, including the calling one.
        count: usize,
    },
    /// A closure was used with a start method other than `fork`.
    #[error("a closure can be started by `fork` only: another process does not have what it captured")]
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
    #[error("cannot start a process in the directory {}: {source}", path.display())]
    CurrentDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The environment cannot hold such a variable.
    #[error(
        "{name:?} cannot be set in the environment: a name is not empty and holds no '=', and neither name nor value holds a NUL byte"
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
    #[error("{doing} failed: {source}")]
    Os {
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

pub(super) fn os(doing: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Os { doing, source }
}

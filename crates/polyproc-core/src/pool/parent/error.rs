//! Why a pool could not be created or resized.

use std::io;

use crate::process::{FunctionError, StartError};

/// Why a pool could not be created or resized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool of no workers would never run anything.
    #[error("a pool must have at least one worker")]
    NoWorkers,
    /// Workers have numbers of 18 bits, and each takes a process and descriptors.
    #[error("a pool can have at most {limit} workers, not {workers}")]
    TooManyWorkers {
        /// The requested number.
        workers: usize,
        /// The maximum.
        limit: usize,
    },
    /// A thread replaces workers, and must not fork the program unless the user promises that this is sound.
    #[error(
        "cannot start a pool's workers by `fork`, as the pool's own threads run in this process: use `forkserver` or `spawn`, \
         or assert with `fork_with_threads` that the fork is sound"
    )]
    Fork,
    /// The number of processors is not known, and no number of workers was given.
    #[error("could not count the processors")]
    CpuCount(#[source] io::Error),
    /// A worker did not start.
    #[error("could not start a worker")]
    Start(#[from] StartError),
    /// The initializer or the finalizer has no name by which a worker can find it.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The face could not encode the initializer's argument.
    #[error(transparent)]
    Argument(Box<dyn std::error::Error + Send + Sync>),
    /// The pool's thread or its descriptors could not be created.
    #[error("could not start the pool's thread")]
    Os(#[source] io::Error),
}

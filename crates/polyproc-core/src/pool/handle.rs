//! [`Pool`]: what the faces use.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::TaskEnd;
use super::driver::{Done, Driver};
use crate::frame::Payload;
use crate::frame::wire::Writer;
use crate::process::{Function, StartError, StartMethod};

/// What a pool is to be.
#[derive(Debug, Clone, Default)]
pub struct PoolSettings {
    /// How many workers; `None` for one per processor that this process may use.
    pub workers: Option<usize>,
    /// How workers are started; not [`StartMethod::Fork`], as a pool replaces its workers from a thread.
    pub method: StartMethod,
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A pool of no workers would never run anything.
    #[error("a pool needs at least one worker")]
    NoWorkers,
    /// Workers are replaced by a thread, which must not copy the program.
    #[error("a pool cannot start its workers by `fork`: it has a thread of its own; use `forkserver` or `spawn`")]
    Fork,
    /// The number of processors is not known, and no number of workers was given.
    #[error("could not find out how many processors there are: {0}")]
    CpuCount(io::Error),
    /// A worker did not start.
    #[error("could not start a worker: {0}")]
    Start(#[from] StartError),
    /// The pool's thread or its descriptors could not be made.
    #[error("could not start the thread of a pool: {0}")]
    Os(io::Error),
}

/// Worker processes that run tasks. Dropping it terminates them.
#[derive(Debug)]
pub struct Pool {
    driver: Arc<Driver>,
    thread: Option<JoinHandle<()>>,
    workers: usize,
}

impl Pool {
    /// Starts the workers.
    ///
    /// # Errors
    /// See [`PoolError`]; nothing is left running then.
    pub fn new(settings: &PoolSettings) -> Result<Self, PoolError> {
        let workers = match settings.workers {
            Some(0) => return Err(PoolError::NoWorkers),
            Some(workers) => workers,
            None => std::thread::available_parallelism().map_err(PoolError::CpuCount)?.get(),
        };
        if settings.method == StartMethod::Fork {
            return Err(PoolError::Fork);
        }
        let driver = Driver::new(workers, settings.method)?;
        let thread = driver.spawn_thread().map_err(PoolError::Os)?;
        Ok(Self { driver, thread: Some(thread), workers })
    }

    /// How many workers it keeps.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Has a worker run `function` on `input`, and calls `done` exactly once with what came of it: on the pool's thread,
    /// or on this one when the pool is over; it should be quick.
    pub fn submit(&self, function: &Function, input: Payload, done: impl FnOnce(TaskEnd) + Send + 'static) {
        let mut name = Writer::default();
        function.encode(&mut name);
        let done: Done = Box::new(done);
        self.driver.submit(name.into_bytes(), input, done);
    }

    /// Refuses new tasks; those submitted are run, then the workers end.
    pub fn close(&self) {
        self.driver.close();
    }

    /// Ends the workers at once; tasks that have not ended fail.
    pub fn terminate(&self) {
        self.driver.terminate();
    }

    /// Waits until all workers have ended, after [`Pool::close`] or [`Pool::terminate`].
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take_if(|_| self.driver.is_ours()) {
            // A panic there was printed; the workers die with this process at the latest.
            let _ = thread.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.terminate();
        self.join();
    }
}

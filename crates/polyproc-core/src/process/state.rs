//! The state of this process as one that starts others.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::sys::parent_death::ParentDeathPipe;
use crate::sys::per_process::PerProcess;

/// The state of this process as one that starts others.
#[derive(Debug)]
pub(crate) struct ProcessState {
    started: AtomicU64,
    parent_death_pipe: OnceLock<ParentDeathPipe>,
    /// True once the program has begun to end: no more processes are started.
    pub(crate) exiting: AtomicBool,
    /// Held during a start, so that at a fork no thread of the engine holds the lock of std's environment.
    pub(super) starting: Mutex<()>,
}

/// Created again in a copy of the process.
static STATE: PerProcess<ProcessState> = PerProcess::new(|_| ProcessState {
    started: AtomicU64::new(0),
    parent_death_pipe: OnceLock::new(),
    exiting: AtomicBool::new(false),
    starting: Mutex::new(()),
});

/// Acquires a lock and ignores poisoning: every change is one insertion or removal, so a panic leaves the data consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessState {
    /// Returns the state of this process, if it was created already.
    pub(crate) fn existing() -> Option<&'static Self> {
        STATE.existing()
    }

    pub(crate) fn current() -> &'static Self {
        STATE.get()
    }

    /// Returns the number of the next child, from 1, as in `Process-1`.
    pub(crate) fn next_number(&self) -> u32 {
        u32::try_from(self.started.fetch_add(1, Ordering::Relaxed) + 1).unwrap_or(u32::MAX)
    }

    /// Returns the pipe of [`ProcessState::parent_death_pipe`], if it was created already.
    pub(crate) fn existing_parent_death_pipe(&self) -> Option<&ParentDeathPipe> {
        self.parent_death_pipe.get()
    }

    pub(crate) fn parent_death_pipe(&self) -> io::Result<&ParentDeathPipe> {
        if let Some(pipe) = self.parent_death_pipe.get() {
            return Ok(pipe);
        }
        let pipe = ParentDeathPipe::new()?;
        Ok(self.parent_death_pipe.get_or_init(|| pipe))
    }
}

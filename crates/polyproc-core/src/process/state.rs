//! The state with which this process starts others.
//!
//! Created at the first start, again in a copy of the process, and never destroyed. [`start`](mod@super::start) uses all of it,
//! [`forkserver`](super::forkserver) and [`exit`](super::exit) their parts.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::sys::parent_death::ParentDeathPipe;
use crate::sys::per_process::PerProcess;

/// The state with which this process starts others.
#[derive(Debug)]
pub(crate) struct ProcessState {
    /// The number of processes that were given a number, including those whose start failed.
    started: AtomicU64,
    /// The pipe whose read end tells children that this process has died. No process of the engine keeps its write end but this
    /// one. Created at the start of the first bound child, and open until this process ends.
    parent_death_pipe: OnceLock<ParentDeathPipe>,
    /// True once the program has begun to end: no more processes are started. Relaxed, as a start that does not see it yet is
    /// handled by [`exit::end_children`](super::exit::end_children).
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

    /// Returns the state of this process, and creates it at the first call.
    pub(crate) fn current() -> &'static Self {
        STATE.get()
    }

    /// Returns the number of the next child, from 1, as in `Process-1`, and counts it.
    pub(crate) fn next_number(&self) -> u32 {
        u32::try_from(self.started.fetch_add(1, Ordering::Relaxed) + 1).unwrap_or(u32::MAX)
    }

    /// Returns the pipe of [`ProcessState::parent_death_pipe`], if it was created already.
    pub(crate) fn existing_parent_death_pipe(&self) -> Option<&ParentDeathPipe> {
        self.parent_death_pipe.get()
    }

    /// Returns the pipe by which children detect the death of this process, and creates it at the first call.
    ///
    /// # Errors
    /// When no descriptors are available. The next call tries again.
    pub(crate) fn parent_death_pipe(&self) -> io::Result<&ParentDeathPipe> {
        if let Some(pipe) = self.parent_death_pipe.get() {
            return Ok(pipe);
        }
        let pipe = ParentDeathPipe::new()?;
        Ok(self.parent_death_pipe.get_or_init(|| pipe))
    }
}

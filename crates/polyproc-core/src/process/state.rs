//! What this process knows of the processes it started.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::forkserver::Forkserver;
use super::supervisor::Supervisor;
use super::threads::OwnThreads;
use super::{Child, Function, StartError};
use crate::frame::Payload;
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::sys::life::LifePipe;
use crate::sys::per_process::PerProcess;

/// See the module.
#[derive(Debug)]
pub(crate) struct ProcessState {
    children: Mutex<HashMap<u64, Child>>,
    next_key: AtomicU64,
    started: AtomicU64,
    supervisor: Mutex<Option<&'static Supervisor>>,
    life_pipe: OnceLock<LifePipe>,
    pub(crate) own_threads: OwnThreads,
    /// The program has begun to end: no new processes.
    pub(crate) exiting: AtomicBool,
    /// Held while a process is started, so that a fork finds no thread of ours in the middle of std's environment.
    pub(super) starting: Mutex<()>,
    pub(super) forkserver: Mutex<Forkserver>,
    pub(crate) preload: Mutex<Option<(Function, Payload)>>,
}

/// Made anew in a copy of the process: the children and threads in the copied memory are those of the parent.
static STATE: PerProcess<ProcessState> = PerProcess::new(|_| ProcessState::new());

/// What a lock guards stays whole when a thread panics while it holds it: every change is one insertion or removal.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessState {
    /// This process's own, if it has one yet.
    pub(crate) fn existing() -> Option<&'static Self> {
        STATE.existing()
    }

    pub(crate) fn current() -> &'static Self {
        STATE.get()
    }

    fn new() -> Self {
        Self {
            children: Mutex::default(),
            next_key: AtomicU64::new(super::supervisor::BELL + 1),
            started: AtomicU64::new(0),
            supervisor: Mutex::default(),
            life_pipe: OnceLock::new(),
            own_threads: OwnThreads::default(),
            exiting: AtomicBool::new(false),
            starting: Mutex::default(),
            forkserver: Mutex::default(),
            preload: Mutex::default(),
        }
    }

    /// A key for the supervisor's watch, never used again.
    pub(crate) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next child, from 1, as in `Process-1`.
    pub(crate) fn next_number(&self) -> u32 {
        u32::try_from(self.started.fetch_add(1, Ordering::Relaxed) + 1).unwrap_or(u32::MAX)
    }

    /// Keeps `child` until it is reaped, and has the supervisor reap it when nobody else does.
    pub(crate) fn adopt(&'static self, child: &Child) -> Result<(), StartError> {
        let supervisor = self.supervisor()?;
        lock(&self.children).insert(child.key(), child.clone());
        supervisor.watch_soon(child.key());
        Ok(())
    }

    pub(crate) fn forget(&self, key: u64) {
        lock(&self.children).remove(&key);
    }

    pub(crate) fn child(&self, key: u64) -> Option<Child> {
        lock(&self.children).get(&key).cloned()
    }

    /// Those not reaped yet.
    pub(crate) fn children(&self) -> Vec<Child> {
        lock(&self.children).values().cloned().collect()
    }

    pub(crate) fn supervisor(&'static self) -> Result<&'static Supervisor, StartError> {
        let mut supervisor = lock(&self.supervisor);
        if let Some(supervisor) = *supervisor {
            return Ok(supervisor);
        }
        let started = Supervisor::start(self)
            .and_then(|started| super::exit::register().map(|()| started))
            .map_err(|source| StartError::Os { doing: "starting the supervisor thread", source })?;
        Ok(supervisor.insert(started))
    }

    /// The pipe of [`ProcessState::life_pipe`], if a process needed it before.
    pub(crate) fn existing_life_pipe(&self) -> Option<&LifePipe> {
        self.life_pipe.get()
    }

    pub(crate) fn life_pipe(&self) -> io::Result<&LifePipe> {
        if let Some(pipe) = self.life_pipe.get() {
            return Ok(pipe);
        }
        let pipe = LifePipe::new()?;
        Ok(self.life_pipe.get_or_init(|| pipe))
    }
}

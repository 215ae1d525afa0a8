//! The engine's own threads. `fork` does not count them, since they hold no lock of the user's. It is refused while user code
//! (callbacks, wakers, loggers) runs on one of them.
//!
//! The supervisor, a pool's thread and the reactor are started here; user code on them runs in [`call_user`]. A copy of the
//! process has none of these threads, and a new [`OwnThreads`].

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard, TryLockError};
use std::thread::JoinHandle;

use crate::prim::{AtomicUsize, Ordering};
use crate::sys::per_process::PerProcess;
use crate::sys::signal;

/// The engine's threads of one process.
#[derive(Debug, Default)]
pub(crate) struct OwnThreads {
    /// The number of threads that were requested and have not ended. Relaxed: the fork that compares it with `/proc` waits for
    /// stragglers.
    count: AtomicUsize,
    /// Locked for reading while user code runs on one of them, for writing while this process is copied.
    user_code: RwLock<()>,
}

/// The engine's threads of this process.
static OWN: PerProcess<OwnThreads> = PerProcess::new(|_| OwnThreads::default());

/// Returns the engine's threads of this process.
pub(crate) fn own_threads() -> &'static OwnThreads {
    OWN.get()
}

thread_local! {
    /// True in a thread that [`OwnThreads::spawn`] started.
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

impl OwnThreads {
    /// Starts a thread with all signals blocked. The kernel keeps the first 15 bytes of `name`. `run` must not panic: the
    /// thread would be counted for ever, and a fork would overlook a thread of the user.
    ///
    /// # Errors
    /// When the system refuses another thread. It is not counted then.
    pub(crate) fn spawn(&'static self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        // Counted before it runs, so that a concurrent `fork` does not take it for a user's thread.
        self.count.fetch_add(1, Ordering::Relaxed);
        let run = move || {
            IS_OWN.set(true);
            signal::block_all();
            run();
            self.count.fetch_sub(1, Ordering::Relaxed);
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).inspect_err(|_| {
            self.count.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Returns the number of threads.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns a guard that keeps user code from running on these threads; `None` while some runs. Never blocks, as the user
    /// code may be waiting for the caller. `fork` holds the guard until the child exists.
    pub(super) fn without_user_code(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.user_code.try_write() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Calls user code, on any thread. Catches its panic, which the panic hook has printed, so that the engine's state and threads
/// stay intact. On a thread of the engine, waits while this process is being copied. The caller holds no lock of the engine
/// that the user's code may need.
pub(crate) fn call_user(call: impl FnOnce()) {
    let own = IS_OWN.get().then(own_threads);
    let _guard = own.map(|own| own.user_code.read().unwrap_or_else(PoisonError::into_inner));
    let _ = catch_unwind(AssertUnwindSafe(call));
}

//! Threads of the engine's own. `fork` does not mind them: they hold no lock of the user's. It minds code of the user's that
//! runs on one of them (callbacks, wakers, loggers), as on any other thread.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard, TryLockError};
use std::thread::JoinHandle;

use super::ProcessState;
use crate::prim::{AtomicUsize, Ordering};
use crate::sys::signal;

/// Those of one process.
#[derive(Debug, Default)]
pub(crate) struct OwnThreads {
    count: AtomicUsize,
    /// Read while code of the user's runs on one of them, written while this process is copied.
    user_code: RwLock<()>,
}

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

impl OwnThreads {
    /// Starts one, with all signals blocked.
    pub(crate) fn spawn(&'static self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        // Counted before it runs, so that a fork in between does not take it for the user's.
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

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// That no code of the user's runs on them, for as long as the guard lives; `None` when some does.
    pub(super) fn without_user_code(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.user_code.try_write() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Calls code of the user's, on whichever thread. The panic hook has printed a panic of it, which ends here: the engine's state
/// and threads are whole.
pub(crate) fn call_user(call: impl FnOnce()) {
    let own = IS_OWN.get().then(|| &ProcessState::current().own_threads);
    let _guard = own.map(|own| own.user_code.read().unwrap_or_else(PoisonError::into_inner));
    let _ = catch_unwind(AssertUnwindSafe(call));
}

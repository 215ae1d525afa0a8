//! Waits for the fork server, which may be stopped or run a preload function for long: they end when the program gives up.

use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use super::StartError;

/// Returns whether to give up the wait for the fork server, which may be stopped or run a long `preload`. Called after a signal
/// handler ran, and every [`ASK_EVERY`]. A start of the user passes [`is_interrupted`](super::is_interrupted), a pool its own
/// check. May run user code, while the caller holds the locks of a start.
pub(crate) type GiveUp<'a> = &'a dyn Fn() -> bool;

/// The longest time between two calls of a [`GiveUp`], and the time that a retired zygote has to answer an earlier request.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(100);

/// Acquires a lock whose owner may be waiting for the fork server. Polls, as std's mutex has no wait with a deadline: after 20
/// us, then at intervals that double up to 25 ms. Asks `give_up` from about 10 ms on. Ignores poisoning. The lock is not
/// recursive: a `give_up` that starts a process on the same thread waits for its own caller.
///
/// # Errors
/// [`StartError::Interrupted`] when `give_up` returns true.
pub(super) fn lock_unless<'a, T>(mutex: &'a Mutex<T>, give_up: GiveUp<'_>) -> Result<MutexGuard<'a, T>, StartError> {
    let mut pause = Duration::from_micros(20);
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if pause > ASK_EVERY / 10 && give_up() => {
                return Err(StartError::Interrupted);
            }
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(ASK_EVERY / 4);
            }
        }
    }
}

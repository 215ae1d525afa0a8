//! Waits that a signal handler interrupted (`EINTR`, `signal(7)`).

use std::io;

/// An error of a wait, which may mean that a signal handler ran.
pub trait Interrupt {
    /// Returns whether a signal handler ran during the wait, which may be repeated.
    fn is_interrupted(&self) -> bool;
}

impl Interrupt for io::Error {
    fn is_interrupted(&self) -> bool {
        self.kind() == io::ErrorKind::Interrupted
    }
}

/// Repeats `wait` as long as signal handlers interrupt it, as std's blocking calls do.
///
/// # Errors
/// The first error of `wait` that is not [`Interrupt::is_interrupted`].
pub fn retry_interrupted<T, E: Interrupt>(mut wait: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match wait() {
            Err(error) if error.is_interrupted() => {}
            done => return done,
        }
    }
}

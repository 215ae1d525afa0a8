//! Waits that a signal handler interrupted (`EINTR`, `signal(7)`).
//!
//! A wait of the engine ends when a signal handler ran, with an error that implements [`Interrupt`], and may then be repeated.
//! The Rust face repeats it by [`retry_interrupted`]; the Python face serves the signal first, and repeats it unless the
//! handler raised.

use std::io;

/// An error of a wait that a signal handler may have interrupted.
pub trait Interrupt {
    /// Returns whether a signal handler interrupted the wait, which may then be repeated.
    fn is_interrupted(&self) -> bool;
}

impl Interrupt for io::Error {
    fn is_interrupted(&self) -> bool {
        self.kind() == io::ErrorKind::Interrupted
    }
}

/// Repeats `wait` as long as signal handlers interrupt it, as std's blocking calls do. The closure uses one deadline for all
/// attempts.
///
/// # Errors
/// The first error of `wait` for which [`Interrupt::is_interrupted`] returns false.
pub fn retry_interrupted<T, E: Interrupt>(mut wait: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match wait() {
            Err(error) if error.is_interrupted() => {}
            done => return done,
        }
    }
}

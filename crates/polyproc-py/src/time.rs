//! Timeouts in Python's seconds, and waits that run signal handlers.

use std::time::Duration;

use polyproc_core::{Deadline, Interrupt};
use pyo3::prelude::*;

/// Returns the deadline of a timeout in seconds. `None` never passes; 0 and negative values have passed.
pub(crate) fn deadline(seconds: Option<f64>) -> Deadline {
    match seconds {
        None => Deadline::NEVER,
        Some(seconds) if seconds > 0.0 => {
            Deadline::after(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        }
        Some(_) => Deadline::PASSED,
    }
}

/// Runs a wait, detached from the interpreter. Runs signal handlers and repeats the wait when it is interrupted.
///
/// # Errors
/// The exception of a signal handler.
pub(crate) fn wait<T: Send, E: Interrupt + Send>(
    py: Python<'_>,
    mut wait: impl FnMut() -> Result<T, E> + Send,
) -> PyResult<Result<T, E>> {
    polyproc_core::process::begin_wait();
    loop {
        match py.detach(&mut wait) {
            Err(error) if error.is_interrupted() => py.check_signals()?,
            done => return Ok(done),
        }
    }
}

//! Python's seconds, and waits that let signals through.

use std::time::Duration;

use polyproc_core::{Deadline, Interrupt};
use pyo3::prelude::*;

/// `None` is never; what is below 0 is now.
pub(crate) fn deadline(seconds: Option<f64>) -> Deadline {
    match seconds {
        None => Deadline::NEVER,
        Some(seconds) if seconds > 0.0 => {
            Deadline::after(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        }
        Some(_) => Deadline::PASSED,
    }
}

/// Waits without the interpreter; runs signal handlers whenever one is due.
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

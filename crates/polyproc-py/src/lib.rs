//! `_polyproc`: the extension module. It converts values, and the engine decides. `python/polyproc/` has the public classes.

mod buffer;
mod codec;
mod connection;
mod exception;
mod failure;
mod imap;
mod outcome;
mod pool;
mod process;
mod queue;
mod sync;
mod sys;
mod task;
mod time;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
fn _polyproc(module: &Bound<'_, PyModule>) -> PyResult<()> {
    sys::wrap_forks();
    process::register(module)?;
    sync::register(module)?;
    queue::register(module)?;
    connection::register(module)?;
    pool::register(module)
}

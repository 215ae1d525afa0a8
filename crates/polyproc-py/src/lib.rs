//! `_polyproc`: the engine for Python. It converts, the engine decides; `python/polyproc/` has the classes that users see.

mod process;
mod sys;
mod time;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
fn _polyproc(module: &Bound<'_, PyModule>) -> PyResult<()> {
    sys::wrap_forks();
    process::register(module)
}

//! Creates exceptions of Python modules.

use std::error::Error;

use polyproc_core::error_chain;
use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Returns the exception `module.name(*args)`, or the exception that creating it raised.
pub(crate) fn exception<'py>(py: Python<'py>, module: &str, name: &str, args: impl PyCallArgs<'py>) -> PyErr {
    let created = py.import(module).and_then(|module| module.getattr(name)?.call1(args));
    created.map_or_else(|error| error, PyErr::from_value)
}

/// Returns a `RuntimeError` with the text of an error of the engine.
pub(crate) fn runtime_error(error: impl Error) -> PyErr {
    PyRuntimeError::new_err(error_chain(&error))
}

//! Converts failures of tasks to exceptions of `polyproc.pool`.

use std::time::Duration;

use polyproc_core::error_chain;
use polyproc_core::pool::{ItemEnd, NoWorkersReason, PoolError, TaskEnd};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::codec::Source;
use crate::exception::{exception, runtime_error};
use crate::task::{WHOLE, raised};

/// Returns an exception of class `name` of `polyproc.pool`.
fn pool_error(py: Python<'_>, name: &str, text: String) -> PyErr {
    exception(py, "polyproc.pool", name, (text,))
}

/// The item of a call that failed, for the `index` or a note of its error; and the time limit of the call's tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The item's index; `None` if the call has only one.
    pub(crate) item: Option<u64>,
    /// Number of values in an item.
    pub(crate) chunksize: usize,
    pub(crate) limit: Option<Duration>,
}

/// Adds the place of a failed item to its error. Attributes that cannot be set are left out.
pub(crate) fn locate(py: Python<'_>, error: &PyErr, position: Option<u64>, place: Place) {
    let value = error.value(py);
    let values = place.item.filter(|_| place.chunksize == 1 || position.is_some());
    let index = values.map(|item| item * place.chunksize as u64 + position.unwrap_or(0));
    let is_of_pool = py.import("polyproc.pool").and_then(|module| value.is_instance(&module.getattr("PoolError")?));
    if is_of_pool.unwrap_or(false) {
        let _ = value.setattr("index", index);
        if value.get_type().name().is_ok_and(|name| name == "TaskTimeout") {
            let _ = value.setattr("seconds", place.limit.map(|limit| limit.as_secs_f64()));
        }
    } else if let Some(index) = index {
        let _ = value.call_method1("add_note", (format!("raised for item {index}, counted from 0"),)); // from 3.11 on
    }
}

/// Returns the index of the value that raised, in an item of several values.
pub(crate) fn position(end: &TaskEnd) -> Option<u64> {
    let TaskEnd::Raised(bytes) = end else { return None };
    bytes.first_chunk().map(|position| u64::from_le_bytes(*position)).filter(|position| *position != WHOLE)
}

/// Returns the exception for a task without a result.
pub(crate) fn failure(py: Python<'_>, end: TaskEnd) -> PyErr {
    let lost = |text| pool_error(py, "WorkerLost", text);
    match end {
        TaskEnd::Raised(bytes) => raised(py, &bytes),
        TaskEnd::Panicked(panic) => PyRuntimeError::new_err(format!("the task {panic}")),
        TaskEnd::Refused(why) => PyRuntimeError::new_err(format!("the task could not be run: {why}")),
        TaskEnd::WorkerLost(ended) => {
            let error = lost(format!("the worker was lost while it ran the task: {ended}"));
            let _ = error.value(py).setattr("pid", ended.pid);
            let _ = error.value(py).setattr("exitcode", ended.status.exit_code());
            error
        }
        TaskEnd::TimedOut => pool_error(py, "TaskTimeout", "the task exceeded its time limit".to_owned()),
        TaskEnd::OutOfMemory => {
            let text = "the worker exceeded its memory limit while it ran the task, and was killed";
            pool_error(py, "OutOfMemory", text.to_owned())
        }
        TaskEnd::Cancelled => pool_error(py, "TaskCancelled", "the task was cancelled".to_owned()),
        TaskEnd::Terminated => {
            pool_error(py, "PoolTerminated", "the pool was closed or terminated before the task ended".to_owned())
        }
        TaskEnd::NoWorkers(why) => {
            let (text, cause) = match why {
                NoWorkersReason::Start(error) => (format!("none could be started: {}", error_chain(&error)), None),
                NoWorkersReason::Died(ended) => (format!("workers die before they take a task: {ended}"), None),
                NoWorkersReason::InitializerPanicked(panic) => (format!("the initializer {panic}"), None),
                NoWorkersReason::InitializerRaised(bytes) => {
                    let error = raised(py, &bytes);
                    (format!("the initializer failed: {error}"), Some(error))
                }
                NoWorkersReason::InitializerRefused(why) => {
                    (format!("the initializer could not be called: {why}"), None)
                }
            };
            let error = pool_error(py, "NoWorkers", format!("the pool has no workers: {text}"));
            error.set_cause(py, cause);
            error
        }
    }
}

/// Returns the exception for a pool that could not be created.
pub(crate) fn refused(error: PoolError) -> PyErr {
    match error {
        PoolError::Start(error) => crate::process::error(error),
        error => runtime_error(error),
    }
}

/// A result, or the exception in its place: objects that the garbage collector can visit, unlike a [`PyErr`].
pub(crate) type Fate = Result<Py<PyAny>, Py<PyAny>>;

pub(crate) fn fate(py: Python<'_>, result: PyResult<Py<PyAny>>) -> Fate {
    result.map_err(|error| error.into_value(py).into_any())
}

/// Returns the decoded result of an item, or the exception in its place.
pub(crate) fn value(py: Python<'_>, end: ItemEnd<'_>, place: Place) -> PyResult<Py<PyAny>> {
    match end {
        Ok((bytes, fds)) => Source::new(bytes, fds).decode(py).map(Bound::unbind),
        Err(end) => {
            let position = position(&end);
            let error = failure(py, end);
            locate(py, &error, position, place);
            Err(error)
        }
    }
}

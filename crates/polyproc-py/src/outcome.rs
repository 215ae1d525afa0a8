//! [`Outcome`]: the future result of a call.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::pool::{Call, Ends, TaskEnd, WaitFor};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyList;

use crate::exception::runtime_error;
use crate::failure::{Fate, Place, failure, fate, value};
use crate::time;

/// How often signal handlers run during a wait for a callback.
const MOMENT: Duration = Duration::from_millis(50);

/// How the results of the items of a call are combined.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// The result of the only item.
    One,
    /// A list of the results of this number of items.
    Each(usize),
    /// The concatenation of the results of this number of items, each a list for a chunk. The second number is the chunk size.
    Lists(usize, usize),
}

/// The result of a call, available once all its items have ended.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
pub(crate) struct Outcome {
    call: Arc<Call>,
    shape: Shape,
    limit: Option<Duration>,
    gathered: Mutex<Gathered>,
    /// A callback has not run yet; it runs before the result is available.
    is_to_call: Mutex<bool>,
    called: Condvar,
}

/// The results so far.
#[derive(Debug, Default)]
struct Gathered {
    pieces: Vec<Option<Py<PyAny>>>,
    /// The error of the first item that failed.
    failed: Option<(u64, Py<PyAny>)>,
    result: Option<Fate>,
}

impl Gathered {
    /// Decodes the results that have arrived.
    fn take(&mut self, py: Python<'_>, call: &Call, shape: Shape, limit: Option<Duration>) {
        let mut ends = Ends::default();
        call.take(&mut ends);
        let chunksize = if let Shape::Lists(_, chunksize) = shape { chunksize } else { 1 };
        let is_one = matches!(shape, Shape::One);
        let place = |index| Place { item: (!is_one).then_some(index), chunksize, limit };
        ends.drain(|index, end| match value(py, end, place(index)) {
            Ok(value) => {
                if let Some(piece) = usize::try_from(index).ok().and_then(|index| self.pieces.get_mut(index)) {
                    *piece = Some(value);
                }
            }
            Err(error) if self.failed.as_ref().is_none_or(|(first, _)| index < *first) => {
                self.failed = Some((index, error.into_value(py).into_any()));
            }
            Err(_) => {}
        });
    }

    /// Combines all results. Fails with the error of the first item that failed.
    fn finish(&mut self, py: Python<'_>, shape: Shape) -> PyResult<Py<PyAny>> {
        if let Some((_, error)) = self.failed.take() {
            return Err(PyErr::from_value(error.into_bound(py)));
        }
        let missing = || failure(py, TaskEnd::Terminated);
        let mut pieces = std::mem::take(&mut self.pieces).into_iter().map(|piece| piece.ok_or_else(missing));
        match shape {
            Shape::One => pieces.next().unwrap_or_else(|| Err(missing())),
            Shape::Each(_) => Ok(PyList::new(py, pieces.collect::<PyResult<Vec<_>>>()?)?.into_any().unbind()),
            Shape::Lists(..) => {
                let Some(first) = pieces.next() else { return Ok(PyList::empty(py).into_any().unbind()) };
                let whole = first?.into_bound(py);
                for piece in pieces {
                    whole.call_method1("extend", (piece?,))?;
                }
                Ok(whole.unbind())
            }
        }
    }
}

impl Outcome {
    /// `limit` is the time limit of the call's tasks.
    pub(crate) fn new(call: Arc<Call>, shape: Shape, limit: Option<Duration>) -> Self {
        let count = match shape {
            Shape::One => 1,
            Shape::Each(count) | Shape::Lists(count, _) => count,
        };
        let gathered = Gathered { pieces: (0..count).map(|_| None).collect(), ..Gathered::default() };
        let gathered = Mutex::new(gathered);
        Self { call, shape, limit, gathered, is_to_call: Mutex::default(), called: Condvar::new() }
    }

    fn is_to_call(&self, py: Python<'_>) -> MutexGuard<'_, bool> {
        self.is_to_call.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn gathered(&self, py: Python<'_>) -> MutexGuard<'_, Gathered> {
        self.gathered.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the result once all items have ended.
    fn gather(&self, py: Python<'_>) -> Option<PyResult<Py<PyAny>>> {
        let mut gathered = self.gathered(py);
        if gathered.result.is_none() {
            if !self.call.is_over() {
                return None;
            }
            gathered.take(py, &self.call, self.shape, self.limit);
            gathered.result = Some(fate(py, gathered.finish(py, self.shape)));
        }
        gathered.result.as_ref().map(|result| match result {
            Ok(value) => Ok(value.clone_ref(py)),
            Err(error) => Err(PyErr::from_value(error.bind(py).clone())),
        })
    }

    /// Blocks until all items have ended. Returns false if the deadline passed first. Results of chunks are decoded while other
    /// chunks run.
    fn wait_for_all(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let want = if matches!(self.shape, Shape::Lists(..)) { WaitFor::Next } else { WaitFor::All };
        loop {
            let waited = time::wait(py, || self.call.wait(want, deadline))?;
            let is_there = waited.or_else(|error| match deadline {
                Deadline::NEVER => Err(runtime_error(error)),
                _ => Ok(false),
            })?;
            if !is_there || want == WaitFor::All || self.call.is_over() {
                return Ok(is_there);
            }
            self.gathered(py).take(py, &self.call, self.shape, self.limit);
        }
    }
}

#[pymethods]
impl Outcome {
    /// Makes the pool's thread for callbacks call `callback(value)` or `error_callback(error)` before the result is available.
    fn then(slf: &Bound<'_, Self>, callback: Option<Py<PyAny>>, error_callback: Option<Py<PyAny>>) {
        let this = slf.get();
        *this.is_to_call(slf.py()) = true;
        let own = slf.clone().unbind();
        this.call.then(move || {
            // `move`, so that all captures are dropped while attached: otherwise their release waits for a later attach.
            Python::attach(move |py| {
                let this = own.get();
                let called = match this.gather(py) {
                    Some(Ok(value)) => callback.map(|callback| callback.call1(py, (value,))),
                    Some(Err(error)) => error_callback.map(|callback| callback.call1(py, (error.value(py),))),
                    None => None,
                };
                if let Some(Err(error)) = called {
                    error.print(py);
                }
                *this.is_to_call(py) = false;
                this.called.notify_all();
            });
        });
    }

    /// Blocks until all items have ended and the callback has run. Returns false after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = time::deadline(timeout);
        if !self.wait_for_all(py, deadline)? {
            return Ok(false);
        }
        while *self.is_to_call(py) {
            if deadline.has_passed() {
                return Ok(false);
            }
            py.detach(|| {
                let guard = self.is_to_call.lock().unwrap_or_else(PoisonError::into_inner);
                if *guard {
                    // Not for longer: a signal handler may have to run.
                    let _ = self.called.wait_timeout(guard, MOMENT);
                }
            });
            py.check_signals()?;
        }
        Ok(true)
    }

    fn ready(&self, py: Python<'_>) -> bool {
        self.call.is_over() && !*self.is_to_call(py)
    }

    /// Returns whether a worker has begun a task that has not ended.
    fn is_running(&self, py: Python<'_>) -> bool {
        py.detach(|| self.call.is_running())
    }

    /// Returns a 1-tuple with the result, or `None` if not finished. Raises the exception of the task.
    fn result(&self, py: Python<'_>) -> PyResult<Option<(Py<PyAny>,)>> {
        Ok(self.gather(py).transpose()?.map(|value| (value,)))
    }

    /// Cancels the tasks that no worker has begun. Returns whether the call has ended as cancelled.
    fn take_back(&self, py: Python<'_>) -> bool {
        py.detach(|| self.call.give_up());
        let cancelled = || py.import("polyproc.pool")?.getattr("TaskCancelled");
        match (self.gather(py), cancelled()) {
            (Some(Err(error)), Ok(class)) => error.is_instance(py, &class),
            _ => false,
        }
    }

    /// Cancels the tasks that have not begun, and kills the workers that run the others.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.call.cancel());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // If the lock is held, the object is in use, so it is reachable.
        let Ok(gathered) = self.gathered.try_lock() else { return Ok(()) };
        gathered.pieces.iter().flatten().try_for_each(|piece| visit.call(piece))?;
        if let Some((_, error)) = &gathered.failed {
            visit.call(error)?;
        }
        if let Some(Ok(value) | Err(value)) = &gathered.result {
            visit.call(value)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let gathered = self.gathered.try_lock().map(|mut gathered| std::mem::take(&mut *gathered));
        drop(gathered); // outside the lock: destructors may call this object
    }
}

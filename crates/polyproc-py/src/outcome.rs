//! [`Outcome`]: what comes of a call, later.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::pool::{Call, Ends, TaskEnd, Want};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyList;

use crate::failure::{Fate, Place, failure, fate, gave_up, value};
use crate::time;

/// How long a wait for a callback lasts until signal handlers are run.
const MOMENT: Duration = Duration::from_millis(50);

/// What is made of the results of so many items.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// The one result.
    One,
    /// A list of them.
    Each(usize),
    /// One list. Each result is a list of the values of a chunk; the second number is the chunk size.
    Lists(usize, usize),
}

/// What comes of a call, once all of it has ended.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
pub(crate) struct Outcome {
    call: Arc<Call>,
    shape: Shape,
    limit: Option<Duration>,
    gathered: Mutex<Gathered>,
    /// A callback is to run before anybody sees the result.
    is_to_call: Mutex<bool>,
    called: Condvar,
}

/// What has come of it so far.
#[derive(Debug, Default)]
struct Gathered {
    pieces: Vec<Option<Py<PyAny>>>,
    /// The error of the first item that failed.
    failed: Option<(u64, Py<PyAny>)>,
    result: Option<Fate>,
}

impl Gathered {
    /// Decodes the results that have come.
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

    /// The whole, of all that there is.
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
    /// `limit` is how long its tasks may take.
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

    /// The result, when all has ended.
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

    /// Waits until all has ended; false when the time was over first. Few large pieces are decoded while the rest is computed.
    fn wait_for_all(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let want = if matches!(self.shape, Shape::Lists(..)) { Want::Next } else { Want::All };
        loop {
            let waited = time::wait(py, || self.call.wait(want, deadline))?;
            let is_there = waited.or_else(|error| match deadline {
                Deadline::NEVER => Err(gave_up(error)),
                _ => Ok(false),
            })?;
            if !is_there || want == Want::All || self.call.is_over() {
                return Ok(is_there);
            }
            self.gathered(py).take(py, &self.call, self.shape, self.limit);
        }
    }
}

#[pymethods]
impl Outcome {
    /// Has `callback(value)` or `error_callback(error)` called by the pool's own thread before the result is seen.
    fn then(slf: &Bound<'_, Self>, callback: Option<Py<PyAny>>, error_callback: Option<Py<PyAny>>) {
        let this = slf.get();
        *this.is_to_call(slf.py()) = true;
        let own = slf.clone().unbind();
        this.call.then(move || {
            // With all that it has: what is dropped without the interpreter lives on until somebody comes by with it.
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

    /// Waits until all has ended, and the callback has run; false when the time was over first.
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
                    // Again after a moment: a signal handler may be due.
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

    /// Whether a worker has taken some of it that has not ended.
    fn is_running(&self, py: Python<'_>) -> bool {
        py.detach(|| self.call.is_running())
    }

    /// The result; raises what the task raised. `None` in a tuple of none when it is not there.
    fn result(&self, py: Python<'_>) -> PyResult<Option<(Py<PyAny>,)>> {
        Ok(self.gather(py).transpose()?.map(|value| (value,)))
    }

    /// Takes back what no worker has begun with; whether that was all of it.
    fn take_back(&self, py: Python<'_>) -> bool {
        py.detach(|| self.call.give_up());
        let cancelled = || py.import("polyproc.pool")?.getattr("TaskCancelled");
        match (self.gather(py), cancelled()) {
            (Some(Err(error)), Ok(class)) => error.is_instance(py, &class),
            _ => false,
        }
    }

    /// What has not ended is taken back, or its worker killed.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.call.cancel());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Where it is in use, it is referred to.
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
        drop(gathered); // what that runs may come here
    }
}

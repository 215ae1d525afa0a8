//! Pools: the engine behind `python/polyproc/pool.py`.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use polyproc_core::pool::{self, CallSettings, PoolSettings, ReadAhead, Registered, Submitter, TaskEnd, WaitFor};
use polyproc_core::process::{self, StartMethod};
use polyproc_core::{Deadline, error_chain};
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::MutexExt;
use pyo3::types::{PyDict, PyFunction, PyIterator, PyList, PyTuple, PyType};

use crate::codec::{self, Purpose};
use crate::exception::runtime_error;
use crate::failure::{Place, failure, refused, value};
use crate::imap::Imap;
use crate::outcome::{Outcome, Shape};
use crate::process::{Child, function, payload};
use crate::task::{Inline, Live, Task, Tasks, serve_tasks};
use crate::{sys, time};

/// Limit of functions that a pool keeps registered.
const FUNCTIONS: usize = 256;

/// A pool of processes.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
struct Pool {
    pool: pool::Pool,
    /// Registered functions that are pickled by name, by their addresses.
    functions: Mutex<HashMap<usize, (Py<PyAny>, Registered)>>,
    /// The registered [`Inline`], for functions with handles, which are sent with each task.
    inline: OnceLock<Registered>,
}

/// Whether functions of the main module are pickled by value: see `polyproc._pickling.is_main_by_value`.
static IS_MAIN_BY_VALUE: AtomicBool = AtomicBool::new(false);

/// Sets whether functions of the main module are pickled by value, which is done at each call.
#[pyfunction]
fn set_main_by_value(is_by_value: bool) {
    IS_MAIN_BY_VALUE.store(is_by_value, Ordering::Relaxed);
}

/// Returns whether a function is pickled by name, so that its pickle is the same every time.
fn is_named(function: &Bound<'_, PyAny>) -> bool {
    let is_of_main = || function.getattr("__module__")?.extract::<String>().map(|module| module == "__main__");
    if IS_MAIN_BY_VALUE.load(Ordering::Relaxed) && is_of_main().unwrap_or(false) {
        return false;
    }
    if function.is_exact_instance_of::<PyType>() {
        return true;
    }
    let name = || function.getattr("__qualname__")?.extract::<String>();
    function.is_exact_instance_of::<PyFunction>() && name().is_ok_and(|name| !name.contains('<'))
}

impl Pool {
    fn tasks(&self, func: &Bound<'_, PyAny>, chunksize: usize, settings: CallSettings) -> PyResult<Tasks> {
        let py = func.py();
        let tasks =
            |call, prefix, fds| Tasks { feed: Submitter::new(call, chunksize, self.pool.workers()), prefix, fds };
        let plain = |call| tasks(call, Vec::new(), Vec::new());
        let (is_named, key) = (is_named(func), func.as_ptr() as usize);
        let known = self.functions.lock_py_attached(py).map(|known| known.get(&key).map(|(_, registered)| *registered));
        if let Some(registered) = known.ok().flatten().filter(|_| is_named) {
            return Ok(plain(self.pool.call_registered(registered, settings)));
        }
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        codec::encode(func, Purpose::Function, &mut bytes, &mut fds)?;
        if !fds.is_empty() {
            let inline = function::<Inline>()?;
            let registered = self.inline.get_or_init(|| self.pool.register(&inline, &[]));
            let call = self.pool.call_registered(*registered, settings);
            return Ok(tasks(call, bytes, fds));
        }
        if is_named
            && let Ok(mut functions) = self.functions.lock_py_attached(py)
            && functions.len() < FUNCTIONS
        {
            let registered = self.pool.register(&function::<Task>()?, &bytes);
            functions.insert(key, (func.clone().unbind(), registered));
            return Ok(plain(self.pool.call_registered(registered, settings)));
        }
        let task = function::<Task>()?;
        let call = self.pool.call((0, 0), || Ok(task), Some(&bytes), settings);
        call.map(plain).map_err(runtime_error)
    }

    /// Blocks until another task may be submitted.
    fn wait_to_submit(&self, py: Python<'_>) -> PyResult<()> {
        // Without a deadline the wait ends only when there is room.
        time::wait(py, || self.pool.wait_to_submit(Deadline::NEVER))?.map(drop).map_err(runtime_error)
    }

    /// Like [`Pool::wait_to_submit`], but returns at once if `is_bulk`: the caller takes the results after it has submitted all
    /// tasks, and no other thread takes them before.
    fn wait_to_submit_async(&self, py: Python<'_>, is_bulk: bool) -> PyResult<()> {
        if is_bulk { Ok(()) } else { self.wait_to_submit(py) }
    }
}

/// Time limit of a task in seconds, and how many times the task is retried after its worker is lost.
type Limits = (Option<f64>, u32);

fn settings(limits: Option<Limits>) -> CallSettings {
    let (timeout, retries) = limits.unwrap_or_default();
    let limit = timeout.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    CallSettings { limit, retries, backoff: Duration::from_millis(10), ..CallSettings::default() }
}

#[pymethods]
impl Pool {
    /// Starts the workers, which call `polyproc._child.run_worker(*setup, name)`. `limits` are the number of tasks that a
    /// worker runs, its memory limit in bytes, and the limit of waiting arguments in bytes.
    #[new]
    fn new(
        py: Python<'_>,
        method: &str,
        processes: usize,
        name: String,
        setup: (PyBackedBytes, Vec<RawFd>),
        limits: (Option<NonZeroU64>, Option<u64>, Option<u64>),
    ) -> PyResult<Self> {
        let method = crate::process::method(method)?;
        let settings = PoolSettings {
            workers: Some(processes),
            method,
            fork_with_threads: (method == StartMethod::Fork).then(sys::fork_with_threads),
            name: Some(name),
            initializer: Some((function::<Live>()?, payload(&setup.0, &setup.1)?)),
            max_tasks_per_child: limits.0,
            memory_limit: limits.1,
            max_waiting_bytes: limits.2,
            ..PoolSettings::default()
        };
        let pool = py.detach(|| pool::Pool::new(settings)).map_err(refused)?;
        Ok(Self { pool, functions: Mutex::default(), inline: OnceLock::new() })
    }

    /// Returns the result of `func(*args, **kwds)`, run in a worker.
    #[pyo3(signature = (func, args, kwds, limits=None))]
    fn apply(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwds: &Bound<'_, PyDict>,
        limits: Option<Limits>,
    ) -> PyResult<Py<PyAny>> {
        let py = func.py();
        let settings = CallSettings { is_awaited: true, ..settings(limits) };
        let limit = settings.limit;
        let mut tasks = self.tasks(func, 1, settings)?;
        tasks.push_call(args, kwds)?;
        tasks.feed.seal();
        time::wait(py, || tasks.feed.wait(WaitFor::Next, Deadline::NEVER))?.map_err(runtime_error)?;
        let mut result = None;
        let place = Place { item: None, chunksize: 1, limit };
        tasks.feed.take(|_, end| result = Some(value(py, end, place)));
        result.unwrap_or_else(|| Err(failure(py, TaskEnd::Terminated)))
    }

    /// Like [`Pool::apply`], but returns an [`Outcome`] for the result.
    #[pyo3(signature = (func, args, kwds, limits=None))]
    fn apply_async(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwds: &Bound<'_, PyDict>,
        limits: Option<Limits>,
    ) -> PyResult<Outcome> {
        self.wait_to_submit(func.py())?;
        let settings = settings(limits);
        let limit = settings.limit;
        let mut tasks = self.tasks(func, 1, settings)?;
        tasks.push_call(args, kwds)?;
        Ok(Outcome::new(tasks.feed.into_call(), Shape::One, limit))
    }

    /// Runs `func` on each value. With `is_bulk`, the caller promises to wait for all results at once.
    #[pyo3(signature = (func, values, chunksize, star, is_bulk, limits=None))]
    fn map_async(
        &self,
        func: &Bound<'_, PyAny>,
        values: &Bound<'_, PyList>,
        chunksize: usize,
        star: bool,
        is_bulk: bool,
        limits: Option<Limits>,
    ) -> PyResult<Outcome> {
        let chunksize = chunksize.max(1);
        // If each value can fail alone, it is an item; otherwise a chunk is an item.
        let is_each = limits.is_some() || chunksize == 1;
        let limit = settings(limits).limit;
        let mut tasks =
            self.tasks(func, if is_each { chunksize } else { 1 }, CallSettings { is_bulk, ..settings(limits) })?;
        if is_each {
            for value in values.iter() {
                self.wait_to_submit_async(value.py(), is_bulk)?;
                tasks.push_value(star, &value)?;
            }
        } else {
            for start in (0..values.len()).step_by(chunksize) {
                self.wait_to_submit_async(values.py(), is_bulk)?;
                tasks.push_values(star, &values.get_slice(start, start + chunksize))?;
            }
        }
        let items = tasks.feed.count();
        let shape = if is_each { Shape::Each(items) } else { Shape::Lists(items, chunksize) };
        Ok(Outcome::new(tasks.feed.into_call(), shape, limit))
    }

    /// Returns an iterator over the results of `func` for each of `items`, in order or not. `ahead` limits read-ahead, in items
    /// and in bytes.
    #[pyo3(signature = (func, items, chunksize, ordered, ahead, limits=None))]
    fn imap(
        &self,
        func: &Bound<'_, PyAny>,
        items: &Bound<'_, PyIterator>,
        chunksize: usize,
        ordered: bool,
        ahead: (usize, Option<u64>),
        limits: Option<Limits>,
    ) -> PyResult<Imap> {
        let settings = settings(limits);
        let limit = settings.limit;
        let tasks = self.tasks(func, 1, settings)?;
        Ok(Imap::new(tasks, items, chunksize, ordered, ReadAhead::new(ahead.0, ahead.1), limit))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.pool.close());
    }

    fn terminate(&self, py: Python<'_>) {
        py.detach(|| self.pool.terminate());
    }

    fn join(&self, py: Python<'_>) -> PyResult<()> {
        // Without a deadline the wait ends only when the pool has ended.
        time::wait(py, || self.pool.join(Deadline::NEVER))?.map_err(runtime_error)?;
        Ok(())
    }

    fn resize(&self, py: Python<'_>, processes: usize) -> PyResult<()> {
        py.detach(|| self.pool.resize(processes)).map_err(|error| PyValueError::new_err(error_chain(&error)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(functions) = self.functions.try_lock() else { return Ok(()) };
        functions.values().try_for_each(|(function, _)| visit.call(function))
    }

    fn __clear__(&self) {
        let functions = self.functions.try_lock().map(|mut functions| std::mem::take(&mut *functions));
        drop(functions); // outside the lock: destructors may call this object
    }

    /// Returns the running workers.
    fn workers(&self) -> Vec<Child> {
        let pids: Vec<_> = self.pool.stats().iter().map(|worker| worker.pid).collect();
        let children = process::active_children();
        children.into_iter().filter(|child| pids.contains(&child.pid())).map(Child::from).collect()
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Pool>()?;
    module.add_class::<Outcome>()?;
    module.add_function(wrap_pyfunction!(serve_tasks, module)?)?;
    module.add_function(wrap_pyfunction!(set_main_by_value, module)?)?;
    module.add_class::<Imap>()
}

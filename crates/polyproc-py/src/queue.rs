//! Queues: the engine behind the classes of `python/polyproc/queues.py`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use polyproc_core::queue::{self, GetError, PutError, QueueSettings};
use polyproc_core::{Deadline, WaitError, error_chain};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use crate::codec::{self, Purpose};
use crate::exception::exception;
use crate::{sys, time};

/// Returns how many bytes of shared memory this program may have in flight, and how many it has.
#[pyfunction]
fn memory_budget() -> (u64, u64) {
    let budget = polyproc_core::memory_budget();
    (budget.limit, budget.in_use)
}

/// Sets how many bytes of shared memory this program may have in flight.
#[pyfunction]
fn set_memory_budget(limit: u64) {
    polyproc_core::set_memory_budget(limit);
}

/// Puts a message; tries it without a wait first.
fn put(
    py: Python<'_>,
    queue: &queue::Queue,
    parts: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    block: bool,
    timeout: Option<f64>,
) -> PyResult<Result<(), PutError>> {
    let put = queue.put_parts(parts, fds, Deadline::PASSED);
    let deadline = match put {
        Err(PutError::Full | PutError::OutOfSpace(_) | PutError::Interrupted) if block => time::deadline(timeout),
        Err(PutError::Interrupted) => Deadline::PASSED, // retried after signal handlers have run
        done => return Ok(done),
    };
    time::wait(py, || queue.put_parts(parts, fds, deadline))
}

/// A queue. Subclasses call `_init` or `_rebuild` once.
#[derive(Debug, Default)]
#[pyclass(frozen, subclass, weakref, module = "polyproc._polyproc")]
struct Queue {
    queue: OnceLock<queue::Queue>,
    /// This process has closed the queue.
    closed: AtomicBool,
    /// This process has put an item.
    used: AtomicBool,
}

impl Queue {
    fn queue(&self) -> PyResult<&queue::Queue> {
        self.queue.get().ok_or_else(|| PyRuntimeError::new_err("the queue's __init__ was not called"))
    }

    fn set(&self, queue: queue::Queue) -> PyResult<()> {
        self.queue.set(queue).map_err(|_| PyRuntimeError::new_err("the queue's __init__ was called twice"))
    }

    fn open(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().closed.load(Ordering::Relaxed) {
            return Err(PyValueError::new_err(format!("Queue {} is closed", slf.repr()?)));
        }
        Ok(())
    }
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::default()
    }

    /// Creates a new queue of at most `maxsize` items and `max_bytes` bytes; 0 means no limit.
    #[pyo3(signature = (maxsize, max_bytes=0))]
    fn _init(&self, maxsize: u64, max_bytes: u64) -> PyResult<()> {
        self.set(queue::Queue::new(QueueSettings { maxsize, max_bytes, ..QueueSettings::default() })?)
    }

    /// Opens the queue of these descriptors.
    fn _rebuild(&self, fds: [RawFd; 3]) -> PyResult<()> {
        let [a, b, c] = fds.map(sys::duplicate);
        self.set(queue::Queue::from_fds([a?, b?, c?])?)
    }

    /// Returns the descriptors by which another process opens the queue.
    fn _fds(&self) -> PyResult<[RawFd; 3]> {
        Ok(self.queue()?.fds().map(|fd| fd.as_raw_fd()))
    }

    /// Puts an item. Once this has returned, the item is in the queue, whichever process dies.
    #[pyo3(signature = (obj, block=true, timeout=None))]
    fn put(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>, block: bool, timeout: Option<f64>) -> PyResult<()> {
        static FULL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let (py, this) = (slf.py(), slf.get());
        Self::open(slf)?;
        let queue = this.queue()?;
        codec::with_memory(|bytes| {
            let put = if let Some(large) = codec::large_bytes(obj, bytes) {
                put(py, queue, &[bytes, large], &[], block, timeout)?
            } else {
                let mut fds = Vec::new();
                // The queue does not count lent bytes, so none are lent if it has a limit of bytes.
                let purpose = if queue.max_bytes() > 0 { Purpose::CopiedValue } else { Purpose::Value };
                if let Err(error) = codec::encode(obj, purpose, bytes, &mut fds) {
                    return slf.call_method1("_put_failed", (error, obj)).map(drop);
                }
                let lent = codec::is_lent(bytes);
                match put(py, queue, &[bytes], &codec::borrowed(&fds), block && !lent, timeout)? {
                    Err(PutError::Full | PutError::OutOfSpace(_)) if lent => {
                        // There may be room for the item, but not for descriptors.
                        bytes.clear();
                        fds.clear();
                        codec::encode(obj, Purpose::CopiedValue, bytes, &mut fds)?;
                        put(py, queue, &[bytes], &codec::borrowed(&fds), block, timeout)?
                    }
                    put => put,
                }
            };
            match put {
                Ok(()) => {
                    this.used.store(true, Ordering::Relaxed);
                    Ok(())
                }
                Err(PutError::Full) => Err(PyErr::from_value(FULL.import(py, "queue", "Full")?.call0()?)),
                Err(PutError::OutOfSpace(error)) => {
                    Err(exception(py, "polyproc.queues", "OutOfSpace", (error.to_string(),)))
                }
                Err(error) => Err(PyOSError::new_err(error_chain(&error))),
            }
        })
    }

    #[pyo3(signature = (block=true, timeout=None))]
    fn get<'py>(slf: &Bound<'py, Self>, block: bool, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let (py, this) = (slf.py(), slf.get());
        Self::open(slf)?;
        let queue = this.queue()?;
        codec::with_memory(|bytes| {
            let mut fds: Vec<OwnedFd> = Vec::new();
            let mut got = queue.get(bytes, &mut fds, Deadline::PASSED);
            let again = match got {
                Err(GetError::Empty | GetError::Interrupted) if block => Some(time::deadline(timeout)),
                Err(GetError::Interrupted) => Some(Deadline::PASSED), // retried after signal handlers have run
                _ => None,
            };
            if let Some(deadline) = again {
                got = time::wait(py, || queue.get(bytes, &mut fds, deadline))?;
            }
            match got {
                Ok(()) => codec::decode_message(py, bytes, fds),
                Err(GetError::Empty) => Err(PyErr::from_value(EMPTY.import(py, "queue", "Empty")?.call0()?)),
                Err(error) => Err(PyOSError::new_err(error_chain(&error))),
            }
        })
    }

    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.call_method1("put", (obj, false)).map(drop)
    }

    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.call_method1("get", (false,))
    }

    /// Returns the number of items in the queue.
    fn qsize(&self) -> PyResult<u64> {
        Ok(self.queue()?.len())
    }

    /// Returns whether the queue is empty. Fails, as in `multiprocessing`, if this process has put items and closed the queue.
    fn empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if this.closed.load(Ordering::Relaxed) && this.used.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err(format!("Queue {} is closed", slf.repr()?)));
        }
        Ok(this.queue()?.is_empty())
    }

    fn full(&self) -> PyResult<bool> {
        let queue = self.queue()?;
        Ok(queue.maxsize() > 0 && queue.len() >= queue.maxsize())
    }

    /// Marks one item that was taken as done.
    fn task_done(&self) -> PyResult<()> {
        self.queue()?.task_done().map_err(|_| PyValueError::new_err("task_done() called too many times"))
    }

    /// Blocks until all items that were put are done.
    fn join(&self, py: Python<'_>) -> PyResult<()> {
        let queue = self.queue()?;
        match time::wait(py, || queue.join(Deadline::NEVER))? {
            Ok(()) | Err(WaitError::TimedOut | WaitError::Interrupted) => Ok(()),
        }
    }

    /// Closes the queue in this process: `put` and `get` fail from now on.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Returns a descriptor that is readable while there are items. It may also be readable when there are none.
    fn _fileno(&self) -> PyResult<RawFd> {
        Ok(self.queue()?.as_fd().as_raw_fd())
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Queue>()?;
    module.add_function(wrap_pyfunction!(memory_budget, module)?)?;
    module.add_function(wrap_pyfunction!(set_memory_budget, module)?)
}

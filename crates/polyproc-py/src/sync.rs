//! Locks, semaphores, conditions, events, barriers: the engine behind the classes of `python/polyproc/synchronize.py`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use polyproc_core::sync::{
    self, Acquired, BarrierError, BarrierTurn, EnterError, Holder, Owner, ReleaseError, WeakLock,
};
use polyproc_core::{Deadline, PerProcess, WaitError};
use pyo3::exceptions::{PyAssertionError, PyOSError, PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use crate::exception::{exception, runtime_error};
use crate::{sys, time};

/// The kinds of [`SemLock`], numbered as in `_multiprocessing`.
const RECURSIVE_MUTEX: i32 = 0;
const SEMAPHORE: i32 = 1;
/// Our own kind: a lock that is not a semaphore with the value 1.
const LOCK: i32 = 2;
/// The largest value of a semaphore, that of POSIX semaphores on Linux.
const SEM_VALUE_MAX: u64 = i32::MAX as u64;

#[derive(Debug)]
enum Shared {
    Lock(sync::Lock, Owner),
    Semaphore(sync::Semaphore),
}

/// A lock or a semaphore, with the methods of `_multiprocessing.SemLock`.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
struct SemLock {
    shared: Shared,
    #[pyo3(get)]
    kind: i32,
    #[pyo3(get)]
    maxvalue: u64,
}

impl SemLock {
    fn noted(shared: Shared, kind: i32, maxvalue: u64) -> Self {
        if let Shared::Lock(lock, _) = &shared {
            note(lock);
        }
        Self { shared, kind, maxvalue }
    }

    fn take(&self, deadline: Deadline) -> Result<Acquired, WaitError> {
        match &self.shared {
            Shared::Lock(lock, owner) => lock.acquire(*owner, deadline),
            Shared::Semaphore(semaphore) => semaphore.acquire(deadline).map(|()| Acquired::Released),
        }
    }

    fn shared_place(&self) -> (BorrowedFd<'_>, u64) {
        match &self.shared {
            Shared::Lock(lock, _) => lock.place(),
            Shared::Semaphore(semaphore) => semaphore.place(),
        }
    }

    fn holder(&self) -> Holder {
        match &self.shared {
            Shared::Lock(lock, _) => lock.holder(),
            Shared::Semaphore(_) => Holder::Nobody,
        }
    }
}

/// The locks of which this process has a handle.
static LOCKS: PerProcess<Mutex<Vec<WeakLock>>> = PerProcess::inherited();

fn note(lock: &sync::Lock) {
    let mut locks = LOCKS.get().lock().unwrap_or_else(PoisonError::into_inner);
    if locks.len() == locks.capacity() {
        locks.retain(|lock| lock.upgrade().is_some()); // before the vector grows
    }
    locks.push(lock.downgrade());
}

/// Leaves the locks of this process, which ends in order: locks that it holds stay held, and no other process takes them over.
#[pyfunction]
fn leave_locks(py: Python<'_>) {
    let locks = LOCKS.get().lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
    locks.iter().filter_map(WeakLock::upgrade).for_each(|lock| lock.leave());
}

fn owner_died(py: Python<'_>) -> PyResult<()> {
    let text = c"the lock's owner died while it held the lock: the protected data may be inconsistent";
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), text, 1)
}

impl Drop for SemLock {
    fn drop(&mut self) {
        // The last handle of this process: it cannot release the lock any more, but it has not died.
        if let Shared::Lock(lock, _) = &self.shared
            && lock.is_only_clone()
        {
            lock.leave();
        }
    }
}

#[pymethods]
impl SemLock {
    #[classattr]
    #[pyo3(name = "SEM_VALUE_MAX")]
    const MAX: u64 = SEM_VALUE_MAX;

    #[new]
    fn new(kind: i32, value: i64, maxvalue: u64) -> PyResult<Self> {
        let value = u64::try_from(value)
            .ok()
            .filter(|value| *value <= maxvalue.min(SEM_VALUE_MAX))
            .ok_or_else(|| PyOSError::new_err((22, "Invalid argument")))?; // EINVAL, as sem_open(3)
        let shared = match kind {
            RECURSIVE_MUTEX => Shared::Lock(sync::Lock::new()?, Owner::Thread),
            LOCK => Shared::Lock(sync::Lock::new()?, Owner::Process),
            SEMAPHORE => Shared::Semaphore(sync::Semaphore::new(value, maxvalue)?),
            _ => return Err(PyValueError::new_err("unrecognized kind")),
        };
        Ok(Self::noted(shared, kind, maxvalue))
    }

    /// Opens the lock or semaphore at place `at` of the file behind `fd`.
    #[staticmethod]
    fn _rebuild(fd: RawFd, at: u64, kind: i32, maxvalue: u64) -> PyResult<Self> {
        let file = sys::duplicate(fd)?;
        let shared = match kind {
            RECURSIVE_MUTEX => Shared::Lock(sync::Lock::from_place(file.as_fd(), at)?, Owner::Thread),
            LOCK => Shared::Lock(sync::Lock::from_place(file.as_fd(), at)?, Owner::Process),
            _ => Shared::Semaphore(sync::Semaphore::from_place(file.as_fd(), at)?),
        };
        Ok(Self::noted(shared, kind, maxvalue))
    }

    /// Returns the descriptor by which, with [`SemLock::place`], another process opens this object.
    #[getter]
    fn handle(&self) -> RawFd {
        self.shared_place().0.as_raw_fd()
    }

    /// Returns the object's place in that file.
    #[getter]
    fn place(&self) -> u64 {
        self.shared_place().1
    }

    /// Returns `None`: the object has no name, so nothing is left behind when the last process that has it ends.
    #[getter]
    fn name(&self) -> Option<&str> {
        None
    }

    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        let mut acquired = self.take(Deadline::PASSED);
        if block && matches!(acquired, Err(WaitError::TimedOut)) {
            let deadline = time::deadline(timeout);
            acquired = time::wait(py, || self.take(deadline))?;
        }
        match acquired {
            Ok(Acquired::Released) => Ok(true),
            // If warnings are errors, the caller does not reach its `release`.
            Ok(Acquired::OwnerDied) => owner_died(py).map(|()| true).inspect_err(|_| _ = self.release()),
            Err(_) => Ok(false),
        }
    }

    fn release(&self) -> PyResult<()> {
        let too_often = || PyValueError::new_err("semaphore or lock released too many times");
        match &self.shared {
            Shared::Semaphore(semaphore) => semaphore.release(1).map_err(|_| too_often()),
            Shared::Lock(lock, owner) => lock.release(*owner).map_err(|error| match (owner, error) {
                (Owner::Process, _) => too_often(),
                (Owner::Thread, ReleaseError::NotHeld | ReleaseError::NotOwner) => {
                    PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
                }
            }),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, true, None)
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.release()
    }

    /// Returns the depth at which this thread holds the lock; 1 if another thread of this process holds it.
    fn _count(&self) -> u32 {
        match self.holder() {
            Holder::ThisThread(count) => count,
            Holder::AnotherThread => 1,
            Holder::Nobody | Holder::AnotherProcess => 0,
        }
    }

    fn _is_mine(&self) -> bool {
        matches!(self.holder(), Holder::ThisThread(_))
    }

    fn _get_value(&self) -> u64 {
        match &self.shared {
            Shared::Lock(lock, _) => u64::from(!lock.is_locked()),
            Shared::Semaphore(semaphore) => semaphore.value(),
        }
    }

    fn _is_zero(&self) -> bool {
        self._get_value() == 0
    }

    fn _after_fork(&self) {}
}

/// A condition without its lock.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
struct Condition(sync::Condition);

/// An entry in a condition's table of waiters.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
struct Ticket {
    condition: sync::Condition,
    ticket: Mutex<Option<sync::Ticket>>,
}

#[pymethods]
impl Condition {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(sync::Condition::new()?))
    }

    #[staticmethod]
    fn _rebuild(fd: RawFd, at: u64) -> PyResult<Self> {
        Ok(Self(sync::Condition::from_place(sys::duplicate(fd)?.as_fd(), at)?))
    }

    #[getter]
    fn handle(&self) -> RawFd {
        self.0.place().0.as_raw_fd()
    }

    #[getter]
    fn place(&self) -> u64 {
        self.0.place().1
    }

    /// Adds this thread to the waiters; the caller may then release its lock. Returns `None` if a process that is stopped
    /// inside the condition blocks this for `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn enter(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Ticket>> {
        let deadline = time::deadline(timeout);
        let ticket = match time::wait(py, || self.0.enter(deadline))? {
            Err(EnterError::Wait(_)) => return Ok(None),
            entered => entered.map_err(runtime_error)?,
        };
        Ok(Some(Ticket { condition: self.0.clone(), ticket: Mutex::new(Some(ticket)) }))
    }

    fn notify(&self, py: Python<'_>, count: usize) {
        py.detach(|| self.0.notify(count));
    }

    fn waiting(&self) -> usize {
        self.0.waiting()
    }
}

#[pymethods]
impl Ticket {
    /// Blocks until notified, for at most `timeout` seconds, then frees the entry. Returns whether it was notified.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let Some(ticket) = self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Err(PyRuntimeError::new_err("a ticket can be waited on only once"));
        };
        let deadline = time::deadline(timeout);
        let waited = time::wait(py, || self.condition.wait(&ticket, deadline));
        let notified = self.condition.leave(ticket);
        waited.map(|_| notified)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            self.condition.leave(ticket);
        }
    }
}

#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
struct Event(sync::Event);

#[pymethods]
impl Event {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(sync::Event::new()?))
    }

    #[staticmethod]
    fn _rebuild(fd: RawFd, at: u64) -> PyResult<Self> {
        Ok(Self(sync::Event::from_place(sys::duplicate(fd)?.as_fd(), at)?))
    }

    #[getter]
    fn handle(&self) -> RawFd {
        self.0.place().0.as_raw_fd()
    }

    #[getter]
    fn place(&self) -> u64 {
        self.0.place().1
    }

    fn is_set(&self) -> bool {
        self.0.is_set()
    }

    fn set(&self) {
        self.0.set();
    }

    fn clear(&self) {
        self.0.clear();
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let before = self.0.sets();
        if self.0.is_set() {
            return Ok(true);
        }
        let deadline = time::deadline(timeout);
        Ok(time::wait(py, || self.0.wait(before, deadline))?.is_ok())
    }
}

#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
struct Barrier(sync::Barrier);

fn broken(py: Python<'_>, error: BarrierError) -> PyErr {
    match error {
        BarrierError::TooManyWaiters(error) => runtime_error(error),
        _ => exception(py, "threading", "BrokenBarrierError", ()),
    }
}

#[pymethods]
impl Barrier {
    #[new]
    fn new(parties: usize) -> PyResult<Self> {
        Ok(Self(sync::Barrier::new(parties)?))
    }

    #[staticmethod]
    fn _rebuild(fd: RawFd, at: u64) -> PyResult<Self> {
        Ok(Self(sync::Barrier::from_place(sys::duplicate(fd)?.as_fd(), at)?))
    }

    #[getter]
    fn handle(&self) -> RawFd {
        self.0.place().0.as_raw_fd()
    }

    #[getter]
    fn place(&self) -> u64 {
        self.0.place().1
    }

    #[getter]
    fn parties(&self) -> usize {
        self.0.parties()
    }

    #[getter]
    fn n_waiting(&self) -> usize {
        self.0.n_waiting()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.0.is_broken()
    }

    fn reset(&self) {
        self.0.reset();
    }

    fn abort(&self) {
        self.0.abort();
    }

    /// Blocks until all parties have arrived; the last one runs `action` first. Returns the index of this party.
    #[pyo3(signature = (timeout=None, action=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>, action: Option<Bound<'_, PyAny>>) -> PyResult<usize> {
        let deadline = time::deadline(timeout);
        let turn = time::wait(py, || self.0.arrive(deadline))?.map_err(|error| broken(py, error))?;
        if let BarrierTurn::Last { index, .. } = turn {
            if let Some(action) = action {
                action.call0().inspect_err(|_| self.0.abort())?;
            }
            return self.0.release(&turn).map(|()| index).map_err(|error| broken(py, error));
        }
        let waited = time::wait(py, || self.0.wait(&turn, deadline));
        if waited.is_err() {
            // A signal handler raised: this party leaves, which breaks the barrier.
            self.0.abort();
            let _ = self.0.wait(&turn, Deadline::PASSED); // frees the entry
        }
        waited?.map_err(|error| broken(py, error))
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("RECURSIVE_MUTEX", RECURSIVE_MUTEX)?;
    module.add("SEMAPHORE", SEMAPHORE)?;
    module.add("LOCK", LOCK)?;
    module.add_class::<SemLock>()?;
    module.add_function(wrap_pyfunction!(leave_locks, module)?)?;
    module.add_class::<Condition>()?;
    module.add_class::<Ticket>()?;
    module.add_class::<Event>()?;
    module.add_class::<Barrier>()
}

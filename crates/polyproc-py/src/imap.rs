//! [`Imap`]: an iterator over results.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use polyproc_core::pool::{Call, ReadAhead, WaitFor};
use polyproc_core::{Deadline, WaitError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyIterator, PyList};

use crate::codec;
use crate::failure::{Fate, Place, fate, value};
use crate::task::Tasks;
use crate::time;

/// How often the thread that reads items checks whether it must stop, while it discards results.
const SLICE: Duration = Duration::from_millis(200);
/// While [`Imap::drain`] reads items, signal handlers run once for this many tasks.
const SIGNAL_PERIOD: u64 = 256;

/// An iterator over the results for the items of an iterator. Items are read by [`Imap::next`], or by a thread that calls
/// [`Imap::feed`].
#[derive(Debug)]
#[pyclass(frozen, weakref, module = "polyproc._polyproc")]
pub(crate) struct Imap {
    call: Arc<Call>,
    state: Mutex<State>,
    /// Notified when a result was taken, or when reading must stop or must continue to the end.
    changed: Condvar,
}

struct State {
    tasks: Tasks,
    /// The iterator; `None` once it is exhausted, or if a thread of its own reads it.
    items: Option<Py<PyIterator>>,
    /// A thread is reading items in [`Imap::fill`].
    is_filling: bool,
    /// All items were read, or reading was stopped.
    is_fed: bool,
    /// Items are read without a bound, as the pool is being joined.
    is_draining: bool,
    /// No more items are read.
    is_stopped: bool,
    /// No caller can ask for results any more.
    is_abandoned: bool,
    /// Number of threads that wait for a result.
    waiting: usize,
    /// The thread that reads items waits until there is room.
    waits_for_room: bool,
    /// Number of items in a task. If it is above 1, the result of a task is a list.
    chunksize: usize,
    /// Time limit of a task.
    limit: Option<Duration>,
    ahead: ReadAhead,
    /// Number of results that the caller has taken, in order or not.
    taken: u64,
    /// Number of tasks that have ended.
    ended: u64,
    ordered: bool,
    /// Errors of items that could not be encoded, by index.
    unsent: BTreeMap<u64, Fate>,
    /// Results that arrived out of order, by index.
    early: BTreeMap<u64, Fate>,
    /// Results that the caller may take next.
    ready: VecDeque<Fate>,
    /// The exception of the iterator, raised after all results were taken.
    broken: Option<PyErr>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl State {
    fn count(&self) -> u64 {
        self.tasks.feed.count() as u64
    }

    fn has_room(&self) -> bool {
        self.is_draining || self.tasks.feed.may_read_on(usize::try_from(self.taken).unwrap_or(usize::MAX), self.ahead)
    }

    /// Submits what the iterator returned: an item, its end, or an exception.
    fn add(&mut self, py: Python<'_>, next: PyResult<Option<Bound<'_, PyAny>>>) {
        match next {
            Ok(Some(item)) => {
                let index = self.count();
                let pushed = match item.cast::<PyList>() {
                    Ok(chunk) if self.chunksize > 1 => self.tasks.push_values(false, chunk),
                    _ => self.tasks.push_value(false, &item),
                };
                if let Err(error) = pushed {
                    self.unsent.insert(index, fate(py, Err(error)));
                    self.tasks.feed.call().refuse(index);
                }
            }
            end => {
                self.broken = end.err();
                self.end();
            }
        }
    }

    fn end(&mut self) {
        self.items = None;
        self.is_fed = true;
        self.tasks.feed.seal();
    }

    /// Takes the results that have arrived.
    fn collect(&mut self, py: Python<'_>) {
        let Self { tasks, unsent, early, ended, chunksize, limit, .. } = self;
        let mut lent = 0;
        tasks.feed.take(|index, end| {
            *ended += 1;
            lent += end.as_ref().map_or(0, |(bytes, _)| codec::lent_bytes(bytes) as u64);
            let place = Place { item: Some(index), chunksize: *chunksize, limit: *limit };
            let fate = unsent.remove(&index).unwrap_or_else(|| fate(py, value(py, end, place)));
            early.insert(index, fate);
        });
        tasks.feed.count_lent(lent);
        if self.is_abandoned {
            self.early.clear();
            self.ready.clear();
            self.taken = self.ended;
        } else if self.ordered {
            while let Some(end) = self.early.remove(&(self.taken + self.ready.len() as u64)) {
                self.ready.push_back(end);
            }
        } else {
            self.ready.extend(std::mem::take(&mut self.early).into_values());
        }
    }
}

/// Returns the next item of an iterator, or a list of its next `chunksize` items.
fn next_item<'py>(items: &Bound<'py, PyIterator>, chunksize: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
    let mut items = items.clone();
    if chunksize == 1 {
        return items.next().transpose();
    }
    let chunk = PyList::empty(items.py());
    for item in items.take(chunksize) {
        chunk.append(item?)?;
    }
    Ok((!chunk.is_empty()).then(|| chunk.into_any()))
}

impl Imap {
    pub(crate) fn new(
        tasks: Tasks,
        items: &Bound<'_, PyIterator>,
        chunksize: usize,
        ordered: bool,
        ahead: ReadAhead,
        limit: Option<Duration>,
    ) -> Self {
        let call = Arc::clone(tasks.feed.call());
        let state = State {
            tasks,
            items: Some(items.clone().unbind()),
            is_filling: false,
            is_fed: false,
            is_draining: false,
            is_stopped: false,
            is_abandoned: false,
            waiting: 0,
            waits_for_room: false,
            chunksize: chunksize.max(1),
            limit,
            ahead,
            taken: 0,
            ended: 0,
            ordered,
            unsent: BTreeMap::new(),
            early: BTreeMap::new(),
            ready: VecDeque::new(),
            broken: None,
        };
        Self { call, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads items while there is room for them. Without the lock: the iterator and signal handlers may call this object.
    fn fill(&self, py: Python<'_>) -> PyResult<()> {
        let (items, chunksize) = {
            let mut state = self.state(py);
            let Some(items) = state.items.as_ref().filter(|_| !state.is_filling) else { return Ok(()) };
            let items = items.clone_ref(py);
            state.is_filling = true;
            (items, state.chunksize)
        };
        let filled = self.fill_from(py, items.bind(py), chunksize);
        self.state(py).is_filling = false;
        filled
    }

    fn fill_from(&self, py: Python<'_>, items: &Bound<'_, PyIterator>, chunksize: usize) -> PyResult<()> {
        for round in 1_u64.. {
            let is_draining = {
                let state = self.state(py);
                if !state.has_room() || state.items.is_none() {
                    break;
                }
                state.is_draining
            };
            let next = next_item(items, chunksize);
            let mut state = self.state(py);
            if state.items.is_some() {
                state.add(py, next); // else it was stopped in the meantime
            }
            drop(state);
            if is_draining && round.is_multiple_of(SIGNAL_PERIOD) {
                py.check_signals()?;
            }
        }
        Ok(())
    }

    /// Blocks until there is room for an item. Returns false if reading was stopped.
    fn wait_for_room(&self, py: Python<'_>) -> bool {
        loop {
            let mut state = self.state(py);
            if state.is_abandoned {
                state.collect(py);
            }
            if state.is_stopped || state.has_room() {
                return !state.is_stopped;
            }
            state.tasks.feed.flush();
            let is_abandoned = state.is_abandoned;
            drop(state);
            py.detach(|| {
                if is_abandoned {
                    // Ignores interruptions: the main thread runs signal handlers.
                    let _: Result<bool, WaitError> = self.call.wait(WaitFor::Next, Deadline::after(SLICE));
                    return;
                }
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if !state.is_stopped && !state.has_room() && !state.is_abandoned {
                    state.waits_for_room = true;
                    let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.waits_for_room = false;
                }
            });
        }
    }
}

#[pymethods]
impl Imap {
    /// Reads the first items in this thread, as [`Imap::next`] does later.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        self.fill(py)?;
        self.state(py).tasks.feed.flush();
        Ok(())
    }

    /// Reads all items, as there is room for them, until the end or until [`Imap::stop`]. Runs in a thread of its own.
    fn feed(&self, py: Python<'_>) {
        let (items, chunksize) = {
            let mut state = self.state(py);
            (state.items.take(), state.chunksize)
        };
        let Some(items) = items else { return };
        while self.wait_for_room(py) {
            // Without the lock: the iterator may call this object, or wait for an earlier result.
            let next = next_item(items.bind(py), chunksize);
            let mut state = self.state(py);
            state.add(py, next);
            if state.is_fed {
                return;
            }
            // Short tasks are sent together, unless a caller waits and no other task is running.
            let feed = &state.tasks.feed;
            if state.waiting > 0 && state.count() - feed.unsent() as u64 == state.ended {
                state.tasks.feed.flush();
            }
        }
        self.state(py).end();
    }

    /// Returns the next result in a list; an empty list after `timeout` seconds, `None` at the end.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<Py<PyAny>>>> {
        let deadline = time::deadline(timeout);
        loop {
            self.fill(py)?;
            let mut state = self.state(py);
            if state.ready.is_empty() {
                state.collect(py);
            }
            if let Some(end) = state.ready.pop_front() {
                state.taken += 1;
                if state.waits_for_room {
                    self.changed.notify_one(); // a system call
                }
                return end.map(|value| Some(vec![value])).map_err(|error| PyErr::from_value(error.into_bound(py)));
            }
            if state.is_fed && state.count() == state.taken {
                return state.broken.take().map_or(Ok(None), Err);
            }
            state.tasks.feed.flush(); // the awaited item may be in an unfinished chunk
            state.waiting += 1;
            drop(state);
            let waited = time::wait(py, || self.call.wait(WaitFor::Next, deadline));
            self.state(py).waiting -= 1;
            if !matches!(waited?, Ok(true)) {
                return Ok(Some(Vec::new()));
            }
        }
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.next(py, None)?.and_then(|mut found| found.pop()))
    }

    /// Reads all remaining items, without a bound; or makes the thread that reads them do so.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.state(py).is_draining = true;
        self.changed.notify_all();
        self.fill(py)
    }

    /// Stops reading items.
    fn stop(&self, py: Python<'_>) {
        let mut state = self.state(py);
        state.is_stopped = true;
        if state.items.is_some() {
            state.end();
        }
        self.changed.notify_all();
    }

    /// Stops reading items, and cancels the tasks that no worker has begun.
    fn take_back(&self, py: Python<'_>) {
        self.stop(py);
        py.detach(|| self.call.give_up());
    }

    /// Discards results from now on: no caller can ask for them. Returns whether items remain that no thread reads.
    fn abandon(&self, py: Python<'_>) -> bool {
        let mut state = self.state(py);
        state.is_abandoned = true;
        state.collect(py);
        self.changed.notify_all();
        state.items.is_some()
    }

    /// Returns whether all items were read, or reading was stopped.
    fn is_fed(&self, py: Python<'_>) -> bool {
        self.state(py).is_fed
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // If the lock is held, the object is in use, so it is reachable.
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        visit.call(&state.items)?;
        let fates = state.unsent.values().chain(state.early.values()).chain(&state.ready);
        for fate in fates {
            let (Ok(value) | Err(value)) = fate;
            visit.call(value)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let Ok(mut state) = self.state.try_lock() else { return };
        let items = state.items.take();
        let fates =
            (std::mem::take(&mut state.unsent), std::mem::take(&mut state.early), std::mem::take(&mut state.ready));
        drop(state);
        drop((items, fates)); // outside the lock: destructors may call this object
    }
}

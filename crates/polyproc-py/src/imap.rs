//! [`Imap`]: results one by one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use polyproc_core::pool::{Call, ReadAhead, Want};
use polyproc_core::{Deadline, WaitError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyIterator, PyList};

use crate::codec;
use crate::failure::{Fate, Place, fate, value};
use crate::task::Tasks;
use crate::time;

/// How often the thread that takes items looks whether it is to stop, while it throws results away.
const SLICE: Duration = Duration::from_millis(200);
/// So often signal handlers are run while all items are taken.
const SIGNAL_PERIOD: u64 = 256;

/// Results one by one, of what an iterator gives. Items are taken by [`Imap::next`], or by a thread that calls [`Imap::feed`].
#[derive(Debug)]
#[pyclass(frozen, weakref, module = "polyproc._polyproc")]
pub(crate) struct Imap {
    call: Arc<Call>,
    state: Mutex<State>,
    /// Something was taken, or the feeding is to stop, or to go on to the end.
    changed: Condvar,
}

struct State {
    tasks: Tasks,
    /// `None` once it has given its last item, or a thread of its own takes items.
    items: Option<Py<PyIterator>>,
    /// A thread takes items just now.
    is_filling: bool,
    /// All items were taken.
    is_fed: bool,
    /// Items are taken without a bound, as nobody waits for results any more.
    is_draining: bool,
    /// No more items are taken.
    is_stopped: bool,
    /// Nobody can ask for results any more.
    is_abandoned: bool,
    /// So many wait for a result.
    waiting: usize,
    /// The thread that takes items waits until there is room.
    waits_for_room: bool,
    /// More than one: tasks are of so many, and give lists.
    chunksize: usize,
    /// How long a task may take.
    limit: Option<Duration>,
    ahead: ReadAhead,
    /// How many tasks' results were given on, in their order or not.
    taken: u64,
    /// How many tasks have ended.
    ended: u64,
    ordered: bool,
    /// Errors of items that could not be encoded.
    unsent: BTreeMap<u64, Fate>,
    /// What came before its turn.
    early: BTreeMap<u64, Fate>,
    ready: VecDeque<Fate>,
    /// What the iterator raised, to be raised after all else.
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

    /// Takes what the iterator gave: an item, its end, or an error.
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

    /// Takes the results that have come.
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

/// The next of an iterator, or a list of its next ones.
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

    /// Takes items while there is room for them. Not under the lock: the iterator, and signal handlers, may come back here.
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
                state.add(py, next); // else it was stopped meanwhile
            }
            drop(state);
            if is_draining && round.is_multiple_of(SIGNAL_PERIOD) {
                py.check_signals()?;
            }
        }
        Ok(())
    }

    /// Waits until an item is to be taken; false when none is.
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
                    // A signal is the main thread's.
                    let _: Result<bool, WaitError> = self.call.wait(Want::Next, Deadline::after(SLICE));
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
    /// Takes first items from the iterator in this thread, as [`Imap::next`] does from then on.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        self.fill(py)?;
        self.state(py).tasks.feed.flush();
        Ok(())
    }

    /// Takes all items, as there is room for them, until the end or until [`Imap::stop`]: in a thread that is there for this.
    fn feed(&self, py: Python<'_>) {
        let (items, chunksize) = {
            let mut state = self.state(py);
            (state.items.take(), state.chunksize)
        };
        let Some(items) = items else { return };
        while self.wait_for_room(py) {
            // Not under the lock: the iterator may come back here, or wait for an earlier result.
            let next = next_item(items.bind(py), chunksize);
            let mut state = self.state(py);
            state.add(py, next);
            if state.is_fed {
                return;
            }
            // Short tasks travel together, unless somebody waits for them with nothing else under way.
            let feed = &state.tasks.feed;
            if state.waiting > 0 && state.count() - feed.unsent() as u64 == state.ended {
                state.tasks.feed.flush();
            }
        }
        self.state(py).end();
    }

    /// The next result in a tuple; an empty tuple when the time was over first, `None` at the end.
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
            state.tasks.feed.flush(); // what is waited for may be in an unfinished chunk
            state.waiting += 1;
            drop(state);
            let waited = time::wait(py, || self.call.wait(Want::Next, deadline));
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

    /// Takes all items that there are, as nobody waits for results any more; or has the thread do it that takes them.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.state(py).is_draining = true;
        self.changed.notify_all();
        self.fill(py)
    }

    /// No more items are taken.
    fn stop(&self, py: Python<'_>) {
        let mut state = self.state(py);
        state.is_stopped = true;
        if state.items.is_some() {
            state.end();
        }
        self.changed.notify_all();
    }

    /// No more items are taken, and those back that no worker has begun with.
    fn take_back(&self, py: Python<'_>) {
        self.stop(py);
        py.detach(|| self.call.give_up());
    }

    /// Nobody can ask for results any more: they are thrown away. True when items are left that no thread takes.
    fn abandon(&self, py: Python<'_>) -> bool {
        let mut state = self.state(py);
        state.is_abandoned = true;
        state.collect(py);
        self.changed.notify_all();
        state.items.is_some()
    }

    /// Whether all items were taken.
    fn is_fed(&self, py: Python<'_>) -> bool {
        self.state(py).is_fed
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Where it is in use, it is referred to.
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
        drop((items, fates)); // what that runs may come here
    }
}

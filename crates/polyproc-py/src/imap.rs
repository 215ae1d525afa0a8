//! [`Imap`]: results one by one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use polyproc_core::pool::Want;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyIterator, PyList};

use crate::failure::value;
use crate::task::Tasks;
use crate::time;

/// Results one by one, of what an iterator gives.
#[derive(Debug)]
#[pyclass(frozen, weakref, module = "polyproc._polyproc")]
pub(crate) struct Imap {
    state: Mutex<State>,
}

struct State {
    tasks: Tasks,
    /// `None` once it has given its last item.
    items: Option<Py<PyIterator>>,
    /// More than one: tasks are of so many, and give lists.
    chunksize: usize,
    /// So many tasks may be under way, or ended and not taken.
    ahead: usize,
    /// How many tasks' results were given on, in their order or not.
    taken: u64,
    ordered: bool,
    /// What came before its turn.
    early: BTreeMap<u64, PyResult<Py<PyAny>>>,
    ready: VecDeque<PyResult<Py<PyAny>>>,
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

    /// Takes items while there is room for them; all of them when there is to be no end.
    fn fill(&mut self, py: Python<'_>, to_the_end: bool) {
        while to_the_end || self.count() - self.taken < self.ahead as u64 {
            let Some(items) = &self.items else { return };
            match next_item(&items.bind(py).clone(), self.chunksize) {
                Ok(Some(item)) => {
                    let index = self.count();
                    if let Err(error) = self.push(&item) {
                        self.early.insert(index, Err(error));
                        self.collect(py);
                    }
                }
                end => {
                    self.items = None;
                    self.tasks.feed.seal();
                    self.broken = end.err();
                }
            }
        }
    }

    fn push(&mut self, item: &Bound<'_, PyAny>) -> PyResult<()> {
        match item.cast::<PyList>() {
            Ok(chunk) if self.chunksize > 1 => self.tasks.push_values(false, chunk),
            _ => self.tasks.push_value(false, item),
        }
    }

    /// Takes the results that have come.
    fn collect(&mut self, py: Python<'_>) {
        let early = &mut self.early;
        self.tasks.feed.take(|index, end| _ = early.insert(index, value(py, end)));
        if !self.ordered {
            return self.ready.extend(std::mem::take(early).into_values());
        }
        while let Some(end) = self.early.remove(&(self.taken + self.ready.len() as u64)) {
            self.ready.push_back(end);
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
        ahead: usize,
    ) -> Self {
        let state = State {
            tasks,
            items: Some(items.clone().unbind()),
            chunksize: chunksize.max(1),
            ahead: ahead.max(1),
            taken: 0,
            ordered,
            early: BTreeMap::new(),
            ready: VecDeque::new(),
            broken: None,
        };
        let imap = Self { state: Mutex::new(state) };
        let py = items.py();
        let mut state = imap.state(py);
        state.fill(py, false);
        state.tasks.feed.flush();
        drop(state);
        imap
    }

    fn state(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Imap {
    /// The next result in a tuple; an empty tuple when the time was over first, `None` at the end.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Vec<Py<PyAny>>>> {
        let deadline = time::deadline(timeout);
        let mut state = self.state(py);
        let state = &mut *state;
        state.fill(py, false);
        loop {
            if let Some(end) = state.ready.pop_front() {
                state.taken += 1;
                return Ok(Some(vec![end?]));
            }
            if state.count() == state.taken {
                return state.broken.take().map_or(Ok(None), Err);
            }
            state.tasks.feed.flush(); // what is waited for may be in an unfinished chunk
            let call = state.tasks.feed.call();
            if !matches!(time::wait(py, || call.wait(Want::Next, deadline))?, Ok(true)) {
                return Ok(Some(Vec::new()));
            }
            state.collect(py);
        }
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.next(py, None)?.and_then(|mut found| found.pop()))
    }

    /// Takes all items that there are, as nobody waits for results any more.
    fn drain(&self, py: Python<'_>) {
        self.state(py).fill(py, true);
    }

    /// Whether all items were taken.
    fn is_fed(&self, py: Python<'_>) -> bool {
        self.state(py).items.is_none()
    }
}

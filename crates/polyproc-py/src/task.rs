//! The functions that a pool's worker runs, and the encoding of tasks.
//!
//! The function of a task is its context; a function that refers to descriptors precedes each item instead. An item is a byte,
//! its kind, followed by values of `codec`:
//!
//! | kind | followed by | result |
//! |---|---|---|
//! | CALL | a tuple of arguments, a dict of keyword arguments | the return value |
//! | ONE | an argument | the return value |
//! | STAR_ONE | a tuple, or another iterable, of arguments | the return value |
//! | MANY, STAR_MANY | a list of values as for ONE or STAR_ONE | a list of the return values |
//!
//! An error is the index, `u64`, of the value that raised in an item of many values, or [`WHOLE`]; a length, `u64`, and the
//! traceback as text; and a pickle of the exception.

use std::os::fd::OwnedFd;

use polyproc_core::pool::{self, Submitter};
use polyproc_core::process::{self, Handler};
use polyproc_core::{Input, Payload, Verdict, error_chain};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::codec::{self, Purpose, Source};
use crate::exception::exception;
use crate::sys;

const CALL: u8 = 0;
const ONE: u8 = 1;
const STAR_ONE: u8 = 2;
const MANY: u8 = 3;
const STAR_MANY: u8 = 4;

/// In place of a value's index: the item as a whole failed.
pub(crate) const WHOLE: u64 = u64::MAX;

/// A call to which items are added.
pub(crate) struct Tasks {
    pub(crate) feed: Submitter,
    /// The encoded function, if it precedes each item; else empty.
    pub(crate) prefix: Vec<u8>,
    /// The descriptors of the function, duplicated for each item.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Tasks {
    fn push(&mut self, kind: u8, encode: impl FnOnce(&mut Vec<u8>, &mut Vec<OwnedFd>) -> PyResult<()>) -> PyResult<()> {
        let (prefix, own) = (&self.prefix, &self.fds);
        let pushed = self.feed.push(|out| {
            let mut fds = own.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>()?;
            out.extend(prefix);
            out.push(kind);
            encode(out, &mut fds)?;
            PyResult::Ok(fds)
        });
        pushed.map(drop)
    }

    /// Adds an item of the arguments of a call.
    pub(crate) fn push_call(&mut self, args: &Bound<'_, PyTuple>, kwds: &Bound<'_, PyDict>) -> PyResult<()> {
        self.push(CALL, |out, fds| {
            codec::encode(args, Purpose::Arguments, out, fds)?;
            codec::encode(kwds, Purpose::Arguments, out, fds)
        })
    }

    /// Adds an item of one argument, or, if `star`, of several arguments.
    pub(crate) fn push_value(&mut self, star: bool, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let kind = if star { STAR_ONE } else { ONE };
        self.push(kind, |out, fds| codec::encode(value, Purpose::Arguments, out, fds))
    }

    /// Adds an item of many values, whose result is a list.
    pub(crate) fn push_values(&mut self, star: bool, values: &Bound<'_, PyList>) -> PyResult<()> {
        let kind = if star { STAR_MANY } else { MANY };
        self.push(kind, |out, fds| codec::encode_all(values, Purpose::Arguments, out, fds))
    }
}

/// A task whose function is the context.
pub(crate) enum Task {}

impl Handler<fn()> for Task {
    fn handle(_: fn(), input: Input<'_>, out: &mut Payload) -> Verdict {
        Python::attach(|py| {
            let decode = |bytes: &[u8]| Source::new(bytes, Vec::new()).decode(py).map(Bound::unbind);
            let mut at = WHOLE;
            let ran = match input.context.get_or_decode(decode) {
                Ok(Some(function)) => run(function.bind(py), Source::new(input.bytes, input.fds), out, &mut at),
                Ok(None) => Err(PyRuntimeError::new_err("the task has no function")),
                Err(error) => Err(error),
            };
            answer(py, ran, at, out)
        })
    }
}

/// A task that contains its function.
pub(crate) enum Inline {}

impl Handler<fn()> for Inline {
    fn handle(_: fn(), input: Input<'_>, out: &mut Payload) -> Verdict {
        Python::attach(|py| {
            let mut source = Source::new(input.bytes, input.fds);
            let mut at = WHOLE;
            let ran = source.decode(py).and_then(|function| run(&function, source, out, &mut at));
            answer(py, ran, at, out)
        })
    }
}

fn answer(py: Python<'_>, ran: PyResult<()>, at: u64, out: &mut Payload) -> Verdict {
    let Err(error) = ran else { return Verdict::Returned };
    let wrapped = wrap(py, &error);
    let (text, pickle) = wrapped.unwrap_or_else(|_| (error.to_string(), Vec::new()));
    out.bytes.extend(at.to_le_bytes());
    out.bytes.extend((text.len() as u64).to_le_bytes());
    out.bytes.extend(text.into_bytes());
    out.bytes.extend(pickle);
    Verdict::Raised
}

/// Returns the traceback of an error, and its pickle.
fn wrap(py: Python<'_>, error: &PyErr) -> PyResult<(String, Vec<u8>)> {
    let error = error.clone_ref(py).into_value(py); // with its traceback
    py.import("polyproc._child")?.call_method1("wrap_error", (error,))?.extract()
}

/// Decodes an error that [`answer`] encoded.
pub(crate) fn raised(py: Python<'_>, bytes: &[u8]) -> PyErr {
    let parts = bytes
        .get(size_of::<u64>()..)
        .and_then(|bytes| bytes.split_first_chunk())
        .and_then(|(len, rest)| rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?));
    let Some((text, pickle)) = parts else {
        return PyRuntimeError::new_err("the task failed, and its exception could not be decoded");
    };
    let (text, pickle) = (PyString::new(py, &String::from_utf8_lossy(text)), PyBytes::new(py, pickle));
    exception(py, "polyproc.pool", "_rebuild_error", (text, pickle))
}

/// Calls a function with one argument, or, if `star`, with the items of the value as arguments.
fn call<'py>(function: &Bound<'py, PyAny>, star: bool, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if !star {
        return function.call1((value,));
    }
    match value.cast_into::<PyTuple>() {
        Ok(args) => function.call1(args),
        Err(other) => {
            let args: Vec<_> = other.into_inner().try_iter()?.collect::<PyResult<_>>()?;
            function.call1(PyTuple::new(function.py(), args)?)
        }
    }
}

/// Runs one item. On failure nothing is left in `out`, and `at` is the index of the value that raised, if the item has many.
fn run(function: &Bound<'_, PyAny>, mut source: Source<'_>, out: &mut Payload, at: &mut u64) -> PyResult<()> {
    let py = function.py();
    let kind = source.byte()?;
    let result = match kind {
        CALL => {
            let (args, kwds) = (source.decode(py)?, source.decode(py)?);
            function.call(args.cast::<PyTuple>()?, kwds.cast::<PyDict>().ok())?
        }
        ONE | STAR_ONE => call(function, kind == STAR_ONE, source.decode(py)?)?,
        _ => {
            let start = out.bytes.len();
            let ran = run_many(function, kind == STAR_MANY, source, out, at);
            return ran.inspect_err(|_| out.bytes.truncate(start));
        }
    };
    answer_with(&result, out, codec::encode)
}

/// Encodes a result in `out`. Leaves nothing there if that fails.
fn answer_with<'py, T>(
    result: &Bound<'py, T>,
    out: &mut Payload,
    encode: impl FnOnce(&Bound<'py, T>, Purpose, &mut Vec<u8>, &mut Vec<OwnedFd>) -> PyResult<()>,
) -> PyResult<()> {
    let (py, start) = (result.py(), out.bytes.len());
    encode(result, Purpose::Value, &mut out.bytes, &mut out.fds).map_err(|error| {
        out.bytes.truncate(start);
        out.fds.clear();
        exception(py, "polyproc.pool", "MaybeEncodingError", (error.value(py), result.as_any()))
    })
}

/// Runs a function on each value of a list. Results are encoded one by one as long as they are simple, so that a value and its
/// result are freed before the next value is decoded: otherwise memory access takes most of the time.
fn run_many(
    function: &Bound<'_, PyAny>,
    star: bool,
    source: Source<'_>,
    out: &mut Payload,
    at: &mut u64,
) -> PyResult<()> {
    let py = function.py();
    let mut values = source.decode_list(py)?;
    let start = codec::begin_list(values.len(), &mut out.bytes);
    let (mut done, mut memo) = (0, codec::Memo::default());
    let complex = loop {
        let Some(value) = values.next(py)? else { return Ok(()) };
        let result = call(function, star, value).inspect_err(|_| *at = done as u64)?;
        if !codec::put_in_list(&result, &mut out.bytes, &mut memo) {
            break result;
        }
        done += 1;
    };
    let results = codec::list_so_far(py, &out.bytes[start..], done)?;
    out.bytes.truncate(start);
    results.append(complex)?;
    while let Some(value) = values.next(py)? {
        results.append(call(function, star, value).inspect_err(|_| *at = results.len() as u64)?)?;
    }
    answer_with(&results, out, codec::encode_all)
}

/// Runs a worker: calls `polyproc._child.run_worker(data, fds, name)`, which calls [`serve_tasks`] and returns the exit code.
pub(crate) enum Live {}

impl Handler<fn()> for Live {
    fn handle(_: fn(), input: Input<'_>, out: &mut Payload) -> Verdict {
        Python::attach(|py| {
            let live = || {
                let data = PyBytes::new(py, input.bytes);
                let name = process::current().name;
                let args = (data, sys::hand_over(input.fds), name);
                py.import("polyproc._child")?.call_method1("run_worker", args)?.extract::<i32>()
            };
            match live() {
                Ok(0) => Verdict::Returned,
                Ok(code) => process::leave(code),
                Err(unfit) => answer(py, Err(unfit), WHOLE, out),
            }
        })
    }
}

/// Runs tasks in a pool's worker until the pool ends the worker. The thread stays attached to the interpreter between tasks and
/// detaches only to wait: attaching for each task takes as long as a small task.
#[pyfunction]
pub(crate) fn serve_tasks() -> PyResult<()> {
    pool::serve().map_err(|error| PyOSError::new_err(error_chain(&error)))
}

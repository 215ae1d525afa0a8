//! Values as bytes, one after the other. The first byte of each says how: the simplest values have forms of their own, all
//! else is a pickle.
//!
//! | tag | then |
//! |---|---|
//! | NONE, TRUE, FALSE | nothing |
//! | INT | 8 bytes, little-endian, signed |
//! | FLOAT | 8 bytes, little-endian |
//! | STR, BYTES | a length, `u32`; UTF-8, or any bytes |
//! | TUPLE, LIST, DICT | a count, `u32`; so many values, or keys and values |
//! | PICKLE | how many descriptors it has, `u16`; a length, `u64`; what `polyproc._carry.dumps` made |
//!
//! Only values of exactly these types: a subclass is a pickle. A container has a form of its own only when all in it do, and
//! a list or dict only when it is in nothing else: so nothing that was one object arrives as two that one could tell apart.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::buffer::{self, Owned};
use crate::sys;

const NONE: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const TUPLE: u8 = 7;
const LIST: u8 = 8;
const DICT: u8 = 9;
const PICKLE: u8 = 10;

/// Of a pickle: tag, number of descriptors, length.
const PICKLE_HEAD: usize = 11;
/// A pickle above this is not copied once more to be read.
const LARGE: usize = 64 << 10;
/// Larger bytes, and containers of more, are pickles, which are made without copying, and deep ones.
const MOST: usize = 1 << 16;
const DEEPEST: u32 = 8;

/// A function of `polyproc._carry`.
fn carry<'py>(
    py: Python<'py>,
    function: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let function = function.get_or_try_init(py, || Ok::<_, PyErr>(py.import("polyproc._carry")?.getattr(name)?.into()));
    function.map(|function| function.bind(py))
}

fn put_len(tag: u8, len: usize, out: &mut Vec<u8>) -> bool {
    let Ok(number) = u32::try_from(len) else { return false };
    out.push(tag);
    out.extend(number.to_le_bytes());
    len <= MOST
}

/// Puts the form of a value at the end of `out`, if it has one of its own; else something that is to be removed. `depth` is
/// how far it is down in others.
fn put_simple(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
    if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else { return false };
        out.push(INT);
        out.extend(number.to_le_bytes());
    } else if let Ok(text) = value.cast_exact::<PyString>() {
        let Ok(text) = text.to_str() else { return false }; // lone surrogates
        if !put_len(STR, text.len(), out) {
            return false;
        }
        out.extend(text.as_bytes());
    } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        if !put_len(BYTES, bytes.as_bytes().len(), out) {
            return false;
        }
        out.extend(bytes.as_bytes());
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend(number.value().to_le_bytes());
    } else if value.is_none() {
        out.push(NONE);
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { TRUE } else { FALSE });
    } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return depth < DEEPEST
            && put_len(TUPLE, tuple.len(), out)
            && tuple.iter_borrowed().all(|item| put_simple(&item, out, depth + 1));
    } else if depth > 0 {
        return false;
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        return put_len(LIST, list.len(), out) && list.iter().all(|item| put_simple(&item, out, depth + 1));
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        return put_len(DICT, dict.len(), out)
            && dict.iter().all(|(key, value)| put_simple(&key, out, 1) && put_simple(&value, out, 1));
    } else {
        return false;
    }
    true
}

fn encode_simple(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let is_simple = put_simple(value, out, 0);
    if !is_simple {
        out.truncate(start);
    }
    is_simple
}

/// What is pickled, and so may be pickled in another way where that fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Value,
    /// A function or its arguments: what pickle refuses goes through cloudpickle, where that is installed.
    Task,
}

fn encode_pickle(value: &Bound<'_, PyAny>, what: What, out: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> PyResult<()> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static DUMPS_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    let dumps = match what {
        What::Value => carry(py, &DUMPS, "dumps")?,
        What::Task => carry(py, &DUMPS_TASK, "dumps_task")?,
    };
    let (pickle, numbers): (Bound<'_, PyAny>, Vec<i32>) = dumps.call1((value,))?.extract()?;
    let too_many = || PyRuntimeError::new_err(format!("a value speaks of {} descriptors", numbers.len()));
    out.push(PICKLE);
    out.extend(u16::try_from(numbers.len()).map_err(|_| too_many())?.to_le_bytes());
    let start = out.len();
    out.extend([0; 8]);
    buffer::append(&pickle, out)?;
    let len = (out.len() - start - 8) as u64;
    out[start..start + 8].copy_from_slice(&len.to_le_bytes());
    for number in numbers {
        fds.push(sys::duplicate(number)?);
    }
    Ok(())
}

/// Puts a value at the end of `out`, and copies of the descriptors that it speaks of in `fds`.
pub(crate) fn encode(value: &Bound<'_, PyAny>, what: What, out: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> PyResult<()> {
    if encode_simple(value, out) { Ok(()) } else { encode_pickle(value, what, out, fds) }
}

/// Puts many values at the end of `out`: each in a form of its own, or all in one pickle.
pub(crate) fn encode_all(
    values: &Bound<'_, PyList>,
    what: What,
    out: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> PyResult<()> {
    let start = out.len();
    out.push(LIST);
    out.extend(u32::try_from(values.len()).unwrap_or(u32::MAX).to_le_bytes());
    if u32::try_from(values.len()).is_ok() && values.iter().all(|value| put_simple(&value, out, 1)) {
        return Ok(());
    }
    out.truncate(start);
    encode_pickle(values, what, out, fds)
}

fn broken() -> PyErr {
    PyRuntimeError::new_err("what arrived is no value that polyproc sent")
}

/// What there is to decode.
pub(crate) struct Source<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fds: std::vec::IntoIter<OwnedFd>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8], fds: Vec<OwnedFd>) -> Self {
        Self { bytes, fds: fds.into_iter() }
    }

    fn take<const LEN: usize>(&mut self) -> PyResult<[u8; LEN]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(broken)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn byte(&mut self) -> PyResult<u8> {
        self.take().map(|[byte]| byte)
    }

    fn take_len(&mut self) -> PyResult<usize> {
        Ok(u32::from_le_bytes(self.take()?) as usize)
    }

    fn take_bytes(&mut self, len: usize) -> PyResult<&'a [u8]> {
        self.bytes.split_off(..len).ok_or_else(broken)
    }

    /// Number of descriptors and length of a pickle.
    fn take_pickle_head(&mut self) -> PyResult<(usize, usize)> {
        let fds = u16::from_le_bytes(self.take()?);
        let len = usize::try_from(u64::from_le_bytes(self.take()?)).map_err(|_| broken())?;
        Ok((fds.into(), len))
    }

    /// The next value.
    pub(crate) fn decode<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let [tag] = self.take()?;
        match tag {
            INT => Ok(i64::from_le_bytes(self.take()?).into_pyobject(py)?.into_any()),
            FLOAT => Ok(PyFloat::new(py, f64::from_le_bytes(self.take()?)).into_any()),
            NONE => Ok(py.None().into_bound(py)),
            TRUE | FALSE => Ok(PyBool::new(py, tag == TRUE).to_owned().into_any()),
            STR => {
                let len = self.take_len()?;
                let text = std::str::from_utf8(self.take_bytes(len)?).map_err(|_| broken())?;
                Ok(PyString::new(py, text).into_any())
            }
            BYTES => {
                let len = self.take_len()?;
                Ok(PyBytes::new(py, self.take_bytes(len)?).into_any())
            }
            TUPLE => {
                let items: Vec<_> = self.decode_many(py)?;
                Ok(PyTuple::new(py, items)?.into_any())
            }
            LIST => Ok(PyList::new(py, self.decode_many(py)?)?.into_any()),
            DICT => {
                let dict = PyDict::new(py);
                for _ in 0..self.take_len()? {
                    dict.set_item(self.decode(py)?, self.decode(py)?)?;
                }
                Ok(dict.into_any())
            }
            PICKLE => {
                let (fds, len) = self.take_pickle_head()?;
                let pickle = PyBytes::new(py, self.take_bytes(len)?);
                loads(py, pickle.into_any(), self.fds.by_ref().take(fds).collect())
            }
            _ => Err(broken()),
        }
    }

    fn decode_many<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let count = self.take_len()?;
        if count > self.bytes.len() {
            return Err(broken());
        }
        (0..count).map(|_| self.decode(py)).collect()
    }
}

fn loads<'py>(py: Python<'py>, pickle: Bound<'py, PyAny>, fds: Vec<OwnedFd>) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    carry(py, &LOADS, "loads")?.call1((pickle, sys::hand_over(fds)))
}

thread_local! {
    /// Memory for messages, to be used again.
    static MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// More is given back.
const KEPT: usize = 1 << 20;

/// Runs `use_it` with memory for a message.
pub(crate) fn with_memory<T>(use_it: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut bytes = MEMORY.take();
    bytes.clear();
    let result = use_it(&mut bytes);
    if bytes.capacity() <= KEPT {
        MEMORY.set(bytes);
    }
    result
}

/// The value of a message of one value. The message is used up if it is large.
pub(crate) fn decode_message<'py>(
    py: Python<'py>,
    bytes: &mut Vec<u8>,
    fds: Vec<OwnedFd>,
) -> PyResult<Bound<'py, PyAny>> {
    if bytes.len() >= LARGE && bytes.first() == Some(&PICKLE) {
        return loads(py, Bound::new(py, Owned::new(std::mem::take(bytes), PICKLE_HEAD))?.into_any(), fds);
    }
    Source::new(bytes, fds).decode(py)
}

/// Borrowed for a message.
pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

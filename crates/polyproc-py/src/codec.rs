//! Values as bytes. The first byte says how: the simplest values have forms of their own, all else is a pickle.
//!
//! | tag | then |
//! |---|---|
//! | NONE, TRUE, FALSE | nothing |
//! | INT | 8 bytes, little-endian, signed |
//! | FLOAT | 8 bytes, little-endian |
//! | STR | UTF-8 |
//! | BYTES | the bytes |
//! | PICKLE | what `polyproc._carry.dumps` made |
//!
//! Only values of exactly these types: a subclass is a pickle.

use std::os::fd::{AsFd, OwnedFd};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

use crate::buffer::{self, Owned};
use crate::sys;

const NONE: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const PICKLE: u8 = 7;

/// A pickle above this is not copied once more to be read.
const LARGE: usize = 64 << 10;

fn carry<'py>(
    py: Python<'py>,
    function: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let function = function.get_or_try_init(py, || Ok::<_, PyErr>(py.import("polyproc._carry")?.getattr(name)?.into()));
    function.map(|function| function.bind(py))
}

/// Puts the form of a value at the end of `out`, if it has one of its own.
fn encode_simple(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else { return false };
        out.push(INT);
        out.extend(number.to_le_bytes());
    } else if let Ok(text) = value.cast_exact::<PyString>() {
        let Ok(text) = text.to_str() else { return false }; // lone surrogates
        out.push(STR);
        out.extend(text.as_bytes());
    } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        out.push(BYTES);
        out.extend(bytes.as_bytes());
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend(number.value().to_le_bytes());
    } else if value.is_none() {
        out.push(NONE);
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { TRUE } else { FALSE });
    } else {
        return false;
    }
    true
}

/// Puts a value at the end of `out`, and copies of the descriptors that it speaks of in `fds`.
pub(crate) fn encode(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> PyResult<()> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if encode_simple(value, out) {
        return Ok(());
    }
    let dumped = carry(value.py(), &DUMPS, "dumps")?.call1((value,))?;
    let (pickle, numbers): (Bound<'_, PyAny>, Vec<i32>) = dumped.extract()?;
    out.push(PICKLE);
    buffer::append(&pickle, out)?;
    for number in numbers {
        fds.push(sys::duplicate(number)?);
    }
    Ok(())
}

/// The value of these bytes. They are used up if they are many.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &mut Vec<u8>, fds: Vec<OwnedFd>) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let broken = || PyRuntimeError::new_err("what arrived is no value that polyproc sent");
    let (tag, body) = bytes.split_first().ok_or_else(broken)?;
    let word = || body.try_into().map_err(|_| broken());
    match *tag {
        INT => Ok(i64::from_le_bytes(word()?).into_pyobject(py)?.into_any()),
        STR => Ok(PyString::new(py, std::str::from_utf8(body).map_err(|_| broken())?).into_any()),
        BYTES => Ok(PyBytes::new(py, body).into_any()),
        FLOAT => Ok(PyFloat::new(py, f64::from_le_bytes(word()?)).into_any()),
        NONE => Ok(py.None().into_bound(py)),
        TRUE | FALSE => Ok(PyBool::new(py, *tag == TRUE).to_owned().into_any()),
        PICKLE => {
            let loads = carry(py, &LOADS, "loads")?;
            let fds = sys::hand_over(fds);
            if body.len() < LARGE {
                return loads.call1((PyBytes::new(py, body), fds));
            }
            loads.call1((Owned::new(std::mem::take(bytes), 1), fds))
        }
        _ => Err(broken()),
    }
}

/// Borrowed for a message.
pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<std::os::fd::BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

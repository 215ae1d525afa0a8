//! The buffer protocol: memory of Python objects read here, and memory of ours read there.
#![expect(unsafe_code, reason = "the fence: raw pointers of the buffer protocol")]

use std::ffi::{c_int, c_void};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Puts the bytes of an object at the end of `out`.
pub(crate) fn append(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    let buffer = PyBuffer::<u8>::get(object)?;
    let start = out.len();
    out.resize(start + buffer.len_bytes(), 0);
    buffer.copy_to_slice(object.py(), &mut out[start..])?;
    Ok(())
}

/// Bytes that came from another process: a private copy, which whoever reads it may change.
#[pyclass(frozen, module = "polyproc._polyproc", name = "Buffer")]
#[derive(Debug)]
pub(crate) struct Owned {
    bytes: Box<[u8]>,
    start: usize,
}

impl Owned {
    /// Without the first `start` bytes.
    pub(crate) fn new(bytes: Vec<u8>, start: usize) -> Self {
        Self { bytes: bytes.into_boxed_slice(), start }
    }
}

#[pymethods]
impl Owned {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("view is null"));
        }
        let this = slf.get();
        let start = this.bytes[this.start..].as_ptr().cast::<c_void>().cast_mut();
        let len = this.bytes.len() - this.start;
        // SAFETY: the memory is this object's and stays where it is as long as the object lives, which the view holds; nobody
        // reads or writes it but through views.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len.cast_signed(), 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

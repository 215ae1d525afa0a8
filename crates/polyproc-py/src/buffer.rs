//! The buffer protocol: reads the memory of Python objects, and exports our memory to Python.
#![expect(unsafe_code, reason = "the fence: raw pointers of the buffer protocol")]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use polyproc_core::{Loan, PerProcess};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Appends the bytes of an object to `out`.
pub(crate) fn append(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    let buffer = PyBuffer::<u8>::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    with_bytes(std::slice::from_ref(&buffer), |parts| parts.iter().for_each(|part| out.extend_from_slice(part)));
    Ok(())
}

/// Calls `read` with the bytes of contiguous buffers.
pub(crate) fn with_bytes<T>(buffers: &[PyBuffer<u8>], read: impl FnOnce(&[&[u8]]) -> T) -> T {
    let bytes = |buffer: &PyBuffer<u8>| {
        let start = NonNull::new(buffer.buf_ptr().cast::<u8>()).unwrap_or(NonNull::dangling());
        // SAFETY: the exporter keeps `len_bytes` bytes there as long as the view is held. A thread that writes to them at the
        // same time races with this read as it would with `bytes(buffer)`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), buffer.len_bytes()) }
    };
    read(&buffers.iter().map(bytes).collect::<Vec<_>>())
}

/// Memory received from another process: a copy, or a loan, which is mapped privately.
#[derive(Debug)]
pub(crate) enum Memory {
    Bytes(Bytes),
    Lent(Loan),
}

/// Bytes that Python code may write through views, so that no Rust reference to them may exist.
#[derive(Debug)]
pub(crate) struct Bytes(NonNull<[u8]>);

// SAFETY: the memory belongs to `self`; it is read and written through views, as any buffer of Python is.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(NonNull::from(Box::leak(bytes.into_boxed_slice())))
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: the pointer is from `Box::leak` and is freed only here; views keep the object alive that owns `self`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Memory {
    fn as_raw(&self) -> (NonNull<u8>, usize) {
        match self {
            Self::Bytes(bytes) => (bytes.0.cast(), bytes.0.len()),
            Self::Lent(loan) => loan.as_raw(),
        }
    }

    pub(crate) fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let (start, len) = self.as_raw();
        // SAFETY: `len` bytes are there as long as `self` lives; no view exists yet through which they could be written.
        PyBytes::new(py, unsafe { std::slice::from_raw_parts(start.as_ptr(), len) })
    }
}

/// The loans that this process uses.
static LOANS: PerProcess<Mutex<Vec<Weak<Memory>>>> = PerProcess::inherited();

pub(crate) fn note_loan(loan: Loan) -> Arc<Memory> {
    let memory = Arc::new(Memory::Lent(loan));
    let mut loans = LOANS.get().lock().unwrap_or_else(PoisonError::into_inner);
    loans.retain(|known| known.strong_count() > 0);
    loans.push(Arc::downgrade(&memory));
    memory
}

/// Returns the descriptor of a loan that contains all of `parts` unchanged, and the offset of each part.
pub(crate) fn find_loan(parts: &[&[u8]]) -> PyResult<Option<(OwnedFd, Vec<u64>)>> {
    let loans: Vec<_> = {
        let loans = LOANS.get().lock().unwrap_or_else(PoisonError::into_inner);
        loans.iter().filter_map(Weak::upgrade).collect()
    };
    for memory in loans {
        let Memory::Lent(loan) = &*memory else { continue };
        let (base, len) = loan.as_raw();
        let start_of = |part: &&[u8]| {
            let start = part.as_ptr().addr().checked_sub(base.addr().get())?;
            let is_inside = start.checked_add(part.len())? <= len && loan.is_unchanged(start..start + part.len());
            is_inside.then_some(start as u64)
        };
        if let Some(starts) = parts.iter().map(start_of).collect::<Option<Vec<_>>>() {
            return Ok(loan.file().map(|file| Ok::<_, io::Error>((file.try_clone_to_owned()?, starts))).transpose()?);
        }
    }
    Ok(None)
}

/// A range of memory, exported as a writable buffer.
#[pyclass(frozen, module = "polyproc._polyproc", name = "Buffer")]
#[derive(Debug)]
pub(crate) struct Owned {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
}

impl Owned {
    /// Wraps `bytes` without the first `start` bytes.
    pub(crate) fn new(bytes: Vec<u8>, start: usize) -> Self {
        let len = bytes.len().saturating_sub(start);
        Self { memory: Arc::new(Memory::Bytes(bytes.into())), start, len }
    }

    /// Returns `len` bytes from `start` on, or `None` if they are not all inside the memory.
    pub(crate) fn part(memory: &Arc<Memory>, start: usize, len: usize) -> Option<Self> {
        (start.checked_add(len)? <= memory.as_raw().1).then(|| Self { memory: Arc::clone(memory), start, len })
    }
}

#[pymethods]
impl Owned {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("view is null"));
        }
        let this = slf.get();
        // SAFETY: `start` is at most the length of the memory.
        let start = unsafe { this.memory.as_raw().0.add(this.start) }.as_ptr().cast::<c_void>();
        // SAFETY: the memory belongs to this object and does not move as long as the object lives, which the view keeps alive;
        // it is read and written only through views.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, this.len.cast_signed(), 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

//! Pipes: the engine behind `python/polyproc/connection.py`, which identifies a connection by its descriptor.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use polyproc_core::Deadline;
use polyproc_core::conn::Connection;
use pyo3::exceptions::PyEOFError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::codec::{self, Purpose};
use crate::{buffer, sys, time};

/// Tags of messages: sent as a value, or as bytes.
const VALUE: u8 = 0;
const BYTES: u8 = 1;

/// Returns both ends of a new pipe. Unless `duplex`, the first one only receives and the second one only sends.
#[pyfunction]
fn pipe(duplex: bool) -> PyResult<(RawFd, RawFd)> {
    let (a, b) = Connection::pair()?;
    if !duplex {
        a.shut(true)?;
        b.shut(false)?;
    }
    Ok((OwnedFd::from(a).into_raw_fd(), OwnedFd::from(b).into_raw_fd()))
}

/// Sends a value.
#[pyfunction]
fn send(handle: RawFd, obj: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = obj.py();
    codec::with_memory(|bytes| {
        let mut fds = Vec::new();
        codec::encode(obj, Purpose::Value, bytes, &mut fds)?;
        send_message(py, handle, VALUE, bytes, &fds)
    })
}

/// Sends bytes.
#[pyfunction]
fn send_bytes(handle: RawFd, data: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = data.py();
    codec::with_memory(|bytes| {
        buffer::append(data, bytes)?;
        send_message(py, handle, BYTES, bytes, &[])
    })
}

fn send_message(py: Python<'_>, handle: RawFd, tag: u8, bytes: &[u8], fds: &[OwnedFd]) -> PyResult<()> {
    let fds = codec::borrowed(fds);
    let connection = sys::connection(handle)?;
    let lent = codec::lent_bytes(bytes);
    Ok(time::wait(py, || connection.send_tagged(tag, bytes, &fds, lent, Deadline::NEVER))??)
}

fn receive(py: Python<'_>, handle: RawFd) -> PyResult<(u8, Vec<u8>, Vec<OwnedFd>)> {
    let connection = sys::connection(handle)?;
    let message = time::wait(py, || connection.receive_tagged(Deadline::NEVER))??;
    let (tag, message) = message.ok_or_else(|| PyEOFError::new_err(()))?;
    Ok((tag, message.bytes, message.fds))
}

/// Receives a value. A message that was sent as bytes is unpickled.
#[pyfunction]
fn recv(py: Python<'_>, handle: RawFd) -> PyResult<Bound<'_, PyAny>> {
    match receive(py, handle)? {
        (BYTES, bytes, _) => codec::unpickle(py, &bytes),
        (_, mut bytes, fds) => codec::decode_message(py, &mut bytes, fds),
    }
}

/// Receives a message as bytes. A message that was sent as a value is pickled.
#[pyfunction]
fn recv_bytes(py: Python<'_>, handle: RawFd) -> PyResult<Bound<'_, PyBytes>> {
    match receive(py, handle)? {
        (BYTES, bytes, _) => Ok(PyBytes::new(py, &bytes)),
        (_, mut bytes, fds) => {
            let value = codec::decode_message(py, &mut bytes, fds)?;
            Ok(py.import("pickle")?.call_method1("dumps", (value,))?.cast_into()?)
        }
    }
}

/// Returns whether a message has arrived, or the other end was closed, within `timeout` seconds.
#[pyfunction]
fn poll(py: Python<'_>, handle: RawFd, timeout: Option<f64>) -> PyResult<bool> {
    let (connection, deadline) = (sys::connection(handle)?, time::deadline(timeout));
    Ok(time::wait(py, || connection.poll(deadline))??)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(pipe, module)?)?;
    module.add_function(wrap_pyfunction!(send, module)?)?;
    module.add_function(wrap_pyfunction!(send_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(recv, module)?)?;
    module.add_function(wrap_pyfunction!(recv_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(poll, module)?)
}

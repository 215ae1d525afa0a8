//! Pipes: what `python/polyproc/connection.py` is made of. Connections are known by their descriptors there.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use polyproc_core::Deadline;
use polyproc_core::conn::Connection;
use pyo3::exceptions::PyEOFError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::codec::{self, How};
use crate::{buffer, sys, time};

/// Both ends of a new pipe; without `duplex`, one to receive from, and one to send to.
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
        codec::encode(obj, How::VALUE, bytes, &mut fds)?;
        send_message(py, handle, bytes, &fds)
    })
}

/// Sends bytes.
#[pyfunction]
fn send_bytes(handle: RawFd, data: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = data.py();
    codec::with_memory(|bytes| {
        buffer::append(data, bytes)?;
        send_message(py, handle, bytes, &[])
    })
}

fn send_message(py: Python<'_>, handle: RawFd, bytes: &[u8], fds: &[OwnedFd]) -> PyResult<()> {
    let fds = codec::borrowed(fds);
    let connection = sys::connection(handle)?;
    let lent = codec::lent_bytes(bytes);
    Ok(time::wait(py, || connection.send_lent(bytes, &fds, lent, Deadline::NEVER))??)
}

fn receive(py: Python<'_>, handle: RawFd) -> PyResult<(Vec<u8>, Vec<OwnedFd>)> {
    let connection = sys::connection(handle)?;
    let message = time::wait(py, || connection.receive(Deadline::NEVER))??;
    let message = message.ok_or_else(|| PyEOFError::new_err(()))?;
    Ok((message.head, message.fds))
}

/// The next value.
#[pyfunction]
fn recv(py: Python<'_>, handle: RawFd) -> PyResult<Bound<'_, PyAny>> {
    let (mut bytes, fds) = receive(py, handle)?;
    codec::decode_message(py, &mut bytes, fds)
}

/// The next message, which was sent as bytes.
#[pyfunction]
fn recv_bytes(py: Python<'_>, handle: RawFd) -> PyResult<Bound<'_, PyBytes>> {
    Ok(PyBytes::new(py, &receive(py, handle)?.0))
}

/// Whether there is a message, or the other end is closed, before `timeout` seconds are over.
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

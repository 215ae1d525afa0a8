//! Values that are sent as pickles, which `polyproc._pickling` writes and reads. The bytes are described in `codec`: PICKLE,
//! BUFFERS, LENT_BUFFERS.
//!
//! `encode` and `list` use [`put_pickle`] for values without an encoding of their own; `decode` calls the decoders. A value's
//! descriptors are those of the handles in it, such as locks and queues; if it has a loan, the loan's descriptor precedes them.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList};

use super::loan::lend;
use super::source::{Source, broken};
use super::tag::{BUFFERS, LENT_BUFFERS, PICKLE};
use crate::buffer::{self, Memory, Owned};
use crate::sys;

/// Bytes of a message with tag PICKLE before the pickle: tag, number of descriptors, length.
pub(super) const PICKLE_HEAD: usize = 11;

/// The purpose of a value, which determines how it is sent if it has no encoding of its own.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// A result, or an item of a queue or a pipe.
    Value,
    /// An item of a queue that takes no loan: the queue limits its bytes, or has no room for a descriptor.
    CopiedValue,
    /// Arguments of a task, by pickle or cloudpickle.
    Arguments,
    /// A function, by pickle or cloudpickle. Its buffers are not lent, since it is sent to each worker only once.
    Function,
}

impl Purpose {
    /// Returns whether large buffers are sent in a loan instead of in the message.
    #[inline]
    pub(super) fn lends(self) -> bool {
        matches!(self, Self::Value | Self::Arguments)
    }

    /// Returns the function that pickles the value. `dumps_task` passes values that pickle refuses to cloudpickle, if that is
    /// installed.
    fn dumps(self, py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
        static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        static DUMPS_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        match self {
            Self::Value | Self::CopiedValue => DUMPS.import(py, "polyproc._pickling", "dumps"),
            Self::Arguments | Self::Function => DUMPS_TASK.import(py, "polyproc._pickling", "dumps_task"),
        }
    }
}

/// Appends the tag and the pickle of a value to `out`, and duplicates of its descriptors to `fds`. After an error both may end
/// with a part of the value.
pub(super) fn put_pickle(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    out: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> PyResult<()> {
    let (pickle, numbers, buffers): (Bound<'_, PyAny>, Vec<RawFd>, Vec<Bound<'_, PyAny>>) =
        purpose.dumps(value.py())?.call1((value,))?.extract()?;
    let buffers = buffers.iter().map(PyBuffer::get).collect::<PyResult<Vec<PyBuffer<u8>>>>()?;
    let lent = if purpose.lends() { lend(&buffers)? } else { None };
    match (&lent, buffers.is_empty()) {
        (Some(lent), _) => {
            out.push(LENT_BUFFERS);
            out.extend(lent.len.to_le_bytes());
        }
        (None, false) => out.push(BUFFERS),
        (None, true) => out.push(PICKLE),
    }
    let too_many = || PyRuntimeError::new_err(format!("a value refers to {} descriptors", numbers.len()));
    out.extend(u16::try_from(numbers.len()).map_err(|_| too_many())?.to_le_bytes());
    let start = out.len();
    out.extend([0; 8]);
    buffer::append(&pickle, out)?;
    let len = (out.len() - start - 8) as u64;
    out[start..start + 8].copy_from_slice(&len.to_le_bytes());
    if !buffers.is_empty() {
        let too_many = |_| PyRuntimeError::new_err("a value has too many buffers");
        out.extend(u32::try_from(buffers.len()).map_err(too_many)?.to_le_bytes());
        for (at, buffer) in buffers.iter().enumerate() {
            if let Some(lent) = &lent {
                out.extend(lent.starts[at].to_le_bytes());
            }
            out.extend((buffer.len_bytes() as u64).to_le_bytes());
        }
        if lent.is_none() {
            buffer::with_bytes(&buffers, |parts| parts.iter().for_each(|part| out.extend_from_slice(part)));
        }
    }
    fds.extend(lent.map(|lent| lent.fd));
    for number in numbers {
        fds.push(sys::duplicate(number)?);
    }
    Ok(())
}

/// Unpickles a value, which takes ownership of its descriptors. `buffers` are those that are not in the pickle.
pub(super) fn loads<'py>(
    py: Python<'py>,
    pickle: impl IntoPyObject<'py>,
    fds: Vec<OwnedFd>,
    buffers: Option<Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOADS.import(py, "polyproc._pickling", "loads")?.call1((pickle, sys::hand_over(fds), buffers))
}

/// Unpickles bytes that were sent as bytes (`Connection.send_bytes`): a pickle without descriptors and separate buffers.
pub(crate) fn unpickle<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    loads(py, PyBytes::new(py, pickle), Vec::new(), None)
}

impl<'a> Source<'a> {
    /// Takes the bytes of a pickle. Returns them after the number of descriptors that belong to it.
    fn take_pickle(&mut self) -> PyResult<(usize, &'a [u8])> {
        let fds = u16::from_le_bytes(self.take()?);
        let len = self.take_u64()?;
        Ok((fds.into(), self.take_bytes(len)?))
    }

    fn take_fds(&mut self, count: usize) -> Vec<OwnedFd> {
        self.fds.by_ref().take(count).collect()
    }

    /// Decodes a value whose buffers are all in its pickle. The tag was taken before.
    pub(super) fn decode_pickle<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (fds, pickle) = self.take_pickle()?;
        loads(py, PyBytes::new(py, pickle), self.take_fds(fds), None)
    }

    /// Decodes a value with buffers that are not in its pickle: they are in `loan` or, without one, after the pickle.
    pub(super) fn decode_with_buffers<'py>(
        &mut self,
        py: Python<'py>,
        loan: Option<&Arc<Memory>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (fds, pickle) = self.take_pickle()?;
        let count = self.take_len()?;
        let mut places = Vec::new();
        for _ in 0..count {
            let start = if loan.is_some() { self.take_u64()? } else { 0 };
            places.push((start, self.take_u64()?));
        }
        let buffers = PyList::empty(py);
        for (start, len) in places {
            match loan {
                Some(loan) => buffers.append(Owned::part(loan, start, len).ok_or_else(broken)?)?,
                // Copied, as its offset in the message may be unaligned for the elements of an array.
                None => buffers.append(PyByteArray::new(py, self.take_bytes(len)?))?,
            }
        }
        loads(py, PyBytes::new(py, pickle), self.take_fds(fds), Some(buffers))
    }
}

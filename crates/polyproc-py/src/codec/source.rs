//! [`Source`]: reads numbers and bytes from an encoded value.

use std::os::fd::OwnedFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

pub(super) fn broken() -> PyErr {
    PyRuntimeError::new_err("the received bytes are not a value that polyproc sent")
}

/// Bytes to decode, with their descriptors.
pub(crate) struct Source<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) fds: std::vec::IntoIter<OwnedFd>,
    /// The long strings and bytes decoded so far in the current container.
    pub(super) repeated: Vec<Py<PyAny>>,
}

impl<'a> Source<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8], fds: Vec<OwnedFd>) -> Self {
        Self { bytes, fds: fds.into_iter(), repeated: Vec::new() }
    }

    #[inline]
    pub(super) fn take<const LEN: usize>(&mut self) -> PyResult<[u8; LEN]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(broken)?;
        self.bytes = rest;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> PyResult<u8> {
        self.take().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn take_len(&mut self) -> PyResult<usize> {
        Ok(u32::from_le_bytes(self.take()?) as usize)
    }

    #[inline]
    pub(super) fn take_u64(&mut self) -> PyResult<usize> {
        usize::try_from(u64::from_le_bytes(self.take()?)).map_err(|_| broken())
    }

    #[inline]
    pub(super) fn take_bytes(&mut self, len: usize) -> PyResult<&'a [u8]> {
        self.bytes.split_off(..len).ok_or_else(broken)
    }
}

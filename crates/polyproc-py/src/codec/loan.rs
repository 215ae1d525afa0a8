//! Loans: large buffers and `bytes` objects, which the receiver maps instead of copying.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use polyproc_core::Loan;
use polyproc_core::pool::may_lend;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::source::{Source, broken};
use super::tag::{LENT_BUFFERS, LENT_BYTES};
use crate::buffer::{self, Memory};

/// Buffers of at least this many bytes together are lent.
const LENT: usize = 1 << 20;

/// Buffers in the memory of a loan.
pub(super) struct Lent {
    pub(super) fd: OwnedFd,
    pub(super) len: u64,
    pub(super) starts: Vec<u64>,
}

/// Lends buffers that are large enough. Buffers in a loan to this process are lent on without a copy if they are unchanged.
pub(super) fn lend(buffers: &[PyBuffer<u8>]) -> PyResult<Option<Lent>> {
    if buffers.iter().map(|buffer| buffer.len_bytes()).sum::<usize>() < LENT || !may_lend() {
        return Ok(None);
    }
    buffer::with_bytes(buffers, |parts| {
        let ends = |starts: &[u64]| starts.iter().zip(parts).map(|(start, part)| start + part.len() as u64).max();
        let lent = match buffer::find_loan(parts)? {
            Some(found) => Some(found),
            // If the system has no descriptor or memory for a loan, the buffers are copied.
            None => polyproc_core::lend(parts).unwrap_or(None),
        };
        Ok(lent.map(|(fd, starts)| Lent { fd, len: ends(&starts).unwrap_or(0), starts }))
    })
}

/// Lends a `bytes` object that is large enough, and appends its encoding. Returns false, and appends nothing, for any other
/// value, or if nothing can be lent.
#[inline]
pub(super) fn put_lent_bytes(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> bool {
    if let Ok(bytes) = value.cast_exact::<PyBytes>()
        && bytes.as_bytes().len() >= LENT
        && may_lend()
        && let Ok(Some((fd, _))) = polyproc_core::lend(&[bytes.as_bytes()])
    {
        out.push(LENT_BYTES);
        out.extend((bytes.as_bytes().len() as u64).to_le_bytes());
        fds.push(fd);
        return true;
    }
    false
}

/// Returns whether a message refers to a loan.
#[inline]
pub(crate) fn is_lent(message: &[u8]) -> bool {
    matches!(message.first(), Some(&LENT_BUFFERS | &LENT_BYTES))
}

/// Returns the length of the loan that a message refers to, in bytes; 0 if there is none.
pub(crate) fn lent_bytes(message: &[u8]) -> usize {
    let len = message.get(1..9).filter(|_| is_lent(message)).and_then(|len| len.try_into().ok());
    len.and_then(|len| usize::try_from(u64::from_le_bytes(len)).ok()).unwrap_or(0)
}

impl Source<'_> {
    /// Takes the length of the loan behind the next descriptor, and maps the loan.
    pub(super) fn take_loan(&mut self) -> PyResult<Arc<Memory>> {
        let len = self.take_u64()?;
        Ok(buffer::note_loan(Loan::open(self.fds.next().ok_or_else(broken)?, len)?))
    }
}
